"""The preprocessed cases on disk: brain-cropped, packed, memory-mapped, shared by all ranks."""

import hashlib
import json
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from clipseg3d.atomic_write import atomic_write
from clipseg3d.batch import pack_image
from clipseg3d.data.cases import Case, DataError
from clipseg3d.data.preprocessing import preprocess
from clipseg3d.data.releases import BraTSRelease
from clipseg3d.views import Views, ViewSelection

FORMAT = 3
"""Part of every key: raise it when preprocessing or the files below change within a version."""
VERSION = version("clipseg3d")
MAX_FOREGROUND = 20_000
"""Tumour voxels kept as crop centres; more would only cost memory."""
MEGABYTES = 20
"""What a case takes at 1 mm, views included."""
MAX_NAME = 50
"""Letters of a case name in its file name, which file systems limit to 255 bytes."""


def default_cache_dir() -> Path:
    """Return where caches go: ``$CLIPSEG3D_CACHE``, or ``clipseg3d`` in the user's cache folder."""
    if chosen := os.environ.get("CLIPSEG3D_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "clipseg3d")


@dataclass(frozen=True)
class CachedCase:
    """One case in the cache: a safetensors file, memory-mapped.

    Tensors are views of the file: a crop reads only its own voxels, and what is written to one
    never reaches the file.

    Attributes:
        case_id: name of the case.
        report: its report, or an empty string.
        grade: 1 for a high-grade, 0 for a low-grade glioma, -1 where it is not known.
        path: its file.
    """

    case_id: str
    report: str
    grade: int
    path: Path

    def image(self) -> Tensor:
        """Return the sequences (s, x, y, z) of the brain box, uint8, packed by ``pack_image``."""
        return self._tensor("image")

    def label(self) -> Tensor:
        """Return the label map (x, y, z) in the release's label values, uint8."""
        return self._tensor("label")

    def foreground(self) -> Tensor:
        """Return voxel indices (n, 3) inside the tumour, int16; n is 0 without tumour."""
        return self._tensor("foreground")

    def statistics(self) -> Tensor:
        """Return the intensity statistics (s, 4) in the units of the image, float32."""
        return self._tensor("statistics")

    def views(self) -> Views:
        """Return the views that CLIP sees, (v, 224, 224, s) uint8, and their planes (v, 3)."""
        return Views(self._tensor("views"), self._tensor("planes"))

    def _tensor(self, name: str) -> Tensor:
        """Return one tensor of the file.

        Raises:
            DataError: the file is gone, or not whole.
        """
        try:
            with safe_open(self.path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise DataError(
                [f"{self.path}: not readable ({error}); delete it, the next run makes it anew"]
            ) from error
        return tensor

    def is_whole(self) -> bool:
        """Say whether the file is there and as long as it was written; only its head is read."""
        try:
            with safe_open(self.path, framework="pt"):
                return True
        except (SafetensorError, OSError):
            return False


def cached_case(
    case: Case, release: BraTSRelease, root: Path, *, view_selection: ViewSelection = "center"
) -> CachedCase:
    """Say where a case lies in the cache, whether or not it is there yet.

    The key covers the content of the source files (see :func:`fingerprint`), the release, the
    selection of views, and the version of this library: a changed file gets a new entry and never
    meets a stale one, a moved folder keeps its entries.
    """
    files = {**case.sequences, **({"label": case.label} if case.label else {})}
    sources = {name: fingerprint(path) for name, path in files.items()}
    settings = [FORMAT, VERSION, release.name, view_selection, dict(case.channels)]
    facts = json.dumps([*settings, sources], sort_keys=True)
    key = hashlib.sha256(facts.encode()).hexdigest()[:16]
    path = root / release.name / f"{case.case_id[:MAX_NAME]}-{key}.safetensors"
    return CachedCase(case.case_id, case.report, case.grade, path)


def fingerprint(path: Path) -> str:
    """Tell the content of a file by a few bytes of it.

    A gzip file ends with the check sum and the length of all that was compressed; with its own
    size they tell its content, wherever it lies and whenever it was written. Of other files
    (uncompressed ones, and those of several gzip members, whose last length is less than their
    size) it is the size, the time of change and 64 KiB from their middle.
    """
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        size = status.st_size
        if size >= 18 and file.read(2) == b"\x1f\x8b":
            file.seek(-8, os.SEEK_END)
            checksum, length = struct.unpack("<II", file.read(8))
            if length >= size:
                return f"{size}-{checksum}-{length}"
        file.seek(max(0, size // 2 - 2**15))
        middle = hashlib.sha256(file.read(2**16)).hexdigest()
        return f"{size}-{status.st_mtime_ns}-{middle}"


def build_cache(
    cases: Sequence[Case],
    release: BraTSRelease,
    root: Path,
    *,
    view_selection: ViewSelection = "center",
    num_threads: int = 2,
) -> list[CachedCase]:
    """Preprocess the cases that are not in the cache yet, or whose file is not whole.

    One process builds at a time: others wait, and find what it has made. A process that is killed
    leaves whole files only, besides what it was writing, which the next one removes.

    Args:
        cases: labelled cases.
        release: what their labels mean.
        root: cache folder; made if missing.
        view_selection: which slices CLIP sees; see :func:`clipseg3d.views.cut_views`.
        num_threads: cases read at once; some 0.5 GB of memory each at 240x240x155.

    Returns:
        One entry per case, in order.

    Raises:
        DataError: voxels of a case cannot be used. Faults of all cases are listed; good cases
            are in the cache all the same.
        OSError: the cache cannot be written, for want of space or permission; what is in it stays.
    """
    entries = [cached_case(case, release, root, view_selection=view_selection) for case in cases]
    if all(entry.is_whole() for entry in entries):
        return entries
    folder = root / release.name
    faults: list[str] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(root / f".{release.name}.lock"), ThreadPoolExecutor(num_threads) as pool:
            for leftover in folder.glob(".*.safetensors"):  # of a process that was killed
                leftover.unlink()
            missing = [
                (case, entry)
                for case, entry in zip(cases, entries, strict=True)
                if not entry.is_whole()
            ]
            results = pool.map(
                lambda pair: _build(pair[0], pair[1], release, view_selection), missing
            )
            title = {"desc": "Caching cases", "unit": "case", "delay": 2}
            for found in tqdm(results, total=len(missing), **title):
                faults.extend(found)
    except OSError as error:
        done = sum(entry.is_whole() for entry in entries)
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        raise OSError(
            error.errno,
            f"{root}: the cache cannot be written ({cause.strerror or cause}); {done} of "
            f"{len(cases)} cases are in it and stay. Make room, {MEGABYTES} MB for each case at "
            "1 mm, or give another folder as cache_dir or $CLIPSEG3D_CACHE",
        ) from error
    if faults:
        raise DataError(faults)
    return entries


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that the system takes back from a process that dies; say so when waiting."""
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        tqdm.write(f"{path.parent}: waiting for another process that fills this cache", sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(
    case: Case, entry: CachedCase, release: BraTSRelease, view_selection: ViewSelection
) -> tuple[str, ...]:
    """Write one entry; return the faults of the case."""
    try:
        ready = preprocess(case, release, view_selection=view_selection)
    except DataError as error:
        return error.faults
    if ready.label is None:
        return (f"{case.case_id}: has no expert mask; only labelled cases can be cached",)
    content = save(
        {
            "image": pack_image(ready.image, ready.statistics),
            "label": torch.from_numpy(ready.label),
            "foreground": torch.from_numpy(_some_tumour_voxels(ready.label)),
            "statistics": ready.statistics,
            "views": ready.views.images,
            "planes": ready.views.planes,
        }
    )
    with atomic_write(entry.path) as tmp:
        tmp.write_bytes(content)
    return ()


def _some_tumour_voxels(label: npt.NDArray[np.uint8]) -> npt.NDArray[np.int16]:
    """Return up to MAX_FOREGROUND voxel indices (n, 3) inside the tumour, evenly spread."""
    voxels = np.argwhere(label > 0)
    step = max(1, -(-len(voxels) // MAX_FOREGROUND))
    return np.ascontiguousarray(voxels[::step], dtype=np.int16)
