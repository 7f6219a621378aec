"""Train the tiny CLIP that comes with the package, on simulated patients and a few real ones.

    python examples/train_tiny_clip.py --data BraTS2018 --reports brats2018_reports.json \
        --corpus textbrats_reports.json --output tiny_clip

Both towers are those of transformers' CLIPModel, and the tokenizer is a CLIPTokenizer with its own
vocabulary, so ``HuggingFaceCLIP`` loads the result like ``openai/clip-vit-base-patch32``. The loss
is a sum of six:

- ``match``: a case, shown in three slices, finds its report among others, and the report its case;
- ``facts``: a case finds its facts (side, lobe, enhancement, necrosis, ...) among sentences;
- ``regions``: a patch of a slice is similar to a region's prompts by the share that it covers;
- ``reader``: one linear layer reads the facts from cases, from tumour patches and from sentences;
- ``attention``: the class token attends to the tumour;
- ``distil``: the embedding of a view is similar to the mean of its tumour patches.

The last three are needed because towers this small otherwise give all images, and all texts, nearly
the same embedding for hundreds of steps.

There can be any number of phantoms. Only the real cases that ``--cases`` names are trained on. The
reports of ``--corpus`` are used for the vocabulary of the tokenizer only. Simulated cases, slices
and training states are kept in ``--output``. An interrupted run continues from there, and gives the
same weights: the random numbers of every step follow from its number.
"""

import argparse
import fnmatch
import json
import math
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from einops import rearrange, reduce
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from clipseg3d.atomic_write import atomic_write
from clipseg3d.clip.hugging_face_clip import HuggingFaceCLIP
from clipseg3d.clip.prompts import region_prompts, split_sentences
from clipseg3d.data.cases import find_cases
from clipseg3d.data.preprocessing import preprocess
from clipseg3d.data.release import BraTSRelease
from clipseg3d.data.releases import PHANTOM, get_release
from clipseg3d.data.reports import read_reports
from clipseg3d.intensity import intensity_statistics
from clipseg3d.phantom.report import describe
from clipseg3d.phantom.simulate import simulate_phantom
from clipseg3d.texts.facts import OEDEMA_WORDS, TumourFacts, measure_facts
from clipseg3d.views import SLICES_PER_AXIS, Views, cut_views
from clipseg3d.vocabulary import REGIONS

IMAGE_SIZE, PATCH_SIZE = 96, 8
SHARES = 24
"""Side of the grid on which the regions' shares of a slice are kept."""
ENERGY, CENTER = SLICES_PER_AXIS, SLICES_PER_AXIS + 1
"""Indices of these slices along each axis; evenly spaced slices come before them."""
RGB = (1, 3, 2)
"""t1ce, flair and t2, as in :class:`clipseg3d.blocks.semantic_bridge.SemanticBridge`."""

CARD = """# The tiny CLIP of clipseg3d

Image and text tower of 2D slices of gliomas in MRI (red t1ce, green flair, blue t2) and their
reports, in English, trained from random weights by `examples/train_tiny_clip.py`. It comes with
the package: `clipseg3d.clip.load_encoder("tiny")`.

## Training data, and their licences

{phantoms} phantoms of `clipseg3d` at {spacing} mm, with reports written from their masks, and
these real cases, with their reports from TextBraTS:

{cases}

Those named `Brats18_TCIA*` derive from the public TCGA-GBM and TCGA-LGG collections, BraTS-TCGA
release (Bakas et al. 2017), CC BY 3.0. Of other TextBraTS reports the tokenizer alone has seen the
words.

{steps} steps of {batch_size} cases, rate {lr}, seed 0, by torch {torch} and transformers
{transformers}.

## Measured

By `examples/evaluate_tiny_clip.py`; see `examples/results/tiny_clip.csv`.

## Limits

What it says of real patients was measured on 18 cases. Of other images and texts it knows nothing.
Not a medical device.
"""


class Sample(NamedTuple):
    """A case in training: slices along three axes, ten along each."""

    images: Tensor
    """(3, 10, h, w, s) uint8."""
    shares: Tensor
    """(3, 10, 4, g, g) uint8: share of WT, TC, ET and brain in each cell of a grid, times 255."""
    facts: TumourFacts
    report: str
    """Written by a radiologist; empty for phantoms, whose reports are written from their facts."""


def save(path: Path, value: Any) -> None:
    """Write a file, all or nothing."""
    with atomic_write(path) as tmp:
        torch.save(value, tmp)


def cut_sample(
    image: Tensor, statistics: Tensor, regions: Tensor, facts: TumourFacts, report: str
) -> Sample:
    """Cut slices, and the regions' shares of them.

    Args:
        image: brain box, (4, x, y, z).
        statistics: (4, 4).
        regions: (3, x, y, z) bool.
        facts: measured on the mask.
        report: of a real case; empty for a phantom.
    """
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
        facts,
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


def phantom_sample(seed: int, spacing_mm: float) -> Sample:
    """Simulate a patient and cut the slices."""
    phantom = simulate_phantom(seed, spacing_mm=spacing_mm)
    inside = np.argwhere(phantom.image.any(axis=0))
    x, y, z = (slice(a, b + 1) for a, b in zip(inside.min(0), inside.max(0), strict=True))
    image = torch.from_numpy(phantom.image[:, x, y, z].copy())
    regions = torch.from_numpy(PHANTOM.to_regions(phantom.label[x, y, z]))
    return cut_sample(image, intensity_statistics(image[None])[0], regions, phantom.facts, "")


def collect_phantoms(folder: Path, seeds: Sequence[int], spacing_mm: float) -> list[Sample]:
    """Return samples of phantoms; those that are missing in the folder are made."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for seed in tqdm(seeds, desc="Simulating patients", unit="case"):
        path = folder / f"{seed:06d}.pt"
        if not path.is_file():
            sample = phantom_sample(seed, spacing_mm)
            save(path, sample._replace(facts=asdict(sample.facts))._asdict())
        samples.append(_read(path))
    return samples


def collect_cases(
    folder: Path, data: Path, release: BraTSRelease, reports: Path, pattern: str
) -> dict[str, Sample]:
    """Return case -> sample of real cases that match a pattern; facts come from the mask."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = read_reports(reports)
    samples = {}
    for case in find_cases(data, release):
        if not fnmatch.fnmatch(case.case_id, pattern):
            continue
        path = folder / f"{case.case_id}.pt"
        if not path.is_file():
            ready = preprocess(case, release)
            if ready.label is None:
                raise ValueError(f"{case.case_id}: has no expert mask; leave it out")
            brain = ready.image.any(dim=0).numpy()
            facts = measure_facts(ready.label, brain, spacing_mm=ready.grid.spacing_mm[0])
            regions = torch.from_numpy(release.to_regions(ready.label))
            sample = cut_sample(
                ready.image, ready.statistics, regions, facts, texts.get(case.case_id, "")
            )
            save(path, sample._replace(facts=asdict(sample.facts))._asdict())
        samples[case.case_id] = _read(path)
    return samples


def _read(path: Path) -> Sample:
    content = torch.load(path)
    return Sample(**{**content, "facts": TumourFacts(**content["facts"])})


# texts

SIDES, LOBES = ("left", "right"), ("frontal", "parietal", "temporal", "occipital")
KINDS = ("none", "spots", "patches", "rim", "solid")
FACTS: dict[str, list[list[str]]] = {
    "place": [
        [
            f"a tumour in the {side} {lobe} lobe",
            f"The lesion area is in the {side} {lobe} lobe.",
            f"a brain MRI with a lesion in the {side} {lobe} region",
        ]
        for side in SIDES
        for lobe in LOBES
    ],
    "side": [
        [
            f"a tumour in the {side} hemisphere",
            f"a tumour on the {side} side of the brain",
            f"The lesion is on the {side}.",
            f"The {side} lateral ventricle is near the lesion.",
        ]
        for side in SIDES
    ],
    "lobe": [
        [
            f"a tumour in the {lobe} lobe",
            f"The lesion is in the {lobe} region.",
            f"a {lobe} tumour",
        ]
        for lobe in LOBES
    ],
    "enhancing": [
        ["no contrast enhancement", "The tumour does not enhance.", "a tumour without enhancement"],
        ["contrast enhancement", "The tumour enhances.", "a tumour with enhancement"],
    ],
    "enhancement": [
        ["Contrast enhancement is absent.", "a tumour that does not take up contrast"],
        ["a few small spots enhance", "Only small parts of the core take up contrast."],
        ["patchy contrast enhancement", "Parts of the core enhance, in patches."],
        ["an enhancing rim", "ring enhancement", "a ring of contrast enhancement"],
        ["solid contrast enhancement", "The whole core enhances."],
    ],
    "necrosis": [
        ["no necrosis", "Necrosis is not observed."],
        ["necrosis", "Necrosis is present in the core.", "a tumour with a necrotic centre"],
    ],
    "oedema": [
        [f"{word} oedema", f"Edema is {word}.", f"a tumour with {word} edema around it"]
        for _, word in OEDEMA_WORDS
    ],
    "midline": [
        ["The tumour stays on one side.", "a tumour on one side of the midline"],
        ["The tumour crosses the midline.", "The abnormal signal extends across the midline."],
    ],
    "foci": [["a single lesion", "one focus"], ["several foci", "more than one lesion"]],
}
"""Fact -> sentences for each of its values."""
OF_T1CE = {"enhancing", "enhancement", "necrosis"}
"""Facts that only t1ce shows."""
SYNONYMS = {
    "WT": ["a brain tumour", "tumour and oedema", "abnormal tissue", "the whole lesion"],
    "TC": ["the tumour core", "necrosis and solid tumour", "the core of the lesion"],
    "ET": ["contrast enhancement", "the enhancing rim", "tissue that takes up contrast"],
}
HEALTHY = ["healthy brain tissue", "normal brain", "brain without a lesion"]


def values_of(facts: TumourFacts) -> dict[str, int]:
    """Return fact -> index of its true value in FACTS."""
    side, lobe = SIDES.index(facts.side), LOBES.index(facts.lobe)
    return {
        "place": side * len(LOBES) + lobe,
        "side": side,
        "lobe": lobe,
        "enhancing": int(facts.enhancing),
        "enhancement": KINDS.index(facts.enhancement),
        "necrosis": int(facts.necrosis),
        "oedema": next(i for i, (ml, _) in enumerate(OEDEMA_WORDS) if facts.oedema_ml < ml),
        "midline": int(facts.crosses_midline),
        "foci": int(facts.foci > 1),
    }


def mirrored_facts(facts: TumourFacts) -> TumourFacts:
    """Return the facts of the mirror image."""
    return replace(facts, side=SIDES[1 - SIDES.index(facts.side)])


def mirrored_text(text: str) -> str:
    """Return a report of the mirror image: left becomes right and right becomes left."""
    other = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
    return re.sub(r"\b([Ll]eft|[Rr]ight)\b", lambda word: other[word[0]], text)


def train_tokenizer(texts: Sequence[str], size: int) -> CLIPTokenizer:
    """Return a CLIP tokenizer with a vocabulary learned from the texts."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    ends = ["<|startoftext|>", "<|endoftext|>"]
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=ends[1]))
    learner.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    both = len(symbols)  # each symbol also ends words
    learner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size - both - len(ends),
            initial_alphabet=symbols,
            end_of_word_suffix="</w>",
            min_frequency=3,
            show_progress=False,
        ),
    )
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    joined = ["".join(pair) for pair in merges]
    tokens = dict.fromkeys([*symbols, *(f"{s}</w>" for s in symbols), *joined, *ends])
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = {token: index for index, token in enumerate(tokens)}
        Path(folder, "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        Path(folder, "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return CLIPTokenizer.from_pretrained(folder)


def texts_to_read(corpus: Path | None, samples: Sequence[Sample]) -> list[str]:
    """Return the texts from which the tokenizer learns its vocabulary."""
    texts = list(read_reports(corpus).values()) if corpus else []
    rng = np.random.default_rng(0)
    texts += [describe(sample.facts, rng) for sample in samples]
    sentences = [
        *(text for values in FACTS.values() for wordings in values for text in wordings),
        *(text for region in REGIONS for text in region_prompts(region)),
        *(text for wordings in SYNONYMS.values() for text in wordings),
        *HEALTHY,
    ]
    return texts + 5 * sentences


# training

WEIGHTS = {
    "match": 0.5,
    "facts": 2.0,
    "reader": 2.0,
    "regions": 2.0,
    "attention": 0.3,
    "distil": 2.0,
}
"""Weights of the losses."""
WARM_UP = 50
"""Steps in which the learning rate rises; in the last 30 % of all steps it falls to 0."""
GUIDED_LAYERS = (2, 3)
"""Layers of the image tower whose class token is trained to attend to the tumour."""


def build_clip(tokenizer: CLIPTokenizer) -> HuggingFaceCLIP:
    """Return a CLIP with random weights that can be trained."""
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
    }
    width = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config={
            **width,
            **ends,
            "num_hidden_layers": 3,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 192,
        },
        vision_config={
            **width,
            "num_hidden_layers": 4,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
        },
        projection_dim=96,
    )
    clip = HuggingFaceCLIP(CLIPModel(config), tokenizer, name="tiny")
    clip.frozen_model.requires_grad_(True)
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
    """A CLIP in training, with scales and heads that only its losses need."""

    def __init__(self, clip: HuggingFaceCLIP) -> None:
        super().__init__()
        self.clip = clip
        self.model = clip.frozen_model
        self.scale = nn.Parameter(torch.tensor([math.log(10.0), math.log(10.0)]))
        self.dense_bias = nn.Parameter(torch.full((len(REGIONS) + 1, 1, 1), -2.0))
        self.heads = nn.ModuleDict(
            {name: nn.Linear(clip.embed_dim, len(values)) for name, values in FACTS.items()}
        )

        self.projections: dict[tuple[int, str], Tensor] = {}
        for layer in GUIDED_LAYERS:
            attention = self.model.vision_model.encoder.layers[layer].self_attn
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
        heads = self.model.config.vision_config.num_attention_heads
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

    def unshipped(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters that are not part of the CLIP."""
        return {n: p for n, p in self.named_parameters() if not n.startswith("clip.")}

    def reader_loss(self, vectors: Tensor, values: Sequence[dict[str, int]]) -> Tensor:
        """Return the loss of one linear layer that reads facts from embeddings of either tower."""
        total = vectors.new_zeros(())
        for name, head in self.heads.items():
            rows = [i for i, facts in enumerate(values) if name in facts]
            if rows:
                target = torch.tensor([values[i][name] for i in rows])
                total = total + F.cross_entropy(15 * head(vectors[rows]), target)
        return total / len(self.heads)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Embed texts as HuggingFaceCLIP does, but with gradients."""
        tokens = self.clip._tokens(texts)
        output = self.model.text_model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        )
        return F.normalize(self.model.text_projection(output.pooler_output), dim=-1)

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
    values: list[dict[str, int]]


def draw_batch(phantoms: list[Sample], real: list[Sample], size: int, step: int) -> Batch:
    """Draw and augment cases; all random numbers follow from the step alone."""
    rng = np.random.default_rng([0, step])
    count = min(len(real), round(size * 0.2))
    chosen = [real[i] for i in rng.permutation(len(real))[:count]]
    chosen += [phantoms[i] for i in rng.choice(len(phantoms), size - count, replace=False)]
    views, shares, reports, values = [], [], [], []
    for sample in chosen:
        image, share = _draw_slices(sample, rng)
        facts, report = sample.facts, sample.report
        if rng.random() < 0.5:
            # rows run along x in axial and coronal slices; sagittal slices do not change
            image[:2], share[:2] = image[:2].flip(-2), share[:2].flip(-2)
            facts, report = mirrored_facts(facts), mirrored_text(report)
        true = values_of(facts)
        if rng.random() < 0.15:
            withheld = int(rng.integers(3))
            image[:, withheld] = 0
            if RGB[withheld] == 1:
                true = {name: value for name, value in true.items() if name not in OF_T1CE}
        if not report or rng.random() < 0.5:
            report = describe(facts, rng)
        views.append(_change_intensity(image, rng))
        shares.append(share)
        reports.append(_change_report(report, rng))
        values.append(true)
    images, maps = _transform(torch.stack(views), torch.stack(shares), rng)
    return Batch(images, maps, reports, values)


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


def loss_of(learner: Learner, batch: Batch, step: int) -> dict[str, Tensor]:
    """Return the six losses."""
    rng = np.random.default_rng([1, step])
    views, patches = learner.encode_views(batch.images)
    cases = F.normalize(views.mean(dim=1), dim=-1)
    reports = learner.encode_text(batch.reports)
    facts = [[w[int(rng.integers(len(w)))] for w in values] for values in FACTS.values()]
    regions = [
        region_prompts(r) if rng.random() < 0.6 else [SYNONYMS[r][int(rng.integers(3))]]
        for r in REGIONS
    ]
    regions.append([HEALTHY[int(rng.integers(len(HEALTHY)))]])
    groups = [*facts, *regions]
    short = learner.encode_text([text for group in groups for text in group])
    parts = short.split([len(group) for group in groups])

    # reports with the same facts are right for each other's cases
    match = learner.model.logit_scale.clamp(max=math.log(50)).exp() * cases @ reports.T
    same = torch.tensor([[a == b for b in batch.values] for a in batch.values]).float()
    target = same / same.sum(dim=1, keepdim=True)
    losses = {"match": (F.cross_entropy(match, target) + F.cross_entropy(match.T, target)) / 2}

    sentences = cases.new_zeros(())
    for name, vectors in zip(FACTS, parts, strict=False):
        rows = [i for i, values in enumerate(batch.values) if name in values]
        answers = torch.tensor([batch.values[i][name] for i in rows])
        scores = learner.scale[0].clamp(max=math.log(30)).exp() * cases[rows] @ vectors.T
        sentences = sentences + F.cross_entropy(scores, answers)
    losses["facts"] = sentences / len(FACTS)

    prompts = torch.stack([F.normalize(v.mean(dim=0), dim=0) for v in parts[len(FACTS) :]])
    similarity = torch.einsum("bvghe,re->bvrgh", patches, prompts)
    logits = learner.scale[1].clamp(max=math.log(30)).exp() * similarity + learner.dense_bias
    wt = batch.shares[:, :, 0, :, :, None]
    lesions = F.normalize((patches * wt).sum(dim=(2, 3)) + 1e-6, dim=-1)
    has_tumour = wt.sum(dim=(2, 3, 4)) > 0.5
    student, teacher = (
        vectors - vectors.mean(dim=0)
        for vectors in (views[has_tumour], lesions[has_tumour].detach())
    )
    losses["distil"] = (1 - F.cosine_similarity(student, teacher, dim=-1)).mean()
    stated = [{name: i} for name, values in FACTS.items() for i in range(len(values))]
    losses["attention"] = learner.attention_loss(batch.shares[:, :, 0])
    losses["reader"] = (
        learner.reader_loss(cases, batch.values)
        + 0.5 * learner.reader_loss(F.normalize(lesions.mean(dim=1), dim=-1), batch.values)
        + learner.reader_loss(torch.cat(parts[: len(FACTS)]), stated)
    )

    brain = batch.shares[:, :, 3:].clamp(0, 1)
    share = batch.shares[:, :, :3]
    share = torch.cat([share, brain - share[:, :, :1]], dim=2).clamp(0, 1)
    weight = 0.1 + 0.9 * brain
    weight = weight * (1 + 3 * share[:, :, :1])
    error = F.binary_cross_entropy_with_logits(logits, share, reduction="none")
    losses["regions"] = (error * weight).sum() / (weight.sum() * len(prompts))
    return losses


def train(
    phantoms: list[Sample],
    real: list[Sample],
    tokenizer: CLIPTokenizer,
    checkpoint: Path,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    save_every: int,
) -> HuggingFaceCLIP:
    """Train to the last step, from the step of the checkpoint, and return the CLIP."""
    torch.manual_seed(0)
    learner = Learner(build_clip(tokenizer))
    decayed = [p for p in learner.parameters() if p.ndim > 1]
    others = [p for p in learner.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        lr=lr,
        betas=(0.9, 0.98),
    )
    first = 0
    if checkpoint.is_file():
        state = torch.load(checkpoint)
        first = state["step"]
        learner.model.load_state_dict(state["model"])
        with torch.no_grad():
            for name, weight in learner.unshipped().items():
                weight.copy_(state["unshipped"][name])
        optimizer.load_state_dict(state["optimizer"])
    decay = max(1, round(0.3 * steps))
    recent: dict[str, list[float]] = {}
    with tqdm(total=steps, initial=first, desc="Training", unit="step", mininterval=10) as bar:
        for step in range(first, steps):
            # before the decay, runs of any length are equal, so a run can be prolonged
            factor = min((step + 1) / WARM_UP, 1.0, (steps - step) / decay)
            for group in optimizer.param_groups:
                group["lr"] = lr * factor
            losses = loss_of(learner, draw_batch(phantoms, real, batch_size, step), step)
            optimizer.zero_grad()
            sum(WEIGHTS[name] * loss for name, loss in losses.items()).backward()
            torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
            optimizer.step()
            for name, loss in losses.items():
                recent[name] = [*recent.get(name, [])[-99:], loss.item()]
            bar.set_postfix({n: f"{np.mean(v):.3f}" for n, v in recent.items()}, refresh=False)
            bar.update()
            if (step + 1) % save_every == 0 or step + 1 == steps:
                save(
                    checkpoint,
                    {
                        "step": step + 1,
                        "model": learner.model.state_dict(),
                        "unshipped": {n: p.detach() for n, p in learner.unshipped().items()},
                        "optimizer": optimizer.state_dict(),
                    },
                )
    return learner.clip


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
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        torch=torch.__version__,
        transformers=transformers.__version__,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def main() -> None:
    """Simulate, cut, train and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of real cases (default: none)")
    parser.add_argument("--reports", type=Path, help="their reports, a JSON or CSV file")
    parser.add_argument("--corpus", type=Path, help="more reports for the tokenizer")
    parser.add_argument("--release", default="brats2018", help="BraTS release of --data")
    parser.add_argument("--cases", default="Brats18_TCIA*", help="pattern of cases to train on")
    parser.add_argument("--output", type=Path, default=Path("tiny_clip"))
    parser.add_argument("--phantoms", type=int, default=700)
    parser.add_argument("--spacing", type=float, default=2.0, help="of phantoms, in mm")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=16, help="cases, of three views each")
    parser.add_argument("--lr", type=float, default=7e-4)
    parser.add_argument("--vocabulary", type=int, default=2000, help="number of tokens")
    parser.add_argument("--save-every", type=int, default=100, help="steps")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    output = arguments.output
    phantoms = collect_phantoms(
        output / f"phantoms {arguments.spacing:g} mm",
        range(arguments.phantoms),
        arguments.spacing,
    )
    cases: dict[str, Sample] = {}
    if arguments.data is not None:
        if arguments.reports is None:
            parser.error("--data needs --reports")
        release = get_release(arguments.release)
        cases = collect_cases(
            output / "cases", arguments.data, release, arguments.reports, arguments.cases
        )
    tokenizer = train_tokenizer(texts_to_read(arguments.corpus, phantoms), arguments.vocabulary)
    clip = train(
        phantoms,
        list(cases.values()),
        tokenizer,
        output / "training.pt",
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        save_every=arguments.save_every,
    )
    write_clip(clip, output / "clip")
    write_card(output / "clip", arguments, list(cases))
    size = sum(path.stat().st_size for path in (output / "clip").iterdir())
    print(f"{output / 'clip'}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
