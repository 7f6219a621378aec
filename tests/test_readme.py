"""Every code block of README and of other pages runs, in order, in a folder of the page."""

import ast
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from clipseg3d.configs import config_path
from clipseg3d.phantom.write import write_phantom

REPO = Path(__file__).parents[1]
PAGES = {
    path.relative_to(REPO).as_posix(): path.read_text(encoding="utf-8")
    for path in (
        *(REPO / "README.md", REPO / "clipseg3d" / "configs" / "README.md"),
        *sorted((REPO / "examples").rglob("*.md")),
    )
}
README, TEXT = PAGES["README.md"], "\n".join(PAGES.values())
BLOCKS = [
    (page, language, code)
    for page, text in PAGES.items()
    for language, code in re.findall(r"```(\w+)\n(.*?)```", text, re.S)
]
INSTALL = [code for _, _, code in BLOCKS if "pip install" in code]
RUN = [b for b in BLOCKS if b[1] in ("bash", "python") and "pip install" not in b[2]]
CLASS_PATHS = sorted(set(re.findall(r"=(clipseg3d(?:\.\w+)+)", TEXT)))
"""Classes that the command line loads by their full names."""
EXAMPLE_FILES = sorted(set(re.findall(r"examples/[\w/.]*\w", TEXT)))
LINKS = [
    (page, link)
    for page, text in PAGES.items()
    for link in re.findall(r"\]\(([^)]+)\)", re.sub(r"```.*?```", "", text, flags=re.S))
    if not link.startswith("https://")
]


def imported_names(code):
    """Give (module, name) of every name that a Python block imports from this library."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("clipseg3d"):
            for alias in node.names:
                yield node.module, alias.name


IMPORTS = sorted(
    {pair for _, language, code in RUN if language == "python" for pair in imported_names(code)}
)


@pytest.fixture(scope="module")
def reader(phantoms, tmp_path_factory):
    """Each page has its folder: the examples, and a BraTS 2018 folder of small made-up cases."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(REPO / "examples", folder / "examples")
    for name in ("brats2018_tiny", "phantom_tiny"):  # files of these names go before
        config = yaml.safe_load(config_path(name).read_text())
        config["data"]["init_args"] |= {"crops_per_case": 1, "patch_size": [64, 32, 32]}
        config["data"]["init_args"] |= {"num_workers": 0, "cache_dir": "cache"}
        config["model"]["roi_size"] = [64, 32, 32]
        config["trainer"] |= {"max_epochs": 1, "check_val_every_n_epoch": 1, "accelerator": "cpu"}
        (folder / name).write_text(yaml.safe_dump(config))
    for seed, phantom in enumerate(phantoms[:3]):
        affine = phantom.affine.copy()
        affine[:3, :3] /= 8  # says 1 mm: the commands run as they are, at a size that takes seconds
        small = replace(phantom, affine=affine, spacing_mm=1.0)
        write_phantom(small, folder / "BraTS2018" / "HGG", f"Brats18_TCIA0{seed}_201_1")

    def of(page):
        place = folder.parent / f"{folder.name}_{page.replace('/', '_')}"
        if not place.exists():
            shutil.copytree(folder, place)
        return place

    return of


def test_the_release_shown_is_that_of_the_example():
    (shown,) = [code for _, language, code in BLOCKS if language == "yaml"]
    assert shown == (REPO / "examples" / "stroke.yaml").read_text(encoding="utf-8")


def block_id(number):
    page, language, _ = RUN[number]
    return f"{page}-{language}-{number}"


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(RUN)), ids=block_id)
def test_block_runs(number, reader):
    page, language, code = RUN[number]
    folder = reader(page)
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    command = {"python": [sys.executable, "-c", code], "bash": ["bash", "-ec", code]}[language]
    threads = {name: os.environ[name] for name in ["OMP_NUM_THREADS"] if name in os.environ}
    if "BraTS2018" in code:
        shutil.rmtree(folder / "lightning_logs", ignore_errors=True)
    run = subprocess.run(
        command,
        cwd=folder,
        env=threads | {"PATH": path, "CLIPSEG3D_CACHE": str(folder / "cache"), "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-1000:] + run.stderr[-3000:]


@pytest.mark.parametrize(("module", "name"), IMPORTS)
def test_python_blocks_import_what_exists(module, name):
    assert hasattr(import_module(module), name)


def test_python_blocks_import_from_public_places():
    assert {module for module, _ in IMPORTS if module.count(".") > 1} == set()


@pytest.mark.parametrize("path", CLASS_PATHS)
def test_classes_that_commands_name_exist(path):
    module, _, name = path.rpartition(".")
    assert isinstance(getattr(import_module(module), name), type)


def test_commands_name_commands_that_exist():
    from clipseg3d.cli.main import COMMANDS

    bash = "\n".join(code for _, language, code in BLOCKS if language == "bash")
    used = set(re.findall(r"\bclipseg3d ([a-z-]+)", bash))
    assert len(used) > 8
    assert used <= {command.__name__.rpartition(".")[2].replace("_", "-") for command in COMMANDS}


@pytest.mark.parametrize("path", EXAMPLE_FILES)
def test_files_of_examples_exist(path):
    assert (REPO / path).exists()


def test_the_two_set_up_commands_are_what_ci_runs():
    script = (REPO / ".ci" / "run").read_text()
    assert len(INSTALL) == 2
    assert "clipseg3d demo" in INSTALL[0]
    assert "pytest" in INSTALL[1]
    assert 'readme_block "clipseg3d demo"' in script
    assert 'readme_block "-m pytest"' in script


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_links_lead_somewhere(page, link):
    path, _, heading = link.partition("#")
    target = (REPO / page).parent / path if path else REPO / page
    assert target.exists()
    if heading:
        headings = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), re.M)
        assert heading in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("pattern", ["guides/*.md", "*.ipynb", "*.py", "*.sh"])
def test_the_index_of_examples_forgets_nothing(pattern):
    files = [f.relative_to(REPO / "examples") for f in (REPO / "examples").glob(pattern)]
    assert files
    assert [f.as_posix() for f in files if f.as_posix() not in PAGES["examples/README.md"]] == []
