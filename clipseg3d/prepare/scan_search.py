"""Which NIfTI file of a folder is which sequence, by its name."""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from clipseg3d.data.nifti import strip_extension
from clipseg3d.prepare.series_naming import find_contrast, normalise_words
from clipseg3d.vocabulary import SEQUENCES

_T1CE = re.compile(r"\bt1w?(?:ce?|gd\w*|gad\w*|post|km|contrast|enhanced)\b")
_T1 = re.compile(r"\b(?:t1[wn]?|mprage|bravo|spgr)\b")
_T2 = re.compile(r"\bt2w?\b")
_FLAIR = re.compile(r"\b(?:flair|t2f|dark ?fluid)\b")
_SUBJECT = re.compile(r"^sub-[^_]+_")
"""The patient, as BIDS names files."""
_OTHERS = re.compile(
    r"\b(?:dwi|dti|adc|fa|tracew?|swi|swan|star|perf|perfusion|pwi|dsc|dce|asl|cb[fv]|mtt|ttp|tof"
    r"|mr[av]|sub|subtraction|locali[sz]er|scout|map|t[12]map|seg|segmentation|(?:brain)?mask"
    r"|labels?)\b"
)
"""Words of files that are none of the four sequences, or no scans."""


def find_scans(folder: Path, *, told: Mapping[str, Path] | None = None) -> dict[str, Path]:
    """Tell the sequences of one patient apart by the words in their file names.

    Words end at characters that are neither letters nor digits. ``sub-01_ce-gadolinium_T1w.nii.gz``
    is T1ce, and so are ``t1_post.nii`` and ``brats_t1c.nii.gz``; ``t1_pre_contrast.nii`` and
    ``t1_post_op.nii`` are T1. Masks, maps and images of other kinds are passed over.

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
        sequence = _sequence(stem)
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
    """Return the sequence that a file name speaks of; None for other files."""
    words = normalise_words(_SUBJECT.sub("", stem))
    with_agent = _T1CE.search(words) is not None
    t1, t2 = with_agent or _T1.search(words) is not None, _T2.search(words) is not None
    if _OTHERS.search(words) or (t1 and t2):
        return None
    if t1:  # also of T1 FLAIR
        return "t1ce" if with_agent or find_contrast(words)[1] else "t1"
    if _FLAIR.search(words):
        return "flair"
    return "t2" if t2 else None
