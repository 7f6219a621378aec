"""Any number of sequences and regions, from a fit in two processes to an exported graph."""

import csv
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from clipseg3d.cli.main import main

SHAPE = (40, 36, 34)
KINDS = {
    "five sequences": (["t1", "t1ce", "t2", "flair", "adc"], {"WT": [1, 2], "TC": [2]}),
    "one region": (["flair"], {"lesion": [1, 2]}),
    "nine regions": (["t1ce", "flair", "adc"], {f"part{n}": [n] for n in range(1, 10)}),
}


def write_patients(root, release, count=4):
    """Write patients with a block of each label; every sequence is brighter with the label."""
    labels = sorted({label for own in release["regions"].values() for label in own})
    for seed in range(count):
        rng = np.random.default_rng(seed)
        grid = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), axis=-1)
        brain = (((grid - np.array(SHAPE) / 2) / (0.45 * np.array(SHAPE))) ** 2).sum(axis=-1) < 1
        label = np.zeros(SHAPE, np.uint8)
        for number, value in enumerate(labels):
            start = 10 + 5 * (number % 3), 10 + 5 * (number // 3), 12 + seed
            label[tuple(slice(s, s + 5) for s in start)] = value
        label *= brain
        folder = root / f"case{seed}"
        folder.mkdir(parents=True)
        for gain, name in enumerate(release["sequences"], start=1):
            volume = (100 + gain * 10 * label + rng.normal(0, 2, SHAPE)) * brain
            nib.save(
                nib.Nifti1Image(volume.astype(np.float32), np.diag([-1.0, -1, 1, 1])),
                folder / f"case{seed}_{name}.nii.gz",
            )
        nib.save(
            nib.Nifti1Image(label, np.diag([-1.0, -1, 1, 1])), folder / f"case{seed}_seg.nii.gz"
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "ablation"),
    [("five sequences", "no_semantic"), ("one region", "null"), ("nine regions", "no_semantic")],
)
def test_the_whole_road(kind, ablation, tmp_path):
    sequences, regions = KINDS[kind]
    release = {
        "name": "own",
        "sequences": {name: f"{{case}}_{name}" for name in sequences},
        "regions": regions,
    }
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(release, sort_keys=False))
    root = tmp_path / "cases"
    write_patients(root, release)
    options = {
        **{"data": "BraTSDataModule", "data.root": root, "data.release": path},
        **{"data.cache_dir": tmp_path / "cache", "data.num_folds": 2, "data.num_workers": 0},
        **{"data.patch_size": [48, 32, 32], "model.roi_size": [48, 32, 32]},
        **{"model.network": "tiny", "model.ablation": ablation, "trainer.max_epochs": 1},
        **{"trainer.accelerator": "cpu", "trainer.devices": 2, "trainer.strategy": "ddp"},
        **{
            "trainer.logger": "false",
            "trainer.default_root_dir": tmp_path,
            "checkpoint.dirpath": tmp_path / "fit",
        },
    }
    command = [f"--{name}={value}" for name, value in options.items()]
    run = subprocess.run(
        [sys.executable, "-m", "clipseg3d", "fit", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    weights, out = str(tmp_path / "fit" / "best.ckpt"), tmp_path / "labels"
    assert main(["segment", str(root), "-o", str(out), "--weights", weights, "--html"]) == 0
    label = np.asarray(nib.load(out / "case0.nii.gz").dataobj)
    assert set(np.unique(label)) <= {0, *(v for own in regions.values() for v in own)}
    page = (out / "case0.html").read_text()
    assert all(f'id="show-{region}"' in page for region in regions)
    scores = tmp_path / "scores.csv"
    command = ["evaluate", str(out), str(root), "--release", str(path), "-o", str(scores)]
    assert main(command) == 0
    assert {row["region"] for row in csv.DictReader(scores.open())} >= set(regions)
    graph = tmp_path / "graph.pt2"
    assert main(["export", weights, "-o", str(graph), "--format", "torch"]) == 0
    program = torch.export.load(graph)
    assert program is not None
