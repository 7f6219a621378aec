"""Which series of a study are its sequences."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from clipseg3d.prepare.series import Series
from clipseg3d.vocabulary import SEQUENCE_TITLES, SEQUENCES


def choose_sequences(
    series: Sequence[Series], *, told: Mapping[str, str] | None = None
) -> dict[str, Series]:
    """Choose one series for each of t1, t1ce, t2 and flair.

    What is told comes first. Then a series whose header leaves no doubt; nothing is guessed where
    several could be one sequence.

    Args:
        series: of one study, see :func:`clipseg3d.prepare.find_series`.
        told: sequence -> the number of its series, its description, or the folder that holds
            nothing else; these may be any series without a fault, reformatted ones included.

    Returns:
        Sequence -> series, in the order t1, t1ce, t2, flair; those that are not there are left out.

    Raises:
        ValueError: several series could be a sequence, or the only one has a fault, or there is
            none at all; or what is told fits no series or several.
    """
    chosen: dict[str, Series] = {}
    for sequence, value in (told or {}).items():
        if sequence not in SEQUENCES:
            raise ValueError(f"{sequence!r} is no sequence; choose from {', '.join(SEQUENCES)}")
        found = _told(sequence, value, series)
        for other, taken in chosen.items():
            if taken.files == found.files:
                raise ValueError(
                    f"{_option(sequence, value)} and --{other} are the same series, {found.title}; "
                    "give another one for one of them"
                )
        chosen[sequence] = replace(
            found, sequence=sequence, alternatives=(), reason=f"as told by --{sequence}"
        )
    taken_files = {item.files for item in chosen.values()}
    rest = [item for item in series if item.files not in taken_files]
    for sequence in SEQUENCES:
        if sequence not in chosen and (found_one := _named(sequence, rest)) is not None:
            chosen[sequence] = found_one
    if not chosen:
        raise ValueError(
            f"none of {len(series)} series is T1, T1ce, T2 or FLAIR: {_list(series)}; tell which, "
            "as in --t1ce NUMBER"
        )
    return {sequence: chosen[sequence] for sequence in SEQUENCES if sequence in chosen}


def _named(sequence: str, series: Sequence[Series]) -> Series | None:
    """Return the only series that is a sequence by its header; None if there is none."""
    named = [item for item in series if item.sequence == sequence and not item.alternatives]
    sound = [item for item in named if not item.fault]
    if len(sound) == 1:
        return sound[0]
    candidates = sound
    if not candidates and named:
        raise ValueError(named[0].fault)
    if not candidates:
        candidates = [
            item
            for item in series
            if item.alternatives and sequence in (item.sequence, *item.alternatives)
        ]
    if not candidates:
        return None
    what = "series could be" if len(candidates) > 1 else "series is perhaps"
    doubt = "" if sound else "".join(f" ({item.reason})" for item in candidates)
    first = candidates[0]
    raise ValueError(
        f"{len(candidates)} {what} {SEQUENCE_TITLES[sequence]}: {_list(candidates)}{doubt}; tell "
        f"which by number, description or folder, as in {_option(sequence, first.number)}"
    )


def _told(sequence: str, value: str, series: Sequence[Series]) -> Series:
    """Return the series that is meant by a number, a description or a folder."""
    wanted = " ".join(value.split()).lower()
    found = [item for item in series if item.number == wanted]
    if not found:
        found = [item for item in series if item.description.lower() == wanted]
    if not found and Path(value).is_dir():
        folder = Path(value).resolve()
        found = [item for item in series if item.folder.resolve().is_relative_to(folder)]
    if not found:
        raise ValueError(
            f"{_option(sequence, value)} is no number, description or folder of a series; choose "
            f"from {_list(series)}"
        )
    if len(found) > 1:
        raise ValueError(
            f"{_option(sequence, value)} fits {len(found)} series: {_list(found)}; give the number"
        )
    if found[0].fault:
        raise ValueError(found[0].fault)
    return found[0]


def _option(sequence: str, value: str) -> str:
    """Return what to type."""
    return f"--{sequence} '{value}'" if " " in value or not value else f"--{sequence} {value}"


def _list(series: Iterable[Series]) -> str:
    """Return the titles of series."""
    return ", ".join(item.title for item in series)
