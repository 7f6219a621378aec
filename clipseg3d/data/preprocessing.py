"""From the files of one case to what a network sees, and back to the files' own grid.

Training (through the cache) and prediction both go through :func:`preprocess`.
"""

from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from nibabel.affines import voxel_sizes
from scipy import ndimage
from torch import Tensor

from clipseg3d.data.cases import Case, DataError
from clipseg3d.data.nifti import open_nifti, read_voxels
from clipseg3d.data.releases import RELEASES, BraTSRelease
from clipseg3d.formatting import join_numbers
from clipseg3d.intensity import intensity_statistics, scale
from clipseg3d.views import Views, ViewSelection, cut_views
from clipseg3d.vocabulary import SEQUENCES

ORIENTATION = "LPS"
"""The voxel order of official BraTS files; every case is turned to it."""
ROUNDING = 1e-3
"""How far a label stored as a float may be from a whole number."""
MAX_BESIDE = 0.1
"""Share of labelled voxels that may lie beside the brain before the label map is refused."""


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

    def crop(self, volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Cut the brain box, in LPS order, out of a volume (x, y, z) of the source grid."""
        inside = tuple(slice(*side) for side in self.box)
        turned: npt.NDArray[Any] = nib.apply_orientation(volume, _orientation(self.affine))[inside]
        return turned

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along the axes of the brain box."""
        sizes = [0.0, 0.0, 0.0]
        axes = _orientation(self.affine)[:, 0].astype(int)
        for axis, size in zip(axes, voxel_sizes(self.affine), strict=True):
            sizes[axis] = float(size)
        return sizes[0], sizes[1], sizes[2]


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

    The box holds every voxel that is non-zero in some sequence. The label has no say in it: a
    case must have the same box, and a crop the same place in it, with and without expert mask.
    Labelled voxels beside the box are dropped, since no prediction can be made there.

    Args:
        case: its files, of at least one sequence; a sequence without a file becomes 0 throughout,
            with an SD of 0 in its statistics.
        release: what its labels mean.
        view_selection: which slices CLIP sees; see :func:`clipseg3d.views.cut_views`.

    Raises:
        DataError: a file is missing or broken, a sequence shows nothing, or the label holds values
            that the release does not know or lies beside the brain. All faults of the case are
            listed.
    """
    faults: list[str] = []
    volumes: dict[str, npt.NDArray[Any]] = {}
    for path in dict.fromkeys(case.sequences.values()):
        try:
            voxels = read_voxels(path, axes=case.axes)
        except (ValueError, FileNotFoundError) as error:
            faults.append(str(error))
            continue
        for name in (name for name, file in case.sequences.items() if file == path):
            volumes[name] = voxels[..., case.channels[name]] if case.channels else voxels
            if not volumes[name].any():
                faults.append(f"{path}: every voxel of {name} is 0; export the sequence again")
    label = None
    if case.label is not None:
        try:
            label = read_voxels(case.label)
        except (ValueError, FileNotFoundError) as error:
            faults.append(str(error))
        else:
            faults.extend(label_faults(case.label, label, release))
    if not case.sequences:
        faults.append(f"{case.case_id}: has no sequence; give one of {', '.join(SEQUENCES)}")
    if faults:
        raise DataError(faults)
    shapes = {volume.shape for volume in [*volumes.values(), *([] if label is None else [label])]}
    if len(shapes) > 1:
        raise DataError([f"{case.case_id}: its files have different shapes {sorted(shapes)}"])

    source = open_nifti(next(iter(case.sequences.values())), axes=case.axes)
    turn = _orientation(source.affine)
    turned = {name: nib.apply_orientation(volume, turn) for name, volume in volumes.items()}
    brain = reduce(np.logical_or, (volume != 0 for volume in turned.values()))
    (inside,) = ndimage.find_objects(brain.astype(np.uint8))
    box = tuple((side.start, side.stop) for side in inside)
    image = np.zeros((len(SEQUENCES), *(stop - start for start, stop in box)), np.float32)
    with np.errstate(over="ignore"):  # voxels beyond float32 are a fault, found below
        for name, volume in turned.items():
            image[SEQUENCES.index(name)] = volume[inside]
    tensor = torch.from_numpy(image)
    raw = intensity_statistics(tensor[None])[0]
    for name, (low, high, _, std) in zip(SEQUENCES, raw.tolist(), strict=True):
        if name in turned and not std > 0:  # NaN where intensities are infinite
            faults.append(
                f"{case.sequences[name]}: voxels of {name} are {low:g} to {high:g} all over the "
                "brain; export the sequence again"
            )
    if label is not None:
        count = np.count_nonzero(label)
        label = np.rint(nib.apply_orientation(label, turn)[inside]).astype(np.uint8, order="C")
        beside = count - np.count_nonzero(label)
        if beside > MAX_BESIDE * count:
            faults.append(
                f"{case.label}: {beside} of its {count} labelled voxels lie beside the brain; "
                "register mask and sequences to one grid"
            )
    if faults:
        raise DataError(faults)
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
        label=label,
        grid=Grid(shape=source.shape[:3], affine=source.affine, box=box),
    )


def label_faults(path: Path, label: npt.NDArray[Any], release: BraTSRelease) -> list[str]:
    """Return what is wrong with the values of a label map, if anything."""
    values = np.unique(label[label != 0])  # of few voxels: sorting all of them takes long
    broken = values[np.abs(values - np.rint(values)) > ROUNDING]
    if len(broken):
        return [
            f"{path}: holds {join_numbers(broken, at_most=5)}, no whole number; threshold probabilities, and "
            "resample label maps by nearest neighbour"
        ]
    values = np.unique(np.rint(values))
    unknown = values[~np.isin(values, release.labels)]
    if not len(unknown):
        return []
    fitting = [other.name for other in RELEASES.values() if np.isin(values, other.labels).all()]
    cure = f"; such labels has {' or '.join(fitting)}" if fitting else ""
    return [
        f"{path}: holds label {join_numbers(unknown, at_most=5)}, but {release.name} has "
        f"{', '.join(map(str, release.labels))}; name the release the case is from{cure}"
    ]


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
