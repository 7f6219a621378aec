"""Where the brain is in a scan of a head: by deepbet, by HD-BET, or known already."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from shutil import which
from types import MappingProxyType
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from clipseg3d.prepare.extra import import_extra
from clipseg3d.prepare.native_scan import NativeScan
from clipseg3d.prepare.volume import Volume

BRAIN_ML = (600.0, 2300.0)
"""Least and largest volume of a brain, those of children included."""
_THRESHOLD = 0.5
_SMALL = (128, 128, 128)

Bool = npt.NDArray[np.bool_]


def extract_brain(scan: NativeScan, engine: str) -> Bool:
    """Return the brain mask of a scan, (x, y, z).

    Args:
        scan: for ``none``, background is 0.
        engine: one of :data:`ENGINES`.

    Raises:
        ImportError: the engine is not installed.
        ValueError: no brain was found, or its volume is no brain's.
    """
    mask = ENGINES[engine](scan)
    millilitres = float(mask.sum() * abs(np.linalg.det(scan.affine)) / 1000)
    low, high = BRAIN_ML
    if not low <= millilitres <= high:
        cure = "check that it is a whole head, and that its voxel size is right"
        if engine == "none" and millilitres > high:
            cure = "it does not look skull-stripped; leave --brain-extraction none out"
        raise ValueError(
            f"{scan.path}: a brain of {millilitres:.0f} ml was found, people have {low:.0f} to "
            f"{high:.0f} ml; {cure}"
        )
    return mask


def locate_brain(scan: NativeScan, engine: str) -> Volume:
    """Return about where the brain is, 0 to 1, in a scan of any contrast.

    Raises:
        ImportError: deepbet is not installed.
        ValueError: no brain was found.
    """
    if engine == "none":
        found = Volume((scan.voxels != 0).astype(np.float32), scan.affine)
    else:
        # The network by which deepbet finds a box around the brain does with any contrast.
        image = nib.as_closest_canonical(nib.Nifti1Image(scan.voxels, scan.affine))
        voxels = torch.from_numpy(np.ascontiguousarray(image.dataobj, np.float32))
        small = F.interpolate(voxels[None, None], _SMALL, mode="nearest-exact")[0, 0]
        low, high = small.quantile(0.005), small.quantile(0.995)
        normalise = import_extra("deepbet.utils", needed_for="brain extraction").normalize
        with torch.no_grad():
            scores = _deepbet().bbox_model(normalise(small, low, high)[None, None])[0, 1]
        steps = np.array(voxels.shape) / _SMALL
        affine = image.affine @ nib.affines.from_matvec(np.diag(steps), (steps - 1) / 2)
        found = Volume((scores > _THRESHOLD).numpy().astype(np.float32), affine)
    if not found.voxels.any():
        raise ValueError(_no_brain(scan))
    return found


def _by_deepbet(scan: NativeScan) -> Bool:
    """Return the mask of deepbet, a network for T1-weighted scans with or without contrast."""
    image = nib.Nifti1Image(scan.voxels, scan.affine)
    try:
        _, mask, _ = _deepbet().run(image)
    except (AssertionError, ValueError) as error:  # what it raises where it finds nothing
        raise ValueError(_no_brain(scan)) from error
    return np.asarray(mask.dataobj) > 0


def _by_hd_bet(scan: NativeScan) -> Bool:
    """Return the mask of HD-BET, which runs as a program of its own."""
    program = which("hd-bet", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        raise ImportError(
            "--brain-extraction hd-bet needs HD-BET: pip install hd-bet; it downloads its weights"
        )
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder, "scan.nii.gz"), Path(folder, "brain.nii.gz")
        nib.save(nib.Nifti1Image(scan.voxels, scan.affine), given)
        command = [program, "-i", str(given), "-o", str(made), "--save_bet_mask"]
        if not torch.cuda.is_available():
            command += ["-device", "cpu", "--disable_tta"]
        done = subprocess.run(command, capture_output=True, text=True)
        mask = Path(folder, "brain_bet.nii.gz")
        if done.returncode or not mask.is_file():
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            raise ValueError(f"{scan.path}: HD-BET failed ({last}); run hd-bet on it to see why")
        return np.asarray(nib.load(mask).dataobj) > 0


def _as_stripped(scan: NativeScan) -> Bool:
    """Return the mask of a scan that holds the brain alone."""
    return np.asarray(scan.voxels != 0)


ENGINES: Mapping[str, Callable[[NativeScan], Bool]] = MappingProxyType(
    {"deepbet": _by_deepbet, "hd-bet": _by_hd_bet, "none": _as_stripped}
)
"""Name -> what finds the brain."""


@lru_cache(maxsize=1)
def _deepbet() -> Any:
    """Return deepbet with its networks, whose weights are in its wheel; kept in memory."""
    deepbet = import_extra("deepbet", needed_for="brain extraction")
    return deepbet.BrainExtraction(no_gpu=True)


def _no_brain(scan: NativeScan) -> str:
    return f"{scan.path}: no brain was found in it; give a scan of a whole head"
