"""Mirrors clipseg3d/cli/main.py: what a person types and reads, also when it goes wrong."""

from pathlib import Path

import pytest
import torch
import yaml

from clipseg3d.cli.main import main
from clipseg3d.phantom.simulate import simulate_phantom
from clipseg3d.phantom.write import write_phantom
from clipseg3d.vocabulary import SEQUENCES

pytestmark = pytest.mark.filterwarnings("ignore")
FOLDER = Path(__file__).parents[2] / "examples" / "configs"
# Those of other layouts are in tests/data/test_recipes.py.
CONFIGS = [
    p for kind in ("brats2018", "brats2020", "phantom") for p in FOLDER.glob(f"{kind}_*.yaml")
]
SPACING_MM = 8.0
OFFICIAL = {
    "clipseg3d.BraTS2018DataModule": "Brats18_TCIA{:02d}_201_1",
    "clipseg3d.BraTS2020DataModule": "BraTS20_Training_{:03d}",
    "clipseg3d.PhantomDataModule": "Phantom_{:05d}",
}


@pytest.fixture(scope="module")
def patients(tmp_path_factory):
    """Folder of six simulated patients of each naming scheme."""
    root = tmp_path_factory.mktemp("patients")
    for seed in range(6):
        phantom = simulate_phantom(seed, spacing_mm=SPACING_MM)
        for module, name in OFFICIAL.items():
            (root / module).mkdir(exist_ok=True)
            write_phantom(phantom, root / module, name.format(seed))
    return root


@pytest.fixture(scope="module")
def weights(patients, tmp_path_factory):
    """Checkpoint written by ``clipseg3d fit`` with the phantom configuration, cut short."""
    out = tmp_path_factory.mktemp("fit")
    assert fit(CONFIGS[-1], patients, out) == 0
    return out / "checkpoints" / "best.ckpt"


def fit(config, patients, out):
    data = yaml.safe_load(config.read_text())["data"]["class_path"]
    arguments = {
        "model.network": "tiny",
        "model.roi_size": "[64, 64, 64]",
        "data.root": patients / data,
        "data.num_folds": 3,
        "data.spacing_mm": SPACING_MM,
        "data.patch_size": "[64, 64, 64]",
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
        arguments["data.num_cases"] = 6
    flags = [part for key, value in arguments.items() for part in (f"--{key}", str(value))]
    return main(["fit", "--config", str(config), *flags])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_trains_and_validates(config, patients, tmp_path):
    assert fit(config, patients, tmp_path) == 0
    checkpoint = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    data = yaml.safe_load(config.read_text())["data"]["class_path"]
    release = data.removeprefix("clipseg3d.").removesuffix("DataModule").lower()
    assert checkpoint["hyper_parameters"]["release"] == release
    assert checkpoint["hyper_parameters"]["spacing_mm"] == SPACING_MM


@pytest.mark.parametrize("command", ["validate", "test"])
def test_validate_and_test_score_a_checkpoint(command, weights, patients, tmp_path, capsys):
    code = main(
        [
            command,
            *("--config", str(CONFIGS[-1])),
            *("--ckpt_path", str(weights)),
            *("--model.roi_size", "[64, 64, 64]"),
            *("--data.root", str(patients / "clipseg3d.PhantomDataModule")),
            *("--data.num_cases", "6", "--data.num_workers", "0"),
            *("--data.spacing_mm", str(SPACING_MM)),
            *("--data.cache_dir", str(patients / "cache")),
            *("--trainer.default_root_dir", str(tmp_path), "--trainer.accelerator", "cpu"),
        ]
    )
    assert code == 0
    stage = {"validate": "val", "test": "test"}[command]
    assert f"{stage}/dice_mean" in capsys.readouterr().out


def test_phantom_writes_patients_that_can_be_trained_on(tmp_path, capsys):
    command = ["phantom", "-o", str(tmp_path / "p"), "-n", "2", "--spacing", "8", "--seed", "5"]
    assert main(command) == 0
    folders = capsys.readouterr().out.split()
    assert [Path(folder).name for folder in folders] == ["Phantom_00005", "Phantom_00006"]
    for folder in folders:
        names = {path.name.removeprefix(Path(folder).name) for path in Path(folder).iterdir()}
        suffixes = [*SEQUENCES, "seg"]
        assert names == {f"_{s}.nii.gz" for s in suffixes} | {"_flair_text.txt"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.network", "huge"], "unknown preset 'huge'"),
        (["--data.root", "nowhere"], "nowhere: no such folder"),
        (["--data.fold", "9"], "fold=9 is not in 0..2, the folds there are"),
    ],
)
def test_fit_says_what_is_wrong_before_it_trains(options, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = next(path for path in CONFIGS if path.stem == "brats2018_tiny")
    patient = simulate_phantom(0, spacing_mm=SPACING_MM)
    for number in range(3):
        write_phantom(patient, tmp_path / "brats2018", f"Brats18_TCIA0{number}_201_1")
    common = ["--data.spacing_mm", "8", "--data.cache_dir", "cache", "--data.num_workers", "0"]
    code = main(["fit", "--config", str(config), *common, *options])
    assert code == 1
    error = capsys.readouterr().err
    assert message in error
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
    monkeypatch.setattr(
        "clipseg3d.phantom.write.write_phantoms", lambda *a, **k: int("x")
    )
    with pytest.raises(ValueError, match="invalid literal"):
        main(["phantom", "-o", "p"])
