"""Mirrors clipseg3d/data/splits.py."""

import json
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from clipseg3d.data.cases import Case, DataError, find_cases
from clipseg3d.data.releases import BRATS_2018
from clipseg3d.data.splits import Splits


def cases_of(scans_per_patient, grades=(-1,)):
    """Cases without files; patient i has scans_per_patient[i] scans and grades[i % len]."""
    return [
        Case(f"p{patient:02d}_{scan}", f"p{patient:02d}", {}, grade=grades[patient % len(grades)])
        for patient, count in enumerate(scans_per_patient)
        for scan in range(count)
    ]


def names(cases):
    return [case.case_id for case in cases]


COUNTS = [1, 3, 1, 2, 1, 1, 4, 1, 2, 1, 1, 2, 1]  # 13 patients, 21 scans


@pytest.mark.parametrize("grades", [(-1,), (1, 0, 1), (1, 0, -1)])
@pytest.mark.parametrize("num_folds", [2, 3, 5, 13])
@pytest.mark.parametrize("seed", [0, 7])
def test_every_case_is_validated_exactly_once(num_folds, seed, grades):
    cases = cases_of(COUNTS, grades)
    splits = Splits.draw(cases, num_folds=num_folds, seed=seed)
    assert splits.seed == seed
    validated = []
    for fold in range(num_folds):
        train, val, test = splits.divide(cases, fold=fold)
        assert sorted(names(train) + names(val)) == names(cases)
        assert not {c.patient for c in train} & {c.patient for c in val}
        assert names(train) == sorted(names(train))
        assert names(val) == sorted(names(val))
        assert val
        assert test == []
        validated += names(val)
    assert sorted(validated) == names(cases)


@pytest.mark.parametrize("num_folds", [2, 3, 5, 7])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [17, 369])
def test_single_scans_are_spread_evenly_over_all_and_in_each_grade(num_folds, seed, count):
    grades = np.random.default_rng(seed).choice([1, 0, -1], count, p=[0.6, 0.3, 0.1]).tolist()
    cases = cases_of([1] * count, grades)
    parts = [
        Splits.draw(cases, num_folds=num_folds, seed=seed).divide(cases, fold=f)[1]
        for f in range(num_folds)
    ]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for grade in (1, 0, -1):
        counts = [sum(case.grade == grade for case in part) for part in parts]
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("seed", range(20))
def test_patients_with_many_scans_do_not_unbalance_folds(seed):
    sizes = [len(fold) for fold in Splits.draw(cases_of(COUNTS), num_folds=5, seed=seed).folds]
    assert sorted(sizes) == [4, 4, 4, 4, 5]


@pytest.mark.parametrize("seed", range(5))
def test_many_scans_of_one_grade_do_not_keep_another_from_a_fold(seed):
    cases = cases_of([4, 1, 1, 1, 1, 1], (0, 0, 0, 1, 1, 1))
    splits = Splits.draw(cases, num_folds=3, seed=seed)
    for fold in range(3):
        assert sorted({case.grade for case in splits.divide(cases, fold=fold)[1]}) == [0, 1]


def test_scans_of_several_grades_count_as_the_highest():
    grades = {"q_1": 0, "q_2": 1, "r_1": 1}
    cases = [Case(name, name[0], {}, grade=grade) for name, grade in grades.items()]
    cases += cases_of([1] * 8, (0,))
    for seed in range(10):
        folds = Splits.draw(cases, num_folds=2, seed=seed).folds
        assert sum("r_1" in fold or "q_1" in fold for fold in folds) == 2


def test_equal_seeds_give_equal_splits_in_any_order():
    cases = cases_of(COUNTS, (1, 0))
    mixed = [cases[i] for i in np.random.default_rng(0).permutation(len(cases))]
    one, other = Splits.draw(cases, seed=3), Splits.draw(mixed, seed=3)
    assert one == other
    for fold in range(5):
        assert one.divide(cases, fold=fold) == other.divide(mixed, fold=fold)


def test_a_seed_gives_the_same_folds_for_ever():
    assert Splits.draw(cases_of([2, 1, 1, 1, 1, 1], (1, 0)), num_folds=3, seed=0).folds == (
        ("p00_0", "p00_1", "p03_0"),
        ("p02_0", "p05_0"),
        ("p01_0", "p04_0"),
    )


def test_seeds_differ():
    held_out = [Splits.draw(cases_of(COUNTS), seed=seed).folds[0] for seed in range(6)]
    assert all(one != other for one, other in combinations(held_out, 2))


@pytest.mark.parametrize("grades", [(-1,), (1, 1, 0)])
def test_no_patient_and_no_fold_is_favoured(grades):
    drawn = [Splits.draw(cases_of([1] * 12, grades), seed=seed).folds for seed in range(300)]
    often = Counter(name for folds in drawn for name in folds[0])
    assert len(often) == 12
    assert min(often.values()) > 40  # 60 on average
    sizes = np.array([[len(fold) for fold in folds] for folds in drawn]).mean(axis=0)
    np.testing.assert_allclose(sizes, 12 / 5, atol=0.15)


def test_scans_of_brats_2018_stay_together(tmp_path, write_case):
    for name in ("TCIA01_201_1", "TCIA01_201_2", "TCIA01_203_1", "2013_20_1", "2013_21_1"):
        write_case(tmp_path, f"Brats18_{name}")
    splits = Splits.draw(find_cases(tmp_path, BRATS_2018), num_folds=4)
    both = {"Brats18_TCIA01_201_1", "Brats18_TCIA01_201_2"}
    assert sorted(len(both & set(fold)) for fold in splits.folds) == [0, 0, 0, 2]


@pytest.mark.parametrize("num_folds", [1, 0, -3])
def test_too_few_folds(num_folds):
    with pytest.raises(ValueError, match=f"num_folds={num_folds} leaves nothing to train on"):
        Splits.draw(cases_of(COUNTS), num_folds=num_folds)


def test_too_few_patients():
    with pytest.raises(ValueError, match=r"2 patients cannot fill num_folds=3 folds; add cases"):
        Splits.draw(cases_of([2, 3]), num_folds=3)
    assert {len(fold) for fold in Splits.draw(cases_of([2, 3]), num_folds=2).folds} == {2, 3}


@pytest.mark.parametrize("fold", [5, -1])
def test_bad_fold(fold):
    cases = cases_of(COUNTS)
    with pytest.raises(ValueError, match=rf"fold={fold} is not in 0\.\.4"):
        Splits.draw(cases).divide(cases, fold=fold)


# Files

CASES = cases_of([2, 1, 1, 1])


def written(folder, content, name="splits.json"):
    path = folder / name
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def faults_of(path, cases=CASES):
    """Return the faults, and check that each is one line that starts with the path."""
    with pytest.raises(DataError) as error:
        Splits.read(path, cases)
    assert all(fault.startswith(f"{path}: ") and "\n" not in fault for fault in error.value.faults)
    return [fault.removeprefix(f"{path}: ") for fault in error.value.faults]


def test_a_file_is_plain_and_comes_back_equal(tmp_path):
    cases = cases_of(COUNTS, (1, 0))
    splits = Splits.draw(cases, num_folds=3, seed=5)
    splits.write(tmp_path / "splits.json")
    assert Splits.read(str(tmp_path / "splits.json"), cases) == splits
    content = json.loads((tmp_path / "splits.json").read_text())
    assert content == {"seed": 5, "folds": [list(fold) for fold in splits.folds], "test": []}


def test_a_file_written_by_hand(tmp_path):
    path = written(tmp_path, {"folds": [["p02_0"], ["p00_1", "p00_0"]], "test": ["p03_0", "p01_0"]})
    splits = Splits.read(path, CASES)
    assert splits == Splits((("p02_0",), ("p00_0", "p00_1")), test=("p01_0", "p03_0"))
    train, val, test = splits.divide(CASES[::-1], fold=1)
    assert (names(train), names(val)) == (["p02_0"], ["p00_0", "p00_1"])
    assert names(test) == ["p01_0", "p03_0"]


def test_every_fault_of_a_file_at_once(tmp_path):
    folds = [["p00_0", "p01_0", "x"], ["p00_1", "p01_0", "y"]]
    assert faults_of(written(tmp_path, {"folds": folds, "test": ["p02_0"]})) == [
        "names p01_0 more than once; keep one",
        "names x, y, not among the cases found; add the files, or remove the names",
        "does not name p03_0; add each to a fold, or move its files away",
        "separates p00_0, p00_1, scans of one patient; put them into one fold",
    ]


def test_a_patient_may_not_be_in_a_fold_and_in_the_test(tmp_path):
    content = {"folds": [["p00_0"], ["p01_0", "p02_0"]], "test": ["p00_1", "p03_0"]}
    (fault,) = faults_of(written(tmp_path, content))
    assert fault.startswith("separates p00_0, p00_1")


@pytest.mark.parametrize("folds", [[], [["p00_0", "p00_1", "p01_0", "p02_0", "p03_0"]]])
def test_one_fold_is_not_enough(tmp_path, folds):
    assert any(
        "give two or more" in fault for fault in faults_of(written(tmp_path, {"folds": folds}))
    )


def test_an_empty_fold(tmp_path):
    content = {"folds": [["p00_0", "p00_1"], [], ["p01_0", "p02_0", "p03_0"]]}
    (fault,) = faults_of(written(tmp_path, content))
    assert fault == "has folds of 2, 0, 3 cases; give two or more, none empty"


@pytest.mark.parametrize(
    "content",
    [
        [],
        "text",
        3,
        {},
        {"folds": {"0": ["p00_0"]}},
        {"folds": ["p00_0", "p01_0"]},
        {"folds": [["p00_0"], [3]]},
        {"folds": [["p00_0"], None]},
        {"folds": [["p00_0"], ["p01_0"]], "test": "p02_0"},
    ],
)
def test_what_is_no_file_of_folds(tmp_path, content):
    (fault,) = faults_of(written(tmp_path, content))
    assert fault.startswith('not a file of folds; give a JSON object {"folds": [[case, ...], ...]}')


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.json: no such file"):
        Splits.read(tmp_path / "absent.json", CASES)
    path = tmp_path / "splits.json"
    path.write_text("{")
    (fault,) = faults_of(path)
    assert fault.startswith("not valid JSON")


def entry(name, fold, folder=""):
    """One case in the form of TextBraTS."""
    stem = f"{folder}{name}/{name}"
    return {
        "fold": fold,
        "image": [f"{stem}_{sequence}.nii.gz" for sequence in ("flair", "t1", "t1ce", "t2")],
        "label": f"{stem}_seg.nii.gz",
        "text_feature": f"{stem}_flair_text.npy",
    }


@pytest.mark.parametrize("folder", ["", "TrainingData/"])
def test_a_list_with_folds(tmp_path, folder):
    entries = [("p01_0", 2), ("p00_0", 10), ("p02_0", 2), ("p00_1", 10), ("p03_0", 1)]
    path = written(tmp_path, {"training": [entry(name, fold, folder) for name, fold in entries]})
    splits = Splits.read(path, CASES)
    assert splits == Splits((("p03_0",), ("p01_0", "p02_0"), ("p00_0", "p00_1")))


def test_the_folder_of_textbrats(tmp_path):
    train = [entry("p02_0", 1), entry("p01_0", 0), entry("p03_0", 1)]
    written(tmp_path, {"training": train}, "Train.json")
    written(tmp_path, {"training": [entry("p00_1", 0), entry("p00_0", 0)]}, "Test.json")
    splits = Splits.read(tmp_path, CASES)
    assert splits == Splits((("p01_0",), ("p02_0", "p03_0")), test=("p00_0", "p00_1"))
    (fault,) = faults_of(tmp_path / "Train.json")
    assert fault.startswith("does not name p00_0, p00_1")


def test_a_folder_without_test_list(tmp_path):
    written(tmp_path, {"training": [entry("p02_0", 1)]}, "Train.json")
    with pytest.raises(FileNotFoundError, match=r"Test\.json: no such file"):
        Splits.read(tmp_path, CASES)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda item: item.pop("fold"),
        lambda item: item.pop("label"),
        lambda item: item.update(label="p00_0_seg.nii.gz"),
        lambda item: item.update(label=None),
        lambda item: item.update(fold="one"),
    ],
)
def test_a_list_that_lacks_something(tmp_path, spoil):
    item = entry("p00_0", 0)
    spoil(item)
    path = written(tmp_path, {"training": [entry("p01_0", 1), item]})
    (fault,) = faults_of(path)
    assert fault.startswith("under training, an entry has no label in a case folder or no fold")
