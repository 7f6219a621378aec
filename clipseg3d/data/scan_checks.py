"""What is assumed of a scan, checked where voxels are read: background 0, no skull, one head.

Where the cure is safe, it is applied and noted: a constant background becomes 0, and so do the tiny
values that spline resampling leaves everywhere. Where it is not, a note or a fault says what to do.

Figures of 18 BraTS 2018 cases (72 volumes): 1.2 to 1.7 litres are not 0; at most 6.4 % of an outer
face is not 0; the sequences of a case agree on where the brain is with a Dice of 0.996 or more, but
for one cut-off FLAIR (0.796); at most a few voxels are below 0.001 of the 99.5th percentile.
"""

from collections.abc import Mapping
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from clipseg3d.data.array_volume import VolumeSource

CONSTANT_BORDER = 0.5
"""Share of the outer faces with one value, from which on that value is the background."""
TINY = 1e-3
"""Values below this share of the 99.5th percentile of absolute values are no signal."""
MANY_TINY = 0.05
"""Share of tiny values among those that are not 0, from which on they are set to 0."""
MAX_LITRES = 2.2
"""Volume that is not 0, above which a scan looks as if it still had its skull."""
HEAD_LITRES = 3.0
"""Volume that is not 0, above which it surely has: no brain is twice as large as usual."""
MIN_AGREEMENT = 0.98
"""Dice of where two sequences are not 0, below which one is cut off or lies elsewhere."""
COPY_SAMPLES = 100_000
"""Voxels that are compared to find scaled copies."""
COPY_CORRELATION = 0.9999
"""Correlation of two sequences, from which on they are one, scaled; T1 and T1ce have about 0.9."""

Volume = npt.NDArray[Any]


class CheckedScan(NamedTuple):
    """The sequences of a case, as they can be used.

    Attributes:
        volumes: sequence -> (x, y, z), background 0.
        notes: what was changed or looks unusual, a line each.
        faults: why the case cannot be used, a line each.
    """

    volumes: dict[str, Volume]
    notes: list[str]
    faults: list[str]


def check_scan(
    volumes: Mapping[str, Volume],
    paths: Mapping[str, VolumeSource],
    *,
    voxel_mm3: float,
    skull_stripped: bool = True,
) -> CheckedScan:
    """Check the sequences of one case against what is assumed of them.

    Args:
        volumes: sequence -> (x, y, z), of one shape; NaN is allowed where it is background. They
            are not changed.
        paths: sequence -> its file, for messages.
        voxel_mm3: volume of a voxel.
        skull_stripped: whether the scan should hold the brain alone.
    """
    checked: dict[str, Volume] = {}
    notes: list[str] = []
    faults: list[str] = []
    for name, volume in volumes.items():
        try:
            checked[name], own_notes = check_volume(
                volume, name, paths[name], skull_stripped=skull_stripped
            )
        except ValueError as error:
            faults.append(str(error))
        else:
            notes += own_notes
    faults += _copies(checked, paths)
    brains = {name: volume != 0 for name, volume in checked.items()}
    for name, brain in brains.items() if skull_stripped else ():
        litres = np.count_nonzero(brain) * voxel_mm3 / 1e6
        said = f"{paths[name]}: {litres:.1f} litres of {name} are not 0, a brain has 1.2 to 1.7; "
        if litres > HEAD_LITRES:
            faults.append(f"{said}it is not skull-stripped; run 'clipseg3d prepare' on the scans")
        elif litres > MAX_LITRES:
            notes.append(
                f"{said}it does not look skull-stripped, and results will be wrong if it is not; "
                "'clipseg3d prepare' strips it"
            )
    notes += _disagreements(brains, paths)
    return CheckedScan(checked, notes, faults)


def check_volume(
    volume: Volume, name: str, path: VolumeSource, *, skull_stripped: bool = True
) -> tuple[Volume, list[str]]:
    """Check one sequence; arguments as in :func:`check_scan`.

    Returns:
        The volume with background 0, and notes.

    Raises:
        ValueError: there is nothing in the volume, no background around it, or NaN inside it.
    """
    if (volume == volume.flat[0]).all():
        raise ValueError(
            f"{path}: every voxel of {name} is {volume.flat[0]:g}; export the sequence again"
        )
    notes: list[str] = []
    volume = _with_zero_background(volume, name, path, notes)
    if not volume.any():
        raise ValueError(
            f"{path}: every voxel of {name} is NaN or background; export the sequence again"
        )
    if skull_stripped and volume.all():
        raise ValueError(
            f"{path}: no voxel of {name} is background (0), so the scan is not skull-stripped; "
            "run 'clipseg3d prepare' on the scans"
        )
    return volume, notes


def _with_zero_background(
    volume: Volume, name: str, path: VolumeSource, notes: list[str]
) -> Volume:
    """Return a volume whose background is 0.

    Raises:
        ValueError: there are NaN or infinite voxels inside the scan.
    """
    if volume.dtype.kind == "f" and not np.isfinite(volume).all():
        volume = _without_nan(volume, name, path, notes)
    faces = _outer_faces(volume)
    values, counts = np.unique(faces, return_counts=True)
    border = values[counts.argmax()]
    if border != 0 and counts.max() >= CONSTANT_BORDER * faces.size:
        volume = np.where(volume == border, np.zeros((), volume.dtype), volume)
        notes.append(f"{path}: {name} has a background of {border:g}; it is taken as 0")
    if volume.dtype.kind != "f":
        return volume
    signal = np.abs(volume[volume != 0])
    if not signal.size:
        return volume
    rank = int(0.995 * (signal.size - 1))
    limit = TINY * np.partition(signal, rank)[rank]
    tiny = signal < limit
    if tiny.mean() > MANY_TINY:
        volume = np.where(np.abs(volume) < limit, np.zeros((), volume.dtype), volume)
        notes.append(
            f"{path}: {name} has tiny values in {tiny.mean():.0%} of the voxels that are not 0, as "
            "spline resampling leaves them; they are taken as 0, but the edge of the brain stays "
            "blurred: resample linearly, or strip the skull after resampling"
        )
    return volume


def _without_nan(volume: Volume, name: str, path: VolumeSource, notes: list[str]) -> Volume:
    """Return a volume with 0 for a background of NaN.

    Raises:
        ValueError: NaN or infinity is not only background.
    """
    broken = ~np.isfinite(volume)
    faces = _outer_faces(broken)
    if faces.mean() < CONSTANT_BORDER or np.isinf(volume).any():
        raise ValueError(
            f"{path}: {int(broken.sum())} voxels are NaN or infinite; repeat the processing that "
            "made them"
        )
    notes.append(f"{path}: {name} has a background of NaN; it is taken as 0")
    return np.where(broken, np.zeros((), volume.dtype), volume)


def _outer_faces(volume: Volume) -> Volume:
    """Return the voxels of the six outer faces."""
    # indexing, because take copies a volume whose x is the fastest axis
    ends = (np.moveaxis(volume, axis, 0) for axis in range(3))
    faces = [plane.ravel() for planes in ends for plane in (planes[0], planes[-1])]
    return np.concatenate(faces)


def _copies(volumes: Mapping[str, Volume], paths: Mapping[str, VolumeSource]) -> list[str]:
    """Return a fault for each two sequences with the same voxels."""
    samples = {
        name: volume.flat[:: max(1, volume.size // COPY_SAMPLES)].astype(np.float64)
        for name, volume in volumes.items()
    }
    faults = []
    for one, other in combinations(volumes, 2):
        same = np.array_equal(samples[one], samples[other])  # differs, usually
        if (same and np.array_equal(volumes[one], volumes[other])) or _scaled_copy(
            samples[one], samples[other]
        ):
            files = " and ".join(dict.fromkeys(str(paths[name]) for name in (one, other)))
            faults.append(
                f"{files}: the same voxels for {one} and {other}; restore the right file of each"
            )
    return faults


def _scaled_copy(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> bool:
    """Return whether voxels are others times a factor, plus an offset inside the brain."""
    inside = (first != 0) & (second != 0)
    if inside.sum() < 100:
        return False
    first, second = first[inside], second[inside]
    if not first.std() or not second.std():
        return False
    return bool(np.corrcoef(first, second)[0, 1] > COPY_CORRELATION)


def _disagreements(brains: Mapping[str, Volume], paths: Mapping[str, VolumeSource]) -> list[str]:
    """Return a note for each sequence that is not 0 elsewhere than most others."""
    if len(brains) < 2:
        return []
    sizes = {name: np.count_nonzero(brain) for name, brain in brains.items()}
    agreement: dict[str, list[float]] = {name: [] for name in brains}
    for one, other in combinations(brains, 2):
        shared = np.count_nonzero(brains[one] & brains[other])
        dice = 2 * shared / max(1, sizes[one] + sizes[other])
        agreement[one].append(dice)
        agreement[other].append(dice)
    return [
        f"{paths[name]}: {name} does not show the same part of the head as the other sequences "
        f"(where they are not 0, they overlap with a Dice of {max(values):.2f}; expected "
        f"{MIN_AGREEMENT} or more), which may make results worse; look at its field of view, its "
        "registration and its skull-stripping"
        for name, values in agreement.items()
        if max(values) < MIN_AGREEMENT
    ]
