"""The answer to one prompt: a mask, and how sure it is that there is anything."""

import hashlib
import math
import re
import unicodedata
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from clipseg3d.data.scan_grid import ScanGrid

_PLAIN = re.compile(r"[a-z0-9]+( [a-z0-9]+)*")
_RESERVED = re.compile(r"con|prn|aux|nul|(com|lpt)\d")  # on Windows, whatever the ending
_LONGEST = 60


@dataclass(frozen=True, eq=False)
class PromptAnswer:
    """What a prompt denotes in one case. Only the part of the scan with a tumour is held in memory.

    Attributes:
        text: the prompt.
        presence: score in [0, 1] that there is any of it: ``sigmoid(presence) * max_x clip(sum_r
            w_r p_r(x), 0, 1) place(x)``, as :class:`clipseg3d.blocks.prompt_head.PromptHead` reads
            the prompt, where p_r is 1 in a segmented region r and 0 outside. It is the largest
            probability of a voxel, and there is a mask if it is above 0.5. Of an ensemble, the
            probabilities of voxels are averaged first.
        part: (x, y, z) bool, a part of the brain box.
        corner: its first voxel in the brain box.
        grid: how the brain box lies in the scan.
        note: why the text is probably not understood; empty if it may be.
    """

    text: str
    presence: float
    part: npt.NDArray[np.bool_] = field(repr=False)
    corner: tuple[int, int, int]
    grid: ScanGrid = field(repr=False)
    note: str = ""

    @property
    def found(self) -> bool:
        """Whether there is a mask with any voxel."""
        return bool(self.part.any())

    @property
    def volume_ml(self) -> float:
        """Volume of the mask."""
        return float(self.part.sum()) * math.prod(self.grid.spacing_mm) / 1000

    @property
    def box_mask(self) -> npt.NDArray[np.bool_]:
        """The mask on the brain box in LPS order, (x, y, z) bool."""
        mask = np.zeros([stop - start for start, stop in self.grid.box], bool)
        inside = tuple(
            slice(start, start + length)
            for start, length in zip(self.corner, self.part.shape, strict=True)
        )
        mask[inside] = self.part
        return mask

    @property
    def mask(self) -> npt.NDArray[np.uint8]:
        """The mask in the voxel order of the scan, (x, y, z), 1 inside and 0 outside."""
        return self.grid.restore(self.box_mask.astype(np.uint8))

    def __str__(self) -> str:
        """Return text, score and volume, as one line."""
        if not self.found:
            return f"not found: {self.text} (presence {self.presence:.2f})"
        return f"found: {self.text} (presence {self.presence:.2f}, {self.volume_ml:.2f} ml)"


def prompt_file(text: str) -> str:
    """Return the file name of a prompt's mask; other texts have other names.

    It is made of the letters and digits of the text, without accents. If that is not all there is,
    or the text is long, a hash of the text follows. Names do not depend on what else is asked for.

    Example:
        >>> prompt_file("the enhancing rim"), prompt_file("The rim!")
        ('the-enhancing-rim.nii.gz', 'the-rim_5f067ad8.nii.gz')
    """
    letters = unicodedata.normalize("NFKD", text.lower()).encode("ascii", "ignore").decode()
    words = "-".join(re.findall(r"[a-z0-9]+", letters))
    if _PLAIN.fullmatch(text) and len(words) <= _LONGEST and not _RESERVED.fullmatch(words):
        return f"{words}.nii.gz"
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{words[:_LONGEST].strip('-') or 'prompt'}_{digest}.nii.gz"
