"""The shipped recipes on made-up files of their layouts: data are checked, one step is trained."""

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from clipseg3d.cli.lightning_cli import run_lightning
from clipseg3d.configs import SHIPPED, config_path
from clipseg3d.data.releases import BRATS_2018, BRATS_2020, BRATS_2021, BRATS_2023_GLI
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.training.dry_run import ENOUGH_STEPS
from clipseg3d.training.plan import PLANS
from clipseg3d.vocabulary import LABEL

FOLDER = SHIPPED
RELEASES = {
    "brats2018_tiny": (BRATS_2018, "Brats18_TCIA{:02d}_1"),
    "brats2020": (BRATS_2020, "BraTS20_Training_{:03d}"),
    "textbrats": (BRATS_2020, "BraTS20_Training_{:03d}"),
    "brats2021": (BRATS_2021, "BraTS2021_{:05d}"),
    "brats2023_gli": (BRATS_2023_GLI, "BraTS-GLI-{:05d}-000"),
}
LAYOUTS = ("brats2023_gli", "msd_task01", "textbrats")
"""One recipe for each layout of folders; the others differ from them in settings only."""
RECIPES = [
    *LAYOUTS,
    *(
        pytest.param(path.stem, marks=pytest.mark.slow)
        for path in sorted(FOLDER.glob("brats*.yaml"))
        if path.stem not in LAYOUTS
    ),
]
NUM_CASES = 6
SMALL = {
    "clip": "tiny-random",
    "channels": "[4, 6, 8, 10]",
    "num_auxiliary": "0",
    "semantic_dim": "16",
    "num_heads": "2",
}


@pytest.fixture
def write_recipe(tmp_path, fake_patient, write_nifti):
    """Write cases as a recipe expects them; return the options that point to them."""

    def relabelled(mask, enhancing):
        return np.where(mask == 4, enhancing, mask).astype(np.uint8)

    def decathlon(root):
        names = [f"BRATS_{number:03d}" for number in range(1, NUM_CASES + 1)]
        for seed, name in enumerate(names):
            images, mask = fake_patient(seed=seed)
            volumes = np.moveaxis(images[[3, 0, 1, 2]], 0, -1)
            write_nifti(root / "imagesTr" / f"{name}.nii.gz", volumes)
            mask = np.array([0, 2, 1, 0, 3], np.uint8)[mask]  # oedema is 1 there, the core 2
            write_nifti(root / "labelsTr" / f"{name}.nii.gz", mask)
        files = ("image", "imagesTr"), ("label", "labelsTr")
        content = {
            "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
            "training": [{k: f"./{part}/{n}.nii.gz" for k, part in files} for n in names],
        }
        (root / "dataset.json").write_text(json.dumps(content))

    def write(recipe):
        root = tmp_path / "cases"
        if recipe == "msd_task01":
            decathlon(root)
            return ["--data.root", root]
        key = next(k for k in sorted(RELEASES, key=len, reverse=True) if recipe.startswith(k))
        release, pattern = RELEASES[key]
        names = [pattern.format(number) for number in range(1, NUM_CASES + 1)]
        for seed, name in enumerate(names):
            images, mask = fake_patient(seed=seed)
            for sequence, volume in zip(release.sequences, images, strict=True):
                write_nifti(root / name / f"{release.file_name(name, sequence)}.nii.gz", volume)
            mask = relabelled(mask, release.labels_out["ET"])
            write_nifti(root / name / f"{release.file_name(name, LABEL)}.nii.gz", mask)
            (root / name / f"{name}_flair_text.txt").write_text("A lesion on the left.")
        if recipe != "textbrats":
            return ["--data.root", root]
        lists = {"Train.json": names[:4], "Test.json": names[4:]}
        for file, part in lists.items():
            entries = [
                {"fold": number % 2, "label": f"{name}/{name}_seg.nii.gz"}
                for number, name in enumerate(part)
            ]
            (tmp_path / file).write_text(json.dumps({"training": entries}))
        return ["--data.root", root, "--data.splits", tmp_path]

    return write


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains_a_step(tmp_path, write_recipe, recipe):
    options = write_recipe(recipe)
    if recipe != "brats2018_tiny":  # small enough as it is
        for name, value in SMALL.items():
            options += [f"--model.network.{name}", value]
    options += ["--data.cache_dir", tmp_path / "cache", "--data.patch_size", "[16, 16, 16]"]
    options += ["--data.num_workers", "0", "--data.batch_size", "1"]
    if recipe == "brats2018_tiny":
        options += ["--data.patch_size", "[64, 64, 64]"]
    trainer = {
        "accelerator": "cpu",
        "devices": "1",
        "num_nodes": "1",
        "strategy": "auto",
        "precision": "32-true",
        "max_epochs": "1",
        "limit_train_batches": "1",
        "limit_val_batches": "0",
        "num_sanity_val_steps": "0",
        "default_root_dir": tmp_path / "run",
    }
    for name, value in trainer.items():
        options += [f"--trainer.{name}", value]
    run_lightning(["fit", "--config", str(FOLDER / f"{recipe}.yaml"), *map(str, options)])
    (last,) = (tmp_path / "run").rglob("last*.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == 1


TRAINED = {"brats2020": 296, "brats2021": 1001, "brats2023_gli": 1001, "msd_task01": 388}
"""Training cases of a fold."""
FULL_SIZE = [
    path
    for path in sorted(FOLDER.glob("*.yaml"))
    if not (path.stem.endswith("_tiny") or path.stem.startswith("phantom_"))
]


@pytest.mark.parametrize("path", FULL_SIZE, ids=lambda path: path.stem)
def test_length_and_rate_of_a_recipe_follow_from_its_global_batch(path):
    """At least 300 epochs and 25,000 steps; the rate grows with the square root of the batch."""
    recipe = yaml.safe_load(path.read_text())
    data, trainer = recipe["data"]["init_args"], recipe["trainer"]
    devices = trainer["devices"] * trainer.get("num_nodes", 1)
    plan = PLANS[NetworkConfig(**recipe["model"]["network"]).plan]
    due = plan.scaled_lr(devices * data["batch_size"])
    assert recipe["model"]["lr"] == pytest.approx(due, rel=0.02)
    cases = next((n for key, n in TRAINED.items() if path.stem.startswith(key)), 220)
    per_epoch = -(-cases // devices) // data["batch_size"]
    epochs = trainer["max_epochs"]
    assert epochs >= 300
    assert per_epoch * epochs >= ENOUGH_STEPS
    assert epochs == 300 or per_epoch * epochs < 1.1 * ENOUGH_STEPS


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_validates_with_windows_of_the_size_of_its_crops(path):
    recipe = yaml.safe_load(path.read_text())
    assert recipe["model"]["roi_size"] == recipe["data"]["init_args"]["patch_size"]


def test_the_slurm_script_fits_its_configuration():
    script = Path(__file__).parents[2] / "examples" / "brats2020_2x8gpus.sh"
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    (config,) = re.findall(r"--config (\S+)", text)
    trainer = config_path(config).read_text()
    for option, key in (("nodes", "num_nodes"), ("ntasks-per-node", "devices")):
        (number,) = re.findall(rf"#SBATCH --{option}=(\d+)", text)
        assert f"{key}: {number}\n" in trainer
