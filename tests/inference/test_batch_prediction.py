"""Mirrors clipseg3d/inference/batch_prediction.py: what is written, skipped and reported."""

import json
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import nibabel as nib
import numpy as np
import pytest

import clipseg3d.inference.batch_prediction
from clipseg3d.data.cases import DataError, find_cases
from clipseg3d.data.layout import walk
from clipseg3d.data.releases import PHANTOM
from clipseg3d.data.scan_grid import ScanGrid
from clipseg3d.inference.batch_prediction import segment_cases
from clipseg3d.inference.prompt_answer import PromptAnswer
from clipseg3d.inference.segmentation import Segmentation

SPACING_MM = 8.0
ALL = {"probabilities": True, "uncertainty": True, "html": True}


class StubPredictor:
    """Returns the number of the call as label, or fails with a given error."""

    uncertainty_names = ("entropy", "ensemble variance")
    release = PHANTOM

    def __init__(self, **errors):
        self.errors = errors
        self.calls = []

    def fingerprint(self, *, weights="0"):
        return {"weights": [weights], "grid_of": None, "spacing_mm": 1.0}

    def read_prompts(self, prompts):
        if "unanswered" in prompts:
            raise ValueError("these weights answer no prompts")

    def read(self, case):
        return case

    def __call__(self, case, *, progress, **options):
        self.calls.append((case.case_id, options))
        progress(0.25)
        if case.case_id in self.errors:
            raise self.errors[case.case_id]
        progress(0.75)
        shape = nib.load(case.sequences["t1"]).shape
        return Segmentation(
            case,
            np.full(shape, len(self.calls), np.uint8),
            PHANTOM,
            probabilities=np.zeros((3, *shape), np.float32),
            uncertainty=dict.fromkeys(self.uncertainty_names, np.zeros(shape, np.float32)),
            prompts=tuple(
                PromptAnswer(
                    text, 0.25, np.full((2, 2, 1), text != "blood"), (1, 2, 3), full_grid(shape)
                )
                for text in options["prompts"]
            ),
            presence={"WT": 0.75},
        )


def full_grid(shape):
    affine = np.diag([-8.0, -8, 8, 1])
    return ScanGrid(shape, affine, tuple((0, side) for side in shape))


@pytest.fixture
def cases(folder):
    (case,) = find_cases(folder, PHANTOM, spacing_mm=SPACING_MM)
    return [replace(case, case_id=name) for name in "abc"]


@pytest.fixture(autouse=True)
def case_pages(monkeypatch):
    """Replace case pages; lists the references that they were given."""
    references = []

    def save_case_page(self, path, *, reference=None):
        references.append(reference)
        path.write_text("<html>")

    monkeypatch.setattr(Segmentation, "save_case_page", save_case_page)
    return references


def files_in(folder):
    """Return the files in a folder, but for records of what they were made with."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in paths if path.parts[0] != "records")


def test_every_case_gets_its_files(cases, tmp_path, case_pages):
    predictor = StubPredictor()
    results = list(segment_cases(predictor, cases, tmp_path / "out", text="seen", **ALL))
    assert [(r.case.case_id, r.status, r.error) for r in results] == [
        (name, "written", None) for name in "abc"
    ]
    expected = [f"{name}{rest}" for name in "abc" for rest in (".nii.gz", ".html")] + [
        f"{folder}/{name}_{part}.nii.gz"
        for name in "abc"
        for folder, parts in (
            ("probabilities", ("WT", "TC", "ET")),
            ("uncertainty", ("entropy", "ensemble_variance")),
        )
        for part in parts
    ]
    assert files_in(tmp_path / "out") == sorted(expected)
    assert sorted(str(p.relative_to(tmp_path / "out")) for r in results for p in r.files) == sorted(
        expected
    )
    assert results[0].files[0] == tmp_path / "out" / "a.nii.gz"
    assert case_pages == [case.label for case in cases]
    asked = {"text": "seen", "probabilities": True, "uncertainty": True, "explain": True}
    asked |= {"trust": 1.0, "prompts": (), "warn": False}
    assert predictor.calls == [(name, asked) for name in "abc"]


def test_only_what_is_asked_for_is_written(cases, tmp_path):
    list(segment_cases(StubPredictor(), cases, tmp_path / "out"))
    assert files_in(tmp_path / "out") == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]


def test_finished_cases_are_skipped(cases, tmp_path):
    out = tmp_path / "out"
    list(segment_cases(StubPredictor(), cases[:2], out))
    before = {name: (out / name).read_bytes() for name in files_in(out)}
    predictor = StubPredictor()
    results = list(segment_cases(predictor, cases, out))
    assert [r.status for r in results] == ["finished", "finished", "written"]
    assert [name for name, _ in predictor.calls] == ["c"]
    assert {name: (out / name).read_bytes() for name in before} == before


def test_a_case_is_finished_when_all_its_files_are_there(cases, tmp_path):
    out = tmp_path / "out"
    list(segment_cases(StubPredictor(), cases, out, html=True))
    (out / "b.html").unlink()
    assert [r.status for r in segment_cases(StubPredictor(), cases, out, html=True)] == [
        "finished",
        "written",
        "finished",
    ]
    statuses = [r.status for r in segment_cases(StubPredictor(), cases, out, uncertainty=True)]
    assert statuses == ["written"] * 3


def test_files_of_another_segmentation_are_named(cases, tmp_path):
    list(segment_cases(StubPredictor(), cases[:1], tmp_path, probabilities=True))
    (again,) = segment_cases(StubPredictor(), cases[:1], tmp_path, overwrite=True)
    assert again.notes == ()  # made in the same way
    other = StubPredictor()
    other.fingerprint = partial(other.fingerprint, weights="1")
    (result,) = segment_cases(other, cases[:1], tmp_path, overwrite=True)
    (note,) = result.notes
    assert str(tmp_path / "probabilities" / "a_WT.nii.gz") in note
    assert "of an earlier segmentation that was made otherwise" in note
    (last,) = segment_cases(other, cases[:1], tmp_path, overwrite=True, probabilities=True)
    assert last.notes == ()


def test_a_page_is_made_again_with_another_mask(cases, tmp_path):
    def statuses(case, **options):
        return [r.status for r in segment_cases(StubPredictor(), [case], tmp_path / "o", **options)]

    mask = tmp_path / "mask.nii.gz"
    image = nib.load(cases[0].sequences["t1"])
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), mask)
    with_mask, without = replace(cases[0], label=mask), replace(cases[0], label=None)
    assert statuses(without, html=True) == ["written"]
    assert statuses(with_mask, html=True) == ["written"]
    assert statuses(with_mask, html=True) == statuses(with_mask) == ["finished"]
    assert statuses(without) == ["finished"]  # labels do not depend on it


def test_overwrite_does_all_again(cases, tmp_path):
    out = tmp_path / "out"
    list(segment_cases(StubPredictor(), cases, out))
    results = list(segment_cases(StubPredictor(), cases, out, overwrite=True))
    assert [r.status for r in results] == ["written"] * 3


@pytest.mark.parametrize(
    "error", [DataError(["b_t1.nii.gz: broken"]), RuntimeError("odd"), TypeError("a defect")]
)
def test_one_failure_does_not_stop_the_others(cases, tmp_path, error):
    results = list(segment_cases(StubPredictor(b=error), cases, tmp_path / "out"))
    assert [(r.status, r.error) for r in results] == [
        ("written", None),
        ("failed", error),
        ("written", None),
    ]
    assert files_in(tmp_path / "out") == ["a.nii.gz", "c.nii.gz"]


def test_a_full_disk_fails_the_case_and_leaves_nothing_half_written(cases, tmp_path, monkeypatch):
    out = tmp_path / "out"
    list(segment_cases(StubPredictor(), cases[:1], out))
    before = (out / "a.nii.gz").read_bytes()
    save = nib.save

    def fill_the_disk(image, path):
        save(image, path)
        path.write_bytes(path.read_bytes()[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", fill_the_disk)
    results = list(segment_cases(StubPredictor(), cases, out, overwrite=True))
    assert [r.status for r in results] == ["failed"] * 3
    assert str(results[0].error) == (
        f"{out / 'a.nii.gz'}: cannot be written (No space left on device); free some space, or "
        "choose another place"
    )
    assert files_in(out) == ["a.nii.gz"]
    assert (out / "a.nii.gz").read_bytes() == before


def test_an_interrupt_goes_through(cases, tmp_path):
    results = segment_cases(StubPredictor(b=KeyboardInterrupt()), cases, tmp_path / "out")
    assert next(results).status == "written"
    with pytest.raises(KeyboardInterrupt):
        next(results)
    assert files_in(tmp_path / "out") == ["a.nii.gz"]


@pytest.mark.parametrize("weights", ["0", "1"])
def test_a_case_that_another_process_segments_is_waited_for(cases, tmp_path, capsys, weights):
    """Then it is finished, or refused if it was made otherwise."""
    begun, go = threading.Event(), threading.Event()

    class Slow(StubPredictor):
        def __call__(self, case, **options):
            begun.set()
            assert go.wait(timeout=60)
            return super().__call__(case, **options)

    second = StubPredictor()
    second.fingerprint = partial(second.fingerprint, weights=weights)
    with ThreadPoolExecutor(2) as pool:
        try:
            slow = pool.submit(list, segment_cases(Slow(), cases[:1], tmp_path))
            assert begun.wait(timeout=60)
            (other,) = segment_cases(second, cases[2:], tmp_path)  # is nobody's
            quick = pool.submit(list, segment_cases(second, cases[:1], tmp_path))
            time.sleep(0.2)
            assert not quick.done()
        finally:
            go.set()
        assert [result.status for result in [*slow.result(), other]] == ["written"] * 2
        results = quick.result()
    assert [name for name, _ in second.calls] == ["c"]
    if weights == "0":
        assert [result.status for result in results] == ["finished"]
    else:
        assert [str(result.error) for result in results] == [
            f"{tmp_path / 'a'}.nii.gz: is there already, made with other weights; choose another "
            "folder, or replace it with --overwrite (overwrite=True)"
        ]
    waits = f"{tmp_path / 'a.nii.gz'}: waiting for another process that writes it"
    assert waits in capsys.readouterr().err
    assert not list(tmp_path.rglob(".*"))


def test_one_bar_counts_all_cases_that_are_left(cases, tmp_path, monkeypatch):
    bars = []

    class Bar(clipseg3d.inference.batch_prediction.tqdm):
        def __init__(self, *args, **options):
            super().__init__(*args, **{**options, "delay": 1e6})
            bars.append(self)

    monkeypatch.setattr(clipseg3d.inference.batch_prediction, "tqdm", Bar)
    out = tmp_path / "out"
    list(segment_cases(StubPredictor(), cases[:1], out))
    bars.clear()
    states = []
    for result in segment_cases(StubPredictor(b=ValueError("b")), cases, out):
        states.append((result.status, bars[0].n, bars[0].desc))
    (bar,) = bars
    assert bar.total == 2
    assert states == [
        ("finished", 0, "Segmenting"),
        ("failed", pytest.approx(1), "Segmenting 1/2 b"),
        ("written", pytest.approx(2), "Segmenting 2/2 c"),
    ]
    # half a case of two took 30 s
    shown = bar.format_meter(**{**bar.format_dict, "n": 0.5, "elapsed": 30.0, "ncols": 60})
    assert shown.startswith("Segmenting 2/2 c:  25%|")
    assert shown.endswith("| 00:30<01:30")


def test_prompts_get_masks_and_the_record_knows_their_scores(cases, tmp_path):
    out = tmp_path / "out"
    prompts = ["the rim", " the  rim", "blood"]
    (result,) = segment_cases(StubPredictor(), cases[:1], out, prompts=prompts, trust=0.5)
    masks = [f"prompts/a/{name}.nii.gz" for name in ("blood", "the-rim")]
    assert files_in(out) == ["a.nii.gz", *masks]
    assert set(result.files) == {out / name for name in files_in(out)}
    assert {answer.text: path for answer, path in result.prompts.items()} == {
        "the rim": out / masks[1],
        "blood": out / masks[0],
    }
    assert np.asarray(nib.load(out / masks[1]).dataobj).sum() == 4
    assert not np.asarray(nib.load(out / masks[0]).dataobj).any()
    record = json.loads((out / "records" / "a.json").read_text())
    assert record["made_with"]["prompts"] == ["the rim", "blood"]
    assert record["made_with"]["trust"] == 0.5
    assert record["found"]["presence"] == {"WT": 0.75}
    rim = {"text": "the rim", "file": masks[1], "found": True, "presence": 0.25}
    assert record["found"]["prompts"][0] == {**rim, "volume_ml": pytest.approx(4 * 0.512)}
    assert record["found"]["prompts"][1]["found"] is False
    cases_again, _ = walk(out)
    assert [path.suffix for path in cases_again] == [".json"]  # masks are not taken for scans


def test_other_prompts_are_other_work_and_masks_of_earlier_ones_stay(cases, tmp_path):
    out = tmp_path / "out"

    def statuses(**options):
        results = list(segment_cases(StubPredictor(), cases[:1], out, **options))
        return [(result.status, str(result.error or "")) for result in results]

    assert statuses() == [("written", "")]
    assert statuses() == [("finished", "")]
    assert statuses(prompts=["rim"]) == [("written", "")]
    assert statuses(prompts=["rim"]) == [("finished", "")]
    assert statuses(prompts=["rim", "blood"]) == [("written", "")]
    assert statuses(prompts=["core"]) == [("written", "")]
    assert files_in(out / "prompts" / "a") == ["blood.nii.gz", "core.nii.gz", "rim.nii.gz"]
    ((status, error),) = statuses(prompts=["core"], trust=0.5)
    assert status == "failed"
    assert "made with other trust" in error
    (out / "prompts" / "a" / "core.nii.gz").write_bytes(b"")
    ((status, error),) = statuses(prompts=["core"])
    assert (status, "core.nii.gz: has been changed since" in error) == ("failed", True)


def test_a_mask_of_nobody_knows_what_is_not_replaced(cases, tmp_path):
    mask = tmp_path / "out" / "prompts" / "a" / "rim.nii.gz"
    mask.parent.mkdir(parents=True)
    mask.write_bytes(b"precious")
    (result,) = segment_cases(StubPredictor(), cases[:1], tmp_path / "out", prompts=["rim"])
    assert result.status == "failed"
    assert mask.read_bytes() == b"precious"


def test_cases_that_were_finished_before_later_settings_still_are(cases, tmp_path):
    list(segment_cases(StubPredictor(), cases[:1], tmp_path))
    path = tmp_path / "records" / "a.json"
    record = json.loads(path.read_text())
    del record["found"]
    for name in ("trust", "prompts", "grid_of", "spacing_mm"):
        del record["made_with"][name]
    path.write_text(json.dumps(record))
    (again,) = segment_cases(StubPredictor(), cases[:1], tmp_path)
    assert again.status == "finished"
    (doubted,) = segment_cases(StubPredictor(), cases[:1], tmp_path, trust=0.5)
    assert "made with other trust" in str(doubted.error)


@pytest.mark.parametrize("options", [{"prompts": [" "]}, {"prompts": ["unanswered"]}, {"trust": 2}])
def test_what_no_case_can_be_asked_stops_before_the_first(cases, tmp_path, options):
    with pytest.raises(ValueError, match=r"is empty|answer no prompts|trust=2 is not in"):
        next(segment_cases(StubPredictor(), cases, tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()


class Watched(StubPredictor):
    """Counts the scans that are held, and tells when each is read and computed."""

    def __init__(self, unreadable="", **errors):
        super().__init__(**errors)
        self.unreadable = unreadable
        self.reading = {name: threading.Event() for name in "abc"}
        self.computing = {name: threading.Event() for name in "abc"}
        self.held = self.most_held = 0
        self.wait = {}  # step and case -> what must have happened before it ends

    def read(self, case):
        scan = Scan(case)
        self.held += 1
        self.most_held = max(self.most_held, self.held)
        weakref.finalize(scan, self.drop)
        self.reading[case.case_id].set()
        self.wait_in("read", case)
        if case.case_id in self.unreadable:
            raise DataError([f"{case.case_id}_t1.nii.gz: broken"])
        return scan

    def drop(self):
        self.held -= 1

    def __call__(self, scan, **options):
        self.computing[scan.case.case_id].set()
        self.wait_in("compute", scan.case)
        return super().__call__(scan.case, **options)

    def wait_in(self, step, case):
        for event in self.wait.get(f"{step} {case.case_id}", ()):
            assert event.wait(timeout=60), f"{step} {case.case_id}"


class Scan:
    """A case that was read."""

    def __init__(self, case):
        self.case = case


@pytest.fixture
def writing(monkeypatch):
    """Tell when the labels of each case are being written, and let that wait."""
    begun = {name: threading.Event() for name in "abc"}
    wait = {}
    save = Segmentation.save

    def slow_save(self, path):
        begun[self.case.case_id].set()
        for event in wait.get(self.case.case_id, ()):
            assert event.wait(timeout=60)
        save(self, path)

    monkeypatch.setattr(Segmentation, "save", slow_save)
    return begun, wait


def test_while_a_case_is_computed_the_next_is_read_and_the_last_is_written(
    cases, tmp_path, writing
):
    written, wait_in_save = writing
    predictor = Watched()
    predictor.wait = {
        "compute a": [predictor.reading["b"]],
        "compute b": [predictor.reading["c"], written["a"]],
        "read c": [predictor.computing["b"]],
    }
    wait_in_save["a"] = [predictor.computing["b"]]
    results = list(segment_cases(predictor, cases, tmp_path / "out"))
    assert [(r.case.case_id, r.status, r.error) for r in results] == [
        (name, "written", None) for name in "abc"
    ]
    labels = [nib.load(result.files[0]).dataobj[0, 0, 0] for result in results]
    assert labels == [1, 2, 3]


def test_one_scan_at_most_is_read_ahead(cases, tmp_path):
    predictor = Watched()
    for result in segment_cases(predictor, cases, tmp_path / "out"):
        if result.case.case_id == "a":
            time.sleep(0.2)  # a reader without bounds would go on
    assert predictor.most_held == 2
    assert predictor.held == 0


def test_scans_of_finished_cases_are_not_read(cases, tmp_path):
    out = tmp_path / "out"
    list(segment_cases(StubPredictor(), cases[:1], out))
    (out / "b.nii.gz").write_bytes(b"of others")  # refused
    predictor = Watched()
    statuses = [result.status for result in segment_cases(predictor, cases, out)]
    assert statuses == ["finished", "failed", "written"]
    assert [predictor.reading[name].is_set() for name in "abc"] == [False, False, True]


@pytest.mark.parametrize("unreadable", ["a", "b", "ab", "c"])
def test_a_scan_that_cannot_be_read_fails_in_its_turn(cases, tmp_path, unreadable):
    results = list(segment_cases(Watched(unreadable), cases, tmp_path / "out"))
    assert [(r.case.case_id, str(r.error or "")) for r in results] == [
        (name, f"{name}_t1.nii.gz: broken" if name in unreadable else "") for name in "abc"
    ]
    readable = [name for name in "abc" if name not in unreadable]
    assert files_in(tmp_path / "out") == [f"{name}.nii.gz" for name in readable]


def test_a_case_that_cannot_be_written_fails_in_its_turn(cases, tmp_path, monkeypatch):
    predictor = Watched()
    write = Segmentation.save

    def save(self, path):
        if self.case.case_id == "a":
            assert predictor.computing["b"].wait(timeout=60)
            raise OSError(f"{path.name}: the disk is full")
        write(self, path)

    monkeypatch.setattr(Segmentation, "save", save)
    results = segment_cases(predictor, cases, tmp_path / "out")
    first = next(results)
    assert (first.case.case_id, first.status, str(first.error)) == (
        "a",
        "failed",
        "a.nii.gz: the disk is full",
    )
    assert [(result.case.case_id, result.status) for result in results] == [
        ("b", "written"),
        ("c", "written"),
    ]
    assert not list((tmp_path / "out").rglob(".*"))


def test_an_interrupt_waits_for_what_is_being_written(cases, tmp_path, writing):
    _, wait_in_save = writing
    predictor = Watched(b=KeyboardInterrupt())
    predictor.wait = {"compute b": [predictor.reading["c"]]}
    wait_in_save["a"] = [predictor.computing["b"]]
    threads = threading.active_count()
    results = segment_cases(predictor, cases, tmp_path / "out")
    assert next(results).status == "written"
    with pytest.raises(KeyboardInterrupt):
        next(results)
    assert files_in(tmp_path / "out") == ["a.nii.gz"]
    assert not list((tmp_path / "out").rglob(".*"))
    assert threading.active_count() == threads


def test_who_stops_asking_gets_complete_files_and_no_thread_is_left(cases, tmp_path):
    predictor = Watched()
    threads = threading.active_count()
    results = segment_cases(predictor, cases, tmp_path / "out")
    assert next(results).case.case_id == "a"
    results.close()
    assert threading.active_count() == threads
    assert not list((tmp_path / "out").rglob(".*"))
    again = segment_cases(StubPredictor(), cases, tmp_path / "out")
    assert next(again).status == "finished"
