"""Cached cases as samples: random crops to train on, whole brains to validate on."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from clipseg3d.batch import Sample, pack_regions, unpack
from clipseg3d.data.cache import CachedCase
from clipseg3d.data.releases import BraTSRelease
from clipseg3d.data.sampling import Draw

Indices = npt.NDArray[np.integer]

TUMOUR_SHARE = 2 / 3
"""Share of crops that hold a random tumour voxel near their centre."""


class BraTSDataset(Dataset[Sample]):
    """Samples of cached cases.

    Args:
        cases: entries of the cache.
        release: what the label values mean.
        crop: (x, y, z) size of random crops in voxels, padded where the brain is smaller; None
            gives the whole brain.
        crops_per_case: how many crops of each case one pass holds; needs ``crop``.
        augment: changes a packed crop, such as :class:`clipseg3d.data.transforms.Augmentation`.
        packed: leave samples small, for :func:`clipseg3d.batch.unpack` on the device: what workers
            send costs more than what they do.
    """

    def __init__(
        self,
        cases: Sequence[CachedCase],
        release: BraTSRelease,
        *,
        crop: tuple[int, int, int] | None = None,
        crops_per_case: int = 1,
        augment: Callable[[Sample], Sample] | None = None,
        packed: bool = False,
    ) -> None:
        self.cases = list(cases)
        self.release = release
        self.crop = crop
        self.crops_per_case = crops_per_case
        self.augment = augment
        self.packed = packed
        masks = torch.from_numpy(release.to_regions(np.array(release.labels)[:, None, None]))
        codes = pack_regions(masks).flatten().numpy()
        self.bits = {label: code for label, code in zip(release.labels, codes, strict=True) if code}

    def __len__(self) -> int:
        """Return the number of samples in one pass."""
        return len(self.cases) * self.crops_per_case

    def __getitem__(self, index: int | Draw) -> Sample:
        """Return one sample; see :class:`clipseg3d.batch.Batch` for its keys.

        Args:
            index: of the sample, whose crop and augmentation torch's generator draws; or a draw,
                whose seed they follow from, whatever was drawn before.
        """
        if isinstance(index, Draw):
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(index.seed)
                return self[index.sample]
        if not -len(self) <= index < len(self):  # what ends a for loop over the samples
            raise IndexError(f"index {index} of {len(self)} samples")
        case = self.cases[index % len(self.cases)]
        image, label = case.image(), case.label()
        size = np.array(label.shape)
        crop = size if self.crop is None else np.array(self.crop)
        start = np.zeros(3, dtype=int) if self.crop is None else self._corner(case, size, crop)
        first, last = np.maximum(start, 0), np.minimum(start + crop, size)
        x, y, z = (slice(*side) for side in zip(first, last, strict=True))
        padding = np.stack([first - start, start + crop - last], axis=1)[::-1].ravel().tolist()
        values = label[x, y, z].numpy()
        bits = np.zeros(values.shape, np.uint8)
        for value, code in self.bits.items():  # looking them up in a table takes twice as long
            bits += code * (values == value)
        sample: Sample = {
            "image": _padded(image[:, x, y, z], padding),
            "label": _padded(torch.from_numpy(bits), padding),
            "crop_box": torch.from_numpy(np.stack([start / size, crop / size]).astype(np.float32)),
            "statistics": case.statistics(),
            "views": case.views(),
            "report": case.report,
            "grade": case.grade,
            "case_id": case.case_id,
        }
        if self.augment:
            sample = self.augment(sample)
        return sample if self.packed else unpack(sample)

    def _corner(self, case: CachedCase, size: Indices, crop: Indices) -> Indices:
        """Draw the first corner of a crop; a crop larger than the brain is centred on it."""
        tumour = case.foreground()
        room = size - crop
        if len(tumour) and torch.rand(()) < TUMOUR_SHARE:
            centre = tumour[int(torch.randint(len(tumour), ()))].numpy()
            jitter = (torch.rand(3).numpy() - 0.5) * crop / 2
            corner = np.round(centre - crop / 2 + jitter).astype(int)
        else:
            corner = np.floor(torch.rand(3).numpy() * (np.maximum(room, 0) + 1)).astype(int)
        placed: Indices = np.where(room > 0, np.clip(corner, 0, np.maximum(room, 0)), room // 2)
        return placed


def _padded(volume: Tensor, padding: list[int]) -> Tensor:
    """Put 0 around a volume, which is copied only if need be."""
    return F.pad(volume, padding) if any(padding) else volume
