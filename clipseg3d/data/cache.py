"""The preprocessed cases on disk: brain-cropped, fp16, memory-mapped, shared by all ranks."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from clipseg3d.data.cases import Case, DataError
from clipseg3d.data.preprocess import preprocess
from clipseg3d.data.releases import BraTSRelease
from clipseg3d.volume import Views, ViewSelection

FORMAT = 2
"""Part of every key: raise it when preprocessing or the files below change."""
MAX_FOREGROUND = 20_000
"""Tumour voxels kept as crop centres; more would only cost memory."""


def default_cache_dir() -> Path:
    """Return where caches go: ``$CLIPSEG3D_CACHE``, or ``clipseg3d`` in the user's cache folder."""
    if chosen := os.environ.get("CLIPSEG3D_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "clipseg3d")


@dataclass(frozen=True)
class CachedCase:
    """One case in the cache; arrays are memory-mapped, so a crop reads only its own voxels.

    Attributes:
        case_id: name of the case.
        report: its report, or an empty string.
        grade: 1 for a high-grade, 0 for a low-grade glioma, -1 where it is not known.
        folder: where its files lie.
    """

    case_id: str
    report: str
    grade: int
    folder: Path

    def image(self) -> npt.NDArray[np.float16]:
        """Return the z-scored sequences (s, x, y, z) of the brain box."""
        image: npt.NDArray[np.float16] = np.load(self.folder / "image.npy", mmap_mode="r")
        return image

    def label(self) -> npt.NDArray[np.uint8]:
        """Return the label map (x, y, z) in the release's label values."""
        label: npt.NDArray[np.uint8] = np.load(self.folder / "label.npy", mmap_mode="r")
        return label

    def foreground(self) -> npt.NDArray[np.int16]:
        """Return voxel indices (n, 3) inside the tumour; n is 0 for a mask without tumour."""
        foreground: npt.NDArray[np.int16] = np.load(self.folder / "foreground.npy", mmap_mode="r")
        return foreground

    def statistics(self) -> Tensor:
        """Return the intensity statistics (s, 4) in the units of the image."""
        return torch.from_numpy(np.load(self.folder / "statistics.npy"))

    def views(self) -> Views:
        """Return the views that CLIP sees, (v, 224, 224, s) uint8, and their planes (v, 3)."""
        images, planes = (np.load(self.folder / f"{name}.npy") for name in ("views", "planes"))
        return Views(torch.from_numpy(images), torch.from_numpy(planes))


def cached_case(
    case: Case, release: BraTSRelease, root: Path, *, view_selection: ViewSelection = "center"
) -> CachedCase:
    """Say where a case lies in the cache, whether or not it is there yet.

    The key covers the source files (path, size, time of change), the release, the selection of
    views and the format: a changed file gets a new entry and never meets a stale one.
    """
    files = [*case.sequences.values(), *([case.label] if case.label else [])]
    stamps = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    facts = json.dumps([FORMAT, release.name, view_selection, stamps])
    key = hashlib.sha256(facts.encode()).hexdigest()[:16]
    folder = root / release.name / f"{case.case_id}-{key}"
    return CachedCase(case.case_id, case.report, case.grade, folder)


def build_cache(
    cases: Sequence[Case],
    release: BraTSRelease,
    root: Path,
    *,
    view_selection: ViewSelection = "center",
    num_threads: int = 2,
) -> list[CachedCase]:
    """Preprocess the cases that are not in the cache yet.

    Args:
        cases: labelled cases.
        release: what their labels mean.
        root: cache folder; made if missing.
        view_selection: which slices CLIP sees; see :func:`clipseg3d.volume.cut_views`.
        num_threads: cases read at once; some 0.5 GB of memory each at 240x240x155.

    Returns:
        One entry per case, in order.

    Raises:
        DataError: voxels of a case cannot be used. Faults of all cases are listed; good cases
            are in the cache all the same.
    """
    entries = [cached_case(case, release, root, view_selection=view_selection) for case in cases]
    missing = [
        (case, entry)
        for case, entry in zip(cases, entries, strict=True)
        if not entry.folder.is_dir()
    ]
    faults: list[str] = []
    with ThreadPoolExecutor(max_workers=num_threads) as pool:
        results = pool.map(lambda pair: _build(pair[0], pair[1], release, view_selection), missing)
        for found in tqdm(results, total=len(missing), desc="Caching cases", unit="case", delay=2):
            faults.extend(found)
    if faults:
        raise DataError(faults)
    return entries


def _build(
    case: Case, entry: CachedCase, release: BraTSRelease, view_selection: ViewSelection
) -> tuple[str, ...]:
    """Write one entry aside, then rename it into place; return the case's faults."""
    try:
        ready = preprocess(case, release, view_selection=view_selection)
    except DataError as error:
        return error.faults
    if ready.label is None:
        return (f"{case.case_id}: has no expert mask; only labelled cases can be cached",)
    entry.folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{entry.folder.name}.", dir=entry.folder.parent))
    try:
        np.save(part / "image.npy", ready.image.half().numpy())
        np.save(part / "label.npy", ready.label)
        np.save(part / "statistics.npy", ready.statistics.numpy())
        np.save(part / "views.npy", ready.views.images.numpy())
        np.save(part / "planes.npy", ready.views.planes.numpy())
        np.save(part / "foreground.npy", _some_tumour_voxels(ready.label))
        part.chmod(entry.folder.parent.stat().st_mode & 0o777)  # mkdtemp shuts others out
        try:
            os.rename(part, entry.folder)
        except OSError:
            if not entry.folder.is_dir():  # otherwise another process finished the same case first
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return ()


def _some_tumour_voxels(label: npt.NDArray[np.uint8]) -> npt.NDArray[np.int16]:
    """Return up to MAX_FOREGROUND voxel indices (n, 3) inside the tumour, evenly spread."""
    voxels = np.argwhere(label > 0)
    step = max(1, -(-len(voxels) // MAX_FOREGROUND))
    return voxels[::step].astype(np.int16)
