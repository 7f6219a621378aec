"""Folds for cross-validation: whole patients, grades spread evenly, stored as plain JSON."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clipseg3d.atomic_write import atomic_write
from clipseg3d.data.cases import Case, DataError
from clipseg3d.data.text_files import read_json


@dataclass(frozen=True)
class Splits:
    """Which cases are validated on in which fold; every case in one place, patients together.

    Attributes:
        folds: case names of each fold, by name.
        test: cases that are neither trained nor validated on, by name.
        seed: what the folds were drawn with; None where it is not known.
    """

    folds: tuple[tuple[str, ...], ...]
    test: tuple[str, ...] = ()
    seed: int | None = None

    @classmethod
    def draw(cls, cases: Sequence[Case], *, num_folds: int = 5, seed: int = 0) -> "Splits":
        """Deal patients out to folds.

        Grade by grade, patients are shuffled, and each goes to the fold with the fewest cases of
        that grade, or else the fewest cases; patients with most scans first. Where every patient
        has one scan, folds differ by one case at most, over all and in each grade.

        Args:
            cases: what to split, in any order.
            num_folds: number of parts, 2 or more.
            seed: equal seeds give equal folds.

        Raises:
            ValueError: there are fewer than two folds, or fewer patients than folds.
        """
        if num_folds < 2:
            raise ValueError(f"num_folds={num_folds} leaves nothing to train on; give 2 or more")
        scans: dict[str, list[str]] = defaultdict(list)
        grades: dict[str, int] = {}
        for case in cases:
            scans[case.patient].append(case.case_id)
            grades[case.patient] = max(case.grade, grades.get(case.patient, case.grade))
        if len(scans) < num_folds:
            raise ValueError(
                f"{len(scans)} patients cannot fill num_folds={num_folds} folds; "
                "add cases or lower num_folds"
            )
        rng = np.random.default_rng(seed)
        shuffled = [sorted(scans)[i] for i in rng.permutation(len(scans))]
        order = rng.permutation(num_folds).tolist()  # which of two equal folds comes first
        folds: list[list[str]] = [[] for _ in range(num_folds)]
        graded: list[Counter[int]] = [Counter() for _ in range(num_folds)]
        for patient in sorted(shuffled, key=lambda name: (grades[name], -len(scans[name]))):
            grade = grades[patient]
            fold = min(order, key=lambda i: (graded[i][grade], len(folds[i])))
            folds[fold] += scans[patient]
            graded[fold][grade] += len(scans[patient])
        return cls(tuple(tuple(sorted(fold)) for fold in folds), seed=seed)

    @classmethod
    def read(cls, path: str | Path, cases: Sequence[Case]) -> "Splits":
        """Read folds from a file, and check them against the cases that there are.

        Args:
            path: what :meth:`write` wrote. Or a list as MONAI and TextBraTS have it: under
                ``training``, objects with a ``fold`` and a ``label`` in the case's folder. Or the
                folder of TextBraTS' ``Train.json`` and ``Test.json``.
            cases: every case that there is.

        Raises:
            FileNotFoundError: there is no such file.
            DataError: the file is no such file, names a case that is not there, leaves one out
                that is, names one twice, or separates scans of a patient. All faults are listed.
        """
        path = Path(path)
        try:
            splits = cls._load(path)
        except ValueError as error:
            raise DataError([str(error)]) from error
        if faults := splits._faults(path, cases):
            raise DataError(faults)
        return splits

    def write(self, path: str | Path) -> None:
        """Write the folds as a JSON object with the keys ``seed``, ``folds`` and ``test``."""
        content = {"seed": self.seed, "folds": self.folds, "test": self.test}
        with atomic_write(Path(path)) as tmp:
            tmp.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def divide(
        self, cases: Sequence[Case], *, fold: int
    ) -> tuple[list[Case], list[Case], list[Case]]:
        """Return the cases to train, to validate and to test on, each by name.

        Args:
            cases: those that the folds were drawn from, or checked against.
            fold: the part to validate on.

        Raises:
            ValueError: there is no such fold.
        """
        if not 0 <= fold < len(self.folds):
            raise ValueError(f"fold={fold} is not in 0..{len(self.folds) - 1}, the folds there are")
        by_name = {case.case_id: case for case in cases}
        train = sorted(name for i, names in enumerate(self.folds) if i != fold for name in names)
        parts = (train, self.folds[fold], self.test)
        training, validation, test = ([by_name[name] for name in part] for part in parts)
        return training, validation, test

    @classmethod
    def _load(cls, path: Path) -> "Splits":
        """Read any of the forms.

        Raises:
            ValueError: it is none of them.
        """
        if path.is_dir():
            train, test = (_read_list(path / name) for name in ("Train.json", "Test.json"))
            return cls(_by_fold(train), test=tuple(sorted(name for name, _ in test)))
        content = read_json(path)
        if isinstance(content, dict) and "training" in content:
            return cls(_by_fold(_read_list(path)))
        values = content if isinstance(content, dict) else {}
        folds, test, seed = values.get("folds"), values.get("test", []), values.get("seed")
        if not isinstance(folds, list) or not all(map(_is_names, [*folds, test])):
            raise ValueError(
                f'{path}: not a file of folds; give a JSON object {{"folds": [[case, ...], ...]}}'
            )
        return cls(
            tuple(tuple(sorted(fold)) for fold in folds),
            test=tuple(sorted(test)),
            seed=seed if isinstance(seed, int) else None,
        )

    def _faults(self, path: Path, cases: Sequence[Case]) -> list[str]:
        """Say where folds and cases do not fit together, one line each."""
        parts = (*self.folds, self.test)
        counts = Counter(name for part in parts for name in part)
        there = {case.case_id for case in cases}
        faults = []
        if len(self.folds) < 2 or not all(self.folds):
            sizes = ", ".join(str(len(fold)) for fold in self.folds)
            faults.append(f"{path}: has folds of {sizes} cases; give two or more, none empty")
        if twice := [name for name, count in counts.items() if count > 1]:
            faults.append(f"{path}: names {', '.join(sorted(twice))} more than once; keep one")
        if absent := counts.keys() - there:
            faults.append(
                f"{path}: names {', '.join(sorted(absent))}, not among the cases found; add the files, or "
                "take the names out"
            )
        if unnamed := there - counts.keys():
            faults.append(
                f"{path}: does not name {', '.join(sorted(unnamed))}; add each to a fold, or move its files "
                "away"
            )
        place = {name: index for index, part in enumerate(parts) for name in part}
        scans: dict[str, list[str]] = defaultdict(list)
        for case in cases:
            if case.case_id in place:
                scans[case.patient].append(case.case_id)
        faults += [
            f"{path}: separates {', '.join(sorted(names))}, scans of one patient; put them into one fold"
            for names in scans.values()
            if len({place[name] for name in names}) > 1
        ]
        return faults


def _read_list(path: Path) -> list[tuple[str, int]]:
    """Read a list of training entries: case name, from the folder of its mask, and fold.

    Raises:
        ValueError: the file is no such list.
    """
    content = read_json(path)
    try:
        return [(Path(item["label"]).parts[-2], int(item["fold"])) for item in content["training"]]
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: under training, an entry has no label in a case folder or no fold "
            f"({error!r}); restore the file as published"
        ) from error


def _by_fold(entries: Iterable[tuple[str, int]]) -> tuple[tuple[str, ...], ...]:
    """Return the names of each fold, in the order of their numbers."""
    folds: dict[int, list[str]] = defaultdict(list)
    for name, number in entries:
        folds[number].append(name)
    return tuple(tuple(sorted(folds[number])) for number in sorted(folds))


def _is_names(value: object) -> bool:
    """Say whether a value read from JSON is a list of case names."""
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
