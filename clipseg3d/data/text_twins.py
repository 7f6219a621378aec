"""Training samples in which the text says what the image does not show.

With all sequences, an image shows what its report says, and a network learns to do without text.
Here one fact of a sample is changed: in text and label, while the image is the same or fades; or in
the text alone, while the image is clear. So text is needed, and it is not always right.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from clipseg3d.batch import Sample, unpack_image
from clipseg3d.data.contrast_dose import change_contrast_dose
from clipseg3d.data.release import BraTSRelease
from clipseg3d.ranges import require_share
from clipseg3d.texts.facts import TumourFacts, measure_regions
from clipseg3d.texts.wording import Statement, statement_of, write_text
from clipseg3d.views import Views, views_without

KINDS = {"withheld": 0.35, "faded": 0.15, "removed": 0.15, "focus": 0.1, "wrong": 0.25}
"""Kind of a twin -> its share.

- ``withheld``: t1ce is withheld, and half of the enhancing tumours do not enhance, says the report;
- ``faded``: enhancement is weak, and the report decides whether it counts;
- ``removed``: enhancement is gone from the image, and the report, if there is one, says so;
- ``focus``: of a case with several foci, all but the largest fade, and the report decides whether
  they count; samples that do not hold the whole brain, and cases with one focus, stay as they are;
- ``wrong``: the report contradicts the image, which is right.
"""
_LEFT_OUT = 0.4
"""Probability that a fact is left out of a written report."""
_FADED = (0.1, 0.45)
"""Shares of the contrast that are left of faded enhancement."""
_FAINT = (0.2, 0.5)
"""Shares that are left of faint foci."""
_NOISE = 0.03
"""Of removed enhancement, as a share of the SD of t1ce: without it, T1ce would be a scaled T1."""
_OPTIONAL = ("enhancement", "necrosis", "oedema", "foci", "crosses_midline", "side", "sites")


class TextTwins:
    """Write reports from masks, and turn samples into twins of themselves.

    Args:
        release: of the samples; needs the regions WT, TC and ET. Twins need t1 and t1ce, too.
        spacing_mm: voxel size.
        twins: share of samples that become twins, see :data:`KINDS`.
        written: share of the other samples whose report is written from the mask.
        kinds: kind of a twin -> its share of the twins; the shares add up to 1.

    Raises:
        ValueError: a share is outside [0, 1], or the release lacks a region or a sequence.
    """

    def __init__(
        self,
        release: BraTSRelease,
        *,
        spacing_mm: float = 1.0,
        twins: float = 0.0,
        written: float = 0.0,
        kinds: Mapping[str, float] = KINDS,
    ) -> None:
        require_share(text_twins=twins, written_reports=written)
        lacking = [name for name in ("WT", "TC", "ET") if name not in release.regions]
        if twins:
            lacking += [name for name in ("t1", "t1ce") if name not in release.sequences]
        if lacking:
            raise ValueError(
                f"text_twins and written_reports are about enhancing tumours; {release.name} has no"
                f" {', '.join(lacking)}; set both to 0"
            )
        self.release = release
        self.spacing_mm = spacing_mm
        self.twins = twins
        self.written = written
        self.kinds = dict(kinds)
        self.sequences = list(release.sequences)
        regions = list(release.regions)
        self.wt, self.tc = regions.index("WT"), regions.index("TC")
        self.within_et = [regions.index(name) for name in release.inner("ET")]

    def facts(self, image: Tensor, label: Tensor) -> TumourFacts | None:
        """Measure the facts of a whole case; None if it has no core.

        Args:
            image: (s, x, y, z), background 0.
            label: (x, y, z) label values of the release.
        """
        masks = self.release.to_regions(label.numpy())
        return measure_regions(
            dict(zip(self.release.regions, masks, strict=True)),
            (image != 0).any(dim=0).numpy(),
            spacing_mm=self.spacing_mm,
        )

    def facts_of(self, sample: Sample) -> TumourFacts | None:
        """Measure the facts of a packed sample that holds the whole brain, not mirrored or turned.

        Those of a sample into which a lesion was grafted differ from those of its case.
        """
        masks = {
            name: self._region(sample["label"], index).numpy()
            for index, name in enumerate(self.release.regions)
        }
        brain = (sample["image"] != 0).any(dim=0).numpy()
        return measure_regions(masks, brain, spacing_mm=self.spacing_mm)

    def __call__(self, sample: Sample, facts: TumourFacts) -> Sample:
        """Return a packed sample, changed or not, at random by torch's default generator.

        Args:
            sample: packed; a crop or a whole case.
            facts: of the whole case, from :meth:`facts`.
        """
        rng = np.random.default_rng(int(torch.randint(2**31, ())))
        statement = statement_of(facts)
        if rng.random() < self.twins:
            kind = str(rng.choice(list(self.kinds), p=list(self.kinds.values())))
            make = {
                "withheld": self._withheld,
                "faded": self._faded,
                "removed": self._removed,
                "focus": self._focus,
                "wrong": self._wrong,
            }
            return make[kind](sample, statement, rng)
        if rng.random() < self.written:
            return _say(sample, _shorten(statement, rng), rng)
        return sample

    def _withheld(self, sample: Sample, statement: Statement, rng: np.random.Generator) -> Sample:
        """Return a sample without t1ce, whose report tells whether the tumour enhances."""
        if statement.enhancement != "none" and rng.random() < 0.5:
            sample, statement = self._unlabelled(sample), _without(statement)
        index = self.sequences.index("t1ce")
        image, statistics = sample["image"].clone(), sample["statistics"].clone()
        image[index], statistics[index] = 0, 0
        sample = {**sample, "image": image, "statistics": statistics}
        return _say(self._blind(sample), _shorten(statement, rng, keep="enhancement"), rng)

    def _faded(self, sample: Sample, statement: Statement, rng: np.random.Generator) -> Sample:
        """Return a sample of weak enhancement, which counts if the report says so."""
        faded = self._fade(sample, float(rng.uniform(*_FADED)), rng)
        if faded is None:
            return sample
        sample = faded
        if statement.enhancement != "none" and rng.random() < 0.5:
            sample, statement = self._unlabelled(sample), _without(statement)
        return _say(sample, _shorten(statement, rng, keep="enhancement"), rng)

    def _removed(self, sample: Sample, statement: Statement, rng: np.random.Generator) -> Sample:
        """Return a sample without enhancement; two thirds have a report."""
        faded = self._fade(sample, 0.0, rng)
        if faded is None:
            return sample
        sample = self._unlabelled(faded)
        if rng.random() < 1 / 3:
            return {**sample, "report": ""}
        return _say(sample, _shorten(_without(statement), rng), rng)

    def _focus(self, sample: Sample, statement: Statement, rng: np.random.Generator) -> Sample:
        """Return a sample whose smaller foci are faint, and count if the report says so.

        They are blended with the other side of the brain.
        """
        low, size = sample["crop_box"]
        ends = torch.stack([low, low + size])
        is_whole = bool((ends.amin(dim=0) <= 0).all() and (ends.amax(dim=0) >= 1).all())
        if statement.foci != "multiple" or not is_whole:
            return _say(sample, _shorten(statement, rng), rng)
        label = sample["label"]
        parts, count = ndimage.label(
            self._region(label, self.wt).numpy(), structure=np.ones((3, 3, 3))
        )
        core = self._region(label, self.tc).numpy()  # reports place the largest core
        sizes = np.bincount(parts[core], minlength=count + 1)
        sizes[0] = 0
        smaller = torch.from_numpy((parts > 0) & (parts != sizes.argmax()))
        if not smaller.any():
            return _say(sample, _shorten(statement, rng), rng)
        image = unpack_image(sample["image"], sample["statistics"])
        share = F.avg_pool3d(
            F.max_pool3d(smaller[None].float(), 3, stride=1, padding=1), 3, stride=1, padding=1
        )
        other = _mirrored(image, float(low[0]), float(size[0]))
        share = share * (1 - float(rng.uniform(*_FAINT))) * (image != 0) * (other != 0)
        sample = {**sample, "image": torch.lerp(image, other, share).half()}
        if rng.random() < 0.5:
            statement = replace(statement, foci="single", crosses_midline=None, oedema=None)
            sample = {**sample, "label": label.masked_fill(smaller, 0)}
        return _say(sample, _shorten(statement, rng, keep="foci"), rng)

    def _wrong(self, sample: Sample, statement: Statement, rng: np.random.Generator) -> Sample:
        """Return a sample whose report is wrong about enhancement, and at times about more."""
        if statement.enhancement == "none":
            wrong = replace(statement, enhancement="rim", necrosis=None)
        else:
            wrong = _without(statement)
        if rng.random() < 0.5:
            wrong = replace(wrong, side="right" if wrong.side == "left" else "left")
        if rng.random() < 0.5:
            is_extensive = wrong.oedema == "extensive"
            wrong = replace(wrong, oedema="limited" if is_extensive else "extensive")
        return _say(sample, _shorten(wrong, rng, keep="enhancement"), rng)

    def _fade(self, sample: Sample, dose: float, rng: np.random.Generator) -> Sample | None:
        """Return a sample with less contrast within the tumour; None if T1 or T1ce is not there.

        The line of T1 is fitted to the crop. Views do not show the change: t1ce is taken from them.
        """
        image = unpack_image(sample["image"], sample["statistics"])
        masks = [self._region(sample["label"], i).numpy() for i in range(len(self.release.regions))]
        label = self.release.to_labels(np.stack(masks))
        try:
            faded, _ = change_contrast_dose(
                image.numpy(), label, self.release, dose=dose, within="WT"
            )
        except ValueError:  # the crop shows too little of either
            return None
        index = self.sequences.index("t1ce")
        t1ce = torch.from_numpy(faded[index])
        changed = t1ce != image[index]
        seed = int(rng.integers(2**31))
        noise = torch.randn(t1ce.shape, generator=torch.Generator().manual_seed(seed))
        spread = t1ce[t1ce != 0].std()
        image = image.clone()  # that of the sample, if it is float32 already
        image[index] = t1ce + (1 - dose) * _NOISE * spread * noise * changed
        return self._blind({**sample, "image": image.half()})

    def _blind(self, sample: Sample) -> Sample:
        """Take t1ce out of the views, and out of the choice of their slices."""
        kept = torch.tensor([[name != "t1ce" for name in self.sequences]])
        given, reduced = (
            Views(*(part[None] for part in views))
            for views in (sample["views"], sample["reduced_views"])
        )
        views = views_without(given, reduced, kept, sequences=self.sequences)
        images = views.images[0].clone()
        images[..., self.sequences.index("t1ce")] = 0
        return {**sample, "views": Views(images, views.planes[0])}

    def _unlabelled(self, sample: Sample) -> Sample:
        """Return a sample whose enhancing tumour is labelled as core that does not enhance."""
        label = sample["label"]
        bits = sum(1 << index for index in self.within_et)
        return {**sample, "label": label & ~torch.tensor(bits, dtype=label.dtype)}

    def _region(self, label: Tensor, index: int) -> Tensor:
        """Return the mask of one region of a packed label."""
        return (label >> index) & 1 > 0


def _mirrored(image: Tensor, low: float, size: float) -> Tensor:
    """Return an image (s, x, y, z) mirrored about the middle of the brain box; 0 outside.

    Args:
        image: covers the brain box along x.
        low: where its first corner lies, as a share of the box.
        size: of the image along x, likewise.
    """
    length = image.shape[1]
    # voxel i is at low + size (i + 0.5) / n; its mirror image is at 1 minus that
    offset = round((1 - 2 * low - size) / size * length)
    return torch.roll(image.flip(1), offset, dims=1)


def _without(statement: Statement) -> Statement:
    """Return what is said of a tumour that does not enhance; necrosis cannot be told then."""
    return replace(statement, enhancement="none", necrosis=None)


def _shorten(statement: Statement, rng: np.random.Generator, *, keep: str = "") -> Statement:
    """Leave facts out at random, but not the one to keep."""
    nothing = Statement()
    names = [name for name in _OPTIONAL if name != keep and rng.random() < _LEFT_OUT]
    changes: dict[str, Any] = {name: getattr(nothing, name) for name in names}
    return replace(statement, **changes)


def _say(sample: Sample, statement: Statement, rng: np.random.Generator) -> Sample:
    """Return a sample with a report."""
    return {**sample, "report": write_text(statement, rng)}
