"""The record of one data layout: file names, sequences, labels, regions."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipseg3d.formatting import join_numbers
from clipseg3d.ranges import require_names
from clipseg3d.vocabulary import LABEL

MAX_REGIONS = 16
CASE = "{case}"
"""Stands for the name of the case in patterns of file names."""


def region_codes(regions: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint16]:
    """Return the regions (r, x, y, z) of each voxel as bits (x, y, z); bit 0 is the first."""
    codes = np.zeros(regions.shape[1:], np.uint16)
    for bit, mask in enumerate(regions):
        codes |= mask.astype(np.uint16) << bit
    return codes


@dataclass(frozen=True)
class BraTSRelease:
    """How one data set names its files and numbers its labels.

    Attributes:
        name: short name, as stored in checkpoints.
        sequences: sequence -> pattern of its file names, without extension, such as ``{case}_t1``
            or ``{case}/t1``; with a ``manifest``, the name of the sequence in it. Images have the
            sequences in this order.
        regions: region -> labels that belong to it. Regions may lie inside one another, overlap or
            lie apart.
        labels_out: region -> label to write. Regions are written in this order, later ones over
            earlier ones, where no label stands for just these regions. Empty writes, for each
            region, the first of its labels that is in no smaller region.
        case_pattern: regular expression of an official case name; its group ``patient`` is the
            name of the patient, whose cases a split keeps together. A case whose name does not
            match is treated as a patient of its own.
        label: as ``sequences``, for the expert mask.
        outside: labels that an expert mask may hold and that belong to no region.
        own_pattern: regular expression of the case names that only this release has, where other
            releases name their files alike; None takes ``case_pattern``.
        misnamed_labels: file name, without extension, of an expert mask that was published under
            a wrong name -> the case that it belongs to.
        manifest: name of the file that lists 4D images and expert masks, as in the Medical
            Segmentation Decathlon; None where each sequence has its own file.
        prompts: region -> what a text encoder reads about it; WT, TC, ET and RC have defaults.
        skull_stripped: whether scans hold the brain alone.

    Raises:
        ValueError: a pattern without ``{case}``, a region without labels, a name that is in one
            mapping and not in the other.
    """

    name: str
    sequences: Mapping[str, str]
    regions: Mapping[str, tuple[int, ...]]
    labels_out: Mapping[str, int] = field(default_factory=dict)
    case_pattern: str = r"(?P<patient>.+)"
    label: str = "{case}_seg"
    outside: tuple[int, ...] = ()
    own_pattern: str | None = None
    misnamed_labels: Mapping[str, str] = field(default_factory=dict)
    manifest: str | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    skull_stripped: bool = True

    def __post_init__(self) -> None:
        """Check that the parts fit together, and choose the labels to write."""
        self._check()
        if not self.labels_out:
            object.__setattr__(self, "labels_out", self._default_labels_out())
        if different := sorted(set(self.regions) ^ set(self.labels_out)):
            raise ValueError(
                f"{self.name}: regions and labels_out differ in {', '.join(different)}; name the "
                "same in both"
            )
        for region, label in self.labels_out.items():
            if label not in self.regions[region]:
                raise ValueError(
                    f"{self.name}: labels_out writes {label} for {region}, which is no label of "
                    f"it; choose from {join_numbers(self.regions[region])}"
                )

    @classmethod
    def from_values(cls, values: Mapping[str, Any], *, source: str) -> "BraTSRelease":
        """Return the release with these plain values, such as those of a YAML file.

        Args:
            values: attributes of this class by name.
            source: where they are from, for messages.

        Raises:
            ValueError: an attribute is missing, unknown, or of another type.
        """
        names = [item.name for item in fields(cls)]
        try:
            require_names(values, names, of="release")
            if lacking := [name for name in ("name", "sequences", "regions") if name not in values]:
                raise ValueError(f"has no {', '.join(lacking)}; add it")
            return cls(**{name: _plain(name, value) for name, value in values.items()})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{source}: not a release ({error})") from error

    def to_values(self) -> dict[str, Any]:
        """Return the attributes as plain values, for :meth:`from_values`."""
        return asdict(self)

    @property
    def labels(self) -> tuple[int, ...]:
        """Every label that an expert mask may hold, with the background."""
        return tuple(sorted({0, *self.outside}.union(*self.regions.values())))

    def select(
        self, *, sequences: Sequence[str] | None = None, regions: Sequence[str] | None = None
    ) -> "BraTSRelease":
        """Return the release with some of its sequences and regions, in the given order.

        Args:
            sequences: names; None keeps all.
            regions: names; None keeps all.

        Raises:
            ValueError: the release has no sequence or no region of that name.

        Example:
            >>> from clipseg3d.data.releases import BRATS_2021
            >>> BRATS_2021.select(regions=["ET"]).labels_out
            {'ET': 4}
        """
        if sequences is None and regions is None:
            return self
        if sequences is None:
            sequences = list(self.sequences)
        if regions is None:
            regions = list(self.regions)
        for kind, wanted, own in (
            ("sequence", sequences, self.sequences),
            ("region", regions, self.regions),
        ):
            if lacking := [name for name in wanted if name not in own]:
                raise ValueError(
                    f"{self.name} has no {kind} {', '.join(lacking)}; choose from {', '.join(own)}"
                )
        kept = {name: self.regions[name] for name in regions}
        return replace(
            self,
            sequences={name: self.sequences[name] for name in sequences},
            regions=kept,
            labels_out={name: v for name, v in self.labels_out.items() if name in kept},
            outside=tuple(sorted(set(self.labels) - {0}.union(*kept.values()))),
        )

    def inner(self, region: str) -> list[str]:
        """Return the regions that lie inside a region by their labels, itself included."""
        labels = set(self.regions[region])
        return [name for name, others in self.regions.items() if labels.issuperset(others)]

    def outer(self, region: str) -> list[str]:
        """Return the regions that a region lies inside of by its labels, itself included."""
        labels = set(self.regions[region])
        return [name for name, others in self.regions.items() if labels.issubset(others)]

    def parse(self, path: Path) -> tuple[str, str] | None:
        """Return the case and the sequence, or ``LABEL``, of a file; None for another name.

        Args:
            path: with its folders, without extension.
        """
        if path.name in self.misnamed_labels:
            return self.misnamed_labels[path.name], LABEL
        for kind, pattern, num_parts in self._patterns:
            match = pattern.fullmatch("/".join(path.parts[-num_parts:]))
            if match:
                return match["case"], kind
        return None

    def file_name(self, case_id: str, kind: str) -> str:
        """Return the file name of a sequence, or of ``LABEL``, without extension."""
        pattern = self.label if kind == LABEL else self.sequences[kind]
        return pattern.replace(CASE, case_id).rpartition("/")[2]

    def owns(self, case_id: str) -> bool:
        """Return whether this is an official case name of this release."""
        return re.fullmatch(self.own_pattern or self.case_pattern, case_id) is not None

    def patient(self, case_id: str) -> str:
        """Return the name of the patient of a case."""
        match = re.fullmatch(self.case_pattern, case_id)
        return match["patient"] if match else case_id

    def to_regions(self, label: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
        """Turn a label map (x, y, z) into region masks (r, x, y, z), which may overlap."""
        # np.isin copies a map whose x is the fastest axis, as NIfTI has it, against the grain
        by_rows = label.T if label.flags.f_contiguous else label
        masks = np.stack([np.isin(by_rows, labels) for labels in self.regions.values()])
        return masks if by_rows is label else np.moveaxis(masks.T, -1, 0)

    def to_labels(self, regions: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
        """Turn region masks (r, x, y, z) into a label map (x, y, z) of this release.

        A voxel gets the label that is in just its regions. If there are several, ``labels_out``
        decides; if there is none, the last region of ``labels_out`` wins. Labels in no region
        become background.
        """
        written: npt.NDArray[np.uint8] = self._label_of_code[region_codes(regions)]
        return written

    @cached_property
    def _label_of_code(self) -> npt.NDArray[np.uint8]:
        """The label of each combination of regions, whose bits are in the order of ``regions``."""
        names, written = list(self.regions), self.labels_out
        table = np.zeros(2 ** len(names), np.uint8)
        for code in range(1, len(table)):
            members = {name for bit, name in enumerate(names) if code >> bit & 1}
            table[code] = [value for name, value in written.items() if name in members][-1]
        for label in sorted(self.labels, key=lambda label: (label in written.values(), -label)):
            code = sum(1 << bit for bit, name in enumerate(names) if label in self.regions[name])
            if code:
                table[code] = label
        return table

    @cached_property
    def _patterns(self) -> list[tuple[str, re.Pattern[str], int]]:
        """Sequence or ``LABEL``, its pattern, and how many parts of a path that has."""
        if self.manifest is not None:
            return []
        kinds = {**self.sequences, LABEL: self.label}
        return [
            (
                kind,
                re.compile(re.escape(pattern).replace(re.escape(CASE), "(?P<case>[^/]+)")),
                1 + pattern.count("/"),
            )
            for kind, pattern in sorted(kinds.items(), key=lambda item: -len(item[1]))
        ]

    def _check(self) -> None:
        """Raise a ValueError for values that do not fit together."""
        if not self.sequences or LABEL in self.sequences:
            raise ValueError(f"{self.name}: name at least one sequence, and none {LABEL!r}")
        if not 1 <= len(self.regions) <= MAX_REGIONS:
            raise ValueError(
                f"{self.name}: has {len(self.regions)} regions; give 1 to {MAX_REGIONS}"
            )
        for region, labels in self.regions.items():
            if not labels or not all(0 < label < 256 for label in labels):
                raise ValueError(
                    f"{self.name}: region {region} has the labels {labels}; give whole numbers "
                    "from 1 to 255"
                )
        if self.manifest is None:
            patterns = {**self.sequences, LABEL: self.label}
            for kind, pattern in patterns.items():
                if pattern.count(CASE) != 1:
                    raise ValueError(
                        f"{self.name}: the file name {pattern!r} of {kind} does not hold {CASE} "
                        f"once; write it as '{CASE}_{kind}'"
                    )
            if len(set(patterns.values())) < len(patterns):
                raise ValueError(f"{self.name}: two files of a case share one name; give each one")
        for name in ("case_pattern", "own_pattern"):
            try:
                compiled = re.compile(getattr(self, name) or "")
            except re.error as error:
                raise ValueError(f"{self.name}: {name} is no regular expression: {error}") from None
            if name == "case_pattern" and "patient" not in compiled.groupindex:
                raise ValueError(
                    f"{self.name}: case_pattern has no group called patient; write (?P<patient>...)"
                )
        if unknown := [region for region in self.prompts if region not in self.regions]:
            raise ValueError(f"{self.name}: prompts for {unknown[0]}, which is no region")

    def _default_labels_out(self) -> dict[str, int]:
        """Return the label to write of each region, larger regions first."""
        chosen = {}
        for region in sorted(self.regions, key=lambda name: -len(self.regions[name])):
            labels = self.regions[region]
            inside = [self.regions[name] for name in self.inner(region) if name != region]
            own = [label for label in labels if not any(label in other for other in inside)]
            chosen[region] = (own or list(labels))[0]
        return chosen


def _plain(name: str, value: Any) -> Any:
    """Return a value of a YAML or JSON file in the type of the attribute.

    Raises:
        ValueError: it has another type.
    """
    if name == "regions":
        if not isinstance(value, Mapping):
            raise ValueError(f"regions={value!r}; give region: labels")
        return {region: _labels(region, labels) for region, labels in value.items()}
    if name == "outside":
        return _labels(name, value)
    if name in ("sequences", "misnamed_labels", "prompts"):
        if not isinstance(value, Mapping) or not all(isinstance(v, str) for v in value.values()):
            raise ValueError(f"{name}={value!r}; give name: text")
        return {str(key): text for key, text in value.items()}
    if name == "labels_out":
        if not isinstance(value, Mapping):
            raise ValueError(f"labels_out={value!r}; give region: label")
        return {region: _labels(region, label)[0] for region, label in value.items()}
    expected = bool if name == "skull_stripped" else str
    if value is not None and not isinstance(value, expected):
        raise ValueError(f"{name}={value!r} is no {expected.__name__}; write it as one")
    return value


def _labels(name: str, value: Any) -> tuple[int, ...]:
    """Return one or several labels as a tuple."""
    labels = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if not all(isinstance(label, int) and not isinstance(label, bool) for label in labels):
        raise ValueError(f"{name}: {value!r} are no labels; give whole numbers, as in [1, 2]")
    return tuple(labels)
