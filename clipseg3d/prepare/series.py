"""One DICOM series, and which MRI sequence it is."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from clipseg3d.vocabulary import SEQUENCE_TITLES


@dataclass(frozen=True)
class Series:
    """One volume that a scanner made; nothing that names the patient is kept.

    Attributes:
        files: its files; one for each slice, in the order of the slices, or one for all.
        number: as the scanner counted it; with a part, such as ``5.2``, where one number stands for
            several volumes. No two series of a folder share it.
        description: as the scanner named it; empty if it did not.
        num_slices: number of slices.
        slice_thickness_mm: as in the header; None where it is not told.
        echo_time_ms: TE; None where it is not told, as in the next two.
        repetition_time_ms: TR.
        inversion_time_ms: TI.
        contrast_agent: whether the header tells of a contrast agent.
        scanning_sequence: DICOM's terms, such as SE, GR, IR.
        sequence: t1, t1ce, t2 or flair, the likeliest; None for anything else.
        alternatives: what else of these it could be; empty where the header leaves no doubt.
        reason: why it has that name, or none.
        fault: why it cannot be used, and the cure, in one line; empty if it can.
    """

    files: tuple[Path, ...] = field(repr=False)
    number: str
    description: str
    num_slices: int
    slice_thickness_mm: float | None
    echo_time_ms: float | None
    repetition_time_ms: float | None
    inversion_time_ms: float | None
    contrast_agent: bool
    scanning_sequence: tuple[str, ...]
    sequence: str | None
    alternatives: tuple[str, ...]
    reason: str
    fault: str = ""

    @property
    def folder(self) -> Path:
        """The folder in which all its files lie, at any depth."""
        return Path(os.path.commonpath([file.parent for file in self.files]))

    @property
    def title(self) -> str:
        """Number, description and what tells it from others, for messages."""
        facts = [f"{self.num_slices} slices"]
        if self.slice_thickness_mm is not None:
            facts[0] += f" of {self.slice_thickness_mm:g} mm"
        times = {
            "TE": self.echo_time_ms,
            "TR": self.repetition_time_ms,
            "TI": self.inversion_time_ms,
        }
        facts += [f"{name} {time:g} ms" for name, time in times.items() if time is not None]
        if self.contrast_agent:
            facts.append("contrast agent")
        return f"{self.number} {self.description!r} ({', '.join(facts)})"

    @property
    def note(self) -> str:
        """What it was taken for and why, in one line."""
        if self.sequence is None:
            return f"series {self.title}: not used, {self.reason}"
        named = " or ".join(SEQUENCE_TITLES[s] for s in (self.sequence, *self.alternatives))
        return f"series {self.title}: {named}, {self.reason}"
