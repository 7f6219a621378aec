"""From the files of one case to what a network sees, and back to the files' own grid.

Training (through the cache) and prediction both go through :func:`preprocess`.
"""

from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from torch import Tensor

from clipseg3d.data.cases import Case, DataError
from clipseg3d.data.nifti import open_nifti, read_voxels
from clipseg3d.data.releases import SEQUENCES, BraTSRelease
from clipseg3d.volume import Views, ViewSelection, cut_views, intensity_statistics, scale

ORIENTATION = "LPS"
"""The voxel order of official BraTS files; every case is turned to it."""


@dataclass(frozen=True)
class Grid:
    """How the brain box of a case lies in its source file.

    Attributes:
        shape: shape of the source array.
        affine: 4 x 4, of the source file.
        box: brain box as half-open ranges ((start, stop), ...), in LPS order.
    """

    shape: tuple[int, int, int]
    affine: npt.NDArray[np.float64]
    box: tuple[tuple[int, int], ...]

    def restore(self, volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Put a volume (..., x, y, z) of the brain box back into the source grid, 0 around it."""
        transform = _orientation(self.affine)
        turned = [0, 0, 0]
        for source_axis, (axis, _) in enumerate(transform.astype(int)):
            turned[axis] = self.shape[source_axis]
        full = np.zeros((*volume.shape[:-3], *turned), dtype=volume.dtype)
        (x, to_x), (y, to_y), (z, to_z) = self.box
        full[..., x:to_x, y:to_y, z:to_z] = volume
        back = _inverse(transform)
        parts = [nib.apply_orientation(part, back) for part in full.reshape(-1, *turned)]
        return np.ascontiguousarray(np.stack(parts)).reshape(*volume.shape[:-3], *self.shape)


@dataclass(frozen=True)
class Preprocessed:
    """One case as networks see it.

    Attributes:
        image: (s, x, y, z) float32, brain box in LPS order, z-scored over each sequence's non-zero
            voxels after clipping to percentiles; background 0.
        statistics: (s, 4) float32, of the brain in the units of ``image``.
        views: slices for CLIP, without a batch axis.
        label: (x, y, z) uint8 of the same box, in the release's label values; None if unknown.
        grid: the way back.
    """

    image: Tensor
    statistics: Tensor
    views: Views
    label: npt.NDArray[np.uint8] | None
    grid: Grid


def preprocess(
    case: Case, release: BraTSRelease, *, view_selection: ViewSelection = "center"
) -> Preprocessed:
    """Read, check, turn, crop and normalise one case.

    The box holds every voxel that is non-zero in a sequence or in the label, so that cropping
    never costs a labelled voxel.

    Args:
        case: its files.
        release: what its labels mean.
        view_selection: which slices CLIP sees; see :func:`clipseg3d.volume.cut_views`.

    Raises:
        DataError: a file is missing, broken, without any signal, or holds labels that the release
            does not know. All faults of the case are listed.
    """
    faults: list[str] = []
    volumes = []
    for path in (case.sequences[sequence] for sequence in SEQUENCES):
        try:
            voxels = read_voxels(path)
        except (ValueError, FileNotFoundError) as error:
            faults.append(str(error))
            continue
        if not voxels.any():
            faults.append(f"{path}: every voxel is 0; export the sequence again")
        volumes.append(voxels.astype(np.float32))
    label = None
    if case.label is not None:
        try:
            label = read_voxels(case.label)
        except (ValueError, FileNotFoundError) as error:
            faults.append(str(error))
        else:
            unknown = sorted(set(np.unique(label).tolist()) - set(release.labels))
            if unknown:
                faults.append(
                    f"{case.label}: holds label {', '.join(f'{v:g}' for v in unknown[:5])}, but "
                    f"{release.name} has {', '.join(map(str, release.labels))}; use the data "
                    "module of the release the case is from"
                )
    if faults:
        raise DataError(faults)
    shapes = {volume.shape for volume in [*volumes, *([] if label is None else [label])]}
    if len(shapes) > 1:
        raise DataError([f"{case.case_id}: its files have different shapes {sorted(shapes)}"])

    source = open_nifti(next(iter(case.sequences.values())))
    turn = _orientation(source.affine)
    image = np.stack([nib.apply_orientation(volume, turn) for volume in volumes])
    occupied = (image != 0).any(axis=0)
    if label is not None:
        label = nib.apply_orientation(label.astype(np.uint8), turn)
        occupied |= label > 0
    box = _bounding_box(occupied)
    (x, to_x), (y, to_y), (z, to_z) = box
    tensor = torch.from_numpy(np.ascontiguousarray(image[:, x:to_x, y:to_y, z:to_z]))
    raw = intensity_statistics(tensor[None])[0]
    low, high, mean, std = raw.unbind(dim=1)
    statistics = torch.stack(
        [scale(low, mean, std), scale(high, mean, std), torch.zeros_like(mean), (std > 0).float()],
        dim=1,
    )
    views = cut_views(tensor[None], raw[None], selection=view_selection)
    low, high, mean, std = rearrange(raw, "s k -> k s 1 1 1")
    return Preprocessed(
        image=scale(tensor.clamp(low, high), mean, std) * (tensor != 0),
        statistics=statistics,
        views=Views(views.images[0], views.planes[0]),
        label=None if label is None else np.ascontiguousarray(label[x:to_x, y:to_y, z:to_z]),
        grid=Grid(shape=source.shape, affine=source.affine, box=box),
    )


def _bounding_box(mask: npt.NDArray[np.bool_]) -> tuple[tuple[int, int], ...]:
    """Return the half-open range of True voxels along each axis."""
    ranges = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        inside = np.flatnonzero(mask.any(axis=others))
        ranges.append((int(inside[0]), int(inside[-1]) + 1))
    return tuple(ranges)


def _orientation(affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the nibabel transform from a file's voxel order to LPS."""
    transform: npt.NDArray[np.float64] = nib.orientations.ornt_transform(
        nib.io_orientation(affine), nib.orientations.axcodes2ornt(ORIENTATION)
    )
    return transform


def _inverse(transform: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the transform that undoes ``transform``."""
    inverse = np.empty_like(transform)
    for source_axis, (axis, flip) in enumerate(transform):
        inverse[int(axis)] = source_axis, flip
    return inverse
