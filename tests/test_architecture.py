"""Holds the folder plan: which way imports point, and what a bare import may load."""

import ast
import json
import shutil
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import clipseg3d
from clipseg3d.weights import BUNDLED

PACKAGE = Path(clipseg3d.__file__).parent
SHARED = {
    "vocabulary",
    "augmentation",
    "batch",
    "intensity",
    "views",
    "atomic_write",
    "formatting",
    "checksums",
    "ranges",
    "text_files",
    "lightning_bases",
}
"""Files beside the rooms, which every room may import."""
ARROWS = {
    "vocabulary": set(),
    "atomic_write": set(),
    "formatting": set(),
    "checksums": set(),
    "ranges": set(),
    "text_files": {"yaml"},
    "lightning_bases": set(),
    "intensity": set(),
    "views": {"intensity", "vocabulary"},
    "augmentation": set(),
    "batch": {"augmentation", "intensity", "views", "vocabulary"},
    "losses": set(),
    "weights": set(),
    "configs": set(),
    "blocks": SHARED,
    "clip": SHARED | {"blocks", "weights"},
    "networks": SHARED | {"clip", "blocks", "pretrained.reader", "pretrained.writer"},
    "pretrained": SHARED | {"networks", "clip", "weights", "clipseg3d"},
    "metrics": SHARED,
    "texts": set(),
    "data": SHARED | {"texts"},
    "phantom": SHARED | {"data", "texts"},
    "inference": SHARED
    | {"pretrained", "networks", "blocks", "metrics", "reporting.case_page"}
    | {
        f"data.{name}"
        for name in (
            "cases",
            "label_pairs",
            "label_checks",
            "nifti",
            "preprocessing",
            "release",
            "array_volume",
        )
    }
    | {f"data.{name}" for name in ("layout", "preprocessing", "release", "releases", "scan_grid")}
    | {"data.resampled_case"}
    | {"clip.encoder", "clip.known_words"},
    "training": SHARED
    | {"inference", "pretrained", "networks", "losses", "metrics", "reporting.figures"}
    | {
        "data.releases",
        "data.sample_order",
        "data.cases",
        "clip.encoder",
        "clip.text_bank",
        "texts",
        "clipseg3d",
    }
    | {"blocks.positions", "blocks.prompt_head"},
    "reporting": SHARED | {"metrics"},
    "prepare": SHARED | {"data", "clipseg3d"},
    "export": SHARED | {"networks", "blocks", "clipseg3d"},
    "testing": SHARED | {"blocks", "clip", "data.release"},
    "cli": SHARED
    | {"training", "inference", "pretrained", "networks", "clip", "metrics", "reporting"}
    | {"data", "phantom", "prepare", "texts", "export", "configs", "weights", "clipseg3d"},
    "__main__": {"cli"},
}
"""Room -> rooms it may import, beside itself. ``clipseg3d`` stands for its version and its path."""
LATE = {("networks", "pretrained"), ("inference", "reporting")}
"""Imports that run against the arrows, and therefore inside of functions: CLIPSeg3D.from_pretrained
and its like are one line each, and a segmentation writes its own case page."""
THIRD_PARTY = {
    "vocabulary": set(),
    "atomic_write": set(),
    "formatting": set(),
    "checksums": {"torch"},
    "ranges": set(),
    "text_files": {"yaml"},
    "weights": set(),
    "configs": set(),
    "lightning_bases": {"pytorch_lightning", "lightning"},
    "intensity": {"torch", "einops"},
    "views": {"torch", "einops"},
    "augmentation": {"torch", "einops"},
    "batch": {"torch", "einops"},
    "losses": {"torch", "monai"},
    "blocks": {"torch", "einops", "lazy_loader"},
    "metrics": {"torch", "torchmetrics", "numpy", "scipy", "lazy_loader"},
    "pretrained": {"torch", "safetensors", "huggingface_hub", "jsonargparse", "lazy_loader"},
    "networks": {"torch", "einops", "lazy_loader"},
    "reporting": {"torch", "numpy", "scipy", "matplotlib", "jinja2", "lazy_loader"},
    "testing": {"torch", "numpy", "pydicom", "lazy_loader"},
}
"""Room -> libraries it may import; rooms that are not listed may import any."""


def sources() -> list[Path]:
    return [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path, *, at_top: bool = False) -> set[str]:
    found = set()
    tree = ast.parse(path.read_text())
    for node in tree.body if at_top else ast.walk(tree):
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
        return
    top = {name.partition(".")[0] for name in imports_of(path)} - {"clipseg3d"}
    assert top - set(sys.stdlib_module_names) <= THIRD_PARTY[room]


def test_every_room_is_in_the_plan():
    assert {room_of(path) for path in sources()} == set(ARROWS)


def test_imports_against_the_arrows_are_late():
    for path in sources():
        for name in imports_of(path, at_top=True):
            room = name.removeprefix("clipseg3d.").partition(".")[0]
            assert (room_of(path), room) not in LATE, path


def test_there_is_no_import_cycle():
    names = {".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts): p for p in sources()}
    graph = {name: imports_of(path, at_top=True) & set(names) for name, path in names.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError


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


PACKAGES = sorted(
    ".".join(path.parent.relative_to(PACKAGE.parent).parts)
    for path in PACKAGE.rglob("__init__.pyi")
)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_loads_and_is_documented(package):
    module = import_module(package)
    assert module.__all__
    for name in module.__all__:
        value = getattr(module, name)
        assert value is not None
        assert getattr(value, "__doc__", None)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_public_name_is_that_of_a_module(package):
    module = import_module(package)
    files = {path.stem for path in Path(module.__file__).parent.iterdir()}
    assert set(module.__all__) & files == set()


def test_every_room_has_public_names():
    rooms = {p.parent for p in sources() if p.parent != PACKAGE} - {PACKAGE / "cli"}
    inner = {"clipseg3d.weights", "clipseg3d.configs"}
    assert {f"clipseg3d.{room.name}" for room in rooms} - inner == set(PACKAGES) - {"clipseg3d"}


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Nonsense"):
        clipseg3d.Nonsense  # noqa: B018 - the lookup is what is tested


TRAINING = {"pytorch_lightning", "lightning", "torchmetrics", "tensorboard"}
SLOW_TO_LOAD = TRAINING | {
    "monai",
    "transformers",
    "pandas",
    "scipy.signal",
    "matplotlib",
    "sklearn",
}
"""Packages that a command which does not need them must not wait for."""


def loaded_by(*command):
    """Return the modules that a command loads, and its exit code."""
    code = (
        "import sys\nfrom clipseg3d.cli.main import main\n"
        "try:\n    code = main(sys.argv[1:])\nexcept SystemExit as end:\n    code = end.code\n"
        "print()\nprint(code, *sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, command)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    code, *modules = run.stdout.splitlines()[-1].split()
    assert code == "0", run.stderr
    return set(modules)


def test_segment_loads_what_it_uses(phantom_folder, tmp_path):
    config = json.loads((BUNDLED / "tiny" / "config.json").read_text())
    config["prediction"] |= {"spacing_mm": 8.0, "roi_size": [48, 48, 48]}
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "config.json").write_text(json.dumps(config))
    shutil.copy(BUNDLED / "tiny" / "model.safetensors", weights)
    case = phantom_folder / "Phantom_00000"
    loaded = loaded_by("segment", case, "-o", tmp_path / "out", "--weights", weights)
    assert (tmp_path / "out" / "Phantom_00000.nii.gz").is_file()
    assert loaded & (SLOW_TO_LOAD | {"huggingface_hub", "scipy.stats"}) == set()


def test_evaluate_and_check_data_load_no_network(phantom_folder, tmp_path):
    for case in phantom_folder.iterdir():
        shutil.copy(case / f"{case.name}_seg.nii.gz", tmp_path / f"{case.name}.nii.gz")
    of_networks = SLOW_TO_LOAD | {"torch", "scipy.stats"}
    assert loaded_by("evaluate", tmp_path, phantom_folder) & of_networks == set()
    checked = loaded_by("check-data", phantom_folder, "--spacing", "8")
    assert checked & of_networks == set()
    assert loaded_by("--help") & (of_networks | {"numpy", "nibabel"}) == set()
