"""Which NIfTI file of a folder is which sequence, by its name."""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from clipseg3d.data.nifti import strip_extension
from clipseg3d.vocabulary import SEQUENCES

_CONTRAST = r"ce|c|gd|gad|gado|gadolinium|post|km|contrast|enhanced"
_T1, _T2, _FLAIR = r"t1w?|mprage|bravo|spgr", r"t2w?", r"flair|t2f|dark ?fluid"
_WORD = r"(?:^|(?<=[^a-z0-9]))(?:{})(?=$|[^a-z0-9])"


def find_scans(folder: Path, *, told: Mapping[str, Path] | None = None) -> dict[str, Path]:
    """Tell the sequences of one patient apart by the words in their file names.

    Words end at characters that are neither letters nor digits. ``sub-01_ce-gadolinium_T1w.nii.gz``
    is T1ce, and so are ``t1_post.nii`` and ``brats_t1c.nii.gz``.

    Args:
        folder: holds the NIfTI files; its own folders are not looked into.
        told: sequence -> file, which may lie elsewhere; these are not looked for.

    Returns:
        Sequence -> file, in the order of :data:`clipseg3d.vocabulary.SEQUENCES`.

    Raises:
        FileNotFoundError: there is no such folder, or no NIfTI file of a sequence in it.
        ValueError: two files could be the same sequence.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give that of one patient")
    told = dict(told or {})
    found: dict[str, list[Path]] = defaultdict(list)
    names = []
    for path in sorted(folder.iterdir()):
        stem = strip_extension(path.name)
        if stem is None or path.name.startswith("."):
            continue
        names.append(path.name)
        sequence = _sequence(stem.lower())
        if sequence is not None and sequence not in told:
            found[sequence].append(path)
    for sequence, paths in found.items():
        if len(paths) > 1:
            both = " and ".join(path.name for path in paths)
            raise ValueError(
                f"{folder}: {both} could each be {sequence}; name the file with --{sequence} FILE"
            )
    files = {**told, **{sequence: paths[0] for sequence, paths in found.items()}}
    if not files:
        what = f"files such as {', '.join(names[:3])}" if names else "no NIfTI file"
        raise FileNotFoundError(
            f"{folder}: holds {what}, and none is named as T1, T1ce, T2 or FLAIR; name the files "
            "with --t1 FILE --t1ce FILE --t2 FILE --flair FILE"
        )
    return {sequence: files[sequence] for sequence in SEQUENCES if sequence in files}


def _sequence(stem: str) -> str | None:
    """Return the sequence that a file name in small letters speaks of."""

    def says(words: str) -> bool:
        return re.search(_WORD.format(words), stem) is not None

    if says(_FLAIR):
        return "flair"
    if says(rf"t1w?(?:{_CONTRAST})"):
        return "t1ce"
    if says(_T1):
        return "t1ce" if says(_CONTRAST) else "t1"
    return "t2" if says(_T2) else None
