"""Mirrors clipseg3d/data/layout.py."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from clipseg3d.data.layout import group, walk
from clipseg3d.data.releases import BRATS_2020, BRATS_2023_GLI, MSD_TASK01
from clipseg3d.vocabulary import LABEL, SEQUENCES

ONE, TWO = "BraTS20_Training_001", "BraTS20_Training_002"
ALL = (*SEQUENCES, LABEL)


def grouped(root, release=BRATS_2020, required=ALL):
    """Return the cases of a folder by name, the strays, and all faults."""
    files, faults = walk(root)
    cases, strays, more = group(files, release, required)
    by_name = {case.case_id: case for case in cases}
    assert len(by_name) == len(cases)
    return by_name, strays, [*faults, *more]


def one_fault(root, *options):
    """Return the only fault, and check that it is one line."""
    (fault,) = grouped(root, *options)[2]
    assert "\n" not in fault
    return fault


# Files by name


@pytest.mark.parametrize("name", ["site.A_pat.01_t1_scan", "x", "a_t1", "a_seg", "W39_1998.09.19"])
@pytest.mark.parametrize("ext", [".nii.gz", ".nii"])
def test_names_with_dots_and_underscores(tmp_path, write_case, name, ext):
    files = write_case(tmp_path, name, ext=ext)
    cases, strays, faults = grouped(tmp_path)
    assert (list(cases), strays, faults) == ([name], [], [])
    assert cases[name].files == files
    assert (cases[name].folder, cases[name].channels) == (tmp_path, {})


def test_names_that_start_alike_stay_apart(tmp_path, write_case):
    for seed, name in enumerate(("a", "a_t1", "a_t1_2")):
        write_case(tmp_path, name, seed=seed)
    cases, _, faults = grouped(tmp_path)
    assert faults == []
    assert {name: case.files["t1"].name for name, case in cases.items()} == {
        "a": "a_t1.nii.gz",
        "a_t1": "a_t1_t1.nii.gz",
        "a_t1_2": "a_t1_2_t1.nii.gz",
    }


def test_the_same_name_in_two_folders_makes_two_cases(tmp_path, write_case):
    for folder in ("a", "b"):
        write_case(tmp_path / folder, ONE)
    cases, _, faults = group(walk(tmp_path)[0], BRATS_2020, ALL)
    assert [case.folder for case in cases] == [tmp_path / "a", tmp_path / "b"]
    assert faults == []


def test_hidden_files_and_folders_are_ignored(tmp_path, write_case):
    files = write_case(tmp_path / ONE)
    (tmp_path / ONE / f"._{files['t1'].name}").write_bytes(b"resource fork")
    (tmp_path / ".DS_Store").write_bytes(b"")
    shutil.copytree(tmp_path / ONE, tmp_path / ".trash" / ONE)
    assert sorted(walk(tmp_path)[0]) == sorted(files.values())


def test_volumes_of_no_case_are_strays_and_other_files_are_not(tmp_path, write_case):
    files = write_case(tmp_path)
    stray = tmp_path / "prediction.nii.gz"
    stray.write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no volume")
    cases, strays, faults = grouped(tmp_path)
    assert cases[ONE].files == files
    assert (strays, faults) == ([stray], [])


def test_the_misnamed_mask_of_case_355(tmp_path, write_case):
    name, stem = "BraTS20_Training_355", "W39_1998.09.19_Segm"
    files = write_case(tmp_path / name, name, ext=".nii", label_stem=stem)
    cases, _, faults = grouped(tmp_path)
    assert (cases[name].files[LABEL], faults) == (tmp_path / name / f"{stem}.nii", [])
    shutil.copy(files[LABEL], tmp_path / name / f"{name}_seg.nii")  # and its repaired copy
    fault = one_fault(tmp_path)
    assert f"{name}_seg.nii" in fault
    assert f"{stem}.nii" in fault
    assert "keep one" in fault


def test_doubled_file(tmp_path, write_case):
    write_case(tmp_path, ONE)
    write_case(tmp_path, ONE, ext=".nii", drop=["t1", "t1ce", "flair"], label=False)
    fault = one_fault(tmp_path)
    assert fault == (
        f"{tmp_path / f'{ONE}_t2.nii.gz'}: {ONE}_t2.nii also holds t2 of the case; keep one of "
        "the two"
    )
    assert grouped(tmp_path)[0][ONE].files["t2"].name == f"{ONE}_t2.nii"  # the first of them


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_missing_sequence(tmp_path, write_case, sequence):
    write_case(tmp_path / ONE, ONE, drop=[sequence])
    fault = one_fault(tmp_path)
    missing = tmp_path / ONE / f"{ONE}_{sequence}.nii.gz"
    assert fault == f"{missing}: missing; add it, or move the case away"
    others = tuple(kind for kind in ALL if kind != sequence)
    cases, _, faults = grouped(tmp_path, BRATS_2020, others)
    assert (set(cases[ONE].files), faults) == (set(others), [])


def test_missing_label(tmp_path, write_case):
    write_case(tmp_path / ONE, ONE, label=False)
    fault = one_fault(tmp_path)
    assert fault.startswith(f"{tmp_path / ONE / f'{ONE}_seg.nii.gz'}: missing; add it")
    assert one_fault(tmp_path, BRATS_2020, [LABEL]) == fault
    assert grouped(tmp_path, BRATS_2020, SEQUENCES)[2] == []


def test_a_missing_file_is_named_as_the_release_names_it(tmp_path, write_release):
    name = "BraTS-GLI-00008-001"
    write_release(tmp_path, BRATS_2023_GLI, name, drop=["t1ce"])
    _, _, faults = grouped(tmp_path, BRATS_2023_GLI)
    assert [fault.split(": ")[0] for fault in faults] == [
        str(tmp_path / name / f"{name}-{suffix}.nii.gz") for suffix in ("t1c", "seg")
    ]


@pytest.mark.parametrize("required", [ALL, [LABEL]])
def test_a_case_of_a_label_only_lacks_every_sequence(tmp_path, write_case, required):
    write_case(tmp_path, ONE)
    write_case(tmp_path, TWO, drop=SEQUENCES)
    _, _, faults = grouped(tmp_path, BRATS_2020, required)
    assert [fault.split(": ")[0] for fault in faults] == [
        str(tmp_path / f"{TWO}_{sequence}.nii.gz") for sequence in SEQUENCES
    ]


# Files in a manifest


def test_decathlon_channels_go_by_their_names(tmp_path, write_msd):
    modality = {"0": "T2w", "1": "T1gd", "2": "FLAIR", "3": "T1w"}
    write_msd(tmp_path, ["BRATS_001"], modality=modality)
    cases, strays, faults = grouped(tmp_path, MSD_TASK01)
    case = cases["BRATS_001"]
    assert case.channels == {"t1": 3, "t1ce": 1, "t2": 0, "flair": 2}
    image = tmp_path / "imagesTr" / "BRATS_001.nii.gz"
    label = tmp_path / "labelsTr" / "BRATS_001.nii.gz"
    assert case.files == {**dict.fromkeys(SEQUENCES, image), LABEL: label}
    assert (case.folder, strays, faults) == (tmp_path / "imagesTr", [], [])


def test_decathlon_test_images_are_cases_without_label(tmp_path, write_msd):
    write_msd(tmp_path, ["BRATS_001"], ["BRATS_485"])
    assert list(grouped(tmp_path, MSD_TASK01)[0]) == ["BRATS_001"]
    cases, strays, _ = grouped(tmp_path, MSD_TASK01, SEQUENCES)
    assert {name: LABEL in case.files for name, case in cases.items()} == {
        "BRATS_001": True,
        "BRATS_485": False,
    }
    assert strays == []


def test_volumes_that_a_manifest_does_not_list_are_strays(tmp_path, write_msd):
    write_msd(tmp_path, ["BRATS_001"], ["BRATS_002"])
    stray = tmp_path / "imagesTr" / "BRATS_009.nii.gz"
    stray.write_bytes(b"")
    assert grouped(tmp_path, MSD_TASK01)[1] == [stray]


def test_a_sequence_that_decathlon_lacks(tmp_path, write_msd):
    write_msd(tmp_path, ["BRATS_001"], modality={"0": "T1w", "1": "T2w", "2": "CT"})
    assert grouped(tmp_path, MSD_TASK01)[0] == {}
    assert one_fault(tmp_path, MSD_TASK01) == (
        f"{tmp_path / 'dataset.json'}: has no t1gd, FLAIR under modality; restore the published "
        "file"
    )
    cases, _, faults = grouped(tmp_path, MSD_TASK01, [LABEL])
    assert (cases["BRATS_001"].channels, faults) == ({"t1": 0, "t2": 1}, [])
    assert set(cases["BRATS_001"].files) == {"t1", "t2", LABEL}


def test_a_decathlon_of_no_sequence(tmp_path, write_msd):
    write_msd(tmp_path, ["BRATS_001"], modality={"0": "CT"})
    fault = one_fault(tmp_path, MSD_TASK01, [LABEL])
    assert "has no T1w, t1gd, T2w, FLAIR under modality" in fault


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"modality": {"0": "T1w"}}',
        '{"modality": ["T1w"], "training": []}',
        '{"modality": {"first": "T1w"}, "training": []}',
        '{"modality": {"0": 1}, "training": []}',
        '{"modality": {"0": "T1w"}, "training": ["a.nii.gz"]}',
        '{"modality": {"0": "T1w"}, "training": [{"image": "a.nii.gz"}]}',
        '{"modality": {"0": "T1w"}, "training": [], "test": [3]}',
    ],
)
def test_a_manifest_that_cannot_be_used(tmp_path, content):
    (tmp_path / "dataset.json").write_text(content)
    cases, strays, (fault,) = grouped(tmp_path, MSD_TASK01)
    assert (cases, strays) == ({}, [])
    assert fault.startswith(f"{tmp_path / 'dataset.json'}: not ")
    assert "\n" not in fault


# Odd file systems


def test_a_folder_that_is_not_there(tmp_path, write_case):
    with pytest.raises(FileNotFoundError, match=r"absent: no such folder; give the folder"):
        walk(tmp_path / "absent")
    files = write_case(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"_t1\.nii\.gz: no such folder"):
        walk(files["t1"])


def test_linked_folders_are_searched_and_circles_end(tmp_path, write_case, monkeypatch):
    files = write_case(tmp_path / "elsewhere" / ONE, ONE)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere" / ONE)
    (tmp_path / "elsewhere" / ONE / "circle").symlink_to(tmp_path / "root")
    searched = []
    original = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: searched.append(path) or original(path))
    listed, faults = walk(tmp_path / "root")
    assert sorted(path.resolve() for path in listed) == sorted(files.values())
    assert faults == []
    assert len(searched) == 3  # root, link, circle


def test_a_folder_that_may_not_be_searched(tmp_path, write_case, monkeypatch):
    files = write_case(tmp_path / "open" / ONE, ONE)
    write_case(tmp_path / "shut" / TWO, TWO)
    original = os.scandir

    def refuse(path):
        if Path(path).name == "shut":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", refuse)
    listed, faults = walk(tmp_path)
    assert sorted(listed) == sorted(files.values())
    assert faults == [
        f"{tmp_path / 'shut'}: cannot be searched (Permission denied); check its permissions and "
        "its path"
    ]


def test_a_link_to_a_folder_that_is_gone(tmp_path, write_case):
    write_case(tmp_path)
    (tmp_path / "HGG").symlink_to("/mnt/unmounted")
    fault = one_fault(tmp_path)
    assert fault == (
        f"{tmp_path / 'HGG'}: a link to /mnt/unmounted, which does not exist; restore it, or "
        "remove the link"
    )


def test_a_volume_that_is_a_link_to_nothing_is_listed(tmp_path, write_case):
    files = write_case(tmp_path)
    files["t2"].unlink()
    files["t2"].symlink_to(tmp_path / "gone.nii.gz")
    assert grouped(tmp_path)[0][ONE].files == files  # reading it says what is wrong


def test_a_folder_that_is_a_link_to_itself(tmp_path, write_case):
    write_case(tmp_path)
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    assert "circle: a link to " in one_fault(tmp_path)


def test_a_name_that_is_not_utf8(tmp_path, write_case):
    files = write_case(tmp_path)
    shutil.copy(files["t1"], os.fsencode(tmp_path) + b"/\xe4_t1.nii.gz")
    fault = one_fault(tmp_path)
    assert fault == f"{tmp_path}/\\udce4_t1.nii.gz: its name is not UTF-8; rename it"
    fault.encode()


def test_a_very_long_path(tmp_path, write_case):
    folder = tmp_path.joinpath(*["x" * 200] * 15)
    write_case(folder, ONE)
    assert len(str(folder)) > 3000
    cases, _, faults = grouped(tmp_path)
    assert (list(cases), faults) == ([ONE], [])


def test_a_path_that_is_too_long(tmp_path, write_case, monkeypatch):
    write_case(tmp_path, ONE)
    monkeypatch.chdir(tmp_path)
    for _ in range(21):  # made step by step: the path in full is longer than the system takes
        os.mkdir("y" * 200)
        os.chdir("y" * 200)
    fault = one_fault(tmp_path)
    assert ": cannot be searched (File name too long); check its permissions and its path" in fault
    os.chdir(tmp_path)
