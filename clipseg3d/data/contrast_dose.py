"""Scans as if less contrast agent had been given, down to none; for simulated and real cases.

T1ce and T1 of one case differ by the contrast agent, and by the settings of the scanner. A linear
fit over the brain outside the tumour takes the settings out: what remains in T1ce is the agent.
"""

import numpy as np
from numpy.typing import NDArray

from clipseg3d.data.release import BraTSRelease
from clipseg3d.ranges import require_share

_ENHANCING = "ET"


def change_contrast_dose(
    image: NDArray[np.floating],
    label: NDArray[np.integer],
    release: BraTSRelease,
    *,
    dose: float,
    within: str | None = None,
) -> tuple[NDArray[np.floating], NDArray[np.integer]]:
    """Return image and label map with less enhancement: T1ce becomes T1* + dose (T1ce - T1*).

    T1* is the line of T1 that fits T1ce best (least squares) in the brain outside the tumour. All
    other sequences stay. At dose 0, enhancing tumour becomes what its label map calls tumour that
    does not enhance: it stays in every region that ET lies inside of, and leaves ET.

    Args:
        image: (s, x, y, z), scanner units or normalised; 0 is background, and what a sequence does
            not cover.
        label: labels of the release, (x, y, z).
        release: names sequences, in the order of the image, and regions.
        dose: share of the contrast agent, 0 to 1; 1 changes nothing.
        within: region whose voxels change, such as ``WT``; vessels and dura keep their contrast
            then, and do not tell the dose. None changes the whole brain.

    Returns:
        New image and label map, of the same types.

    Raises:
        ValueError: ``dose`` is outside [0, 1]; shapes or names do not fit; or T1 or T1ce is missing
            or constant in the brain outside the tumour.
    """
    require_share(dose=dose)
    names = list(release.sequences)
    if lacking := [name for name in ("t1", "t1ce") if name not in names]:
        raise ValueError(f"{release.name} has no {lacking[0]}; a dose needs t1 and t1ce")
    for region in (_ENHANCING, within or _ENHANCING):
        if region not in release.regions:
            raise ValueError(
                f"{release.name} has no region {region}; choose from {', '.join(release.regions)}"
            )
    if image.shape != (len(names), *label.shape):
        raise ValueError(
            f"image has shape {image.shape}; label and release ask for {(len(names), *label.shape)}"
        )
    index = names.index("t1ce")
    seen = (image[names.index("t1")] != 0) & (image[index] != 0)
    t1, t1ce = (image[names.index(name)][seen].astype(np.float64) for name in ("t1", "t1ce"))
    labels = label[seen]
    healthy = labels == 0
    if not healthy.any() or not np.ptp(t1[healthy]) or not np.ptp(t1ce[healthy]):
        raise ValueError(
            "t1 or t1ce is missing or constant in the brain outside the tumour; use a case with "
            "both"
        )
    centred = t1 - t1[healthy].mean()
    slope = (centred * t1ce)[healthy].mean() / (centred[healthy] ** 2).mean()
    # no brain voxel may become background, or darker or brighter than any other
    without = np.clip(t1ce[healthy].mean() + slope * centred, t1ce.min(), t1ce.max())
    changing = True if within is None else np.isin(labels, release.regions[within])
    new_image, new_label = image.copy(), label.copy()
    new_image[index][seen] = t1ce + np.multiply(changing, 1 - dose) * (without - t1ce)
    if dose == 0:
        enhancing = np.isin(label, release.regions[_ENHANCING])
        regions = release.to_regions(label)
        left = set(release.inner(_ENHANCING))
        regions[[name in left for name in release.regions]] = False
        new_label[enhancing] = release.to_labels(regions)[enhancing]
    return new_image, new_label
