"""Folds for cross-validation, by patient and balanced by grade, stored as plain JSON."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clipseg3d.atomic_write import atomic_write
from clipseg3d.data.cases import Case, DataError
from clipseg3d.text_files import read_json


@dataclass(frozen=True)
class Splits:
    """The cases of each fold; every case is in one fold, all cases of a patient in the same.

    Attributes:
        folds: case names of each fold, sorted.
        test: names of cases that are used neither for training nor for validation, sorted.
        seed: seed that the folds were drawn with; None if unknown.
    """

    folds: tuple[tuple[str, ...], ...]
    test: tuple[str, ...] = ()
    seed: int | None = None

    @classmethod
    def draw(cls, cases: Sequence[Case], *, num_folds: int = 5, seed: int = 0) -> "Splits":
        """Assign whole patients to folds, balanced by grade.

        scikit-learn's ``StratifiedGroupKFold`` is not used: from the same seed it draws other
        folds, and existing results depend on these. Nor is it more even: with 20 seeds and five
        folds, version 1.9.1 makes folds that differ by one case on 369 patients with one scan
        each (293 HGG, 76 LGG), as here, but by up to 5 cases on 378 scans of 120 patients of
        unknown grade with one to five scans each, where folds drawn here differ by one.

        Patients are shuffled and then sorted by grade, and within a grade by their number of
        scans, most first. Each goes to the fold with the fewest cases of that grade, and among
        those to the fold with the fewest cases. Where every patient has one scan, folds differ by
        at most one case, over all and in each grade.

        Args:
            cases: cases to split, in any order.
            num_folds: number of folds, 2 or more.
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
        order = rng.permutation(num_folds).tolist()  # the first of equal folds is chosen
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
        """Read folds from a file, and compare them with the existing cases.

        Args:
            path: a file that :meth:`write` wrote; or a list in the form of MONAI and TextBraTS:
                under ``training``, objects with a ``fold`` and a ``label`` file in the folder of
                the case; or the folder with ``Train.json`` and ``Test.json`` of TextBraTS.
            cases: all existing cases.

        Raises:
            FileNotFoundError: there is no such file.
            DataError: the file has another form, names a case that does not exist, lacks one that
                does, names one twice, or separates scans of a patient. All faults are listed.
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
            cases: the cases that the folds were drawn from, or compared with.
            fold: index of the fold to validate on.

        Raises:
            ValueError: there is no such fold.
        """
        if not 0 <= fold < len(self.folds):
            raise ValueError(
                f"fold={fold} is not in 0..{len(self.folds) - 1}, the folds there are; give one of "
                "them"
            )
        by_name = {case.case_id: case for case in cases}
        train = sorted(name for i, names in enumerate(self.folds) if i != fold for name in names)
        parts = (train, self.folds[fold], self.test)
        training, validation, test = ([by_name[name] for name in part] for part in parts)
        return training, validation, test

    @classmethod
    def _load(cls, path: Path) -> "Splits":
        """Read a file of any form that :meth:`read` takes.

        Raises:
            ValueError: the file has another form.
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
        """Return what is wrong with the folds or does not fit the cases, one line each."""
        parts = (*self.folds, self.test)
        counts = Counter(name for part in parts for name in part)
        existing = {case.case_id for case in cases}
        faults = []
        if len(self.folds) < 2 or not all(self.folds):
            sizes = ", ".join(str(len(fold)) for fold in self.folds)
            faults.append(f"{path}: has folds of {sizes} cases; give two or more, none empty")
        if doubled := [name for name, count in counts.items() if count > 1]:
            faults.append(f"{path}: names {', '.join(sorted(doubled))} more than once; keep one")
        if absent := counts.keys() - existing:
            faults.append(
                f"{path}: names {', '.join(sorted(absent))}, not among the cases found; add the "
                "files, or remove the names"
            )
        if unnamed := existing - counts.keys():
            faults.append(
                f"{path}: does not name {', '.join(sorted(unnamed))}; add each to a fold, or move "
                "its files away"
            )
        part_of = {name: index for index, part in enumerate(parts) for name in part}
        scans: dict[str, list[str]] = defaultdict(list)
        for case in cases:
            if case.case_id in part_of:
                scans[case.patient].append(case.case_id)
        faults += [
            f"{path}: separates {', '.join(sorted(names))}, scans of one patient; put them into "
            "one fold"
            for names in scans.values()
            if len({part_of[name] for name in names}) > 1
        ]
        return faults


def _read_list(path: Path) -> list[tuple[str, int]]:
    """Read a list of training entries.

    Returns:
        Case name, which is the folder of the expert mask, and fold of each entry.

    Raises:
        ValueError: the file has another form.
    """
    content = read_json(path)
    try:
        return [(Path(item["label"]).parts[-2], int(item["fold"])) for item in content["training"]]
    except (IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: under training, an entry has no label in a case folder or no fold "
            f"({error!r}); restore the published file"
        ) from error


def _by_fold(entries: Iterable[tuple[str, int]]) -> tuple[tuple[str, ...], ...]:
    """Return the case names of each fold, in the order of fold numbers."""
    folds: dict[int, list[str]] = defaultdict(list)
    for name, number in entries:
        folds[number].append(name)
    return tuple(tuple(sorted(folds[number])) for number in sorted(folds))


def _is_names(value: object) -> bool:
    """Return whether a value from JSON is a list of case names."""
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
