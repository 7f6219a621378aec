"""How well a small U-Net segments real cases if it is trained on phantoms only.

    python examples/phantom_to_real.py --data BraTS2018

Simulates patients, trains the plain 3D U-Net of the tiny preset on whole brains at a coarse voxel
size, and scores it on every real case below ``--data`` at the case's own voxel size, by the rule
of BraTS 2020 for empty masks. No real case is in training. Phantoms, checkpoint and scores are kept
in ``--output``; an interrupted run continues from there.
"""

import argparse
import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from clipseg3d.atomic_write import atomic_write
from clipseg3d.data.cases import Case, find_cases
from clipseg3d.data.nifti import read_voxels
from clipseg3d.data.preprocessing import preprocess
from clipseg3d.data.release import BraTSRelease
from clipseg3d.data.releases import PHANTOM, get_release
from clipseg3d.intensity import intensity_statistics, scale
from clipseg3d.losses import RegionLoss
from clipseg3d.metrics.dice import dice_empty_is_one
from clipseg3d.networks.build import build_clipseg3d
from clipseg3d.networks.clipseg3d import CLIPSeg3D
from clipseg3d.networks.presets import network_config
from clipseg3d.phantom.simulate import simulate_phantom
from clipseg3d.training.plan import TrainingPlan
from clipseg3d.vocabulary import REGIONS

SAVE_EVERY = 100
PLAN = TrainingPlan(lr=2e-3)


def build_network() -> CLIPSeg3D:
    """Return the plain U-Net with space-to-depth of 2 x 2 x 2 voxels in its stem."""
    config = network_config("tiny", ablation="unet3d")
    return build_clipseg3d(replace(config, channels=(12, 24, 48, 96), num_auxiliary=1))


def save(path: Path, value: Any) -> None:
    """Write a file, all or nothing."""
    with atomic_write(path) as tmp:
        torch.save(value, tmp)


def normalise(image: Tensor) -> Tensor:
    """Clip each sequence (s, x, y, z) to its percentiles and z-score it over its own voxels."""
    low, high, mean, std = rearrange(intensity_statistics(image[None])[0], "s k -> k s 1 1 1")
    return scale(image.clamp(low, high), mean, std) * (image != 0)


def simulate(folder: Path, count: int, spacing_mm: float) -> list[tuple[Tensor, Tensor]]:
    """Return images (4, x, y, z) and regions (3, x, y, z) of phantoms, cropped to the brain."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for seed in tqdm(range(count), desc="Simulating patients", unit="case"):
        path = folder / f"{seed:05d}.pt"
        if not path.is_file():
            phantom = simulate_phantom(seed, spacing_mm=spacing_mm)
            inside = np.argwhere(phantom.image.any(axis=0))
            x, y, z = (
                slice(a, b + 1) for a, b in zip(inside.min(axis=0), inside.max(axis=0), strict=True)
            )
            image = normalise(torch.from_numpy(phantom.image[:, x, y, z].copy()))
            save(path, (image.half(), torch.from_numpy(phantom.label[x, y, z].copy())))
        image, label = torch.load(path)
        samples.append((image.float(), torch.from_numpy(PHANTOM.to_regions(label.numpy()))))
    return samples


def augment(image: Tensor, regions: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Rotate, scale, mirror; change contrast, brightness, noise, sharpness of each sequence."""
    both = torch.cat([image, regions])[None]
    if rng.random() < 0.7:
        rotation = np.eye(3)
        for axis, angle in enumerate(rng.uniform(-0.3, 0.3, 3)):
            i, j = (k for k in range(3) if k != axis)
            plane = np.eye(3)
            plane[i, i] = plane[j, j] = math.cos(angle)
            plane[i, j], plane[j, i] = -math.sin(angle), math.sin(angle)
            rotation = rotation @ plane
        matrix = np.concatenate(
            [rotation * np.exp(rng.normal(0, 0.1, 3)), np.zeros((3, 1))], axis=1
        )
        grid = F.affine_grid(
            torch.from_numpy(matrix).float()[None], list(both.shape), align_corners=False
        )
        both = F.grid_sample(both, grid, align_corners=False)
    both = both.flip([axis for axis, p in ((2, 0.5), (3, 0.2), (4, 0.2)) if rng.random() < p])
    image, regions = both[0, :4], (both[0, 4:] > 0.5).float()
    changed = []
    for sequence in image:
        new = sequence
        if rng.random() < 0.5:  # a monotonic change of contrast between -3 and 4 SD
            new = ((new + 3) / 7).clamp(0, 1) ** math.exp(rng.normal(0, 0.25)) * 7 - 3
        new = new * math.exp(rng.normal(0, 0.12)) + rng.normal(0, 0.12)
        if rng.random() < 0.3:
            new = new + rng.uniform(0, 0.25) * torch.randn_like(new)
        if rng.random() < 0.25:
            new = F.avg_pool3d(F.pad(new[None, None], (1, 0) * 3, mode="replicate"), 2, stride=1)[
                0, 0
            ]
        changed.append(new * (sequence != 0))
    return torch.stack(changed), regions


def train(
    network: CLIPSeg3D, samples: list[tuple[Tensor, Tensor]], steps: int, checkpoint: Path
) -> None:
    """Train to the last step, from the step of the checkpoint if there is one."""
    optimizer = PLAN.optimizer_for(network)
    schedule = PLAN.schedule_for(optimizer, steps)
    parts = {"network": network, "optimizer": optimizer, "schedule": schedule}
    first = 0
    if checkpoint.is_file():
        state = torch.load(checkpoint)
        first = state.pop("step")
        for name, part in parts.items():
            part.load_state_dict(state[name])
    loss_of = RegionLoss()
    recent: list[float] = []
    network.train()
    with tqdm(total=steps, initial=first, desc="Training", unit="step") as bar:
        for step in range(first, steps):
            # each step has its own seed, so that a resumed run is the same run
            rng = np.random.default_rng([0, step])
            torch.manual_seed(step)
            image, regions = samples[int(rng.integers(len(samples)))]
            image, regions = augment(image, regions.float(), rng)
            prediction = network.segment(image[None], None, deep=True)
            loss = loss_of([prediction.logits, *prediction.auxiliary], regions[None])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 12.0)
            optimizer.step()
            schedule.step()
            recent = [*recent[-99:], loss.item()]
            bar.update()
            bar.set_postfix(loss=f"{np.mean(recent):.3f}")
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
                save(checkpoint, {n: p.state_dict() for n, p in parts.items()} | {"step": step + 1})


@torch.no_grad()
def score(
    network: CLIPSeg3D, case: Case, release: BraTSRelease, spacing_mm: float
) -> dict[str, float]:
    """Return region -> Dice of one case on its own grid."""
    network.eval()
    ready = preprocess(case, release)
    brain = (ready.image != 0).float()
    size = [max(1, round(n / spacing_mm)) for n in brain.shape[1:]]
    # mean over brain voxels only: the border must not fade into the background
    share = F.interpolate(brain[None], size=size, mode="area")
    image = F.interpolate(ready.image[None], size=size, mode="area") / share.clamp(min=1e-3)
    logits = network(normalise((image * (share > 0.5))[0])[None])
    logits = F.interpolate(logits, size=brain.shape[1:], mode="trilinear")[0]
    prediction = ready.grid.restore((logits > 0).numpy())
    reference = release.to_regions(read_voxels(case.label).astype(np.uint8))
    dice = dice_empty_is_one(torch.from_numpy(prediction), torch.from_numpy(reference))
    return dict(zip(REGIONS, dice.tolist(), strict=True))


def main() -> None:
    """Simulate, train, score and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of real cases")
    parser.add_argument("--release", default="brats2018", help="BraTS release of --data")
    parser.add_argument("--output", type=Path, default=Path("phantom_to_real"))
    parser.add_argument("--phantoms", type=int, default=200)
    parser.add_argument("--spacing", type=float, default=3.0, help="voxel size of training, in mm")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
    release = get_release(arguments.release)
    cases = find_cases(arguments.data, release)
    name = f"{arguments.phantoms} at {arguments.spacing:g} mm"
    samples = simulate(
        arguments.output / f"phantoms {arguments.spacing:g} mm",
        arguments.phantoms,
        arguments.spacing,
    )
    torch.manual_seed(0)
    network = build_network()
    checkpoint = arguments.output / f"{name}, {arguments.steps} steps.pt"
    train(network, samples, arguments.steps, checkpoint)

    path = checkpoint.with_suffix(".json")
    scores: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.is_file() else {}
    width = max(len(case.case_id) for case in cases)
    print(f"{'case':{width}s}", *(f"{region:>6s}" for region in REGIONS))
    for case in cases:
        if case.case_id not in scores:
            scores[case.case_id] = score(network, case, release, arguments.spacing)
            with atomic_write(path) as tmp:
                tmp.write_text(json.dumps(scores, indent=1))
        dice = scores[case.case_id]
        print(f"{case.case_id:{width}s}", *(f"{dice[r]:6.3f}" for r in REGIONS), flush=True)
    table = np.array([[scores[case.case_id][r] for r in REGIONS] for case in cases])
    spread = table.std(axis=0, ddof=1) if len(cases) > 1 else np.zeros(len(REGIONS))
    for region, mean, sd in zip(REGIONS, table.mean(axis=0), spread, strict=True):
        print(f"{region} {mean:.3f} ± {sd:.3f} over {len(cases)} cases")


if __name__ == "__main__":
    main()
