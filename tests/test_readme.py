"""Every code block of the README runs, in order, in one folder, as a reader would run it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from clipseg3d.phantom.simulate import Phantom, simulate_phantom
from clipseg3d.phantom.write import write_phantom

REPO = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (REPO / "README.md").read_text(encoding="utf-8"), re.S)
INSTALL = [code for _, code in BLOCKS if "pip install" in code]
RUN = [(language, code) for language, code in BLOCKS if "pip install" not in code]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A reader's folder: the examples, and a BraTS 2018 folder of small made-up cases."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(REPO / "examples", folder / "examples")
    for path in (folder / "examples" / "configs").glob("*_tiny.yaml"):
        config = yaml.safe_load(path.read_text())
        config["data"]["init_args"] |= {"crops_per_case": 1, "patch_size": [64, 32, 32]}
        config["data"]["init_args"] |= {"num_workers": 0, "cache_dir": "cache"}
        config["model"]["roi_size"] = [64, 32, 32]
        config["trainer"] |= {"max_epochs": 1, "check_val_every_n_epoch": 1, "accelerator": "cpu"}
        path.write_text(yaml.safe_dump(config))
    for seed in range(3):
        phantom = simulate_phantom(seed, spacing_mm=8.0)
        affine = phantom.affine.copy()
        affine[:3, :3] /= 8  # says 1 mm: what is run is the command, at a size that takes seconds
        small = Phantom(
            image=phantom.image,
            label=phantom.label,
            affine=affine,
            spacing_mm=1.0,
            report=phantom.report,
            facts=phantom.facts,
        )
        write_phantom(small, folder / "BraTS2018" / "HGG", f"Brats18_TCIA0{seed}_201_1")
    return folder


@pytest.mark.parametrize("number", range(len(RUN)), ids=lambda n: f"{RUN[n][0]}-{n}")
def test_block_runs(number, reader, monkeypatch):
    language, code = RUN[number]
    monkeypatch.setenv("CLIPSEG3D_CACHE", str(reader / "cache"))
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


def test_the_two_set_up_commands_are_what_ci_runs():
    script = (REPO / ".ci" / "run").read_text()
    assert len(INSTALL) == 2
    assert "clipseg3d demo" in INSTALL[0]
    assert "pytest" in INSTALL[1]
    assert 'readme_block "clipseg3d demo"' in script
    assert 'readme_block "-m pytest"' in script


def test_the_pictures_are_there():
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (REPO / "README.md").read_text())
    assert len(pictures) == 2
    for name in pictures:
        assert (REPO / name).stat().st_size > 10_000
