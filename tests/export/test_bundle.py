"""Mirrors clipseg3d/export/bundle.py: MONAI itself runs the bundle, and agrees with us."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest

from clipseg3d.data.cases import find_cases
from clipseg3d.data.releases import PHANTOM
from clipseg3d.export.bundle import write_bundle
from clipseg3d.inference.predictor import Predictor
from clipseg3d.networks.clipseg3d import CLIPSeg3D
from clipseg3d.networks.unet import UNet3D

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def bundle(trained, settings, tmp_path):
    write_bundle(trained(), tmp_path / "bundle", settings)
    return tmp_path / "bundle"


def run_bundle(bundle, **options):
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    config = str(bundle / "configs" / "inference.json")
    return subprocess.run(
        [
            *(sys.executable, "-m", "monai.bundle", "run"),
            *("--config_file", config, "--bundle_root", str(bundle), *flags),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture
def cases(phantom_folder, tmp_path):
    """Folder of one case."""
    shutil.copytree(phantom_folder / "Phantom_00002", tmp_path / "cases" / "Phantom_00002")
    return tmp_path / "cases"


@pytest.mark.parametrize("command", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_monai_runs_the_bundle_on_a_case_as_the_predictor_does(
    bundle, trained, settings, cases, tmp_path, command
):
    options = {"dataset_dir": cases, "output_dir": tmp_path / "out", "device": "cpu"}
    if command:
        pytest.importorskip("fire")
        done = run_bundle(bundle, **options)
        assert done.returncode == 0, done.stderr
    else:
        monai.bundle.run(
            config_file=str(bundle / "configs" / "inference.json"),
            bundle_root=str(bundle),
            **{name: str(value) for name, value in options.items()},
        )
    (written,) = (tmp_path / "out").iterdir()
    assert written.name == "Phantom_00002.nii.gz"
    (case,) = find_cases(cases, PHANTOM, spacing_mm=8.0)
    predictor = Predictor(
        trained(),
        release=PHANTOM,
        spacing_mm=8.0,
        roi_size=settings.roi_size,
        overlap=settings.overlap,
        device="cpu",
    )
    label = np.asanyarray(nib.load(written).dataobj)
    np.testing.assert_array_equal(label, predictor(case).label)
    assert len(np.unique(label)) > 1


def test_metadata_are_in_the_keys_of_the_specification(bundle, settings):
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    expected = monai.bundle.properties.MetaProperties
    needed = {name for name, about in expected.items() if about["required"]}
    assert {"version", "monai_version", "pytorch_version", "numpy_version"} <= needed
    assert needed <= metadata.keys()
    image = metadata["network_data_format"]["inputs"]["image"]
    assert image["spatial_shape"] == list(settings.roi_size)
    assert image["channel_def"] == {"0": "t1", "1": "t1ce", "2": "t2", "3": "flair"}
    pred = metadata["network_data_format"]["outputs"]["pred"]
    assert pred["channel_def"] == {"0": "WT", "1": "TC", "2": "ET"}


def test_monai_verifies_inputs_and_outputs(bundle):
    monai.bundle.verify_net_in_out(
        "network_def",
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "inference.json"),
        device="cpu",
        bundle_root=str(bundle),
    )


def test_bundle_holds_settings_weights_and_words(bundle, settings):
    config = json.loads((bundle / "configs" / "inference.json").read_text())
    for name in ("release", "spacing_mm", "overlap", "allow_missing"):
        assert config[name] == getattr(settings, name)
    assert tuple(config["roi_size"]) == settings.roi_size
    files = {str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file()}
    assert files == {
        *("configs/metadata.json", "configs/inference.json", "docs/README.md"),
        *(f"models/{name}" for name in ("config.json", "model.safetensors", "README.md")),
    }
    words = " ".join((bundle / "docs" / "README.md").read_text().split())
    assert "voxels of 8 mm" in words
    assert "label convention of phantom" in words
    assert "No rules of post-processing come with the weights." in words


def test_a_bundle_carries_the_rules_of_the_weights(trained, settings, tmp_path):
    network = trained()
    network.settings = replace(settings, postprocessing={"enhancing_to_core": 0.5})
    write_bundle(network, tmp_path / "bundle", network.settings)
    config = json.loads((tmp_path / "bundle" / "models" / "config.json").read_text())
    assert config["prediction"]["postprocessing"] == {"enhancing_to_core": 0.5}
    words = (tmp_path / "bundle" / "docs" / "README.md").read_text()
    assert "cleaned up by the rules of post-processing in `models/config.json`" in words


def test_a_folder_that_holds_something_is_left_alone(trained, settings, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=f"{tmp_path}: holds something already; give a new folder"):
        write_bundle(trained(), tmp_path, settings)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(ValueError, match=r"mine\.txt: holds something already"):
        write_bundle(trained(), tmp_path / "mine.txt", settings)


def test_an_empty_folder_is_filled(trained, settings, tmp_path):
    write_bundle(trained(), tmp_path, settings)
    assert (tmp_path / "configs" / "inference.json").is_file()


def test_a_failure_leaves_nothing(trained, settings, tmp_path, monkeypatch):
    def fail(path, *arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match=r"bundle: cannot be written \(No space left on device\)"):
        write_bundle(trained(), tmp_path / "bundle", settings)
    assert list(tmp_path.iterdir()) == []


def test_a_network_of_parts_is_refused(settings, tmp_path):
    with pytest.raises(ValueError, match="made of parts has no config"):
        write_bundle(CLIPSeg3D(UNet3D()), tmp_path / "bundle", settings)
    assert list(tmp_path.iterdir()) == []
