"""Train the tiny CLIP that comes with the package, on texts, simulated patients and few real ones.

    python examples/train_tiny_clip.py --data BraTS2018 --reports brats2018_reports.json \
        --corpus textbrats_reports.json --output tiny_clip

Both towers are those of transformers' CLIPModel, and the tokenizer is a CLIPTokenizer with its own
vocabulary, so ``HuggingFaceCLIP`` loads the result like ``openai/clip-vit-base-patch32``.

The text tower comes first, and sees texts alone: ``tower_texts.py`` says how. It is frozen then,
with the linear readers of its embeddings, and the image tower is trained to be read by them. The
loss is a sum of five:

- ``reader``: the readers find a case's facts in its three views, and in its tumour patches;
- ``match``: a case, shown in three slices, finds its report among others, and the report its case;
- ``regions``: a patch of a slice is similar to prompts for a part of the tumour by the share that
  it covers, and to prompts for other things not at all;
- ``attention``: the class token attends to the tumour;
- ``distil``: the embedding of a view is similar to the mean of its tumour patches.

The last two are needed because a tower this small otherwise gives all images nearly the same
embedding for hundreds of steps.

There can be any number of simulated patients. A third of them does not enhance, and every case that
does, simulated or real, has a twin without contrast agent. Only the real cases that ``--cases``
names are trained on; ``--fold`` leaves a part of them out, the same as in ``train_tiny.py``. The
reports of ``--corpus`` are used for the vocabulary of the tokenizer only. Slices and training
states are kept in ``--output``, which folds can share. An interrupted run continues from there, and
gives the same weights: the random numbers of every step follow from its number.

The readers are written beside the CLIP, as ``readers.safetensors``; ``evaluate_tiny_clip.py`` takes
them from there.
"""

import argparse
import fnmatch
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from einops import rearrange, reduce
from numpy.typing import NDArray
from torch import Tensor, nn
from tower_texts import (
    UNSAID,
    Readers,
    answers_of,
    fit,
    learn_texts,
    save,
    texts_of_vocabulary,
    train_tokenizer,
)
from tqdm import tqdm
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from clipseg3d.checksums import sha256_of_tensors
from clipseg3d.clip.hugging_face_clip import HuggingFaceCLIP
from clipseg3d.clip.prompts import region_prompts, split_sentences
from clipseg3d.data.cases import find_cases
from clipseg3d.data.contrast_dose import change_contrast_dose
from clipseg3d.data.preprocessing import preprocess
from clipseg3d.data.release import BraTSRelease
from clipseg3d.data.releases import PHANTOM, get_release
from clipseg3d.data.reports import read_reports
from clipseg3d.intensity import intensity_statistics
from clipseg3d.phantom.simulate import simulate_phantom
from clipseg3d.texts import (
    Request,
    Statement,
    measure_facts,
    statement_of,
    write_prompt,
    write_text,
)
from clipseg3d.texts.prompt_wording import TARGETS
from clipseg3d.views import SLICES_PER_AXIS, Views, cut_views

IMAGE_SIZE, PATCH_SIZE = 96, 8
SHARES = 24
"""Side of the grid on which the regions' shares of a slice are kept."""
ENERGY, CENTER = SLICES_PER_AXIS, SLICES_PER_AXIS + 1
"""Indices of these slices along each axis; evenly spaced slices come before them."""
RGB = (1, 3, 2)
"""t1ce, flair and t2, as in :class:`clipseg3d.blocks.semantic_bridge.SemanticBridge`."""

CARD = """# The tiny CLIP of clipseg3d

Image tower of 2D slices of gliomas in MRI (red t1ce, green flair, blue t2) and text tower of
reports and prompts, in English, trained from random weights by `examples/train_tiny_clip.py`. It
comes with the package: `clipseg3d.clip.load_encoder("tiny")`.

## Training data, and their licences

Texts written by `clipseg3d.texts`; {phantoms} phantoms of `clipseg3d` at {spacing} mm, with reports
written from their masks; and these real cases, with their reports from TextBraTS:

{cases}

Those named `Brats18_TCIA*` derive from the public TCGA-GBM and TCGA-LGG collections, BraTS-TCGA
release (Bakas et al. 2017), CC BY 3.0. Of other TextBraTS reports the tokenizer alone has seen the
words.

{text_steps} steps of texts alone; then {steps} steps of {batch_size} cases, rate {lr}, in which the
text tower was frozen. Seed 0, by torch {torch} and transformers {transformers}.

## Measured

By `examples/evaluate_tiny_clip.py`; see `examples/results/tiny_clip.csv`.

## Limits

What it says of real patients was measured on 18 cases. Of other images and texts it knows nothing.
Not a medical device.
"""


PLAIN_SHARE = 1 / 3
"""Share of simulated patients whose tumour does not enhance."""
NOISE = 0.03
"""Of twins without contrast, as a share of the SD of t1ce: else t1ce would be a scaled t1."""


class Sample(NamedTuple):
    """A case in training: slices along three axes, ten along each."""

    images: Tensor
    """(3, 10, h, w, s) uint8."""
    shares: Tensor
    """(3, 10, 4, g, g) uint8: share of WT, TC, ET and brain in each cell of a grid, times 255."""
    statement: Statement
    """What is true of it and can be said."""
    report: str
    """Written by a radiologist; empty if reports are written from the statement alone."""


def cut_case(
    image: Tensor,
    statistics: Tensor,
    label: NDArray[np.uint8],
    release: BraTSRelease,
    statement: Statement,
    report: str,
) -> list[Sample]:
    """Return the sample of a case and, if its tumour enhances, that of its twin.

    The twin is the case without contrast agent in the tumour. Whether there is necrosis cannot be
    told then.

    Args:
        image: brain box, (4, x, y, z).
        statistics: (4, 4).
        label: labels of the release, (x, y, z).
        release: names sequences and labels.
        statement: what is true of the case.
        report: of a real case; empty for a phantom.
    """
    samples = [cut_sample(image, statistics, label, release, statement, report)]
    if statement.enhancement == "none":
        return samples
    changed, without = change_contrast_dose(image.numpy(), label, release, dose=0, within="WT")
    t1ce = list(release.sequences).index("t1ce")
    # in the tumour alone: elsewhere, noise would tell the twin
    noisy = np.isin(label, release.regions["WT"]) & (changed[t1ce] != 0)
    seen = changed[t1ce][changed[t1ce] != 0]
    noise = np.random.default_rng(0).normal(0, NOISE * seen.std(), int(noisy.sum()))
    changed[t1ce][noisy] = (changed[t1ce][noisy] + noise).clip(seen.min(), seen.max())
    twin = torch.from_numpy(changed)
    statistics = statistics.clone()
    statistics[t1ce] = intensity_statistics(twin[None, t1ce : t1ce + 1])[0, 0]
    said = replace(statement, enhancement="none", necrosis=None)
    return [*samples, cut_sample(twin, statistics, without, release, said, "")]


def cut_sample(
    image: Tensor,
    statistics: Tensor,
    label: NDArray[np.uint8],
    release: BraTSRelease,
    statement: Statement,
    report: str,
) -> Sample:
    """Cut slices, and the regions' shares of them; see :func:`cut_case`."""
    regions = torch.from_numpy(release.to_regions(label))
    kinds = [
        cut_views(image[None], statistics[None], selection=selection)
        for selection in ("attention", "energy", "center")
    ]
    images = [rearrange(views.images[0], "(a k) h w s -> a k h w s", a=3) for views in kinds]
    masks = torch.cat([image.any(dim=0, keepdim=True), regions]).float()
    shares = [rearrange(_shares(masks, views), "(a k) c g h -> a k c g h", a=3) for views in kinds]
    slices = rearrange(torch.cat(images, dim=1), "a k h w s -> (a k) s h w").float() / 255
    slices = F.interpolate(slices, (IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", antialias=True)
    small = rearrange(slices.clamp(0, 1), "(a k) s h w -> a k h w s", a=3)
    return Sample(
        (small * 255).round().to(torch.uint8),
        (torch.cat(shares, dim=1)[:, :, [1, 2, 3, 0]] * 255).round().to(torch.uint8),
        statement,
        report,
    )


def _shares(masks: Tensor, views: Views) -> Tensor:
    """Return (v, 4, g, g): share of brain and regions in each cell of the views."""
    grids = []
    per_axis = views.planes.shape[1] // 3
    for index, plane in enumerate(views.planes[0]):
        axis = (2, 1, 0)[index // per_axis]
        mask = masks.select(1 + axis, int(plane[0] * masks.shape[1 + axis]))
        height, width = mask.shape[1:]
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        mask = F.pad(mask, (left, side - width - left, top, side - height - top))
        fine = F.interpolate(mask[None], size=(8 * SHARES, 8 * SHARES), mode="bilinear")
        grids.append(F.avg_pool2d(fine, 8)[0])
    return torch.stack(grids)


def cut_phantom(seed: int, spacing_mm: float) -> list[Sample]:
    """Simulate a patient and cut the slices; the second sample is the twin, if there is one."""
    phantom = simulate_phantom(seed, spacing_mm=spacing_mm, plain_share=PLAIN_SHARE)
    inside = np.argwhere(phantom.image.any(axis=0))
    x, y, z = (slice(a, b + 1) for a, b in zip(inside.min(0), inside.max(0), strict=True))
    image = torch.from_numpy(phantom.image[:, x, y, z].copy())
    statistics = intensity_statistics(image[None])[0]
    label = phantom.label[x, y, z]
    return cut_case(image, statistics, label, PHANTOM, statement_of(phantom.facts), "")


def collect_phantoms(folder: Path, seeds: Sequence[int], spacing_mm: float) -> list[list[Sample]]:
    """Return the samples of each phantom; those that are missing in the folder are made."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        _kept(folder / f"{seed:06d}.pt", lambda seed=seed: cut_phantom(seed, spacing_mm))
        for seed in tqdm(seeds, desc="Simulating patients", unit="case")
    ]


def collect_cases(
    folder: Path, data: Path, release: BraTSRelease, reports: Path, pattern: str
) -> dict[str, list[Sample]]:
    """Return case -> samples of real cases that match a pattern; facts come from the mask."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = read_reports(reports)

    def cut(case: Any) -> list[Sample]:
        ready = preprocess(case, release)
        if ready.label is None:
            raise ValueError(f"{case.case_id}: has no expert mask; leave it out")
        brain = ready.image.any(dim=0).numpy()
        facts = measure_facts(ready.label, brain, spacing_mm=ready.grid.spacing_mm[0])
        report = texts.get(case.case_id, "")
        return cut_case(
            ready.image, ready.statistics, ready.label, release, statement_of(facts), report
        )

    return {
        case.case_id: _kept(folder / f"{case.case_id}.pt", lambda case=case: cut(case))
        for case in find_cases(data, release)
        if fnmatch.fnmatch(case.case_id, pattern)
    }


def _kept(path: Path, make: Callable[[], list[Sample]]) -> list[Sample]:
    """Return the samples of a file, which is made if it is missing."""
    if not path.is_file():
        samples = make()
        save(path, [{**s._asdict(), "statement": asdict(s.statement)} for s in samples])
    return [
        Sample(**{**content, "statement": Statement(**content["statement"])})
        for content in torch.load(path)
    ]


# texts

LOBES = ("frontal", "parietal", "temporal", "occipital")
PARTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "whole": lambda wt, tc, et: wt,
    "core": lambda wt, tc, et: tc,
    "enhancing": lambda wt, tc, et: et,
    "necrosis": lambda wt, tc, et: tc - et,
    "oedema": lambda wt, tc, et: wt - tc,
    "none": lambda wt, tc, et: torch.zeros_like(wt),
}
"""Target of a prompt -> its share, from those of WT, TC and ET."""
OWN_PROMPTS = {"whole": "WT", "core": "TC", "enhancing": "ET"}
"""Target -> region whose own prompts ask for it."""


def answers_shown(statement: Statement) -> dict[str, str]:
    """Return what a case answers, and nothing to questions that its statement leaves open.

    A statement names one lobe, and so says that it is no other.
    """
    answers = answers_of(statement)
    return {name: a for name, a in answers.items() if a != UNSAID or name in LOBES}


def mirrored(statement: Statement) -> Statement:
    """Return the statement of the mirror image."""
    return replace(statement, side="right" if statement.side == "left" else "left")


def without_t1ce(statement: Statement) -> Statement:
    """Return what can be said of a case whose t1ce is withheld."""
    return replace(statement, enhancement=None, necrosis=None)


def mirrored_text(text: str) -> str:
    """Return a report of the mirror image: left becomes right and right becomes left."""
    other = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
    return re.sub(r"\b([Ll]eft|[Rr]ight)\b", lambda word: other[word[0]], text)


# training

WEIGHTS = {"reader": 2.0, "match": 0.5, "regions": 2.0, "attention": 0.3, "distil": 2.0}
"""Weights of the losses."""
GUIDED_LAYERS = (2, 3)
"""Layers of the image tower whose class token is trained to attend to the tumour."""


def build_clip(tokenizer: CLIPTokenizer) -> HuggingFaceCLIP:
    """Return a CLIP with random weights."""
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
    }
    config = CLIPConfig(
        text_config={
            **ends,
            "hidden_size": 160,
            "intermediate_size": 640,
            "num_attention_heads": 4,
            "num_hidden_layers": 4,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 192,
        },
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_attention_heads": 4,
            "num_hidden_layers": 4,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
        },
        projection_dim=96,
    )
    clip = HuggingFaceCLIP(CLIPModel(config), tokenizer, name="tiny")
    with torch.no_grad():
        table = clip.frozen_model.vision_model.embeddings.position_embedding.weight
        table[1:] += sine_positions(IMAGE_SIZE // PATCH_SIZE, table.shape[1])
    return clip


def sine_positions(grid: int, channels: int) -> Tensor:
    """Return initial position embeddings of patches, (g g, e): sines and cosines along both axes.

    Starting from small noise, as CLIP does, a tower this small learns positions very late.
    """
    speed = 100.0 ** -(torch.arange(channels // 4) / (channels // 4))
    angle = torch.arange(grid)[:, None] * speed
    wave = 0.4 * torch.cat([angle.sin(), angle.cos()], dim=1)
    down = wave[:, None].expand(grid, grid, -1)
    along = wave[None].expand(grid, grid, -1)
    return rearrange(torch.cat([down, along], dim=2), "g h e -> (g h) e")


class Learner(nn.Module):
    """The image tower of a CLIP in training, with scales that only its losses need.

    Args:
        clip: its image tower and visual projection are trained; its text tower is not.
        readers: of embeddings of the text tower; they are not trained either.
    """

    def __init__(self, clip: HuggingFaceCLIP, readers: Readers) -> None:
        super().__init__()
        self.clip = clip  # keeps its weights out of the state dict; these are in it:
        self.tower = clip.frozen_model.vision_model
        self.projection = clip.frozen_model.visual_projection
        self.logit_scale = clip.frozen_model.logit_scale
        self.readers = readers
        self.scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-2.0))
        readers.requires_grad_(False)
        for part in (self.tower, self.projection, self.logit_scale):
            part.requires_grad_(True)

        self.projections: dict[tuple[int, str], Tensor] = {}
        for layer in GUIDED_LAYERS:
            attention = self.tower.encoder.layers[layer].self_attn
            for name in ("q_proj", "k_proj"):
                getattr(attention, name).register_forward_hook(
                    lambda _, __, out, key=(layer, name): self.projections.update({key: out})
                )

    def attention_loss(self, wt: Tensor) -> Tensor:
        """Return the loss of the class token's attention to tumour, wt (b, 3, g, g).

        It is about the last forward pass. Without this loss, attention stays uniform over all
        patches for a long time.
        """
        target = rearrange(wt, "b a g h -> (b a) 1 (g h)")
        has_tumour = target.sum(dim=(1, 2)) > 0.5
        heads = self.tower.config.num_attention_heads
        total = wt.new_zeros(())
        for layer in GUIDED_LAYERS:
            q, k = (
                rearrange(self.projections[layer, name], "n t (m c) -> n m t c", m=heads)
                for name in ("q_proj", "k_proj")
            )
            scores = (q[:, :, :1] @ k.mT).squeeze(2) / math.sqrt(q.shape[-1])
            mass = (scores.softmax(dim=-1)[:, :, 1:] * target).sum(dim=2).mean(dim=1)
            total = total - torch.log(mass[has_tumour] + 1e-3).mean()
        return total / len(GUIDED_LAYERS)

    def encode_views(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Embed views (b, 3, rgb, h, w) and their patches: (b, 3, e) and (b, 3, g, g, e)."""
        views = rearrange(images, "b a c h w -> (b a) c h w")
        # HuggingFaceCLIP computes gradients only if its images require them
        vectors, patches = self.clip.encode_patches(views.requires_grad_())
        return (
            rearrange(vectors, "(b a) e -> b a e", a=3),
            rearrange(patches, "(b a) g h e -> b a g h e", a=3),
        )


class Batch(NamedTuple):
    """The augmented cases of one step."""

    images: Tensor
    """(b, 3, rgb, h, w) in [0, 1]."""
    shares: Tensor
    """(b, 3, 4, g, g): WT, TC, ET and brain."""
    reports: list[str]
    answers: list[dict[str, str]]


def draw_batch(simulated: list[Sample], real: list[Sample], size: int, step: int) -> Batch:
    """Draw and augment cases; all random numbers follow from the step alone."""
    rng = np.random.default_rng([0, step])
    count = min(len(real), round(size * 0.2))
    chosen = [real[i] for i in rng.permutation(len(real))[:count]]
    chosen += [simulated[i] for i in rng.choice(len(simulated), size - count, replace=False)]
    views, shares, reports, answers = [], [], [], []
    for sample in chosen:
        image, share = _draw_slices(sample, rng)
        statement, report = sample.statement, sample.report
        if rng.random() < 0.5:
            # rows run along x in axial and coronal slices; sagittal slices do not change
            image[:2], share[:2] = image[:2].flip(-2), share[:2].flip(-2)
            statement, report = mirrored(statement), mirrored_text(report)
        if rng.random() < 0.15:
            withheld = int(rng.integers(3))
            image[:, withheld] = 0
            if RGB[withheld] == 1:
                statement = without_t1ce(statement)
        if report and rng.random() < 0.5:
            report = _change_report(report, rng)
        else:
            report = write_text(statement, rng)
        views.append(_change_intensity(image, rng))
        shares.append(share)
        reports.append(report)
        answers.append(answers_shown(statement))
    images, maps = _transform(torch.stack(views), torch.stack(shares), rng)
    return Batch(images, maps, reports, answers)


def _draw_slices(sample: Sample, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Draw one slice along each axis: mostly that of energy, else one weighted by its tumour."""
    tumour = reduce(sample.shares[:, :, 0].float(), "a k g h -> a k", "mean").numpy() + 0.05
    images, shares = [], []
    for axis in range(3):
        if rng.random() < 0.55:
            index = ENERGY
        else:
            index = int(rng.choice(CENTER + 1, p=tumour[axis] / tumour[axis].sum()))
        images.append(sample.images[axis, index, :, :, list(RGB)].permute(2, 0, 1))
        shares.append(sample.shares[axis, index])
    return torch.stack(images).float() / 255, torch.stack(shares).float() / 255


def _change_intensity(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Change contrast, brightness, sharpness and noise of each sequence (3, rgb, h, w)."""
    brain = image > 0
    changed = []
    for sequence in image.unbind(dim=1):
        new = sequence ** math.exp(rng.normal(0, 0.3))
        new = new * math.exp(rng.normal(0, 0.15)) + rng.normal(0, 0.06)
        if rng.random() < 0.3:
            seed = int(rng.integers(2**31))
            noise = torch.randn(new.shape, generator=torch.Generator().manual_seed(seed))
            new = new + rng.uniform(0, 0.08) * noise
        if rng.random() < 0.25:
            new = F.avg_pool2d(new[:, None], 3, stride=1, padding=1)[:, 0]
        changed.append(new)
    return torch.stack(changed, dim=1).clamp(0, 1) * brain


def _change_report(report: str, rng: np.random.Generator) -> str:
    """Shuffle sentences after the first, or leave one out, at random."""
    first, *others = split_sentences(report)
    if others and rng.random() < 0.3:
        others = [others[i] for i in rng.permutation(len(others))]
    if others and rng.random() < 0.2:
        others.pop(int(rng.integers(len(others))))
    return " ".join([first, *others])


def _transform(images: Tensor, shares: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Rotate, scale and shift every view a little, and its shares with it."""
    batch = len(images)
    count = batch * 3
    angle, shift = rng.normal(0, 0.07, count), rng.normal(0, 0.03, (count, 2))
    size = np.exp(rng.normal(0, 0.06, (count, 2)))
    rotation = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=1)
    matrix = np.concatenate([rotation.reshape(-1, 2, 2) * size[:, None], shift[..., None]], axis=2)
    moved = []
    for part in (images, shares):
        flat = rearrange(part, "b a c h w -> (b a) c h w")
        grid = F.affine_grid(torch.from_numpy(matrix).float(), list(flat.shape), False)
        flat = F.grid_sample(flat, grid, align_corners=False)
        moved.append(rearrange(flat, "(b a) c h w -> b a c h w", b=batch))
    patches = IMAGE_SIZE // PATCH_SIZE
    return moved[0], reduce(
        moved[1], "b a c (g i) (h j) -> b a c g h", "mean", g=patches, h=patches
    )


def losses_of(learner: Learner, batch: Batch, step: int) -> dict[str, Tensor]:
    """Return the five losses."""
    rng = np.random.default_rng([1, step])
    views, patches = learner.encode_views(batch.images)
    cases = F.normalize(views.mean(dim=1), dim=-1)
    wt = batch.shares[:, :, 0, :, :, None]
    lesions = F.normalize((patches * wt).sum(dim=(2, 3)) + 1e-6, dim=-1)

    read = torch.stack(list(learner.readers.losses(cases, batch.answers).values()))
    seen = F.normalize(lesions.mean(dim=1), dim=-1)
    of_lesions = torch.stack(list(learner.readers.losses(seen, batch.answers).values()))
    losses = {"reader": read.mean() + 0.5 * of_lesions.mean()}

    # reports with the same facts are right for each other's cases
    reports = learner.clip.encode_text(batch.reports)
    match = learner.logit_scale.clamp(max=math.log(50)).exp() * cases @ reports.T
    same = torch.tensor([[a == b for b in batch.answers] for a in batch.answers]).float()
    target = same / same.sum(dim=1, keepdim=True)
    losses["match"] = (F.cross_entropy(match, target) + F.cross_entropy(match.T, target)) / 2

    losses["regions"] = _loss_of_regions(learner, patches, batch.shares, rng)
    losses["attention"] = learner.attention_loss(batch.shares[:, :, 0])
    has_tumour = wt.sum(dim=(2, 3, 4)) > 0.5
    student, teacher = (
        vectors - vectors.mean(dim=0)
        for vectors in (views[has_tumour], lesions[has_tumour].detach())
    )
    losses["distil"] = (1 - F.cosine_similarity(student, teacher, dim=-1)).mean()
    return losses


def _loss_of_regions(
    learner: Learner, patches: Tensor, shares: Tensor, rng: np.random.Generator
) -> Tensor:
    """Return the loss of the patches' (b, 3, g, g, e) similarity to prompts for every target."""
    prompts = []
    for target in TARGETS:
        if target in OWN_PROMPTS and rng.random() < 0.4:
            texts = region_prompts(OWN_PROMPTS[target])
        else:
            texts = [write_prompt(Request(target), rng)]
        prompts.append(F.normalize(learner.clip.encode_text(texts).mean(dim=0), dim=0))
    similarity = torch.einsum("bvghe,re->bvrgh", patches, torch.stack(prompts))
    logits = learner.scale.clamp(max=math.log(30)).exp() * similarity + learner.bias
    wt, tc, et, brain = shares.clamp(0, 1).unbind(dim=2)
    true = torch.stack([PARTS[target](wt, tc, et) for target in TARGETS], dim=2).clamp(0, 1)
    weight = ((0.1 + 0.9 * brain) * (1 + 3 * wt))[:, :, None]
    error = F.binary_cross_entropy_with_logits(logits, true, reduction="none")
    return (error * weight).sum() / (weight.sum() * len(prompts))


def learn_images(
    clip: HuggingFaceCLIP,
    readers: Readers,
    simulated: list[Sample],
    real: list[Sample],
    checkpoint: Path,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    save_every: int,
) -> None:
    """Train the image tower of a CLIP whose text tower and readers are trained."""
    texts = nn.ModuleList(
        [clip.frozen_model.text_model, clip.frozen_model.text_projection, readers]
    )
    learner = Learner(clip, readers)
    fit(
        learner,
        lambda step: losses_of(learner, draw_batch(simulated, real, batch_size, step), step),
        checkpoint,
        weights=WEIGHTS,
        steps=steps,
        lr=lr,
        warm_up=50,
        decay=0.3,
        save_every=save_every,
        after=sha256_of_tensors(texts.state_dict()),
    )


def write_clip(clip: HuggingFaceCLIP, folder: Path) -> None:
    """Write both towers in half precision, and the tokenizer in its old and new files."""
    folder.mkdir(parents=True, exist_ok=True)
    clip.frozen_model.half().save_pretrained(folder)
    clip.frozen_model.float()
    (folder / "model.safetensors").chmod(0o644)
    clip.tokenizer.save_pretrained(folder)
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    # transformers 4 needs these two where the tokenizers library is too old for the other
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_card(folder: Path, arguments: argparse.Namespace, cases: Sequence[str]) -> None:
    """Write a card: how the weights were made, and their limits."""
    card = CARD.format(
        phantoms=arguments.phantoms,
        spacing=f"{arguments.spacing:g}",
        cases="\n".join(f"- `{case}`" for case in cases) or "- none",
        text_steps=arguments.text_steps,
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        torch=torch.__version__,
        transformers=transformers.__version__,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def left_out(names: Sequence[str], fold: int | None, num_folds: int) -> list[str]:
    """Return the names that a fold leaves out: every n-th, as in ``train_tiny.held_out``."""
    return [] if fold is None else sorted(names)[fold::num_folds]


def main() -> None:
    """Simulate, cut, train and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of real cases (default: none)")
    parser.add_argument("--reports", type=Path, help="their reports, a JSON or CSV file")
    parser.add_argument("--corpus", type=Path, help="more reports for the tokenizer")
    parser.add_argument("--release", default="brats2018", help="BraTS release of --data")
    parser.add_argument("--cases", default="Brats18_TCIA*", help="pattern of cases to train on")
    parser.add_argument("--fold", type=int, help="part of these cases to leave out, from 0")
    parser.add_argument("--num-folds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("tiny_clip"))
    parser.add_argument("--phantoms", type=int, default=700)
    parser.add_argument("--spacing", type=float, default=2.0, help="of phantoms, in mm")
    parser.add_argument("--text-steps", type=int, default=4000, help="of texts alone")
    parser.add_argument("--steps", type=int, default=1500, help="of images")
    parser.add_argument("--batch-size", type=int, default=16, help="cases, of three views each")
    parser.add_argument("--lr", type=float, default=7e-4, help="of images")
    parser.add_argument("--vocabulary", type=int, default=3000, help="number of tokens")
    parser.add_argument("--save-every", type=int, default=100, help="steps")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    output = arguments.output
    simulated = collect_phantoms(
        output / f"simulated {arguments.spacing:g} mm",
        range(arguments.phantoms),
        arguments.spacing,
    )
    real: dict[str, list[Sample]] = {}
    if arguments.data is not None:
        if arguments.reports is None:
            parser.error("--data needs --reports")
        real = collect_cases(
            output / "real",
            arguments.data,
            get_release(arguments.release),
            arguments.reports,
            arguments.cases,
        )
        for name in left_out(list(real), arguments.fold, arguments.num_folds):
            del real[name]
    corpus = list(read_reports(arguments.corpus).values()) if arguments.corpus else []
    torch.manual_seed(0)
    clip = build_clip(train_tokenizer(texts_of_vocabulary(corpus), arguments.vocabulary))
    readers = Readers(clip.embed_dim)
    learn_texts(
        clip,
        readers,
        output / "texts.pt",
        steps=arguments.text_steps,
        save_every=arguments.save_every,
    )
    folder = output if arguments.fold is None else output / f"fold {arguments.fold}"
    folder.mkdir(exist_ok=True)
    learn_images(
        clip,
        readers,
        [sample for samples in simulated for sample in samples],
        [sample for samples in real.values() for sample in samples],
        folder / "images.pt",
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        save_every=arguments.save_every,
    )
    write_clip(clip, folder / "clip")
    write_card(folder / "clip", arguments, list(real))
    readers.save(folder / "readers.safetensors")
    size = sum(path.stat().st_size for path in (folder / "clip").iterdir())
    print(f"{folder / 'clip'}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
