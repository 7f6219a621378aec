"""Cached cases as samples: random crops for training, whole brains for validation."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from clipseg3d.batch import Sample, pack_regions, unpack, unpack_image
from clipseg3d.data.cache import CachedCase
from clipseg3d.data.crops import draw_corner
from clipseg3d.data.release import BraTSRelease
from clipseg3d.data.sample_order import Draw
from clipseg3d.data.text_twins import TextTwins
from clipseg3d.data.transforms import Augmentation
from clipseg3d.texts.facts import TumourFacts


class BraTSDataset(Dataset[Sample]):
    """Samples of cached cases.

    Args:
        cases: entries of the cache.
        release: what the label values mean.
        crop: size (x, y, z) of random crops in voxels; a crop larger than the brain is padded.
            None gives the whole brain.
        crops_per_case: number of crops of each case in one pass; needs ``crop``.
        augment: changes a packed crop. For a sample that stays packed,
            :class:`clipseg3d.data.transforms.Augmentation` only draws what changes.
        twins: writes reports and makes twins of samples, before ``augment``.
        packed: whether samples stay packed, for :func:`clipseg3d.batch.unpack` on the device,
            which also augments them.
            Loader workers spend more time on sending samples than on computing them.
    """

    def __init__(
        self,
        cases: Sequence[CachedCase],
        release: BraTSRelease,
        *,
        crop: tuple[int, int, int] | None = None,
        crops_per_case: int = 1,
        augment: Callable[[Sample], Sample] | None = None,
        twins: TextTwins | None = None,
        packed: bool = False,
    ) -> None:
        self.cases = list(cases)
        self.release = release
        self.crop = crop
        self.crops_per_case = crops_per_case
        self.augment = augment
        self.twins = twins
        self.packed = packed
        self._facts: dict[str, TumourFacts | None] = {}
        masks = torch.from_numpy(release.to_regions(np.array(release.labels)[:, None, None]))
        codes = pack_regions(masks).flatten().numpy()
        self.code_type = codes.dtype
        self.region_codes = {
            label: code for label, code in zip(release.labels, codes, strict=True) if code
        }

    def __len__(self) -> int:
        """Return the number of samples in one pass."""
        return len(self.cases) * self.crops_per_case

    def __getitem__(self, index: int | Draw) -> Sample:
        """Return one sample; see :class:`clipseg3d.batch.Batch` for its keys.

        Args:
            index: index of the sample: torch's generator draws the crop and its augmentation. Or
                a draw: crop and augmentation depend on its seed alone.
        """
        if isinstance(index, Draw):
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(index.seed)
                return self[index.sample]
        if not -len(self) <= index < len(self):  # ends a for loop over the samples
            raise IndexError(f"index {index} of {len(self)} samples")
        case = self.cases[index % len(self.cases)]
        image, label = case.image(), case.label()
        size = np.array(label.shape)
        crop = size if self.crop is None else np.array(self.crop)
        corner = (
            np.zeros(3, dtype=int)
            if self.crop is None
            else draw_corner(case.foreground(), size, crop)
        )
        start, stop = np.maximum(corner, 0), np.minimum(corner + crop, size)
        x, y, z = (slice(*side) for side in zip(start, stop, strict=True))
        padding = np.stack([start - corner, corner + crop - stop], axis=1)[::-1].ravel().tolist()
        labels = label[x, y, z].numpy()
        regions = np.zeros(labels.shape, self.code_type)
        for value, code in self.region_codes.items():  # a lookup table takes twice as long
            regions += code * (labels == value)
        sample: Sample = {
            "image": _pad(image[:, x, y, z], padding),
            "label": _pad(torch.from_numpy(regions), padding),
            "crop_box": torch.from_numpy(np.stack([corner / size, crop / size]).astype(np.float32)),
            "statistics": case.statistics(),
            "views": case.views(),
            "reduced_views": case.reduced_views(),
            "report": case.report,
            "grade": case.grade,
            "case_id": case.case_id,
        }
        if self.twins is not None:
            facts = self._measure(case, self.twins)
            sample = sample if facts is None else self.twins(sample, facts)
            # only some twins are in codes; a batch has one type
            image = unpack_image(sample["image"], sample["statistics"]).half()
            sample = {**sample, "image": image}
        if self.packed and isinstance(self.augment, Augmentation):
            return self.augment.draw(sample)
        if self.augment:
            sample = self.augment(sample)
        return sample if self.packed else unpack(sample, num_regions=len(self.release.regions))

    def _measure(self, case: CachedCase, twins: TextTwins) -> TumourFacts | None:
        """Return the facts of a case, measured once in each process."""
        if case.case_id not in self._facts:
            self._facts[case.case_id] = twins.facts(case.image(), case.label())
        return self._facts[case.case_id]


def _pad(volume: Tensor, padding: list[int]) -> Tensor:
    """Pad a volume with 0; without padding it is not copied."""
    return F.pad(volume, padding) if any(padding) else volume
