"""Mirrors clipseg3d/data/cache.py."""

import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from clipseg3d.data import cache
from clipseg3d.data.cache import build_cache, cached_case, default_cache_dir
from clipseg3d.data.cases import DataError, find_cases
from clipseg3d.data.preprocess import preprocess
from clipseg3d.data.releases import BRATS_2020, BRATS_2021

NAMES = [f"BraTS20_Training_{number:03d}" for number in (1, 2, 3)]
FILES = {
    *("image.npy", "label.npy", "foreground.npy"),
    *("statistics.npy", "views.npy", "planes.npy"),
}


@pytest.fixture
def cases(tmp_path, write_case):
    for seed, name in enumerate(NAMES):
        write_case(tmp_path / "cases" / name, name, seed=seed, report=f"report {seed}")
    return find_cases(tmp_path / "cases", BRATS_2020)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "cache"


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def spoil_label(case, write_nifti, value):
    label = np.full((13, 17, 11), value, np.uint8)
    write_nifti(case.label, label)


@pytest.mark.parametrize("selection", ["center", "energy", "attention"])
def test_entries_hold_what_preprocessing_made(cases, root, selection, equal_views):
    entries = build_cache(cases, BRATS_2020, root, view_selection=selection)
    assert [e.case_id for e in entries] == NAMES
    assert [e.report for e in entries] == ["report 0", "report 1", "report 2"]
    for case, entry in zip(cases, entries, strict=True):
        due = preprocess(case, BRATS_2020, view_selection=selection)
        image, label, tumour = entry.image(), entry.label(), entry.foreground()
        assert (image.dtype, label.dtype, tumour.dtype) == (np.float16, np.uint8, np.int16)
        np.testing.assert_allclose(image, due.image.numpy(), rtol=2e-3, atol=1e-6)
        np.testing.assert_array_equal(image == 0, due.image.numpy() == 0)
        np.testing.assert_array_equal(label, due.label)
        np.testing.assert_array_equal(tumour, np.argwhere(due.label > 0))
        assert torch.equal(entry.statistics(), due.statistics)
        assert equal_views(entry.views(), due.views)
        assert len(entry.views().planes) == (24 if selection == "attention" else 3)
        assert {path.name for path in entry.folder.iterdir()} == FILES


def test_entries_come_in_the_order_of_the_cases(cases, root):
    build_cache(cases[1:2], BRATS_2020, root)
    entries = build_cache(cases[::-1], BRATS_2020, root)
    assert [e.case_id for e in entries] == NAMES[::-1]
    assert [e.report for e in entries] == ["report 2", "report 1", "report 0"]
    for case, entry in zip(cases[::-1], entries, strict=True):
        due = preprocess(case, BRATS_2020).image.half().numpy()
        np.testing.assert_array_equal(entry.image(), due)


def test_volumes_are_memory_mapped_and_read_only(cases, root):
    (entry,) = build_cache(cases[:1], BRATS_2020, root)
    for array in (entry.image(), entry.label(), entry.foreground()):
        assert isinstance(array, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_a_second_build_does_no_work(cases, root, monkeypatch):
    first = build_cache(cases, BRATS_2020, root)
    before = times(root)
    monkeypatch.setattr(cache, "preprocess", None)  # any call would fail
    assert build_cache(cases, BRATS_2020, root) == first
    assert times(root) == before


def test_a_build_adds_only_what_is_missing(cases, root):
    first = build_cache(cases[:2], BRATS_2020, root)
    before = {entry.folder: times(entry.folder) for entry in first}
    entries = build_cache(cases, BRATS_2020, root)
    assert entries[:2] == first
    assert {entry.folder: times(entry.folder) for entry in first} == before
    assert entries[2].folder.is_dir()


@pytest.mark.parametrize("kind", ["t1", "t1ce", "t2", "flair", "label"])
def test_a_changed_file_gets_a_new_entry(cases, root, kind):
    case = cases[0]
    (old,) = build_cache([case], BRATS_2020, root)
    path = case.label if kind == "label" else case.sequences[kind]
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000))
    (new,) = build_cache([case], BRATS_2020, root)
    assert new.folder != old.folder
    assert new.folder.is_dir()


def test_a_changed_mask_is_not_served_from_the_old_entry(cases, root, write_nifti):
    build_cache(cases, BRATS_2020, root)
    label = np.zeros((13, 17, 11), np.uint8)
    label[6, 8, 5] = 4
    write_nifti(cases[1].label, label)
    entries = build_cache(cases, BRATS_2020, root)
    assert [int((e.label() > 0).sum()) for e in entries] == [120, 1, 120]


def test_releases_do_not_share_entries(cases, root):
    one, other = (cached_case(cases[0], release, root) for release in (BRATS_2020, BRATS_2021))
    assert one.folder != other.folder
    assert one.folder.name != other.folder.name


def test_the_format_is_part_of_the_key(cases, root, monkeypatch):
    before = cached_case(cases[0], BRATS_2020, root)
    monkeypatch.setattr(cache, "FORMAT", cache.FORMAT + 1)
    assert cached_case(cases[0], BRATS_2020, root) != before


def test_entries_of_another_selection_of_views_do_not_collide(cases, root, equal_views):
    kinds = ("center", "energy", "attention")
    built = {kind: build_cache(cases, BRATS_2020, root, view_selection=kind) for kind in kinds}
    assert len({entry.folder for entries in built.values() for entry in entries}) == 9
    for kind, entries in built.items():
        for case, entry in zip(cases, entries, strict=True):
            assert entry == cached_case(case, BRATS_2020, root, view_selection=kind)
            due = preprocess(case, BRATS_2020, view_selection=kind)
            assert equal_views(entry.views(), due.views)
    assert not equal_views(built["center"][0].views(), built["energy"][0].views())


def test_grade_and_report_come_from_the_case_not_from_the_cache(cases, root, monkeypatch):
    build_cache(cases, BRATS_2020, root)
    monkeypatch.setattr(cache, "preprocess", None)  # any call would fail
    graded = [replace(case, grade=grade) for case, grade in zip(cases, (1, 0, -1), strict=True)]
    assert [entry.grade for entry in build_cache(graded, BRATS_2020, root)] == [1, 0, -1]


def test_a_new_report_needs_no_new_entry(cases, root, monkeypatch):
    (old,) = build_cache(cases[:1], BRATS_2020, root)
    monkeypatch.setattr(cache, "preprocess", None)
    (new,) = build_cache([replace(cases[0], report="another")], BRATS_2020, root)
    assert (new.folder, new.report) == (old.folder, "another")


def test_a_mask_without_tumour_has_no_foreground(cases, root, write_nifti):
    spoil_label(cases[0], write_nifti, 0)
    (entry,) = build_cache(cases[:1], BRATS_2020, root)
    assert entry.foreground().shape == (0, 3)
    assert not entry.label().any()


@pytest.mark.parametrize(("limit", "kept"), [(119, 60), (120, 120), (50, 40), (7, 7)])
def test_foreground_is_bounded_and_spread(cases, root, monkeypatch, limit, kept):
    monkeypatch.setattr(cache, "MAX_FOREGROUND", limit)
    (entry,) = build_cache(cases[:1], BRATS_2020, root)
    tumour = np.argwhere(entry.label() > 0)  # 120 voxels
    chosen = entry.foreground()
    assert len(chosen) == kept
    assert (entry.label()[tuple(chosen.T)] > 0).all()
    assert len({tuple(voxel) for voxel in chosen}) == kept
    assert np.ptp(chosen, axis=0)[0] == np.ptp(tumour, axis=0)[0]  # not the first few slices


def test_faults_of_all_cases_are_listed_and_good_ones_cached(cases, root, write_nifti):
    spoil_label(cases[0], write_nifti, 3)
    write_nifti(cases[2].sequences["t2"], np.zeros((13, 17, 11), np.int16))
    spoil_label(cases[2], write_nifti, 5)
    with pytest.raises(DataError) as error:
        build_cache(cases, BRATS_2020, root)
    assert [fault.split(": ")[0] for fault in error.value.faults] == [
        str(path) for path in (cases[0].label, cases[2].sequences["t2"], cases[2].label)
    ]
    good = cached_case(cases[1], BRATS_2020, root)
    assert good.label().any()
    assert [path.name for path in root.glob("*/*")] == [good.folder.name]


def test_a_case_without_mask_is_a_fault(cases, root):
    with pytest.raises(DataError, match=f"{NAMES[0]}: has no expert mask; only labelled cases"):
        build_cache([replace(cases[0], label=None)], BRATS_2020, root)
    assert list(root.rglob("*")) == []


def test_a_crash_while_writing_leaves_nothing(cases, root, monkeypatch):
    save = np.save

    def crash(path, array):
        save(path, array)
        if Path(path).name == "foreground.npy":
            raise OSError("No space left on device")

    monkeypatch.setattr(np, "save", crash)
    with pytest.raises(OSError, match="No space left"):
        build_cache(cases[:1], BRATS_2020, root)
    entry = cached_case(cases[0], BRATS_2020, root)
    assert not entry.folder.exists()
    assert [path for path in root.rglob("*") if path.is_file()] == []
    assert list(entry.folder.parent.iterdir()) == []
    monkeypatch.undo()
    assert build_cache(cases[:1], BRATS_2020, root) == [entry]
    assert entry.label().any()


def test_entries_are_as_open_to_others_as_the_cache(cases, root):
    root.joinpath(BRATS_2020.name).mkdir(parents=True)
    root.joinpath(BRATS_2020.name).chmod(0o775)
    (entry,) = build_cache(cases[:1], BRATS_2020, root)
    assert entry.folder.stat().st_mode & 0o777 == 0o775


def test_a_killed_build_is_not_taken_for_an_entry(cases, root):
    entry = cached_case(cases[0], BRATS_2020, root)
    part = entry.folder.with_name(f".{entry.folder.name}.half")
    part.mkdir(parents=True)
    (part / "image.npy").write_bytes(b"half")
    assert build_cache(cases[:1], BRATS_2020, root) == [entry]
    assert {path.name for path in entry.folder.iterdir()} == FILES


def test_threads_that_build_one_case_at_once(cases, root, monkeypatch):
    together = threading.Barrier(2)

    def wait(case, release, **options):
        ready = preprocess(case, release, **options)
        together.wait(timeout=120)  # both have found no entry and are about to write one
        return ready

    monkeypatch.setattr(cache, "preprocess", wait)
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(build_cache, cases[:1], BRATS_2020, root) for _ in range(2)]
        one, other = (job.result() for job in jobs)
    assert one == other
    assert [path.name for path in root.glob("*/*")] == [one[0].folder.name]
    np.testing.assert_array_equal(one[0].label(), preprocess(cases[0], BRATS_2020).label)


def test_processes_that_build_the_same_cases(cases, root):
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=build_cache, args=(cases, BRATS_2020, root)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list(root.glob("*/*"))) == len(cases)
    assert all(entry.label().any() for entry in build_cache(cases, BRATS_2020, root))


@pytest.mark.parametrize("num_threads", [1, 3])
def test_any_number_of_threads_gives_the_same(cases, root, num_threads):
    entries = build_cache(cases, BRATS_2020, root, num_threads=num_threads)
    for case, entry in zip(cases, entries, strict=True):
        np.testing.assert_array_equal(
            entry.image(), preprocess(case, BRATS_2020).image.half().numpy()
        )


def test_the_source_folder_is_only_read(cases, root, tmp_path, content):
    before = content(tmp_path / "cases"), times(tmp_path / "cases")
    build_cache(cases, BRATS_2020, root)
    assert (content(tmp_path / "cases"), times(tmp_path / "cases")) == before


def test_saying_where_a_case_lies_writes_nothing(cases, root):
    cached_case(cases[0], BRATS_2020, root)
    assert not root.exists()


@pytest.mark.parametrize(
    ("variables", "due"),
    [
        ({"CLIPSEG3D_CACHE": "/big/disk", "XDG_CACHE_HOME": "/xdg"}, Path("/big/disk")),
        ({"XDG_CACHE_HOME": "/xdg"}, Path("/xdg/clipseg3d")),
        ({}, Path("/home/ann/.cache/clipseg3d")),
        ({"CLIPSEG3D_CACHE": "", "XDG_CACHE_HOME": ""}, Path("/home/ann/.cache/clipseg3d")),
    ],
)
def test_default_cache_dir(monkeypatch, variables, due):
    for name in ("CLIPSEG3D_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", classmethod(lambda cls: Path("/home/ann")))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert default_cache_dir() == due
