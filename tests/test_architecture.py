"""Holds the folder plan: which way imports point, and what a bare import may load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import clipseg3d

PACKAGE = Path(clipseg3d.__file__).parent
# room -> rooms it may import; every room may import itself, and the public names load lazily
ARROWS = {
    "volume": set(),
    "atomic_write": set(),
    "batch": {"volume"},
    "blocks": {"volume"},
    "clip": {"blocks", "atomic_write", "hub"},  # the last for the place of bundled weights
    "hub": {"data.text_files", "atomic_write", "clipseg3d"},  # the last for its version
    "networks": {"blocks", "clip", "volume", "hub", "clipseg3d"},
    "losses": set(),
    "metrics": set(),
    "data": {"batch", "volume", "atomic_write"},
    "inference": {
        "networks",
        "clip.encoder",
        "hub",
        "blocks",
        "volume",
        "atomic_write",
        "metrics",
        "reporting.case_report",
    }
    | {f"data.{name}" for name in ("releases", "cases", "nifti", "preprocess", "label_pairs")}
    | {"data.text_files"},
    "training": {"networks", "losses", "metrics", "inference", "batch", "volume", "atomic_write"}
    | {"reporting.figures"}
    | {"data.releases", "data.sampling", "clipseg3d"},  # the last for the place of its files
    "export": {"networks", "blocks", "volume", "hub", "atomic_write", "clipseg3d"},
    "reporting": {"metrics", "atomic_write"},
    "demo": {"networks", "training", "inference", "reporting", "metrics", "data", "atomic_write"},
    "cli": {"demo", "training", "inference", "reporting", "metrics", "data", "clip"}
    | {"networks", "export", "atomic_write"},
    "__main__": {"cli"},
}
THIRD_PARTY = {
    "volume": {"torch", "einops"},
    "blocks": {"torch", "einops"},
    "batch": {"torch"},
    "metrics": {"torch", "torchmetrics", "numpy", "scipy"},
    "hub": {"torch", "safetensors", "huggingface_hub", "jsonargparse"},
    "networks": {"torch", "einops", "huggingface_hub"},
    "reporting": {"torch", "numpy", "scipy", "matplotlib", "jinja2"},
}


def sources() -> list[Path]:
    return [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_along_the_arrows(path):
    room = room_of(path)
    ours = {name.removeprefix("clipseg3d.") for name in imports_of(path) if "clipseg3d" in name}
    allowed = ARROWS[room] | {room}
    stray = {
        name for name in ours if not any(f"{name}.".startswith(f"{room}.") for room in allowed)
    }
    assert stray == set()


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_light_rooms_import_no_heavy_library(path):
    room = room_of(path)
    if room not in THIRD_PARTY:
        room_is_free = room in ARROWS
        assert room_is_free
        return
    top = {name.partition(".")[0] for name in imports_of(path)} - {"clipseg3d"}
    assert top - set(sys.stdlib_module_names) <= THIRD_PARTY[room]


def test_only_clip_imports_transformers():
    users = {room_of(path) for path in sources() if "transformers" in imports_of(path)}
    assert users == {"clip"}


def test_a_bare_import_loads_nothing_heavy():
    code = "import sys, clipseg3d; dir(clipseg3d); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {"torch", "numpy", "monai", "transformers", "pytorch_lightning", "nibabel"}
    assert heavy & set(loaded) == set()


def test_every_public_name_loads():
    for name in clipseg3d.__all__:
        assert getattr(clipseg3d, name) is not None


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Nonsense"):
        clipseg3d.Nonsense  # noqa: B018 - the lookup is what is tested
