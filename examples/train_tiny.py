"""Rebuild the weights that come with the package: real cases and simulated patients, one command.

    python examples/train_tiny.py --data BraTS2018 --reports brats2018_reports.json --output tiny

Of the cases below ``--data`` only those named ``Brats18_TCIA*`` are trained on: they are from
TCGA-GBM and TCGA-LGG, whose licence (CC BY 3.0) lets weights be passed on. Simulated patients are
made first. Then there are eight fits, each starting from the weights of the one before:

1. ``unet``: the U-Net alone.
2. ``moved``: with lesions of one case put into another, and crops that hold more background.
3. ``whole``: the whole network. New semantic parts change nothing at first.
4. ``refined``: with z-scores, and a head that reads the voxels of each space-to-depth cube.
5. ``alone``: with a single sequence in every third sample.
6. ``bright``: with a single sequence in every second sample, with vessels and remnants of dura that
   are bright in T1ce, and with bias fields as of coils.
7. ``longer``: the same settings again, for more steps.
8. ``reading``: text that is obeyed. Reports are read by sentence, each region has a presence, and
   prompts are answered; 45 % of the samples are twins in which the text knows more than the image,
   and most other reports are written from masks, grafted lesions included.

The first two train on crops, the others on whole brains. All train at 1 mm, withhold reports and
sequences at random, and keep an average of the weights. At the end, prompts, evidence and
presence are learned with all else frozen, and the score of WT is calibrated; see WT_SHIFT. Then
``--output``/weights holds what ``CLIPSeg3D.from_pretrained`` reads. ``--start tiny --steps 0`` does
only these last steps.

The same command, run again, continues where it was interrupted. ``--fold`` leaves a part of the
real cases out, for cross-validation; ``examples/evaluate_tiny.py`` scores.
"""

import argparse
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_lightning import Trainer, seed_everything
from torch import Tensor
from tqdm import tqdm

from clipseg3d import BraTSDataModule, CLIPSeg3D, CLIPSeg3DModule, PhantomDataModule
from clipseg3d.atomic_write import atomic_write
from clipseg3d.batch import Sample, unpack, unpack_image
from clipseg3d.blocks.prompt_head import PromptHead
from clipseg3d.blocks.region_presence import RegionPresence
from clipseg3d.data.cases import Case
from clipseg3d.data.dataset import BraTSDataset
from clipseg3d.data.releases import BRATS_2018
from clipseg3d.data.text_twins import KINDS, TextTwins
from clipseg3d.data.transforms import Augmentation
from clipseg3d.losses import presence_loss
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.networks.presets import network_config
from clipseg3d.pretrained.folder import find_pretrained
from clipseg3d.texts.wording import Statement, write_text
from clipseg3d.training.averaged_weights import AveragedWeights
from clipseg3d.training.checkpoint_io import AtomicCheckpointIO, find_last
from clipseg3d.training.fit_settings import fit_settings
from clipseg3d.training.last_checkpoints import LastCheckpoints
from clipseg3d.training.manifest import RunManifest
from clipseg3d.training.plan import TrainingPlan
from clipseg3d.training.prompt_task import (
    draw_sentences,
    draw_tasks,
    prompt_loss,
    sentence_loss,
)
from clipseg3d.training.sequence_dropout import withhold_sequences
from clipseg3d.views import Views
from clipseg3d.vocabulary import REGIONS, SEQUENCES

NETWORK = network_config("tiny")
EARLIER = replace(NETWORK, norms=network_config("paper").norms, refinement=0)
"""Network of the first three fits: min-max of T2 and FLAIR, as in the paper, and a head of one
layer."""
WT_SHIFT = -2.0
"""Added to the logit of whole tumour (WT) of a trained network, so that its WT becomes smaller.

On real cases that were not in training, networks of this command draw WT too large by a rim; on
training cases they do not. Perhaps this is because simulated oedema ends softly, and half of the
training samples are simulated. The shift was chosen on four cases left out by ``--fold 0`` (with
``--steps 640 320 0 160 --repeats 10 --phantoms 80``), whose WT was drawn 14 to 240 % too large.
Their Dice of WT was 0.723 without a shift, 0.782 with -2 and 0.822 with -4. Half of the best shift
was taken, because the published network trains on more cases, and for longer. On the eight cases
of the other folds, scored afterwards, Dice was 0.817 without, 0.840 with -2 and 0.829 with -4.
"""
_PREVALENCE = 0.8
"""Share of patients with each region; for enhancing tumour a guess, about that of BraTS."""
_PRESENCE_KINDS = {"withheld": 0.2, "faded": 0.15, "removed": 0.45, "wrong": 0.2}
"""Kinds of twins that presence is learned from; see TextTwins."""


class Stage(NamedTuple):
    """One of the fits."""

    network: NetworkConfig
    """What is trained. Parts that the fit before did not have must change nothing when new."""
    plan: TrainingPlan
    patch: tuple[int, int, int]
    """Size of crops, and of the sliding window of prediction. The network normalises each window on
    its own, so windows with more background or without tumour look very different to it. In the
    last fits, a window holds the whole brain."""
    graft_lesions: bool = False
    """Put lesions of other cases into some crops; see OtherScanners. The views that CLIP sees do
    not show them."""
    translate: bool = False
    """Move some crops; see OtherScanners."""
    single_sequence: float = 0
    """Share of samples in which only one sequence is kept; see OtherScanners."""
    bright_tissue: bool = False
    """Add bright vessels, remnants of dura and bias fields to some samples; see OtherScanners."""
    text_twins: float = 0
    """Share of samples in which text knows more than the image; see TextTwins."""
    written_reports: float = 0
    """Share of the other samples whose report is written from the mask."""
    decay: float = 0.998
    """Decay of the moving average of the weights, per step."""


_UNET = network_config(EARLIER, ablation="no_semantic")
_WHOLE = TrainingPlan(lr=6e-4, warmup=0.05, semantic_lr=3.0)
_BRIGHT = Stage(
    NETWORK,
    _WHOLE,
    (160, 192, 160),
    graft_lesions=True,
    single_sequence=0.5,
    bright_tissue=True,
    decay=0.99,
)
READING = replace(
    NETWORK,
    sentences=True,
    presence=True,
    guided_skips=2,
    prompt_head=True,
    guided=REGIONS,
    attention_stride=2,  # half of the time of the semantic path
)
STAGES = {
    "unet": Stage(_UNET, TrainingPlan(lr=2e-3, warmup=0.05), (96, 128, 96)),
    "moved": Stage(
        _UNET,
        TrainingPlan(lr=1e-3, warmup=0.05),
        (112, 128, 112),
        graft_lesions=True,
        translate=True,
    ),
    "whole": Stage(EARLIER, _WHOLE, (160, 192, 160)),
    "refined": Stage(NETWORK, _WHOLE, (160, 192, 160), graft_lesions=True),
    "alone": Stage(
        NETWORK, _WHOLE, (160, 192, 160), graft_lesions=True, single_sequence=1 / 3, decay=0.99
    ),
    "bright": _BRIGHT,
    "longer": _BRIGHT,
    "reading": _BRIGHT._replace(
        network=READING,
        plan=replace(_WHOLE, presence_weight=0.3),
        single_sequence=0.2,
        text_twins=0.45,
        written_reports=0.7,
        decay=0.995,
    ),
}


class OtherScanners:
    """The usual augmentation, then other differences between scanners, tumours and crops.

    Each sequence is blurred along a random axis, as thick slices are, and changed in contrast,
    brightness and noise, independently of the others. Background stays 0.

    Args:
        donors: real cases; their lesions are put into a third of the crops of real cases.
        translate: move half of all crops by up to a third of their size and fill with background.
            The network normalises each crop on its own and must not depend on the share of
            background in it.
        single_sequence: share of samples in which only one sequence is kept, T1ce twice as often
            as FLAIR.
        twins: writes reports, and makes twins; the crops must be whole brains.
        bright_tissue: add vessels and remnants of dura, which are bright in T1ce, to half of all
            samples, and a bias field, as coils cause it, to half of all sequences. Without other
            sequences both look like the rim of a tumour.
    """

    def __init__(
        self,
        donors: BraTSDataset | None = None,
        *,
        translate: bool = False,
        single_sequence: float = 0,
        bright_tissue: bool = False,
        twins: TextTwins | None = None,
    ) -> None:
        self.usual = Augmentation()
        self.donors = donors
        self.translate = translate
        self.single_sequence = single_sequence
        self.bright_tissue = bright_tissue
        self.twins = twins

    def __call__(self, sample: Sample) -> Sample:
        """Return a changed copy of one packed sample."""
        if self.donors and _is_real(sample["case_id"]) and torch.rand(()) < 1 / 3:
            sample = graft_lesions(sample, self.donors, int(torch.randint(len(self.donors), ())))
        if self.twins is not None:  # after grafts, so that reports tell of them
            facts = self.twins.facts_of(sample)
            sample = sample if facts is None else self.twins(sample, facts)
        sample = self.usual(sample)
        if self.translate and torch.rand(()) < 0.5:
            sample = translate(sample)
        if self.bright_tissue:
            sample = add_bias_field(add_bright_tissue(sample) if torch.rand(()) < 0.5 else sample)
        image = torch.stack([self._change(sequence) for sequence in sample["image"].float()])
        sample = {**sample, "image": image.masked_fill_(sample["image"] == 0, 0).half()}
        if self.single_sequence and torch.rand(()) < self.single_sequence:
            sample = keep_sequence(sample, "t1ce" if torch.rand(()) < 2 / 3 else "flair")
        return sample

    def _change(self, sequence: Tensor) -> Tensor:
        """Return a changed sequence (x, y, z)."""
        thick, noisy, rescaled = (torch.rand(3) < torch.tensor([0.25, 0.25, 0.4])).tolist()
        if thick:
            factor = torch.ones(3)
            factor[torch.randint(3, ())] = 0.25 + 0.5 * torch.rand(())
            size = [round(n * f) for n, f in zip(sequence.shape, factor.tolist(), strict=True)]
            coarse = F.interpolate(sequence[None, None], size=size, mode="trilinear")
            sequence = F.interpolate(coarse, size=sequence.shape, mode="trilinear")[0, 0]
        if rescaled:
            gain, shift = (0.12 * torch.randn(2)).tolist()
            sequence = sequence * (1 + gain) + shift
        if noisy:
            sequence = sequence + 0.2 * torch.rand(()) * torch.randn(sequence.shape)
        return sequence


def graft_lesions(sample: Sample, donors: BraTSDataset, index: int) -> Sample:
    """Return a packed sample with the lesions of another case, at the position they have there.

    After CarveMix (Zhang et al., MICCAI 2021): the voxels within 1 to 6 voxels of the donor's
    lesions replace those of the crop, masks included, but never background. Half of the time the
    donor is mirrored left to right. Edges are blended.

    Args:
        sample: crop of a case, not mirrored.
        donors: packed whole cases.
        index: of the donor.
    """
    donor = donors[index]
    image, label = donor["image"], donor["label"]
    if torch.rand(()) < 0.5:
        image, label = image.flip(1), label.flip(0)
    crop = torch.tensor(sample["label"].shape)
    start = (sample["crop_box"][0] * torch.tensor(label.shape)).round().long()
    after = start + crop - torch.tensor(label.shape)
    padding = torch.stack([-start, after], dim=1).flip(0).flatten().tolist()
    image = unpack_image(F.pad(image, padding), donor["statistics"])
    label = F.pad(label, padding)
    reach = 1 + int(torch.randint(6, ()))
    near = dilate((label > 0).float()[None], reach)
    share = F.avg_pool3d(near, 5, stride=1, padding=2, count_include_pad=False)
    own = unpack_image(sample["image"], sample["statistics"])
    share = share * (own != 0) * (image != 0)
    return {
        **sample,
        "image": torch.lerp(own, image, share).half(),
        "label": torch.where(share.amin(dim=0) > 0.5, label, sample["label"]),
    }


def translate(sample: Sample) -> Sample:
    """Return a sample whose content is moved; its crop box, of four rows, moves with it."""
    size = torch.tensor(sample["label"].shape)
    steps = ((torch.rand(3) * 2 - 1) * size / 3).round().long()
    target = [slice(max(step, 0), n + min(step, 0)) for step, n in zip(steps, size, strict=True)]
    source = [slice(max(-step, 0), n - max(step, 0)) for step, n in zip(steps, size, strict=True)]
    image, label = torch.zeros_like(sample["image"]), torch.zeros_like(sample["label"])
    image[:, target[0], target[1], target[2]] = sample["image"][:, source[0], source[1], source[2]]
    label[target[0], target[1], target[2]] = sample["label"][source[0], source[1], source[2]]
    crop_box = sample["crop_box"].clone()
    crop_box[0] -= steps / size @ crop_box[1:]
    return {**sample, "image": image, "label": label, "crop_box": crop_box}


def add_bright_tissue(sample: Sample) -> Sample:
    """Return a sample with vessels, and patches on the brain's edge, that are bright in T1ce.

    Skull stripping leaves more dura, sinuses and bone on some scans than on others. Patches lie up
    to 8 voxels outside the brain and up to 4 inside. Tumour is not changed.
    """
    image = unpack_image(sample["image"], sample["statistics"])
    brain = (image != 0).any(dim=0, keepdim=True).float()
    outer = dilate(brain, int(torch.randint(1, 9, ())))
    inner = 1 - dilate(1 - brain, int(torch.randint(1, 5, ())))
    a, b, fine, coarse, wide = (
        smooth_noise(image.shape[1:], scale) for scale in (14, 14, 6, 20, 40)
    )
    patches = (outer > inner) & (coarse > 0.3 + torch.rand(()))
    # two smooth fields are both near 0 along thin lines
    vessels = (a.square() + b.square() < (0.1 + 0.1 * torch.rand(())) ** 2) & (brain > 0)
    added = (patches | vessels & (wide > 0.5 * torch.rand(()))) & (sample["label"] == 0)
    share = added * F.avg_pool3d(added.float(), 3, stride=1, padding=1, count_include_pad=False)
    low, high, mean, sd = sample["statistics"][..., None, None, None].unbind(1)
    level = torch.full((len(SEQUENCES),), -1.0)
    level[SEQUENCES.index("t1ce")] = 4
    level += 1.5 * torch.randn(level.shape)
    value = mean + sd * (level[:, None, None, None] + 2 * fine)
    return {**sample, "image": torch.lerp(image, value.clamp(low, high), share).half()}


def add_bias_field(sample: Sample) -> Sample:
    """Return a sample with a bias field in half of its sequences.

    Bias fields of 0.75 to 1.2 were measured in scans. These have an SD of about 0.1, and change
    over a third of a brain.
    """
    image = unpack_image(sample["image"], sample["statistics"])
    fields = torch.stack(
        [0.15 * (torch.rand(()) < 0.5) * smooth_noise(image.shape[1:], 60) for _ in image]
    )
    low = sample["statistics"][:, 0, None, None, None]
    image = torch.where(image != 0, low + (image - low) * fields.exp(), 0)
    return {**sample, "image": image.half()}


def dilate(mask: Tensor, reach: int) -> Tensor:
    """Return a mask (c, x, y, z) dilated by a cube that reaches so many voxels to each side."""
    for axis in range(3):  # a cube is the maximum along its axes
        size = [2 * reach + 1 if axis == other else 1 for other in range(3)]
        mask = F.max_pool3d(mask, size, stride=1, padding=[n // 2 for n in size])
    return mask


def smooth_noise(size: Sequence[int], scale: int) -> Tensor:
    """Return noise (x, y, z) that changes over ``scale`` voxels."""
    coarse = torch.randn(1, 1, *(2 + n // scale for n in size))
    return F.interpolate(coarse, size=tuple(size), mode="trilinear", align_corners=True)[0, 0]


def keep_sequence(sample: Sample, sequence: str) -> Sample:
    """Return a sample as if only one of its sequences had been acquired."""
    views, reduced = sample["views"], sample["reduced_views"]
    image, statistics, views = withhold_sequences(
        sample["image"][None],
        sample["statistics"][None],
        Views(*(part[None] for part in views)),
        torch.tensor([[name == sequence for name in SEQUENCES]]),
        reduced_views=Views(*(part[None] for part in reduced)),
    )
    return {
        **sample,
        "image": image[0],
        "statistics": statistics[0],
        "views": Views(*(part[0] for part in views)),
    }


class Mixture(BraTSDataModule):
    """Real cases whose licence allows it, several times each, and simulated patients once each.

    Args:
        root: folder of BraTS 2018.
        phantoms: folder of simulated patients; those that are missing are made.
        num_phantoms: number of simulated patients.
        repeats: crops of each real case in an epoch.
        left_out: names of real cases to leave out, besides those that are not from TCGA.
        graft_lesions: put lesions of real cases into others; see OtherScanners.
        translate: move crops; see OtherScanners.
        single_sequence: share of samples with a single sequence; see OtherScanners.
        bright_tissue: add bright tissue and bias fields; see OtherScanners.
        twins: share of twins; see TextTwins. With these, a third of the simulated patients does not
            enhance; they need a folder of their own.
        written: share of the other reports that are written from the mask.
        kinds: kind of a twin -> its share.
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
        graft_lesions: bool = False,
        translate: bool = False,
        single_sequence: float = 0,
        bright_tissue: bool = False,
        twins: float = 0,
        written: float = 0,
        kinds: Mapping[str, float] = KINDS,
        **options: Any,
    ) -> None:
        super().__init__(root, num_workers=0, **options)
        self.simulated = PhantomDataModule(
            phantoms,
            num_cases=num_phantoms,
            spacing_mm=1.0,
            view_selection=self.view_selection,
            cache_dir=str(self.cache_dir),
            plain_share=1 / 3 if twins else None,
        )
        self.repeats = repeats
        self.left_out = left_out
        self.graft_lesions = graft_lesions
        self.translate = translate
        self.single_sequence = single_sequence
        self.bright_tissue = bright_tissue
        self.twins = (
            TextTwins(BRATS_2018, twins=twins, written=written, kinds=kinds) if twins else None
        )

    def prepare_data(self) -> None:
        """Fill the cache and simulate patients; faults of real cases are found first."""
        for part in (self, self.simulated):
            part._cache(part._cases())

    def setup(self, stage: str) -> None:
        """Mix the cases."""
        real = self._cache(self._cases())
        simulated = self.simulated
        donors = BraTSDataset(real, BRATS_2018, packed=True) if self.graft_lesions else None
        self.train_set = BraTSDataset(
            [*real * self.repeats, *simulated._cache(simulated._cases())],
            BRATS_2018,  # simulated patients have its labels
            crop=self.patch_size,
            augment=OtherScanners(
                donors,
                translate=self.translate,
                single_sequence=self.single_sequence,
                bright_tissue=self.bright_tissue,
                twins=self.twins,
            ),
            packed=True,
        )
        self.val_set = self.test_set = BraTSDataset([], BRATS_2018)

    def _find_cases(self) -> list[Case]:
        """Return the real cases to train on."""
        return [case for case in super()._find_cases() if is_training_case(case, self.left_out)]


def is_training_case(case: Case, left_out: tuple[str, ...]) -> bool:
    """Say whether a case's licence allows training on it, and it is not left out."""
    return _is_real(case.case_id) and case.case_id not in left_out


def _is_real(case_id: str) -> bool:
    """Tell a case of the TCGA collections from a simulated one."""
    return case_id.startswith("Brats18_TCIA")


def held_out(root: str, fold: int | None, num_folds: int) -> tuple[str, ...]:
    """Return the cases of a fold: every n-th by name, so that each fold has both grades."""
    if fold is None:
        return ()
    names = sorted({path.name for path in Path(root).rglob("Brats18_TCIA*") if path.is_dir()})
    return tuple(names[fold::num_folds])


def fit(
    stage: str,
    settings: Stage,
    data: Mixture,
    *,
    steps: int,
    precision: str,
    output: Path,
    start: CLIPSeg3D | None,
) -> CLIPSeg3D:
    """Run one fit to its end, from its last checkpoint if there is one.

    Args:
        stage: a key of STAGES, the name of the folder.
        settings: of this fit.
        data: training data.
        steps: number of steps, one sample each.
        precision: as Lightning names it.
        output: folder for the checkpoints.
        start: network whose weights the fit starts from; None starts from new weights.

    Returns:
        The network with averaged weights.
    """
    seed_everything(0)
    module = CLIPSeg3DModule(
        settings.network,
        release="brats2020",
        plan=settings.plan,
        report_dropout=0.3,
        sequence_dropout=0.2,
        roi_size=settings.patch,
    )
    if start is not None:
        weights = start.state_dict()
        if start.encoder_identities() != module.network.encoder_identities():
            # other embeddings: what was learned of the former ones means nothing
            weights = {n: w for n, w in weights.items() if not n.startswith("semantic_fusion.")}
        missing, unexpected = module.network.load_state_dict(weights, strict=False)
        new = ("semantic_fusion.", "prompt_head.", "unet.refine.")
        if unexpected or any(not name.startswith(new) for name in missing):
            raise ValueError(
                f"the fit before {stage} lacks the weights {missing} and has the unexpected "
                f"{unexpected}; delete {output} and run again"
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
    now = fit_settings(module, trainer, data, content=False)
    trainer.fit(module, data, ckpt_path=find_last(trainer, now))
    return module.network.eval()


@torch.no_grad()
def calibrate(network: CLIPSeg3D, shift: float = WT_SHIFT) -> None:
    """Add a shift to WT's bias in the last layer, whose first channels are the cube of WT."""
    unet = network.unet
    last = unet.heads[0] if unet.refine is None else unet.refine.layers[-1]
    last.bias[: unet.space_to_depth**3] += shift


class PresenceSample(NamedTuple):
    """What the presence of regions in a sample is told from, and what is true."""

    levels: list[Tensor]
    """Of the encoder, in half precision."""
    evidence: Tensor
    """(1, r): of the report."""
    shares: Tensor
    """(1, r, x, y, z): of each region in the voxels of the maps, in half precision."""


def teach_presence(network: CLIPSeg3D, data: Mixture, *, samples: int, steps: int = 1500) -> None:
    """Fit the maps of presence, then how maps and text are weighed, on training samples.

    Both are linear in features that stay as they are. A fit of few hundred steps, of one sample
    each, gives them too little gradient.

    Args:
        network: trained.
        data: training data, with many twins without enhancing tumour.
        samples: number of samples, changed at random as in training; of three in ten, the report
            is withheld. 0 keeps presence as it is.
        steps: of the fit of the maps.
    """
    fusion = network.semantic_fusion
    if fusion is None or fusion.presence is None or fusion.sentences is None or not samples:
        return
    block = fusion.presence
    seed_everything(1)
    data.prepare_data()
    data.setup("fit")
    loaded = islice(data.train_dataloader(), samples)
    seen = [read_presence(network, batch) for batch in tqdm(loaded, total=samples, desc="presence")]
    optimizer = torch.optim.Adam(block.maps.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for index in tqdm(torch.randint(len(seen), (steps,)).tolist(), desc="maps"):
        sample = seen[index]
        told = block([level.float() for level in sample.levels], sample.evidence)
        loss = presence_loss(told.log_odds.detach(), told.maps, sample.shares.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    fusion.sentences.evidence.weight.data *= weigh_presence(block, seen)[:, None]


def teach_evidence(network: CLIPSeg3D, *, texts: int) -> None:
    """Fit what sentences say of the presence of enhancing tumour, on texts alone.

    The fits read one report a step, too few. A text that does not speak of enhancement must count
    for nothing.

    Args:
        network: trained; one row of the weights changes.
        texts: number of texts; 0 keeps the weights as they are.
    """
    fusion = network.semantic_fusion
    if fusion is None or fusion.sentences is None or not texts:
        return
    block, row = fusion.sentences, REGIONS.index("ET")
    rng = np.random.default_rng(3)
    statements = [draw_statement(rng) for _ in range(texts)]
    read: list[tuple[Tensor, Tensor]] = []
    hook = block.register_forward_pre_hook(lambda _, given: read.append(given))
    with torch.no_grad():
        for start in range(0, texts, 64):
            reports = [write_text(said, rng) for said in statements[start : start + 64]]
            network.encode_semantics(None, *network.embed_text(reports))
    hook.remove()
    kinds = [statement.enhancement for statement in statements]
    is_said = torch.tensor([kind is not None for kind in kinds])
    is_present = torch.tensor([float(kind != "none") for kind in kinds])
    weight = block.evidence.weight
    before = weight.detach().clone()
    optimizer = torch.optim.LBFGS([weight], max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        told = torch.cat([block(*given)[1][:, row] for given in read])
        error = F.binary_cross_entropy_with_logits(told[is_said], is_present[is_said])
        total = error + 0.1 * told[~is_said].square().mean()
        total = total + 1e-3 * (weight - before).square().sum()
        total.backward()
        return total

    optimizer.step(loss)


def draw_statement(rng: np.random.Generator) -> Statement:
    """Return what a text may say: more or less of enhancement and of other facts."""
    kinds = (*(None, "none") * 2, "spots", "patches", "rim", "rim", "solid", "yes")
    told: dict[str, Any] = {"enhancement": kinds[rng.integers(len(kinds))]}
    if told["enhancement"] is None or rng.random() < 0.6:
        choices = {
            "necrosis": (None, True, False),
            "oedema": (None, "none", "limited", "extensive"),
            "foci": (None, "single", "multiple"),
            "side": ("left", "right"),
        }
        told |= {name: some[rng.integers(len(some))] for name, some in choices.items()}
    return Statement(**told)


@torch.no_grad()
def read_presence(network: CLIPSeg3D, batch: Any) -> PresenceSample:
    """Return what the presence of regions in a batch of one is told from."""
    batch = unpack(batch, num_regions=len(REGIONS))
    reports = ["" if torch.rand(()) < 0.3 else report for report in batch["report"]]
    semantics = network.encode_semantics(batch["views"], *network.embed_text(reports))
    levels = network.unet.encode(network._fuse(batch["image"], batch["statistics"], None))[1:]
    shares = F.adaptive_avg_pool3d(batch["label"], levels[0].shape[2:])
    return PresenceSample([level.half() for level in levels], semantics.evidence, shares.half())


def weigh_presence(block: RegionPresence, samples: Sequence[PresenceSample]) -> Tensor:
    """Fit how presence weighs maps and text, a logistic regression; return the factors of text.

    Samples are weighted as if a share of :data:`_PREVALENCE` of them had each region.
    """
    with torch.no_grad():
        told = [block([x.float() for x in s.levels], s.evidence).maps for s in samples]
        read = torch.cat([block.read_maps(maps) for maps in told])
    evidence = torch.cat([sample.evidence for sample in samples])
    is_present = torch.cat([sample.shares.flatten(2).any(dim=2).float() for sample in samples])
    share = is_present.mean(dim=0)
    weight = torch.where(is_present > 0, _PREVALENCE / share, (1 - _PREVALENCE) / (1 - share))
    scale = torch.ones(evidence.shape[1], requires_grad=True)
    fitted = [block.weight, block.bias, scale]
    optimizer = torch.optim.LBFGS(fitted, max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        error = F.binary_cross_entropy_with_logits(
            block.weigh(read, evidence * scale), is_present, weight=weight
        )
        # regions that are always there would have no largest weight
        size = block.weight.square().sum() + block.bias.square().sum() + (scale - 1).square().sum()
        total = error + 3e-3 * size
        total.backward()
        return total

    optimizer.step(loss)
    return scale.detach()


def teach_prompts(network: CLIPSeg3D, *, steps: int) -> None:
    """Train a new prompt head on prompts alone, 64 a step.

    The fits ask 16 prompts a step, which is too few in few hundred steps. How prompts are read
    depends on no image; a label of all combinations of regions stands for those of all cases.

    Args:
        network: trained; the new head takes the place of its own.
        steps: number of steps; 0 keeps the head as it is.
    """
    bank = network.text_bank
    if network.prompt_head is None or bank is None or not steps:
        return
    seed_everything(2)
    rng = np.random.default_rng(2)
    label = torch.zeros(1, len(REGIONS), 20, 24, 20)
    for index in range(len(REGIONS)):
        label[:, index, 2 * index + 2 : 8] = 1
    head = PromptHead(network.prompt_head.weights.in_features, len(REGIONS))
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in tqdm(range(steps), desc="prompts"):
        tasks = draw_tasks(64, REGIONS, bank.prompts, rng)
        reading = head.read(bank.encoder.encode_text([task.text for task in tasks])[None])
        loss = prompt_loss(head, reading, label, tasks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.prompt_head = head.eval()


def teach_sentences(network: CLIPSeg3D, *, texts: int) -> None:
    """Fit how many lesions sentences of reports speak of, on texts alone.

    Args:
        network: trained; one row of its prompt head changes.
        texts: number of sentences; 0 keeps the row as it is.
    """
    head, bank = network.prompt_head, network.text_bank
    if head is None or bank is None or not texts:
        return
    sentences, several = draw_sentences(texts, np.random.default_rng(4))
    with torch.no_grad():
        embeddings = torch.cat(
            [bank.encoder.encode_text(sentences[n : n + 64]) for n in range(0, texts, 64)]
        )
    row = [head.several.weight, head.several.bias]
    optimizer = torch.optim.LBFGS(row, max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = sentence_loss(head.read(embeddings[None]), several)
        total = total + 0.1 * sum(weight.square().sum() for weight in row)
        total.backward()
        return total

    optimizer.step(loss)


def publish(network: CLIPSeg3D, output: Path, *, start: str | None) -> None:
    """Write the weights in half precision, buffers in full, and how they were made.

    Args:
        network: trained.
        output: folder with the fits.
        start: weights that the first of these fits went on from; their fits are listed too.
    """
    own = network.state_dict().keys()
    for name, weight in network.named_parameters():
        if name in own:  # not those of the frozen CLIP
            weight.data = weight.data.half()
    folder = output / "weights"
    network.save_pretrained(folder)
    fits: dict[str, Any] = {}
    if start is not None:
        before = find_pretrained(start) / "training.json"
        fits = json.loads(before.read_text(encoding="utf-8"))
    fits |= {
        stage: summarise_fit(newest_manifest(output / stage))
        for stage in STAGES
        if (output / stage).is_dir()
    }
    with atomic_write(folder / "training.json") as tmp:
        tmp.write_text(f"{json.dumps(fits, indent=1)}\n", encoding="utf-8")


def newest_manifest(folder: Path) -> Path:
    """Return the manifest of the last step."""
    return max(folder.glob("last-*.manifest.json"))


def summarise_fit(path: Path) -> dict[str, Any]:
    """Return the contents of a fit's manifest, without the local paths."""
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
    parser.add_argument("--phantom-folder", type=Path, help="(default: in --output)")
    parser.add_argument("--cache", help="folder of preprocessed cases (default: in --output)")
    parser.add_argument(
        "--repeats",
        type=int,
        default=20,
        help="crops of each real case for one of each simulated patient",
    )
    parser.add_argument(
        "--steps",
        type=int,
        nargs="+",
        default=(3600, 2000, 400, 800, 400, 400, 600, 800),
        help="steps of each fit; 0 leaves the fit out",
    )
    parser.add_argument(
        "--start",
        help="name or folder of published weights; the first fit goes on from them",
    )
    parser.add_argument("--fold", type=int, help="part of the real cases to leave out, from 0")
    parser.add_argument("--num-folds", type=int, default=3)
    parser.add_argument(
        "--clip",
        default=NETWORK.clip,
        help="name or folder; for --fold, one that has not seen the cases left out",
    )
    parser.add_argument(
        "--precision",
        default="32-true",
        help="bf16-mixed made the weights of the package; it takes two thirds of the time on CPUs "
        "with AVX-512 BF16, and many times as long on others",
    )
    parser.add_argument(
        "--evidence-texts", type=int, default=2500, help="of enhancement; see teach_evidence"
    )
    parser.add_argument(
        "--presence-samples", type=int, default=200, help="for presence; see teach_presence"
    )
    parser.add_argument(
        "--prompt-steps", type=int, default=1000, help="of the prompt head; see teach_prompts"
    )
    parser.add_argument("--sentence-texts", type=int, default=4000, help="of the number of lesions")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if len(arguments.steps) > len(STAGES):
        parser.error(
            f"--steps has {len(arguments.steps)} numbers, and there are {len(STAGES)} fits"
        )
    if min(arguments.steps) < 0:
        parser.error(f"--steps has {min(arguments.steps)}; 0 leaves a fit out")
    if not any(arguments.steps) and arguments.start is None:
        parser.error("--steps leaves all fits out; give --start, whose presence and prompts change")
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    network: CLIPSeg3D | None = None
    if arguments.start is not None:
        network = CLIPSeg3D.from_pretrained(arguments.start).float()
        calibrate(network, -WT_SHIFT)  # as it was in training

    def mixture(settings: Stage, **changed: Any) -> Mixture:
        folder = arguments.phantom_folder or arguments.output / "phantoms"
        if settings.text_twins:
            folder = arguments.output / "phantoms, a third plain"
        options: dict[str, Any] = {
            "num_phantoms": arguments.phantoms,
            "repeats": arguments.repeats,
            "left_out": held_out(arguments.data, arguments.fold, arguments.num_folds),
            "patch_size": settings.patch,
            "graft_lesions": settings.graft_lesions,
            "translate": settings.translate,
            "single_sequence": settings.single_sequence,
            "bright_tissue": settings.bright_tissue,
            "twins": settings.text_twins,
            "written": settings.written_reports,
            "reports": arguments.reports,
            "view_selection": NETWORK.view_selection,
            "cache_dir": arguments.cache or str(arguments.output / "cache"),
        }
        return Mixture(arguments.data, phantoms=str(folder), **options | changed)

    for (stage, settings), steps in zip(STAGES.items(), arguments.steps, strict=False):
        if not steps:
            continue
        network = fit(
            stage,
            settings._replace(network=replace(settings.network, clip=arguments.clip)),
            mixture(settings),
            steps=steps,
            precision=arguments.precision,
            output=arguments.output,
            start=network,
        )
    teach_prompts(network, steps=arguments.prompt_steps)
    teach_sentences(network, texts=arguments.sentence_texts)
    teach_evidence(network, texts=arguments.evidence_texts)
    data = mixture(
        STAGES["reading"], twins=0.7, single_sequence=0.1, repeats=6, kinds=_PRESENCE_KINDS
    )
    teach_presence(network, data, samples=arguments.presence_samples)
    calibrate(network)
    publish(network, arguments.output, start=arguments.start)


if __name__ == "__main__":
    main()
