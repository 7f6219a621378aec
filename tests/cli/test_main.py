"""Mirrors clipseg3d/cli/main.py: what a person types and reads, also when it goes wrong."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from clipseg3d.cli.main import main
from clipseg3d.configs import SHIPPED
from clipseg3d.phantom.write import write_phantom
from clipseg3d.vocabulary import SEQUENCES

pytestmark = pytest.mark.filterwarnings("ignore")
FOLDER = SHIPPED
# Those of other layouts are in tests/data/test_recipes.py.
CONFIGS = [
    p for kind in ("brats2018", "brats2020", "phantom") for p in FOLDER.glob(f"{kind}_*.yaml")
]
FAST = ("brats2018_tiny", "brats2020_recommended")
"""One for each data module; test_lightning_cli.py trains with phantom_tiny."""
NETWORK = json.dumps(
    {
        "channels": [4, 6, 8, 10],
        "num_auxiliary": 0,
        "semantic_dim": 16,
        "num_heads": 2,
        "clip": "tiny-random",
    }
)
SPACING_MM = 8.0
OFFICIAL = {
    "clipseg3d.BraTS2018DataModule": "Brats18_TCIA{:02d}_201_1",
    "clipseg3d.BraTS2020DataModule": "BraTS20_Training_{:03d}",
    "clipseg3d.PhantomDataModule": "Phantom_{:05d}",
}


@pytest.fixture(scope="module")
def patients(phantoms, tmp_path_factory):
    """Folder of three simulated patients of each naming scheme."""
    root = tmp_path_factory.mktemp("patients")
    for seed, phantom in enumerate(phantoms[:3]):
        for module, name in OFFICIAL.items():
            (root / module).mkdir(exist_ok=True)
            write_phantom(phantom, root / module, name.format(seed))
    return root


def fit(config, patients, out):
    data = yaml.safe_load(config.read_text())["data"]["class_path"]
    arguments = {
        "model.network": NETWORK,
        "model.roi_size": "[24, 24, 24]",
        "data.root": patients / data,
        "data.num_folds": 3,
        "data.spacing_mm": SPACING_MM,
        "data.patch_size": "[24, 24, 24]",
        "data.num_workers": 0,
        "data.batch_size": 1,
        "data.cache_dir": patients / "cache",
        "trainer.max_epochs": 1,
        "trainer.check_val_every_n_epoch": 1,
        "trainer.limit_train_batches": 1,
        "trainer.accelerator": "cpu",
        "trainer.devices": 1,
        "trainer.num_nodes": 1,
        "trainer.strategy": "auto",
        "trainer.precision": "32-true",
        "trainer.logger": "false",
        "trainer.enable_progress_bar": "false",
        "trainer.default_root_dir": out,
        "checkpoint.dirpath": out / "checkpoints",
    }
    if "Phantom" in data:
        arguments["data.num_cases"] = 3
    flags = [part for key, value in arguments.items() for part in (f"--{key}", str(value))]
    return main(["fit", "--config", str(config), *flags])


def check(config, out):
    """Check that the checkpoint of a fit is of its release."""
    checkpoint = torch.load(out / "checkpoints" / "best.ckpt", weights_only=True)
    data = yaml.safe_load(config.read_text())["data"]["class_path"]
    release = data.removeprefix("clipseg3d.").removesuffix("DataModule").lower()
    assert checkpoint["hyper_parameters"]["release"] == release
    assert checkpoint["hyper_parameters"]["spacing_mm"] == SPACING_MM


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(config, id=config.stem, marks=[] if config.stem in FAST else pytest.mark.slow)
        for config in CONFIGS
    ],
)
def test_every_configuration_trains_and_validates(config, patients, tmp_path):
    assert fit(config, patients, tmp_path) == 0
    check(config, tmp_path)


def test_phantom_writes_patients_that_can_be_trained_on(tmp_path, capsys):
    command = ["phantom", "-o", str(tmp_path / "p"), "-n", "1", "--spacing", "8", "--seed", "6"]
    assert main(command) == 0
    folders = capsys.readouterr().out.split()
    assert [Path(folder).name for folder in folders] == ["Phantom_00006"]
    for folder in folders:
        names = {path.name.removeprefix(Path(folder).name) for path in Path(folder).iterdir()}
        suffixes = [*SEQUENCES, "seg"]
        assert names == {f"_{s}.nii.gz" for s in suffixes} | {"_flair_text.txt"}


@pytest.mark.parametrize("config", [str(FOLDER / "brats2018_tiny.yaml"), "brats2018_tiny"])
def test_fit_says_what_is_wrong_before_it_trains(config, only, capsys, tmp_path, monkeypatch):
    only("fit")
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", config, "--data.root", "nowhere"]) == 1
    error = capsys.readouterr().err
    assert "nowhere: no such folder" in error
    assert "Traceback" not in error


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    page = capsys.readouterr().out
    for command in (
        *("demo", "segment", "fit", "validate", "test", "tune-postprocessing"),
        *("check-data", "check-submission", "phantom", "embed-text"),
    ):
        assert f"\n    {command}" in page


def test_a_defect_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("clipseg3d.phantom.write.write_phantoms", lambda *a, **k: int("x"))
    with pytest.raises(ValueError, match="invalid literal"):
        main(["phantom", "-o", "p"])


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "no such configuration; did you mean phantom_tiny?"), ("model: [", "not valid YAML")],
)
def test_a_wrong_configuration_is_named_before_anything_is_loaded(
    text, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("clipseg3d.cli.fit.run", lambda argv: pytest.fail("loaded"))
    value = "phantom_tinny"
    if text is not None:
        value = str(tmp_path / "broken.yaml")
        Path(value).write_text(text)
    assert main(["fit", "--config", value]) == (2 if text is None else 1)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"clipseg3d: {value}: ")
    assert message in line
