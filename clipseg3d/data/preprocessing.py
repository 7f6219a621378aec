"""From the files of one case to the input of a network.

Training (through the cache) and prediction both use :func:`preprocess`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from clipseg3d.data.cases import Case, DataError
from clipseg3d.data.label_checks import label_faults, round_labels
from clipseg3d.data.nifti import geometry_notes, open_nifti, read_voxels
from clipseg3d.data.release import BraTSRelease
from clipseg3d.data.scan_checks import check_scan
from clipseg3d.data.scan_grid import ScanGrid, to_lps
from clipseg3d.intensity import intensity_statistics, normalise, scale
from clipseg3d.views import Views, ViewSelection, cut_reduced_views, cut_views

MAX_OUTSIDE = 0.1
"""Share of labelled voxels that may lie outside the brain box; with more, the case is refused."""


@dataclass(frozen=True)
class Preprocessed:
    """One case as the networks take it.

    Attributes:
        image: (s, x, y, z) float32, brain box in LPS order. Each sequence is clipped to
            percentiles and z-scored over its non-zero voxels; background is 0.
        statistics: (s, 4) float32: low and high percentile, mean and SD of the brain, in the
            units of ``image``.
        views: slices for CLIP, without a batch axis.
        reduced_views: those that would be chosen without some of the sequences, see
            :func:`clipseg3d.views.cut_reduced_views`; None if they were not asked for.
        label: (x, y, z) uint8 of the same box, in the labels of the release; None without an
            expert mask.
        grid: how the brain box lies in the scan, and the way back.
        notes: what was changed, or is unusual or in doubt about the scan, a line each.
    """

    image: Tensor
    statistics: Tensor
    views: Views
    label: npt.NDArray[np.uint8] | None
    grid: ScanGrid
    notes: tuple[str, ...] = ()
    reduced_views: Views | None = None


def preprocess(
    case: Case,
    release: BraTSRelease,
    *,
    view_selection: ViewSelection = "center",
    reduced_views: bool = False,
) -> Preprocessed:
    """Read, check, reorient, crop and normalise one case.

    The brain box holds every voxel that is non-zero in some sequence. It does not depend on the
    expert mask: a case must have the same box, and a crop the same position in it, with and
    without expert mask. Labelled voxels outside the box are dropped, since no prediction is made
    there.

    Args:
        case: a case of at least one sequence; a sequence without a file becomes 0 everywhere, and
            its SD in ``statistics`` is 0.
        release: says what the labels mean.
        view_selection: which slices CLIP sees; see :func:`clipseg3d.views.cut_views`.
        reduced_views: whether to cut those that would be chosen without some sequences, too.

    Raises:
        DataError: a file is missing or broken, a sequence has no signal or no contrast, or the
            expert mask holds labels that the release does not have or lies outside the brain box.
            All faults of the case are listed.
    """
    faults: list[str] = []
    volumes: dict[str, npt.NDArray[Any]] = {}
    for path in dict.fromkeys(case.sequences.values()):
        try:
            voxels = read_voxels(path, axes=case.axes, allow_nan=True)
        except (ValueError, FileNotFoundError) as error:
            faults.append(str(error))
            continue
        for name in (name for name, file in case.sequences.items() if file == path):
            volumes[name] = voxels[..., case.channels[name]] if case.channels else voxels
    notes: list[str] = []
    scan = None
    if len({volume.shape for volume in volumes.values()}) == 1:
        scan = open_nifti(next(iter(case.sequences.values())), axes=case.axes)
        voxel_mm3 = abs(float(np.linalg.det(scan.affine[:3, :3])))
        volumes, notes, scan_faults = check_scan(
            volumes,
            case.sequences,
            voxel_mm3=voxel_mm3,
            skull_stripped=release.skull_stripped,
        )
        faults += scan_faults
    label = None
    if case.label is not None:
        try:
            label = read_voxels(case.label)
        except (ValueError, FileNotFoundError) as error:
            faults.append(str(error))
        else:
            faults.extend(label_faults(case.label, label, release))
    if not case.sequences:
        faults.append(
            f"{case.case_id}: has no sequence; give one of {', '.join(release.sequences)}"
        )
    if faults:
        raise DataError(faults)
    shapes = {volume.shape for volume in [*volumes.values(), *([] if label is None else [label])]}
    if len(shapes) > 1 or scan is None:
        raise DataError([f"{case.case_id}: its files have different shapes {sorted(shapes)}"])
    for path in dict.fromkeys(case.sequences.values()):
        notes += geometry_notes(path, axes=case.axes)
    transform = to_lps(scan.affine)
    oriented = {name: nib.apply_orientation(voxels, transform) for name, voxels in volumes.items()}
    brain = reduce(np.logical_or, (volume != 0 for volume in oriented.values()))
    (inside,) = ndimage.find_objects(brain.astype(np.uint8))
    box = tuple((side.start, side.stop) for side in inside)
    grid = ScanGrid(shape=scan.shape[:3], affine=scan.affine, box=box)
    names = list(release.sequences)
    image = np.zeros((len(names), *(stop - start for start, stop in box)), np.float32)
    with np.errstate(over="ignore"):  # voxels beyond float32 are a fault, reported below
        for name, volume in oriented.items():
            image[names.index(name)] = volume[inside]
    tensor = torch.from_numpy(image)
    raw = intensity_statistics(tensor[None])[0]
    for name, (low, high, _, std) in zip(names, raw.tolist(), strict=True):
        if name in oriented and not std > 0:  # NaN where intensities are infinite
            faults.append(
                f"{case.sequences[name]}: voxels of {name} are {low:g} to {high:g} all over the "
                "brain; export the sequence again"
            )
    if label is not None:
        label = round_labels(label)
        count = np.count_nonzero(label)
        label = np.ascontiguousarray(grid.crop(label))
        outside = count - np.count_nonzero(label)
        if outside > MAX_OUTSIDE * count:
            faults.append(
                f"{case.label}: {outside} of its {count} labelled voxels lie outside the brain; "
                "register expert mask and sequences to one grid"
            )
    if faults:
        raise DataError(faults)
    low, high, mean, std = raw.unbind(dim=1)
    statistics = torch.stack(
        [scale(low, mean, std), scale(high, mean, std), torch.zeros_like(mean), (std > 0).float()],
        dim=1,
    )
    cuts = (cut_views, cut_reduced_views) if reduced_views else (cut_views,)
    views, *reduced = (
        cut_case_views(tensor, raw, grid, selection=view_selection, sequences=names, cut=cut)
        for cut in cuts
    )
    return Preprocessed(
        image=normalise(tensor[None], raw[None])[0],
        statistics=statistics,
        views=views,
        label=label,
        grid=grid,
        notes=tuple(notes),
        reduced_views=reduced[0] if reduced else None,
    )


def cut_case_views(
    image: Tensor,
    statistics: Tensor,
    grid: ScanGrid,
    *,
    selection: ViewSelection,
    sequences: Sequence[str],
    cut: Callable[..., Views] = cut_views,
) -> Views:
    """Cut the views of a case, without a batch axis.

    Args:
        image: (s, x, y, z), the brain box.
        statistics: (s, 4) in the units of ``image``.
        grid: how the brain box lies in the scan.
        selection: which slices; see :func:`clipseg3d.views.cut_views`.
        sequences: names of the s sequences.
        cut: :func:`clipseg3d.views.cut_views` or :func:`clipseg3d.views.cut_reduced_views`.
    """
    if selection == "volume_center":  # the only one that depends on the background
        sides = zip(grid.box, grid.lps_shape, strict=True)
        margins = [(start, size - stop) for (start, stop), size in sides]
        image = F.pad(image, [n for side in reversed(margins) for n in side])
    views = cut(image[None], statistics[None], selection=selection, sequences=sequences)
    return Views(*(part[0] for part in views))
