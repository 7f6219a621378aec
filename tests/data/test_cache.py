"""Mirrors clipseg3d/data/cache.py."""

import errno
import gzip
import multiprocessing
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from filelock import FileLock

from clipseg3d.atomic_write import HIDDEN
from clipseg3d.batch import pack_image, unpack_image
from clipseg3d.data import cache
from clipseg3d.data.cache import build_cache, cached_case, default_cache_dir, fingerprint
from clipseg3d.data.cases import Case, DataError, find_cases
from clipseg3d.data.preprocessing import preprocess
from clipseg3d.data.releases import BRATS_2020, BRATS_2021

NAMES = [f"BraTS20_Training_{number:03d}" for number in (1, 2, 3)]


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


def change_a_voxel(path):
    """Change one voxel: label 4 to 2, an intensity a little."""
    image = nib.load(path)
    voxels = np.asarray(image.dataobj).copy()
    voxels[6, 8, 5] ^= 6
    nib.save(nib.Nifti1Image(voxels, None, image.header), path)


def leftovers(root):
    """What a killed process was writing: hidden, so never taken for an entry."""
    return list(root.rglob(".*.safetensors"))


def files(root):
    return sorted(path.name for path in root.glob("*/*"))


def check(entry, case):
    """Fail if an entry does not hold what preprocessing makes of its case."""
    expected = preprocess(case, BRATS_2020)
    assert torch.equal(entry.image(), pack_image(expected.image, expected.statistics))
    np.testing.assert_array_equal(entry.label(), expected.label)
    np.testing.assert_array_equal(entry.foreground(), np.argwhere(expected.label > 0))
    assert all(map(torch.equal, entry.views(), expected.views))


@pytest.mark.parametrize("selection", ["center", "energy", "attention"])
def test_entries_hold_what_preprocessing_made(cases, root, selection, equal_views):
    entries = build_cache(cases, BRATS_2020, root, view_selection=selection)
    assert [e.case_id for e in entries] == NAMES
    assert [e.report for e in entries] == ["report 0", "report 1", "report 2"]
    for case, entry in zip(cases, entries, strict=True):
        expected = preprocess(case, BRATS_2020, view_selection=selection)
        image, label, tumour = entry.image(), entry.label(), entry.foreground()
        assert (image.dtype, label.dtype, tumour.dtype) == (torch.uint8, torch.uint8, torch.int16)
        step = (expected.statistics[:, 1] - expected.statistics[:, 0]) / 254
        error = (unpack_image(image, entry.statistics()) - expected.image).abs().flatten(1)
        assert (error.max(dim=1).values <= 0.501 * step).all()
        np.testing.assert_array_equal(image == 0, expected.image == 0)
        np.testing.assert_array_equal(label, expected.label)
        np.testing.assert_array_equal(tumour, np.argwhere(expected.label > 0))
        assert torch.equal(entry.statistics(), expected.statistics)
        assert equal_views(entry.views(), expected.views)
        assert len(entry.views().planes) == (24 if selection == "attention" else 3)
    assert files(root) == sorted(entry.path.name for entry in entries)


def test_entries_come_in_the_order_of_the_cases(cases, root):
    build_cache(cases[1:2], BRATS_2020, root)
    entries = build_cache(cases[::-1], BRATS_2020, root)
    assert [e.case_id for e in entries] == NAMES[::-1]
    assert [e.report for e in entries] == ["report 2", "report 1", "report 0"]
    for case, entry in zip(cases[::-1], entries, strict=True):
        check(entry, case)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells what is mapped")
def test_tensors_are_memory_mapped(cases, root):
    (entry,) = build_cache(cases[:1], BRATS_2020, root)
    image = entry.image()
    maps = Path("/proc/self/maps").read_text().splitlines()
    (line,) = [line for line in maps if str(entry.path) in line]
    start, stop = (int(address, 16) for address in line.split()[0].split("-"))
    assert start <= image.data_ptr() < stop


def test_what_is_written_to_a_tensor_does_not_reach_the_file(cases, root, content):
    (entry,) = build_cache(cases[:1], BRATS_2020, root)
    before = content(root)
    for tensor in (entry.image(), entry.label(), entry.statistics(), *entry.views()):
        tensor.fill_(7)
    assert content(root) == before
    check(entry, cases[0])


def test_a_second_build_does_no_work(cases, root, monkeypatch):
    first = build_cache(cases, BRATS_2020, root)
    before = times(root)
    monkeypatch.setattr(cache, "preprocess", None)  # any call would fail
    assert build_cache(cases, BRATS_2020, root) == first
    assert times(root) == before


def test_a_build_adds_only_what_is_missing(cases, root):
    first = build_cache(cases[:2], BRATS_2020, root)
    before = [entry.path.stat().st_mtime_ns for entry in first]
    entries = build_cache(cases, BRATS_2020, root)
    assert entries[:2] == first
    assert [entry.path.stat().st_mtime_ns for entry in first] == before
    assert entries[2].is_complete()


def source_of(case, kind):
    return case.label if kind == "label" else case.sequences[kind]


@pytest.mark.parametrize("kind", ["t1", "t1ce", "t2", "flair", "label"])
def test_a_changed_file_gets_a_new_entry(cases, root, kind):
    case = cases[0]
    (old,) = build_cache([case], BRATS_2020, root)
    path = source_of(case, kind)
    status = path.stat()
    change_a_voxel(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    (new,) = build_cache([case], BRATS_2020, root)
    assert new.path != old.path
    check(new, case)


def test_a_moved_folder_keeps_its_entries(cases, root, tmp_path, monkeypatch):
    built = build_cache(cases, BRATS_2020, root)
    shutil.copytree(tmp_path / "cases", tmp_path / "moved", copy_function=shutil.copyfile)
    shutil.rmtree(tmp_path / "cases")
    monkeypatch.setattr(cache, "preprocess", None)  # any call would fail
    moved = find_cases(tmp_path / "moved", BRATS_2020)
    assert [e.path for e in build_cache(moved, BRATS_2020, root)] == [e.path for e in built]


def test_files_that_change_places_get_a_new_entry(cases, root):
    one, other = cases[0].sequences["t1"], cases[0].sequences["t2"]
    before = cached_case(cases[0], BRATS_2020, root)
    swapped = {**cases[0].sequences, "t1": other, "t2": one}
    assert cached_case(replace(cases[0], sequences=swapped), BRATS_2020, root) != before
    few = {name: path for name, path in cases[0].sequences.items() if name != "t2"}
    assert cached_case(replace(cases[0], sequences=few), BRATS_2020, root) != before


def test_volumes_of_a_4d_file_that_change_places_get_a_new_entry(tmp_path, write_nifti, root):
    path = write_nifti(tmp_path / "all.nii.gz", np.ones((3, 4, 5, 4), np.int16))
    names = ("t1", "t1ce", "t2", "flair")
    sequences = dict.fromkeys(names, path)
    one, other = (
        cached_case(
            Case("a", "a", sequences, channels=dict(zip(names, order, strict=True))),
            BRATS_2020,
            root,
        )
        for order in ((0, 1, 2, 3), (3, 1, 2, 0))
    )
    assert one.path != other.path


# What tells a file


def test_a_compressed_file_is_told_by_its_content_alone(tmp_path):
    one, other = tmp_path / "one.nii.gz", tmp_path / "b" / "other.nii.gz"
    other.parent.mkdir()
    content = np.random.default_rng(0).integers(0, 90, 5000, np.uint8).tobytes()
    one.write_bytes(gzip.compress(content, mtime=1))
    shutil.copyfile(one, other)
    os.utime(other, (5, 5))
    assert fingerprint(one) == fingerprint(other)
    changed = content[:2500] + bytes([content[2500] ^ 1]) + content[2501:]
    other.write_bytes(gzip.compress(changed, mtime=1))
    os.utime(other, ns=(one.stat().st_atime_ns, one.stat().st_mtime_ns))
    assert fingerprint(one) != fingerprint(other)


@pytest.mark.parametrize("kind", ["plain", "members"])
def test_other_files_are_told_by_size_time_and_their_middle(tmp_path, kind):
    """Of several gzip members only the last one's check sum is at the end."""
    rng = np.random.default_rng(0)
    content = rng.integers(0, 256, 300_000, np.uint8).tobytes()

    def write(data, seconds):
        path = tmp_path / "x.nii.gz"
        halves = gzip.compress(data[:-9], mtime=1) + gzip.compress(data[-9:], mtime=1)
        path.write_bytes(data if kind == "plain" else halves)
        os.utime(path, (seconds, seconds))
        return fingerprint(path)

    first = write(content, 1000)
    assert write(content, 1000) == first
    assert write(content, 1001) != first
    assert write(content + b"x", 1000) != first
    middle = content[:150_000] + bytes([content[150_000] ^ 1]) + content[150_001:]
    assert write(middle, 1000) != first


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b", b"\x1f\x8b" + b"x" * 17, b"plain"])
def test_broken_files_can_be_told_too(tmp_path, content):
    path = tmp_path / "x.nii.gz"
    path.write_bytes(content)
    assert fingerprint(path) == fingerprint(path)


# Keys and names


def test_a_changed_mask_is_not_served_from_the_old_entry(cases, root, write_nifti):
    build_cache(cases, BRATS_2020, root)
    label = np.zeros((13, 17, 11), np.uint8)
    label[6, 8, 5] = 4
    write_nifti(cases[1].label, label)
    entries = build_cache(cases, BRATS_2020, root)
    assert [int((e.label() > 0).sum()) for e in entries] == [120, 1, 120]


def test_releases_do_not_share_entries(cases, root):
    whole = replace(BRATS_2020, regions={"WT": (1, 2)}, labels_out={"WT": 2})
    releases = (BRATS_2020, BRATS_2021, whole)
    one, other, relabelled = (cached_case(cases[0], release, root) for release in releases)
    assert relabelled.path != one.path
    assert one.path.parent != other.path.parent
    assert one.path.name != other.path.name


@pytest.mark.parametrize(("name", "value"), [("FORMAT", 99), ("VERSION", "99.0")])
def test_format_and_version_are_part_of_the_key(cases, root, monkeypatch, name, value):
    before = cached_case(cases[0], BRATS_2020, root)
    monkeypatch.setattr(cache, name, value)
    assert cached_case(cases[0], BRATS_2020, root) != before


@pytest.mark.parametrize("name", ["Ünïcode 脳腫瘍", "x" * 230, "脳" * 70])
def test_any_name_of_a_case_will_do(tmp_path, root, write_case, name):
    drawn = write_case(tmp_path / "cases", "a")
    case = Case(name, name, {k: drawn[k] for k in ("t1", "t1ce", "t2", "flair")}, drawn["label"])
    (entry,) = build_cache([case], BRATS_2020, root)
    assert entry.case_id == name
    check(entry, case)


def test_entries_of_another_selection_of_views_do_not_collide(cases, root, equal_views):
    kinds = ("center", "energy", "attention")
    built = {kind: build_cache(cases, BRATS_2020, root, view_selection=kind) for kind in kinds}
    assert len({entry.path for entries in built.values() for entry in entries}) == 9
    for kind, entries in built.items():
        for case, entry in zip(cases, entries, strict=True):
            assert entry == cached_case(case, BRATS_2020, root, view_selection=kind)
            expected = preprocess(case, BRATS_2020, view_selection=kind)
            assert equal_views(entry.views(), expected.views)
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
    assert (new.path, new.report) == (old.path, "another")


def test_a_mask_without_tumour_has_no_foreground(cases, root, write_nifti):
    spoil_label(cases[0], write_nifti, 0)
    (entry,) = build_cache(cases[:1], BRATS_2020, root)
    assert entry.foreground().shape == (0, 3)
    assert not entry.label().any()


@pytest.mark.parametrize(("limit", "kept"), [(119, 60), (120, 120), (50, 40), (7, 7)])
def test_foreground_is_bounded_and_spread(cases, root, monkeypatch, limit, kept):
    monkeypatch.setattr(cache, "MAX_FOREGROUND", limit)
    (entry,) = build_cache(cases[:1], BRATS_2020, root)
    label = entry.label().numpy()
    tumour = np.argwhere(label > 0)  # 120 voxels
    chosen = entry.foreground().numpy()
    assert len(chosen) == kept
    assert (label[tuple(chosen.T)] > 0).all()
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
    assert files(root) == [good.path.name]


def test_a_case_without_mask_is_a_fault(cases, root):
    with pytest.raises(DataError, match=f"{NAMES[0]}: has no expert mask; only labelled cases"):
        build_cache([replace(cases[0], label=None)], BRATS_2020, root)
    assert files(root) == []


# Crashes, kills, full disks, broken files


def fail(error):
    def fails(*arguments, **options):
        raise error

    return fails


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "Quota exceeded")],
)
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk(cases, root, monkeypatch, error, step):
    good = build_cache(cases[:1], BRATS_2020, root)
    monkeypatch.setattr(os, step, fail(error))
    with pytest.raises(OSError, match=error.strerror) as caught:
        build_cache(cases, BRATS_2020, root)
    assert caught.value.errno == error.errno
    message = str(caught.value)
    assert f"{root}: the cache cannot be written ({error.strerror}); 1 of 3 cases" in message
    assert "20 MB for each case" in message
    assert "$CLIPSEG3D_CACHE" in message
    monkeypatch.undo()
    assert files(root) == [good[0].path.name]
    check(good[0], cases[0])
    for entry, case in zip(build_cache(cases, BRATS_2020, root), cases, strict=True):
        check(entry, case)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_folder_that_may_not_be_written_to(cases, root):
    root.mkdir(mode=0o500)
    with pytest.raises(PermissionError, match="the cache cannot be written"):
        build_cache(cases, BRATS_2020, root)


def test_a_cache_that_is_complete_is_only_read(cases, root, monkeypatch):
    first = build_cache(cases, BRATS_2020, root)
    monkeypatch.setattr(cache, "FileLock", None)
    monkeypatch.setattr(Path, "mkdir", None)
    assert build_cache(cases, BRATS_2020, root) == first


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_entry_is_made_anew(cases, root, keep):
    entries = build_cache(cases, BRATS_2020, root)
    broken = entries[1].path
    content = broken.read_bytes()
    broken.write_bytes(content[:keep])
    assert [entry.is_complete() for entry in entries] == [True, False, True]
    with pytest.raises(DataError, match=f"{broken.name}: not readable .*; delete it; the next run"):
        entries[1].image()
    before = entries[0].path.stat().st_mtime_ns
    build_cache(cases, BRATS_2020, root)
    assert broken.read_bytes() == content
    assert entries[0].path.stat().st_mtime_ns == before


def test_an_entry_that_is_gone_says_so(cases, root):
    (entry,) = build_cache(cases[:1], BRATS_2020, root)
    entry.path.unlink()
    with pytest.raises(DataError, match=f"{entry.path.name}: not readable"):
        entry.views()


def test_an_entry_may_be_replaced_while_it_is_read(cases, root):
    (entry,) = build_cache(cases[:1], BRATS_2020, root)
    image = entry.image()
    before = image.clone()
    (other,) = build_cache(cases[1:2], BRATS_2020, root)
    os.replace(other.path, entry.path)
    assert torch.equal(image, before)


def test_entries_are_as_open_to_others_as_any_file(cases, root):
    (entry,) = build_cache(cases[:1], BRATS_2020, root)
    plain = root / "plain"
    plain.touch()
    assert entry.path.stat().st_mode == plain.stat().st_mode


def test_what_a_killed_build_left_is_removed(cases, root):
    entry = cached_case(cases[0], BRATS_2020, root)
    leftover = entry.path.with_name(f"{HIDDEN}0123.safetensors")
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half")
    assert build_cache(cases[:1], BRATS_2020, root) == [entry]
    assert files(root) == [entry.path.name]


def test_entries_are_written_under_a_hidden_name_first(cases, root, monkeypatch):
    """Of a name that the next build removes, should this one be killed."""
    renamed, rename = [], os.replace

    def record(source, target):
        renamed.append((leftovers(root), Path(source), Path(target)))
        rename(source, target)

    monkeypatch.setattr(os, "replace", record)
    (entry,) = build_cache(cases[:1], BRATS_2020, root)
    ((hidden, source, target),) = renamed
    assert hidden == [source]
    assert source.parent == entry.path.parent
    assert target == entry.path
    assert leftovers(root) == []


needs_fork = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork"
)


def build_slowly(cases, root, started):
    """Fill a cache so slowly that a kill meets it at every step."""
    torch.set_num_threads(1)  # threads do not survive a fork
    sync, swap = os.fsync, os.replace

    def slow_sync(descriptor):
        started.set()
        time.sleep(0.01)
        sync(descriptor)

    def slow_swap(source, target):
        time.sleep(0.01)
        swap(source, target)

    os.fsync, os.replace = slow_sync, slow_swap
    build_cache(cases, BRATS_2020, root)


@pytest.mark.slow  # twelve processes are killed
@needs_fork
def test_a_build_killed_at_any_moment(cases, root):
    context = multiprocessing.get_context("fork")
    rng = np.random.default_rng(0)
    num_left, num_complete = 0, set()
    for _ in range(12):
        started = context.Event()
        process = context.Process(target=build_slowly, args=(cases, root, started))
        process.start()
        started.wait(timeout=60)
        time.sleep(rng.uniform(0, 0.04))
        process.kill()
        process.join(timeout=60)
        num_left += len(leftovers(root))
        entries = [cached_case(case, BRATS_2020, root) for case in cases]
        num_complete.add(sum(entry.path.exists() for entry in entries))
        for entry, case in zip(entries, cases, strict=True):
            if entry.path.exists():
                check(entry, case)
        if num_complete >= {3}:
            shutil.rmtree(root)
            num_complete.add(0)
    assert num_left > 0
    assert len(num_complete) > 1
    for entry, case in zip(build_cache(cases, BRATS_2020, root), cases, strict=True):
        check(entry, case)
    assert leftovers(root) == []


def test_a_process_that_comes_second_waits(cases, root, monkeypatch, capsys):
    """It takes nothing from under the first one, and does nothing over again."""
    writing, go, calls = threading.Event(), threading.Event(), []

    def count(case, release, **options):
        calls.append(case.case_id)
        return preprocess(case, release, **options)

    sync = os.fsync

    def hold(descriptor):
        writing.set()
        assert go.wait(timeout=60)
        sync(descriptor)

    monkeypatch.setattr(cache, "preprocess", count)
    monkeypatch.setattr(os, "fsync", hold)
    with ThreadPoolExecutor(2) as pool:
        try:
            first = pool.submit(build_cache, cases, BRATS_2020, root)
            assert writing.wait(timeout=60)
            second = pool.submit(build_cache, cases, BRATS_2020, root)
            time.sleep(0.2)
            assert len(leftovers(root)) >= 1
            assert not second.done()
        finally:
            go.set()
        assert first.result() == second.result()
    assert sorted(calls) == NAMES
    assert f"{root}: waiting for another process to fill this cache" in capsys.readouterr().err
    for entry, case in zip(first.result(), cases, strict=True):
        check(entry, case)


def test_a_lock_file_that_nobody_holds_stops_nobody(cases, root):
    root.mkdir()
    with FileLock(root / f".{BRATS_2020.name}.lock"):
        pass
    assert all(entry.is_complete() for entry in build_cache(cases, BRATS_2020, root))


@pytest.mark.slow  # new processes import the whole library
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
    assert len(files(root)) == len(cases)
    for entry, case in zip(build_cache(cases, BRATS_2020, root), cases, strict=True):
        check(entry, case)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_any_number_of_threads_gives_the_same(cases, root, num_threads):
    entries = build_cache(cases, BRATS_2020, root, num_threads=num_threads)
    for case, entry in zip(cases, entries, strict=True):
        check(entry, case)


def test_the_source_folder_is_only_read(cases, root, tmp_path, content):
    before = content(tmp_path / "cases"), times(tmp_path / "cases")
    build_cache(cases, BRATS_2020, root)
    assert (content(tmp_path / "cases"), times(tmp_path / "cases")) == before


def test_saying_where_a_case_lies_writes_nothing(cases, root):
    cached_case(cases[0], BRATS_2020, root)
    assert not root.exists()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"CLIPSEG3D_CACHE": "/big/disk", "XDG_CACHE_HOME": "/xdg"}, Path("/big/disk")),
        ({"XDG_CACHE_HOME": "/xdg"}, Path("/xdg/clipseg3d")),
        ({}, Path("/home/ann/.cache/clipseg3d")),
        ({"CLIPSEG3D_CACHE": "", "XDG_CACHE_HOME": ""}, Path("/home/ann/.cache/clipseg3d")),
    ],
)
def test_default_cache_dir(monkeypatch, variables, expected):
    for name in ("CLIPSEG3D_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", classmethod(lambda cls: Path("/home/ann")))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert default_cache_dir() == expected
