"""Every code block of the README runs, in order, in one folder, as a reader would run it."""

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
README = (REPO / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.S)
INSTALL = [code for _, code in BLOCKS if "pip install" in code]
RUN = [(lang, code) for lang, code in BLOCKS if lang != "yaml" and "pip install" not in code]
CLASS_PATHS = sorted(set(re.findall(r"=(clipseg3d(?:\.\w+)+)", README)))
"""Classes that the command line loads by their full names."""
EXAMPLE_FILES = sorted(set(re.findall(r"examples/[\w/.]*\w", README)))


def imported_names(code):
    """Give (module, name) of every name that a Python block imports from this library."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("clipseg3d"):
            for alias in node.names:
                yield node.module, alias.name


IMPORTS = sorted(
    {pair for language, code in RUN if language == "python" for pair in imported_names(code)}
)


@pytest.fixture(scope="module")
def reader(phantoms, tmp_path_factory):
    """A reader's folder: the examples, and a BraTS 2018 folder of small made-up cases."""
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
    return folder


def test_the_release_shown_is_that_of_the_example():
    (shown,) = [code for language, code in BLOCKS if language == "yaml"]
    assert shown == (REPO / "examples" / "stroke.yaml").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(RUN)), ids=lambda n: f"{RUN[n][0]}-{n}")
def test_block_runs(number, reader):
    language, code = RUN[number]
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    command = {"python": [sys.executable, "-c", code], "bash": ["bash", "-ec", code]}[language]
    threads = {name: os.environ[name] for name in ["OMP_NUM_THREADS"] if name in os.environ}
    if "BraTS2018" in code:
        shutil.rmtree(reader / "lightning_logs", ignore_errors=True)
    run = subprocess.run(
        command,
        cwd=reader,
        env=threads | {"PATH": path, "CLIPSEG3D_CACHE": str(reader / "cache"), "HOME": str(reader)},
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

    bash = "\n".join(code for language, code in BLOCKS if language == "bash")
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


def test_the_pictures_are_there():
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert len(pictures) == 2
    for name in pictures:
        assert (REPO / name).stat().st_size > 10_000
