"""Rebuild the weights that come with the package: real cases and simulated patients, one command.

    python examples/train_tiny.py --data BraTS2018 --reports brats2018_reports.json --output tiny

Of the cases below ``--data`` only those named ``Brats18_TCIA*`` are trained on: they are from
TCGA-GBM and TCGA-LGG, whose licence (CC BY 3.0) lets weights be passed on. Simulated patients are
made first. Seven fits follow: the U-Net alone, again with lesions of one case put into another and
with crops that hold more background, then the whole network from its weights, since new semantics
change nothing at first, once more with z-scores and a head that reads the folded voxels, then with
but one sequence in every third sample, and last in every second, with vessels and remnants of dura
that are bright in T1ce, and with coils that are nearer to one side, which a longer fit repeats. The
first two train on crops, the others on whole brains, all at 1 mm, with reports and sequences
withheld at times, and keep an average of the weights. What is left is calibrated; see WT_SHIFT.
Then ``--output``/weights holds what ``CLIPSeg3D.from_pretrained`` reads.

Given again, the command goes on where it was interrupted. ``--fold`` leaves a part of the real
cases out, for cross-validation; ``examples/evaluate_tiny.py`` scores.
"""

import argparse
import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pytorch_lightning import Trainer, seed_everything
from torch import Tensor

from clipseg3d import BraTSDataModule, CLIPSeg3D, CLIPSeg3DModule, PhantomDataModule
from clipseg3d.batch import Sample, unpack_image
from clipseg3d.data.cases import Case
from clipseg3d.data.dataset import BraTSDataset
from clipseg3d.data.releases import BRATS_2018
from clipseg3d.vocabulary import SEQUENCES
from clipseg3d.data.transforms import Augmentation
from clipseg3d.networks.config import NetworkConfig, network_config
from clipseg3d.training.averaged_weights import AveragedWeights
from clipseg3d.training.checkpoint_io import AtomicCheckpointIO, find_last
from clipseg3d.training.last_checkpoints import LastCheckpoints
from clipseg3d.training.manifest import RunManifest
from clipseg3d.training.plan import TrainingPlan
from clipseg3d.batch import withhold_sequences
from clipseg3d.atomic_write import atomic_write

NETWORK = network_config("tiny")
EARLIER = replace(NETWORK, norms=network_config("paper").norms, refinement=0)
"""Of the first three fits: min-max of T2 and FLAIR, as the paper has it, and one layer as head."""
WT_SHIFT = -2.0
"""Added to the score of whole tumour of a trained network, so that it draws less.

In real cases that training has not seen, networks of this command draw a rim too much, in those it
has seen they do not: perhaps because simulated oedema ends softly, and half of what they see is
simulated. Chosen on four cases left out by ``--fold 0`` (with ``--steps 640 320 0 160 --repeats 10
--phantoms 80``), whose WT was drawn 14 to 240 % too large. Dice there was 0.723 without, 0.782 with
-2 and 0.822 with -4; half of the best was taken: what is published sees more cases, and longer.
On the eight of the other folds, looked at afterwards, it was 0.817, 0.840 with -2, 0.829 with -4.
"""


class Stage(NamedTuple):
    """One of the fits."""

    network: NetworkConfig
    """What is trained. What the fit before had none of must change nothing when it is new."""
    plan: TrainingPlan
    patch: tuple[int, int, int]
    """Crops, and windows of prediction. The network normalises each by itself, so that windows
    that hold more background or no tumour are another world to it: the last fits have windows that
    hold the whole brain."""
    grafts: bool = False
    """Put lesions of other cases into some crops; see OtherScanners. The slices that CLIP sees do
    not show it."""
    moves: bool = False
    """Move some crops; see OtherScanners."""
    alone: float = 0
    """Share of samples in which but one sequence is left; see OtherScanners."""
    bright: bool = False
    """Show some samples as if taken nearer to a coil, and less well stripped; see OtherScanners."""
    decay: float = 0.998
    """Share of the average of the weights that stays at every step."""


_UNET = network_config(EARLIER, ablation="no_semantic")
_WHOLE = TrainingPlan(lr=6e-4, warmup=0.05, semantic_lr=3.0)
_BRIGHT = Stage(NETWORK, _WHOLE, (160, 192, 160), grafts=True, alone=0.5, bright=True, decay=0.99)
STAGES = {
    "unet": Stage(_UNET, TrainingPlan(lr=2e-3, warmup=0.05), (96, 128, 96)),
    "moved": Stage(
        _UNET, TrainingPlan(lr=1e-3, warmup=0.05), (112, 128, 112), grafts=True, moves=True
    ),
    "whole": Stage(EARLIER, _WHOLE, (160, 192, 160)),
    "refined": Stage(NETWORK, _WHOLE, (160, 192, 160), grafts=True),
    "alone": Stage(NETWORK, _WHOLE, (160, 192, 160), grafts=True, alone=1 / 3, decay=0.99),
    "bright": _BRIGHT,
    "longer": _BRIGHT,
}


class OtherScanners:
    """The usual augmentation, and then what else differs between scanners, tumours and windows.

    Each sequence on its own is blurred along an axis, as thick slices are, and changes in contrast,
    brightness and noise. Background stays 0.

    Args:
        donors: real cases, whose lesions are put into a third of the crops of real cases.
        moves: move half of all crops by up to a third of their size, with background moving in:
            the network normalises a crop by itself, and must not depend on how much background is
            in it.
        alone: share of samples in which one sequence is left, T1ce twice as often as FLAIR.
        bright: put vessels and remnants of dura, which are bright in T1ce, into half of all
            samples, and brighten half of all sequences towards some side, as coils do: without
            other sequences either looks like a tumour's rim.
    """

    def __init__(
        self,
        donors: BraTSDataset | None = None,
        *,
        moves: bool = False,
        alone: float = 0,
        bright: bool = False,
    ) -> None:
        self.usual = Augmentation()
        self.donors = donors
        self.moves = moves
        self.alone = alone
        self.bright = bright

    def __call__(self, sample: Sample) -> Sample:
        """Return a changed copy of one packed sample."""
        if self.donors and _is_real(sample["case_id"]) and torch.rand(()) < 1 / 3:
            sample = grafted(sample, self.donors, int(torch.randint(len(self.donors), ())))
        sample = self.usual(sample)
        if self.moves and torch.rand(()) < 0.5:
            sample = moved(sample)
        if self.bright:
            sample = shaded(brightened(sample) if torch.rand(()) < 0.5 else sample)
        image = torch.stack([self._change(sequence) for sequence in sample["image"].float()])
        sample = {**sample, "image": image.masked_fill_(sample["image"] == 0, 0).half()}
        if self.alone and torch.rand(()) < self.alone:
            sample = with_one(sample, "t1ce" if torch.rand(()) < 2 / 3 else "flair")
        return sample

    def _change(self, sequence: Tensor) -> Tensor:
        """Return a changed sequence (x, y, z)."""
        thick, noisy, other = (torch.rand(3) < torch.tensor([0.25, 0.25, 0.4])).tolist()
        if thick:
            factor = torch.ones(3)
            factor[torch.randint(3, ())] = 0.25 + 0.5 * torch.rand(())
            size = [round(n * f) for n, f in zip(sequence.shape, factor.tolist(), strict=True)]
            coarse = F.interpolate(sequence[None, None], size=size, mode="trilinear")
            sequence = F.interpolate(coarse, size=sequence.shape, mode="trilinear")[0, 0]
        if other:
            gain, shift = (0.12 * torch.randn(2)).tolist()
            sequence = sequence * (1 + gain) + shift
        if noisy:
            sequence = sequence + 0.2 * torch.rand(()) * torch.randn(sequence.shape)
        return sequence


def grafted(sample: Sample, donors: BraTSDataset, index: int) -> Sample:
    """Return a packed sample with the lesions of another case in their place.

    After CarveMix (Zhang et al., MICCAI 2021): what lies within 1 to 6 voxels of the other case's
    lesions replaces the crop's voxels, masks included, but never background. Half of the time the
    other case is mirrored left to right; edges are blended.

    Args:
        sample: crop of a case, not mirrored.
        donors: packed whole cases.
        index: which of them.
    """
    donor = donors[index]
    image, label = donor["image"], donor["label"]
    if torch.rand(()) < 0.5:
        image, label = image.flip(1), label.flip(0)
    crop = torch.tensor(sample["label"].shape)
    start = (sample["window"][0] * torch.tensor(label.shape)).round().long()
    after = start + crop - torch.tensor(label.shape)
    padding = torch.stack([-start, after], dim=1).flip(0).flatten().tolist()
    image = unpack_image(F.pad(image, padding), donor["statistics"])
    label = F.pad(label, padding)
    reach = 1 + int(torch.randint(6, ()))
    near = widened((label > 0).float()[None], reach)
    share = F.avg_pool3d(near, 5, stride=1, padding=2, count_include_pad=False)
    own = unpack_image(sample["image"], sample["statistics"])
    share = share * (own != 0) * (image != 0)
    return {
        **sample,
        "image": torch.lerp(own, image, share).half(),
        "label": torch.where(share.amin(dim=0) > 0.5, label, sample["label"]),
    }


def moved(sample: Sample) -> Sample:
    """Return a sample whose content is moved, its window told so."""
    size = torch.tensor(sample["label"].shape)
    steps = ((torch.rand(3) * 2 - 1) * size / 3).round().long()
    kept = [slice(max(step, 0), n + min(step, 0)) for step, n in zip(steps, size, strict=True)]
    taken = [slice(max(-step, 0), n - max(step, 0)) for step, n in zip(steps, size, strict=True)]
    image, label = torch.zeros_like(sample["image"]), torch.zeros_like(sample["label"])
    image[:, kept[0], kept[1], kept[2]] = sample["image"][:, taken[0], taken[1], taken[2]]
    label[kept[0], kept[1], kept[2]] = sample["label"][taken[0], taken[1], taken[2]]
    window = sample["window"].clone()
    window[0] -= steps / size * window[1]  # the size of a mirrored axis is negative
    return {**sample, "image": image, "label": label, "window": window}


def brightened(sample: Sample) -> Sample:
    """Return a sample with vessels, and patches on the brain's edge, that are bright in T1ce.

    Skull stripping leaves more of dura, sinuses and bone on some scans than on others; patches lie
    up to 8 voxels outside the brain and 4 inside. Tumour stays as it is.
    """
    image = unpack_image(sample["image"], sample["statistics"])
    brain = (image != 0).any(dim=0, keepdim=True).float()
    outer = widened(brain, int(torch.randint(1, 9, ())))
    inner = 1 - widened(1 - brain, int(torch.randint(1, 5, ())))
    a, b, fine, coarse, wide = (
        smooth_noise(image.shape[1:], scale) for scale in (14, 14, 6, 20, 40)
    )
    patches = (outer > inner) & (coarse > 0.3 + torch.rand(()))
    # where two smooth fields are both near 0 there are lines
    vessels = (a.square() + b.square() < (0.1 + 0.1 * torch.rand(())) ** 2) & (brain > 0)
    found = (patches | vessels & (wide > 0.5 * torch.rand(()))) & (sample["label"] == 0)
    share = found * F.avg_pool3d(found.float(), 3, stride=1, padding=1, count_include_pad=False)
    low, high, mean, sd = sample["statistics"][..., None, None, None].unbind(1)
    level = torch.full((len(SEQUENCES),), -1.0)
    level[SEQUENCES.index("t1ce")] = 4
    level += 1.5 * torch.randn(level.shape)
    value = mean + sd * (level[:, None, None, None] + 2 * fine)
    return {**sample, "image": torch.lerp(image, value.clamp(low, high), share).half()}


def shaded(sample: Sample) -> Sample:
    """Return a sample with half of its sequences brighter here than there.

    Fields of 0.75 to 1.2 were seen in scans; these have an SD of some 0.1, over a third of a brain.
    """
    image = unpack_image(sample["image"], sample["statistics"])
    fields = torch.stack(
        [0.15 * (torch.rand(()) < 0.5) * smooth_noise(image.shape[1:], 60) for _ in image]
    )
    low = sample["statistics"][:, 0, None, None, None]
    image = torch.where(image != 0, low + (image - low) * fields.exp(), 0)
    return {**sample, "image": image.half()}


def widened(mask: Tensor, reach: int) -> Tensor:
    """Return the maximum (c, x, y, z) within some voxels along every axis."""
    for axis in range(3):  # a cube is the maximum along its axes
        size = [2 * reach + 1 if axis == other else 1 for other in range(3)]
        mask = F.max_pool3d(mask, size, stride=1, padding=[n // 2 for n in size])
    return mask


def smooth_noise(size: Sequence[int], scale: int) -> Tensor:
    """Return noise (x, y, z) that changes over so many voxels."""
    coarse = torch.randn(1, 1, *(2 + n // scale for n in size))
    return F.interpolate(coarse, size=tuple(size), mode="trilinear", align_corners=True)[0, 0]


def with_one(sample: Sample, sequence: str) -> Sample:
    """Return a sample as if only one of its sequences had been acquired."""
    views = sample["views"]
    image, statistics, views = withhold_sequences(
        sample["image"][None],
        sample["statistics"][None],
        views._replace(images=views.images[None]),
        torch.tensor([[name == sequence for name in SEQUENCES]]),
    )
    return {
        **sample,
        "image": image[0],
        "statistics": statistics[0],
        "views": views._replace(images=views.images[0]),
    }


class Mixture(BraTSDataModule):
    """Real cases that may shape weights, several times each, and simulated patients once each.

    Args:
        root: folder of BraTS 2018.
        phantoms: folder of simulated patients; those that are missing are made.
        num_phantoms: how many.
        repeats: crops of each real case in an epoch.
        left_out: names of real cases to leave out besides those of no TCGA collection.
        grafts: put lesions of real cases into others; see OtherScanners.
        moves: move crops; see OtherScanners.
        alone: share of samples with but one sequence; see OtherScanners.
        bright: brighten some of samples; see OtherScanners.
        **options: as for BraTSDataModule.
    """

    release = BRATS_2018

    def __init__(
        self,
        root: str,
        *,
        phantoms: str,
        num_phantoms: int,
        repeats: int,
        left_out: tuple[str, ...] = (),
        grafts: bool = False,
        moves: bool = False,
        alone: float = 0,
        bright: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(root, num_workers=0, **options)
        self.simulated = PhantomDataModule(
            phantoms,
            num_cases=num_phantoms,
            spacing_mm=1.0,
            view_selection=self.view_selection,
            cache_dir=str(self.cache_dir),
        )
        self.repeats = repeats
        self.left_out = left_out
        self.grafts = grafts
        self.moves = moves
        self.alone = alone
        self.bright = bright

    def prepare_data(self) -> None:
        """Simulate patients and fill the cache."""
        for part in (self.simulated, self):
            part._entries(part._cases())

    def setup(self, stage: str) -> None:
        """Mix the cases."""
        real = self._entries(self._cases())
        simulated = self.simulated
        donors = BraTSDataset(real, BRATS_2018, packed=True) if self.grafts else None
        self.train_set = BraTSDataset(
            [*real * self.repeats, *simulated._entries(simulated._cases())],
            BRATS_2018,  # simulated patients have its labels
            crop=self.patch_size,
            augment=OtherScanners(donors, moves=self.moves, alone=self.alone, bright=self.bright),
            packed=True,
        )
        self.val_set = self.test_set = BraTSDataset([], BRATS_2018)

    def _cases(self) -> list[Case]:
        """Return the real cases to train on."""
        return [case for case in super()._cases() if may_shape_weights(case, self.left_out)]


def may_shape_weights(case: Case, left_out: tuple[str, ...]) -> bool:
    """Say whether a case is from a collection that allows it, and is not left out."""
    return _is_real(case.case_id) and case.case_id not in left_out


def _is_real(case_id: str) -> bool:
    """Tell a case of the collections that may be trained on from a simulated one."""
    return case_id.startswith("Brats18_TCIA")


def held_out(root: str, fold: int | None, num_folds: int) -> tuple[str, ...]:
    """Return the cases of a fold: every so manieth one by name, so that grades are in all."""
    if fold is None:
        return ()
    names = sorted({path.name for path in Path(root).rglob("Brats18_TCIA*") if path.is_dir()})
    return tuple(names[fold::num_folds])


def fit(
    stage: str,
    data: Mixture,
    *,
    steps: int,
    precision: str,
    output: Path,
    start: CLIPSeg3D | None,
) -> CLIPSeg3D:
    """Run one fit to its end, from its last checkpoint if there is one.

    Args:
        stage: a key of STAGES.
        data: to train on.
        steps: of one sample each.
        precision: as Lightning names it.
        output: folder of the checkpoints.
        start: network whose weights the fit begins with; None begins with new ones.

    Returns:
        The network with averaged weights.
    """
    settings = STAGES[stage]
    seed_everything(0)
    module = CLIPSeg3DModule(
        settings.network,
        release="brats2020",
        plan=settings.plan,
        report_dropout=0.3,
        sequence_dropout=0.2,
        window=settings.patch,
    )
    if start is not None:
        lacking, unknown = module.network.load_state_dict(start.state_dict(), strict=False)
        new = ("semantic_fusion.", "unet.refine.")
        if unknown or any(not name.startswith(new) for name in lacking):
            raise ValueError(
                f"the fit before {stage} lacks {lacking} and has {unknown}; delete {output}"
            )
    folder = output / stage
    last = LastCheckpoints(dirpath=str(folder))
    trainer = Trainer(
        accelerator="auto",
        devices=1,
        precision=precision,
        max_epochs=-1,
        max_steps=steps,
        gradient_clip_val=12.0,
        limit_val_batches=0,
        logger=False,
        callbacks=[last, AveragedWeights(settings.decay), RunManifest()],
    )
    trainer.strategy.checkpoint_io = AtomicCheckpointIO()
    trainer.fit(module, data, ckpt_path=find_last(trainer))
    return module.network.eval()


@torch.no_grad()
def calibrate(network: CLIPSeg3D, shift: float = WT_SHIFT) -> None:
    """Add to WT's bias in the layer that scores come from; WT is first in each cube."""
    unet = network.unet
    last = unet.heads[0] if unet.refine is None else unet.refine.layers[-1]
    last.bias[: unet.fold**3] += shift


def publish(network: CLIPSeg3D, output: Path) -> None:
    """Save weights in half precision, what they count in full, and how they were made."""
    own = network.state_dict().keys()
    for name, weight in network.named_parameters():
        if name in own:  # not those of the frozen CLIP
            weight.data = weight.data.half()
    folder = output / "weights"
    network.save_pretrained(folder)
    fits = {stage: of_fit(newest(output / stage)) for stage in STAGES if (output / stage).is_dir()}
    with atomic_write(folder / "training.json") as aside:
        aside.write_text(f"{json.dumps(fits, indent=1)}\n", encoding="utf-8")


def newest(folder: Path) -> Path:
    """Return the manifest of the last step."""
    return max(folder.glob("last-*.manifest.json"))


def of_fit(path: Path) -> dict[str, Any]:
    """Return what a manifest says of a fit, but for where things lay."""
    manifest = json.loads(path.read_text(encoding="utf-8"))
    kept = ("seed", "step", "seconds", "versions", "hyper_parameters", "encoders")
    real = [name for name in manifest["data"]["cache_files"] if not name.startswith("Phantom")]
    return {
        **{name: manifest[name] for name in kept},
        "clipseg3d_commit": (manifest["git"]["clipseg3d"] or {}).get("commit"),
        "cores": manifest["hardware"]["cores"],
        "cases": {name: manifest["data"]["cache_files"][name] for name in real},
        "phantoms": len(manifest["data"]["cache_files"]) - len(real),
        "data_sha256": manifest["data"]["sha256"],
    }


def main() -> None:
    """Simulate, fit, calibrate and save."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, help="folder of BraTS 2018; read only")
    parser.add_argument("--reports", required=True, help="JSON of reports by case")
    parser.add_argument("--output", type=Path, default=Path("tiny"))
    parser.add_argument("--phantoms", type=int, default=160, help="simulated patients, 1 mm")
    parser.add_argument("--phantom-folder", type=Path, help="None: in --output")
    parser.add_argument("--cache", help="folder of preprocessed cases; None: in --output")
    parser.add_argument(
        "--repeats",
        type=int,
        default=20,
        help="how often a real case is shown for each simulated one",
    )
    parser.add_argument(
        "--steps",
        type=int,
        nargs="+",
        default=(3600, 2000, 400, 800, 400, 400, 600),
        help="of each fit; 0 leaves it out",
    )
    parser.add_argument("--fold", type=int, help="part of the real cases to leave out, from 0")
    parser.add_argument("--num-folds", type=int, default=3)
    parser.add_argument(
        "--precision",
        default="32-true",
        help="bf16-mixed, as for the weights of the package, takes two thirds of the time where "
        "the CPU has AVX-512 BF16, and many times as long where it has not",
    )
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if len(arguments.steps) > len(STAGES):
        parser.error(
            f"--steps has {len(arguments.steps)} numbers, and there are {len(STAGES)} fits"
        )
    if min(arguments.steps) < 0:
        parser.error(f"--steps has {min(arguments.steps)}; 0 leaves a fit out")
    if not any(arguments.steps):
        parser.error("--steps leaves all fits out")
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    network: CLIPSeg3D | None = None
    for (stage, settings), steps in zip(STAGES.items(), arguments.steps, strict=False):
        if not steps:
            continue
        data = Mixture(
            arguments.data,
            phantoms=str(arguments.phantom_folder or arguments.output / "phantoms"),
            num_phantoms=arguments.phantoms,
            repeats=arguments.repeats,
            left_out=held_out(arguments.data, arguments.fold, arguments.num_folds),
            patch_size=settings.patch,
            grafts=settings.grafts,
            moves=settings.moves,
            alone=settings.alone,
            bright=settings.bright,
            reports=arguments.reports,
            view_selection=NETWORK.view_selection,
            cache_dir=arguments.cache or str(arguments.output / "cache"),
        )
        network = fit(
            stage,
            data,
            steps=steps,
            precision=arguments.precision,
            output=arguments.output,
            start=network,
        )
    calibrate(network)
    publish(network, arguments.output)


if __name__ == "__main__":
    main()
