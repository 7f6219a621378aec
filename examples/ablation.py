"""What each part of the method contributes on real cases, at equal budget, data and seeds.

    python examples/ablation.py --data BraTS2018 --reports brats2018_reports.json

Each row of the paper's tables, and of ours, is a small network that is trained three times at 2 mm:
on simulated patients without semantics (rows with the same backbone share this fit), on simulated
patients with its own semantics, and on real cases, once per fold. The cases of the fold are scored
by the rules of BraTS 2020. The second fit is also scored, on simulated patients that were not in
training. Networks of one seed start from the same weights in all parts that they share. In the rows
``shuffled_text`` a case gets the report of another case, in training and in scoring.

Finished fits are kept in ``--output``; the same command, run again, skips them. Several commands
with one ``--output`` share the work. At the end the scores of all cases, sizes of the networks and
a figure are written, and a table is printed (``results_numbers.py``): each row beside the paper's,
with a test over seeds and cases, corrected for the number of rows.
"""

import argparse
import csv
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import nibabel as nib
import numpy as np
import torch
from einops import rearrange
from filelock import FileLock, Timeout
from pytorch_lightning import Trainer, seed_everything
from results_numbers import NETWORKS, ablation_table

from clipseg3d import (
    BraTS2018DataModule,
    BraTSDataModule,
    CLIPSeg3D,
    CLIPSeg3DModule,
    PhantomDataModule,
    Predictor,
)
from clipseg3d.atomic_write import atomic_write
from clipseg3d.data.cases import Case, find_cases
from clipseg3d.data.nifti import read_voxels
from clipseg3d.data.releases import BRATS_2018
from clipseg3d.metrics.case_scores import CaseScores
from clipseg3d.metrics.score_table import ScoreTable, join_tables
from clipseg3d.networks.build import build_clipseg3d
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.networks.presets import network_config
from clipseg3d.phantom.write import write_phantoms
from clipseg3d.training.averaged_weights import AveragedWeights
from clipseg3d.training.plan import TrainingPlan
from clipseg3d.vocabulary import REGIONS

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SPACING_MM = 2.0
PATCH = (72, 96, 80)
"""Size of crops and of the sliding window; it holds a whole brain. The networks normalise each
window on its own, and find tumour where there is none in windows unlike those of training."""
NETWORK = replace(network_config("tiny"), channels=(12, 24, 48, 96), refinement=0, num_auxiliary=1)
FULL_RESOLUTION = replace(NETWORK, channels=(16, 32, 64, 128), space_to_depth=1)
"""Differs from ``NETWORK`` as the preset ``recommended`` from ``fast``: no space-to-depth, and a
third more channels."""
FIRST_PLAN = TrainingPlan(lr=2e-3)
PLAN = TrainingPlan(lr=1e-3, semantic_lr=2.0)
FIRST_UNSEEN = 1_000_000
"""Seed of the first simulated patient to score; training uses seeds from 0 on."""
SIMULATED = "simulated"
"""Stands for a fold in the names of files."""
ROWS = (
    *("unet3d", "recommended", "no_pixel", "no_semantic", "no_guidance", "no_attention"),
    *("plain_backbone", "plain_bridge"),
    *("no_text", "shuffled_text", "min_max", "refinement", "full_resolution"),
)
"""Rows that run if none are named: those of the paper, and ours."""
VARIANTS: dict[str, dict[str, Any]] = {
    "sequential": {"guidance": "sequential"},
    "film": {"guidance": "film"},
    "gain": {"attention_mode": "gain"},
    "mean_token": {"guidance_tokens": "mean"},
    "dense": {"dense": True},
    "differences": {"difference_channels": True},
}
"""Rows that run only when ``--rows`` names them: other forms of the mechanisms."""
READING = replace(
    NETWORK,
    clip="tiny",
    guided=REGIONS,
    sentences=True,
    presence=True,
    guided_skips=2,
    attention_stride=2,
)
READING_ROWS = {
    "reading": None,
    "reading, no_text": "no_text",
    "reading, shuffled_text": "shuffled_text",
}
"""Rows whose text guides all regions, sentence by sentence, and their presence -> their ablation;
they run only when ``--rows`` names them."""
OTHER_TEXT = {"recommended, other text": None, "shuffled_text, other text": "shuffled_text"}
"""Rows whose texts ``--text-encoder`` reads -> their ablation."""
OWN_BACKBONE = (
    *("no_pixel", "unet3d", "plain_backbone", "refinement", "full_resolution", "min_max"),
    "differences",
)
"""Rows whose U-Net differs from that of the whole method."""


def cubes_of_8(volume: np.ndarray) -> np.ndarray:
    """Return cubes of 2 x 2 x 2 voxels (..., x, y, z, 8); the volume is padded with 0."""
    padding = [(0, 0)] * (volume.ndim - 3) + [(0, n % 2) for n in volume.shape[-3:]]
    return rearrange(
        np.pad(volume, padding), "... (x i) (y j) (z k) -> ... x y z (i j k)", i=2, j=2, k=2
    )


def write_coarse(case: Case, folder: Path) -> None:
    """Write a 1 mm case at 2 mm: means of the brain voxels, and regions by majority."""
    folder.mkdir(parents=True, exist_ok=True)
    if case.label is None:
        raise ValueError(f"{case.case_id}: has no mask; give labelled cases")
    for name, path in {**case.sequences, "seg": case.label}.items():
        source = nib.load(path)
        affine = source.affine @ np.diag([2, 2, 2, 1])
        affine[:3, 3] += source.affine[:3, :3] @ np.full(3, 0.5)
        voxels = read_voxels(path)
        if name == "seg":
            cubes = cubes_of_8(BRATS_2018.to_regions(voxels.astype(np.uint8)))
            values = BRATS_2018.to_labels(cubes.mean(axis=-1) >= 0.5)
        else:
            cubes = cubes_of_8(voxels.astype(np.float32))
            inside = (cubes != 0).sum(axis=-1)
            values = np.where(inside >= 4, cubes.sum(axis=-1) / np.maximum(inside, 1), 0)
        part = folder / f".part_{name}.nii.gz"
        nib.save(nib.Nifti1Image(values, affine), part)
        part.replace(folder / f"{case.case_id}_{name}.nii.gz")


def real_cases(arguments: argparse.Namespace, config: NetworkConfig, fold: int) -> BraTSDataModule:
    """Return the real cases at 2 mm."""
    folder = arguments.output / "cases"
    with FileLock(arguments.output / "cases.lock"):
        for case in find_cases(arguments.data, BRATS_2018):
            if not (folder / case.case_id / f"{case.case_id}_seg.nii.gz").is_file():
                write_coarse(case, folder / case.case_id)
    return BraTS2018DataModule(
        str(folder),
        reports=str(arguments.reports),
        fold=fold,
        num_folds=arguments.folds,
        spacing_mm=SPACING_MM,
        **options(arguments, config, arguments.steps // 12),
    )


def options(arguments: argparse.Namespace, config: NetworkConfig, crops: int) -> dict[str, Any]:
    """Return the options that both data modules share."""
    return {
        "patch_size": PATCH,
        "crops_per_case": crops,
        "num_workers": 0,
        "view_selection": config.view_selection,
        "shuffle_reports": config.text == "shuffled",
        "cache_dir": str(arguments.output / "cache"),
    }


def fit(
    config: NetworkConfig,
    data: BraTSDataModule,
    *,
    steps: int,
    plan: TrainingPlan,
    seed: int,
    start: dict[str, torch.Tensor] | None,
) -> CLIPSeg3D:
    """Train one network and return it with averaged weights.

    Args:
        config: of the network.
        data: training data.
        steps: number of steps, one crop each.
        plan: of the training.
        seed: of weights, order and augmentation.
        start: weights of the parts that were trained before; None if there are none.
    """
    seed_everything(seed, verbose=False)
    module = CLIPSeg3DModule(
        config, release="brats2018", spacing_mm=SPACING_MM, plan=plan, roi_size=PATCH
    )
    module.network.load_state_dict(shared_start(module.network, seed) | (start or {}))
    trainer = Trainer(
        accelerator="cpu",
        precision="32-true",
        max_steps=steps,
        gradient_clip_val=12.0,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[AveragedWeights(0.99)],
    )
    trainer.fit(module, data)
    return module.network.eval()


def shared_start(network: CLIPSeg3D, seed: int) -> dict[str, torch.Tensor]:
    """Return initial weights; shared parts get those of the whole method with this seed.

    After few steps, scores depend more on the initial weights than on the part a row leaves out.
    """
    seed_everything(seed, verbose=False)
    method, own = build_clipseg3d(NETWORK).state_dict(), network.state_dict()
    return own | {k: w for k, w in method.items() if k in own and w.shape == own[k].shape}


def score(network: CLIPSeg3D, cases: Sequence[Case]) -> ScoreTable:
    """Score the cases that have expert masks, each with its ``report``."""
    predictor = Predictor(network, release=BRATS_2018, spacing_mm=SPACING_MM, roi_size=PATCH)
    metric = CaseScores(REGIONS, protocol="brats2020", release="brats2018")
    for case in cases:
        if case.label is not None:
            masks = [
                torch.from_numpy(BRATS_2018.to_regions(values.astype(np.uint8)))[None]
                for values in (predictor(case).label, read_voxels(case.label))
            ]
            metric.update(*masks, [case.case_id], spacing_mm=[SPACING_MM] * 3)
    return metric.compute()


def held_out_cases(data: BraTSDataModule) -> list[Case]:
    """Return the cases of the fold, with the reports that the data module gives them."""
    names = {case.case_id for case in data.val_set.cases}
    return [case for case in data._cases() if case.case_id in names]


def simulated_cases(arguments: argparse.Namespace, config: NetworkConfig) -> list[Case]:
    """Return simulated patients that are in no training."""
    folder = arguments.output / "unseen phantoms"
    with FileLock(arguments.output / "phantoms.lock"):
        write_phantoms(folder, arguments.unseen, spacing_mm=SPACING_MM, seed=FIRST_UNSEEN)
    cases = find_cases(folder, BRATS_2018, spacing_mm=SPACING_MM)
    if config.text != "shuffled":
        return cases
    return [replace(case, report=cases[i - 1].report) for i, case in enumerate(cases)]


def row_config(row: str, text_encoder: str | None) -> NetworkConfig:
    """Return the network of a row."""
    if row == "full_resolution":
        return FULL_RESOLUTION
    if row == "refinement":
        return replace(NETWORK, refinement=network_config("tiny").refinement)
    if row == "min_max":
        return replace(NETWORK, norms=network_config("paper").norms)
    if row in VARIANTS:
        return replace(NETWORK, **VARIANTS[row])
    if row in READING_ROWS:
        return network_config(READING, ablation=READING_ROWS[row])
    if row in OTHER_TEXT:
        config = network_config(NETWORK, ablation=OTHER_TEXT[row])
        return replace(config, text_encoder=text_encoder)
    return network_config(NETWORK, ablation=None if row == "recommended" else row)


def run(arguments: argparse.Namespace, row: str, seed: int, part: str, path: Path) -> None:
    """Score one row with one seed: on a fold, after training on the others, or simulated."""
    config = row_config(row, arguments.text_encoder)
    weights = pretrained(arguments, config, row, seed)
    if part == SIMULATED:
        network = build_clipseg3d(config).eval()
        network.load_state_dict(weights)
        cases = simulated_cases(arguments, config)
    else:
        data = real_cases(arguments, config, int(part.split()[1]))
        network = fit(config, data, steps=arguments.steps, plan=PLAN, seed=seed, start=weights)
        cases = held_out_cases(data)
    with atomic_write(path) as tmp:
        tmp.write_text(score(network, cases).csv(), encoding="utf-8")


def pretrained(
    arguments: argparse.Namespace, config: NetworkConfig, row: str, seed: int
) -> dict[str, torch.Tensor]:
    """Return the weights of a row and seed after training on simulated patients."""
    backbone = f"backbone of {row if row in OWN_BACKBONE else 'recommended'}"
    plain = network_config(config, ablation="no_semantic")
    steps = arguments.backbone_steps
    start = simulated_fit(arguments, plain, FIRST_PLAN, f"{backbone} seed {seed}", seed, steps)
    steps = arguments.simulated_steps
    return simulated_fit(arguments, config, PLAN, f"{row} seed {seed}", seed, steps, start)


def simulated_fit(
    arguments: argparse.Namespace,
    config: NetworkConfig,
    plan: TrainingPlan,
    name: str,
    seed: int,
    steps: int,
    start: dict[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """Return the weights of a fit on simulated patients; the fit runs if it is not there yet."""
    path = arguments.output / "pretrained" / f"{name}.pt"
    with FileLock(path.with_suffix(".lock")):
        if not path.is_file():
            patients = PhantomDataModule(
                str(arguments.output / "phantoms"),
                num_cases=arguments.phantoms,
                spacing_mm=SPACING_MM,
                **options(arguments, config, -(-steps // arguments.phantoms) + 1),
            )
            with FileLock(arguments.output / "phantoms.lock"):
                patients.prepare_data()
            network = fit(config, patients, steps=steps, plan=plan, seed=seed, start=start)
            with atomic_write(path) as tmp:
                torch.save(network.state_dict(), tmp)
    weights: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return weights


def collect(output: Path, row: str, seeds: int, parts: Sequence[str]) -> list[ScoreTable]:
    """Return the scores of all cases of a row, one table per seed that is finished."""
    tables = []
    for seed in range(seeds):
        paths = [output / "runs" / f"{row} seed {seed} {part}.csv" for part in parts]
        if all(path.is_file() for path in paths):
            tables.append(join_tables([ScoreTable.read(path) for path in paths]))
    return tables


def write(rows: dict[str, list[ScoreTable]], path: Path) -> None:
    """Write the scores of every row, seed, case and region."""
    with (
        atomic_write(path) as tmp,
        tmp.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["row", "seed", "case", "region", "dice", "hd95_mm", "lesion_dice"])
        for row, tables in rows.items():
            for seed, table in enumerate(tables):
                for case, regions in zip(table.case_ids, table.values, strict=True):
                    for region, values in zip(table.regions, regions, strict=True):
                        named = dict(zip(table.scores, values, strict=True))
                        scores = [f"{named['dice']:.4f}", f"{named['hd95_mm']:.2f}"]
                        scores.append(f"{named['lesion_dice']:.4f}")
                        writer.writerow([row, seed, case, region, *scores])


def write_networks(arguments: argparse.Namespace, rows: Sequence[str], path: Path) -> None:
    """Write how many weights of each row are trained, and for how many steps."""
    steps = [arguments.backbone_steps, arguments.simulated_steps, arguments.steps]
    with (
        atomic_write(path) as tmp,
        tmp.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["row", "parameters", "backbone steps", "simulated steps", "real steps"])
        for row in rows:
            network = build_clipseg3d(row_config(row, arguments.text_encoder))
            weights = [weight for weight in network.parameters() if weight.requires_grad]
            writer.writerow([row, sum(weight.numel() for weight in weights), *steps])


def draw(rows: dict[str, list[ScoreTable]], path: Path) -> None:
    """Draw Dice of every row: a dot per seed, a bar at their mean."""
    figure, axes = plt.subplots(1, 4, figsize=(12, 0.4 * len(rows) + 1.5), sharey=True)
    for axis, name in zip(axes, (*REGIONS, "mean"), strict=True):
        for y, tables in enumerate(rows.values()):
            index = tables[0].scores.index("dice")
            means = np.array([table.means()[:, index] for table in tables])
            values = means.mean(axis=1) if name == "mean" else means[:, REGIONS.index(name)]
            axis.plot([values.mean()] * 2, [y - 0.3, y + 0.3], color="0.2", lw=2)
            axis.scatter(values, [y] * len(values), s=18, color="#0072b2", zorder=3)
        axis.set(xlabel=f"Dice {name}", yticks=range(len(rows)))
        axis.set_yticklabels(rows)
        axis.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Run the fits that are neither done nor running elsewhere, then print and draw scores."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="BraTS 2018; read only")
    parser.add_argument("--reports", type=Path, required=True, help="JSON of reports by case")
    parser.add_argument("--text-encoder", help="folder or hub name; adds rows that read with it")
    parser.add_argument("--output", type=Path, default=Path("ablation"))
    parser.add_argument(
        "--rows", nargs="+", default=list(ROWS), choices=[*ROWS, *VARIANTS, *READING_ROWS]
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--phantoms", type=int, default=100)
    parser.add_argument("--unseen", type=int, default=20, help="simulated patients to score")
    parser.add_argument("--backbone-steps", type=int, default=300, help="without semantics")
    parser.add_argument("--simulated-steps", type=int, default=120, help="with semantics")
    parser.add_argument("--steps", type=int, default=96, help="on real cases")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    for path in (arguments.data, arguments.reports):
        if not path.exists():
            parser.error(f"{path}: no such file or folder")
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    rows = [*arguments.rows, *(OTHER_TEXT if arguments.text_encoder else ())]
    for name in ("runs", "pretrained"):
        (arguments.output / name).mkdir(parents=True, exist_ok=True)
    folds = [f"fold {fold}" for fold in range(arguments.folds)]
    for seed in range(arguments.seeds):
        for row in rows:
            for part in (*folds, SIMULATED):
                path = arguments.output / "runs" / f"{row} seed {seed} {part}.csv"
                try:
                    with FileLock(path.with_suffix(".lock"), blocking=False):
                        if not path.is_file():
                            run(arguments, row, seed, part, path)
                            print(path.stem, flush=True)
                except Timeout:  # another command runs it
                    continue
    write_networks(arguments, rows, arguments.output / NETWORKS)
    for name, parts in (("ablation", folds), ("ablation_simulated", [SIMULATED])):
        finished = {row: collect(arguments.output, row, arguments.seeds, parts) for row in rows}
        finished = {row: tables for row, tables in finished.items() if tables}
        path = arguments.output / f"{name}.csv"
        write(finished, path)
        if "recommended" in finished:
            print(f"{name}\n{ablation_table(path)}")
        if finished:
            draw(finished, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
