"""Configurations of fits that come with the package: ``clipseg3d fit --config NAME``.

The first line of each file says what it is for, as a comment.
"""

from pathlib import Path

SHIPPED = Path(__file__).parent


def config_names() -> list[str]:
    """Return the names of the configurations that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def config_path(name: str) -> Path:
    """Return the file of a configuration that comes with the package."""
    return SHIPPED / f"{name}.yaml"


def summary(name: str) -> str:
    """Return what a configuration is for, in one line."""
    text = config_path(name).read_text(encoding="utf-8")
    return text.partition("\n")[0].removeprefix("# ")
