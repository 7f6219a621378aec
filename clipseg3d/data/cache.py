"""Preprocessed cases on disk: cropped to the brain, packed, memory-mapped, shared by all ranks."""

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
from clipseg3d.data.array_volume import ArrayVolume, VolumeSource
from clipseg3d.data.cases import Case, DataError
from clipseg3d.data.preprocessing import preprocess
from clipseg3d.data.release import BraTSRelease
from clipseg3d.views import Views, ViewSelection
from clipseg3d.vocabulary import LABEL

FORMAT = 5
"""Part of every key. Raise it when preprocessing or the files change within a version."""
VERSION = version("clipseg3d")
MAX_FOREGROUND = 20_000
"""Number of tumour voxels that are kept as crop centres; more would only need more memory."""
MEGABYTES = 20
"""Size of the file of a case at 1 mm, including its views."""
CURE = "set another folder as cache_dir or $CLIPSEG3D_CACHE"
_DTYPES = {
    "image": ("U8", "F16"),
    "label": ("U8",),
    "foreground": ("I16",),
    "statistics": ("F32",),
    "views": ("U8",),
    "planes": ("F32",),
    "reduced_views": ("U8",),
    "reduced_planes": ("F32",),
}
"""Tensors of a file, and their types as safetensors names them."""
MAX_NAME = 50
"""Characters of the case name in a file name; file systems limit file names to 255 bytes."""


def default_cache_dir() -> Path:
    """Return ``$CLIPSEG3D_CACHE``, or the folder ``clipseg3d`` in the user's cache folder."""
    if folder := os.environ.get("CLIPSEG3D_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "clipseg3d")


def require_cache_folder(root: Path) -> None:
    """Raise a NotADirectoryError if a file lies where the cache is to be."""
    place = next(place for place in (root, *root.absolute().parents) if os.path.exists(place))
    if not os.path.isdir(place):
        raise NotADirectoryError(f"{place}: is a file; {CURE}")


@dataclass(frozen=True)
class CachedCase:
    """One case in the cache: a memory-mapped safetensors file.

    A crop reads only its own voxels from the disk. Tensors may be changed in place; this does not
    change the file.

    Attributes:
        case_id: name of the case.
        report: its report; empty if there is none.
        grade: 1 for a high-grade glioma, 0 for a low-grade glioma, -1 if unknown.
        path: its file.
    """

    case_id: str
    report: str
    grade: int
    path: Path

    def image(self) -> Tensor:
        """Return the sequences (s, x, y, z) in the brain box, uint8, packed by ``pack_image``."""
        return self._tensor("image")

    def label(self) -> Tensor:
        """Return the label map (x, y, z) in the release's label values, uint8."""
        return self._tensor("label")

    def foreground(self) -> Tensor:
        """Return indices (n, 3) of voxels of the regions, int16; n is 0 if there are none."""
        return self._tensor("foreground")

    def statistics(self) -> Tensor:
        """Return the intensity statistics (s, 4), float32, in the units of the unpacked image."""
        statistics = self._tensor("statistics")
        if not statistics.isfinite().all():
            raise DataError(
                [f"{self.path}: damaged (NaN or infinity); delete it; the next run builds it again"]
            )
        return statistics

    def views(self) -> Views:
        """Return the views that CLIP sees, (v, 224, 224, s) uint8, and their planes (v, 3)."""
        return Views(self._tensor("views"), self._tensor("planes"))

    def reduced_views(self) -> Views:
        """Return those that would be chosen without some sequences, (k, v, 224, 224, s) uint8."""
        return Views(self._tensor("reduced_views"), self._tensor("reduced_planes"))

    def _tensor(self, name: str) -> Tensor:
        """Return one tensor of the file.

        Raises:
            DataError: the file is missing or incomplete.
        """
        try:
            with safe_open(self.path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise DataError(
                [f"{self.path}: not readable ({error}); delete it; the next run builds it again"]
            ) from error
        return tensor

    def is_complete(self) -> bool:
        """Return whether the file exists, has its full length, and holds tensors that fit together.

        Only its header is read.
        """
        try:
            with safe_open(self.path, framework="pt") as file:
                parts = {name: file.get_slice(name) for name in _DTYPES}
        except (SafetensorError, OSError):
            return False
        if any(part.get_dtype() not in _DTYPES[name] for name, part in parts.items()):
            return False
        shapes = {name: list(part.get_shape()) for name, part in parts.items()}
        if [len(shapes[name]) for name in _DTYPES] != [4, 3, 2, 2, 4, 2, 5, 3]:
            return False
        (sequences, *box), (count, height, width, _) = shapes["image"], shapes["views"]
        sets = shapes["reduced_views"][0]
        return shapes == {
            "image": [sequences, *box],
            "label": box,
            "foreground": [shapes["foreground"][0], 3],
            "statistics": [sequences, 4],
            "views": [count, height, width, sequences],
            "planes": [count, 3],
            "reduced_views": [sets, count, height, width, sequences],
            "reduced_planes": [sets, count, 3],
        }


def cached_case(
    case: Case, release: BraTSRelease, root: Path, *, view_selection: ViewSelection = "center"
) -> CachedCase:
    """Return the cache entry of a case; its file may not exist yet.

    The key in the file name depends on the content of the source files (see :func:`fingerprint`),
    the release, its sequences and tumour labels, the selection of views, and the version of this
    library. So a changed file never gets an outdated entry, and a moved folder keeps its entries.
    """
    files = {**case.sequences, **({LABEL: case.label} if case.label else {})}
    sources = {name: fingerprint(source) for name, source in files.items()}
    settings = [
        *(FORMAT, VERSION, release.name, view_selection, dict(case.channels)),
        *(list(release.sequences), tumour_labels(release)),
    ]
    content = json.dumps([*settings, sources], sort_keys=True)
    key = hashlib.sha256(content.encode()).hexdigest()[:16]
    path = root / release.name / f"{case.case_id[:MAX_NAME]}-{key}.safetensors"
    return CachedCase(case.case_id, case.report, case.grade, path)


def fingerprint(source: VolumeSource) -> str:
    """Return a short text that identifies the content of a file; only a few bytes are read.

    A gzip file ends with the check sum and the length of its uncompressed content. Together with
    the file size they identify the content, independent of the file's folder and time. For other
    files, the fingerprint is the size, the modification time and a check sum of 64 KiB from the
    middle. This includes gzip files of several members: their last length is smaller than the
    file size.
    """
    if isinstance(source, ArrayVolume):
        return source.sha256()
    with source.open("rb") as file:
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
    """Preprocess the cases that are missing in the cache or whose file is incomplete.

    One process builds at a time; others wait and then use its files. A killed process leaves
    complete files, and hidden temporary files, which the next build removes.

    Args:
        cases: labelled cases.
        release: what their labels mean.
        root: cache folder; made if missing.
        view_selection: which slices CLIP sees; see :func:`clipseg3d.views.cut_views`.
        num_threads: cases that are read at the same time; each needs about 0.5 GB of memory at
            240x240x155 voxels.

    Returns:
        One entry per case, in the same order.

    Raises:
        DataError: voxels of a case are unusable. Faults of all cases are listed; cases without
            faults are in the cache.
        OSError: the cache cannot be written (no space or no permission); finished files stay.
    """
    entries = [cached_case(case, release, root, view_selection=view_selection) for case in cases]
    if all(entry.is_complete() for entry in entries):
        return entries
    folder = root / release.name
    faults: list[str] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(root / f".{release.name}.lock"), ThreadPoolExecutor(num_threads) as pool:
            missing = [
                (case, entry)
                for case, entry in zip(cases, entries, strict=True)
                if not entry.is_complete()  # by another process, since the check above
            ]
            results = pool.map(
                lambda pair: _build(pair[0], pair[1], release, view_selection), missing
            )
            title = {"desc": "Caching cases", "unit": "case", "delay": 2, "disable": None}
            for case_faults in tqdm(results, total=len(missing), **title):
                faults.extend(case_faults)
    except OSError as error:
        num_complete = sum(entry.is_complete() for entry in entries)
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        failure = type(error)(
            f"{root}: the cache cannot be written ({cause.strerror or cause}); {num_complete} of "
            f"{len(cases)} cases are in it and stay. Free some space, {MEGABYTES} MB for each case "
            f"at 1 mm, or {CURE}"
        )
        failure.errno = error.errno
        raise failure from error
    if faults:
        raise DataError(faults)
    return entries


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock, and print a message if another process holds it.

    The system releases the lock of a process that is killed.
    """
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        tqdm.write(f"{path.parent}: waiting for another process to fill this cache", sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(
    case: Case, entry: CachedCase, release: BraTSRelease, view_selection: ViewSelection
) -> tuple[str, ...]:
    """Write the file of one entry; return the faults of the case."""
    try:
        preprocessed = preprocess(case, release, view_selection=view_selection, reduced_views=True)
    except DataError as error:
        return error.faults
    reduced = preprocessed.reduced_views
    if preprocessed.label is None or reduced is None:
        return (f"{case.case_id}: has no expert mask; only labelled cases can be cached",)
    content = save(
        {
            "image": pack_image(preprocessed.image, preprocessed.statistics),
            "label": torch.from_numpy(preprocessed.label),
            "foreground": torch.from_numpy(_tumour_voxels(preprocessed.label, release)),
            "statistics": preprocessed.statistics,
            "views": preprocessed.views.images,
            "planes": preprocessed.views.planes,
            "reduced_views": reduced.images,
            "reduced_planes": reduced.planes,
        }
    )
    with atomic_write(entry.path) as tmp:
        tmp.write_bytes(content)
    return ()


def tumour_labels(release: BraTSRelease) -> list[int]:
    """Return the labels of all regions: crops are drawn around these."""
    return sorted(set().union(*release.regions.values()))


def _tumour_voxels(label: npt.NDArray[np.uint8], release: BraTSRelease) -> npt.NDArray[np.int16]:
    """Return indices (n, 3) of up to MAX_FOREGROUND voxels of the regions, evenly spread."""
    voxels = np.argwhere(np.isin(label, tumour_labels(release)))
    step = max(1, -(-len(voxels) // MAX_FOREGROUND))
    return np.ascontiguousarray(voxels[::step], dtype=np.int16)
