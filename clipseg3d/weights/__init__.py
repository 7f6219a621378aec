"""Weights that come with the package: a folder for each name."""

from pathlib import Path

BUNDLED = Path(__file__).parent
CONFIG = "config.json"
"""File that describes a network, in its folder."""
DEFAULT_WEIGHTS = "tiny"
"""Weights that segment where none are named."""


def bundled_names() -> list[str]:
    """Return the names of the weights that come with the package."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{CONFIG}"))
