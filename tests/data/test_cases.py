"""Mirrors clipseg3d/data/cases.py."""

import errno
import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import clipseg3d.data.cases as cases_module
from clipseg3d.data.cases import (
    Case,
    DataError,
    case_from_files,
    check_geometry,
    detect_release,
    faults_by_case,
    find_cases,
    index_cases,
)
from clipseg3d.data.label_checks import label_faults
from clipseg3d.data.nifti import read_voxels
from clipseg3d.data.releases import (
    BRATS_2018,
    BRATS_2019,
    BRATS_2020,
    BRATS_2021,
    BRATS_2023_GLI,
    BRATS_2023_MEN,
    BRATS_2023_MET,
    BRATS_2023_SSA,
    BRATS_2024_GLI,
    BRATS_2024_PED,
    BRATS_2025_GLI,
    MSD_TASK01,
    PHANTOM,
)
from clipseg3d.vocabulary import LABEL, SEQUENCES

SHAPE = (13, 17, 11)
ONE, TWO = "BraTS20_Training_001", "BraTS20_Training_002"
OFFICIAL = {
    "2018": (BRATS_2018, "HGG", "Brats18_2013_2_1", "Brats18_2013_2"),
    "2019": (BRATS_2019, "LGG", "BraTS19_TCIA10_109_1", "BraTS19_TCIA10_109"),
    "2020": (BRATS_2020, "MICCAI_BraTS2020_TrainingData", ONE, ONE),
    "2021": (BRATS_2021, "", "BraTS2021_00495", "BraTS2021_00495"),
}


def names(cases):
    return [case.case_id for case in cases]


def find_faults(root, **options):
    with pytest.raises(DataError) as error:
        find_cases(root, BRATS_2020, **options)
    return error.value.faults


def one_fault(root, **options):
    """Return the only fault, and check that it is one line that starts with a path and a colon."""
    (fault,) = find_faults(root, **options)
    assert "\n" not in fault
    return fault


@pytest.mark.parametrize("ext", [".nii.gz", ".nii"])
@pytest.mark.parametrize("year", OFFICIAL)
def test_official_layouts(tmp_path, write_case, year, ext):
    release, group, name, patient = OFFICIAL[year]
    folder = tmp_path / group / name
    files = write_case(folder, name, ext=ext)
    (folder / "survival_data.csv").write_text("no volume")
    assert find_cases(str(tmp_path), release) == [
        Case(
            case_id=name,
            patient=patient,
            sequences={sequence: files[sequence] for sequence in SEQUENCES},
            label=files[LABEL],
            report="",
            grade={"HGG": 1, "LGG": 0}.get(group, -1),
        )
    ]


def test_every_sequence_is_its_own_file_in_channel_order(tmp_path, write_case):
    write_case(tmp_path)
    (case,) = find_cases(tmp_path, BRATS_2020)
    assert tuple(case.sequences) == SEQUENCES
    assert {s: p.name for s, p in case.sequences.items()} == {
        s: f"{ONE}_{s}.nii.gz" for s in SEQUENCES
    }


def test_high_and_low_grade_folders(tmp_path, write_case):
    write_case(tmp_path / "HGG" / "Brats18_TCIA01_201_1", "Brats18_TCIA01_201_1")
    write_case(tmp_path / "HGG" / "Brats18_CBICA_AVG_1", "Brats18_CBICA_AVG_1")
    write_case(tmp_path / "LGG" / "Brats18_2013_28_1", "Brats18_2013_28_1")
    write_case(tmp_path / "Brats18_2013_2_1", "Brats18_2013_2_1")
    assert {case.case_id: case.grade for case in find_cases(tmp_path, BRATS_2018)} == {
        "Brats18_2013_28_1": 0,
        "Brats18_2013_2_1": -1,
        "Brats18_CBICA_AVG_1": 1,
        "Brats18_TCIA01_201_1": 1,
    }


def test_grade_is_that_of_the_nearest_folder_and_known_from_below(
    tmp_path, write_case, monkeypatch
):
    name = "Brats18_TCIA01_201_1"
    write_case(tmp_path / "HGG" / "LGG" / name, name)
    assert [case.grade for case in find_cases(tmp_path, BRATS_2018)] == [0]
    monkeypatch.chdir(tmp_path / "HGG" / "LGG" / name)
    assert [case.grade for case in find_cases(".", BRATS_2018)] == [0]
    assert Case("a", "a", {}).grade == -1


def test_one_flat_folder_in_mixed_formats(tmp_path, write_case):
    for name, ext in ((TWO, ".nii"), ("BraTS20_Training_010", ".nii.gz"), (ONE, ".nii.gz")):
        write_case(tmp_path, name, ext=ext)
    cases = find_cases(tmp_path, BRATS_2020)
    assert names(cases) == [ONE, TWO, "BraTS20_Training_010"]
    assert all(path.name.startswith(c.case_id) for c in cases for path in c.sequences.values())


def test_result_is_sorted_by_name_whatever_the_folders(tmp_path, write_case):
    for folder, name in (("z", "a_1"), ("a", "c_1"), ("m", "b_1")):
        write_case(tmp_path / folder, name)
    assert names(find_cases(tmp_path, BRATS_2020)) == ["a_1", "b_1", "c_1"]


def test_report_beside_the_case(tmp_path, write_case):
    write_case(tmp_path / ONE, ONE, report="Ödem links, 3 cm³.\n")
    write_case(tmp_path / TWO, TWO)
    assert [c.report for c in find_cases(tmp_path, BRATS_2020)] == ["Ödem links, 3 cm³.", ""]


@pytest.mark.parametrize("form", ["text", "object"])
def test_reports_of_one_file(tmp_path, write_case, form):
    root, reports = tmp_path / "cases", tmp_path / "reports.json"
    write_case(root / ONE, ONE, report="beside")
    write_case(root / TWO, TWO, report="beside as well")
    text = "Lésion à gauche."
    entry = text if form == "text" else {"report": text, "grade": "HGG"}
    reports.write_text(
        json.dumps({TWO: entry, "another_case": "unused"}, ensure_ascii=False), encoding="utf-8"
    )
    cases = find_cases(root, BRATS_2020, reports=reports)
    assert [c.report for c in cases] == ["", text]
    assert cases == find_cases(root, BRATS_2020, reports=str(reports))


def test_label_is_optional_where_it_is_not_required(tmp_path, write_case):
    write_case(tmp_path, ONE, label=False)
    files = write_case(tmp_path, TWO)
    cases = find_cases(tmp_path, BRATS_2020, require_label=False)
    assert [c.label for c in cases] == [None, files[LABEL]]


def test_folder_is_only_read(tmp_path, write_case, content):
    write_case(tmp_path, ONE, report="text")
    before = content(tmp_path)
    find_cases(tmp_path, BRATS_2020)
    assert content(tmp_path) == before


# Faults


def test_wrong_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent: no such folder; give the folder"):
        find_cases(tmp_path / "absent", BRATS_2020)


def test_a_file_is_no_folder(tmp_path, write_case):
    files = write_case(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"_t1\.nii\.gz: no such folder"):
        find_cases(files["t1"], BRATS_2020)


def test_empty_folder(tmp_path):
    (tmp_path / "readme.txt").write_text("unzip the data here")
    with pytest.raises(FileNotFoundError) as error:
        find_cases(tmp_path, BRATS_2020)
    message = str(error.value)
    assert message.startswith(
        f"{tmp_path}: no case of brats2020 in it (files named {{case}}_t1.nii.gz"
    )
    assert "check the path" in message


def test_a_folder_of_2023_shows_what_is_there(tmp_path, write_nifti):
    name = "BraTS-GLI-00000-000"
    for suffix in ("t1n", "t1c", "t2w", "t2f", "seg"):
        write_nifti(tmp_path / name / f"{name}-{suffix}.nii.gz", np.ones((3, 4, 5), np.int16))
    with pytest.raises(FileNotFoundError) as error:
        find_cases(tmp_path, BRATS_2021)
    message = str(error.value)
    assert "no case of brats2021" in message
    assert "_t1ce.nii.gz" in message
    assert f"{name}-" in message  # a file that is there
    assert "the data module is for this release" in message


def test_missing_label(tmp_path, write_case):
    write_case(tmp_path / ONE, ONE, label=False)
    fault = one_fault(tmp_path)
    assert fault.startswith(f"{tmp_path / ONE / f'{ONE}_seg.nii.gz'}: missing; add it")


def test_one_case_in_two_folders(tmp_path, write_case):
    write_case(tmp_path / "a", ONE)
    write_case(tmp_path / "b", ONE)
    fault = one_fault(tmp_path)
    assert f"{tmp_path / 'a'} and {tmp_path / 'b'}: each holds case {ONE}; keep one" == fault


def test_a_volume_that_is_no_part_of_a_case(tmp_path, write_case, write_nifti):
    write_case(tmp_path)
    stray = write_nifti(tmp_path / "prediction.nii.gz", np.ones((3, 4, 5), np.uint8))
    fault = one_fault(tmp_path)
    assert fault.startswith(f"{stray}: not a file of brats2020; rename it")
    assert "one of {case}_t1.nii.gz, {case}_t1ce.nii.gz" in fault


def cut(path):
    path.write_bytes(path.read_bytes()[:60])


def empty(path):
    path.write_bytes(b"")


def web_page(path):
    path.write_text("<html>404 not found</html>")


@pytest.mark.parametrize("kind", ["t1", "flair", LABEL])
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (cut, "not a readable NIfTI file"),
        (empty, "the file is empty"),
        (web_page, "is a web page, not NIfTI"),
    ],
)
def test_broken_file(tmp_path, write_case, kind, spoil, reason):
    files = write_case(tmp_path)
    spoil(files[kind])
    fault = one_fault(tmp_path)
    assert fault.startswith(f"{files[kind]}: {reason}")
    assert fault.endswith(("copy or download it again", "download the file itself"))


def test_file_of_four_axes(tmp_path, write_case, write_nifti):
    files = write_case(tmp_path)
    write_nifti(files["t2"], np.ones((13, 17, 11, 2), np.int16))
    fault = one_fault(tmp_path)
    assert fault.startswith(f"{files['t2']}: has 4 axes (13, 17, 11, 2), expected 3")


@pytest.mark.parametrize("kind", ["t1ce", LABEL])
def test_another_shape(tmp_path, write_case, write_nifti, kind):
    files = write_case(tmp_path)
    write_nifti(files[kind], np.ones((17, 13, 11), np.uint8))
    fault = one_fault(tmp_path)
    assert fault.startswith(f"{files[kind]}: shape 17x13x11 differs from 13x17x11 of")
    assert files["t1"].name in fault


@pytest.mark.parametrize(("shift", "passes"), [(0.004, True), (0.05, False), (3, False)])
@pytest.mark.parametrize("kind", ["flair", LABEL])
def test_another_affine(tmp_path, write_case, write_nifti, fake_patient, kind, shift, passes):
    files = write_case(tmp_path)
    affine = np.diag([-1.0, -1, 1, 1])
    affine[:3, 3] = 0, 239, shift
    write_nifti(files[kind], fake_patient()[1], affine)
    if passes:
        assert names(find_cases(tmp_path, BRATS_2020)) == [ONE]
        return
    fault = one_fault(tmp_path)
    assert fault.startswith(f"{files[kind]}: affine differs from that of {files['t1'].name}")
    assert f"{shift:g} mm" in fault
    assert fault.endswith("register both to one grid")


def test_one_file_in_another_voxel_order(tmp_path, write_case, write_nifti, fake_patient):
    files = write_case(tmp_path)
    write_nifti(files[LABEL], fake_patient()[1], np.diag([1.0, 1, 1, 1]))
    assert one_fault(tmp_path).startswith(f"{files[LABEL]}: affine differs")


def test_another_spacing(tmp_path, write_case):
    files = write_case(tmp_path, affine=np.diag([-1.0, -1, 2.5, 1]))
    fault = one_fault(tmp_path)
    assert fault.startswith(f"{files['t1']}: voxels of 1x1x2.5 mm, expected 1 mm; resample")


def test_the_spacing_due_can_be_set(tmp_path, write_case):
    write_case(tmp_path, affine=np.diag([-2.0, -2, 2, 1]))
    assert names(find_cases(tmp_path, BRATS_2020, spacing_mm=2.0)) == [ONE]
    assert "voxels of 2x2x2 mm, expected 1 mm" in one_fault(tmp_path)


def test_a_spacing_within_two_percent_is_the_same(tmp_path, write_case):
    write_case(tmp_path, affine=np.diag([-1.01, -0.99, 1.0, 1]))
    assert names(find_cases(tmp_path, BRATS_2020)) == [ONE]


def test_all_faults_of_all_cases_at_once(tmp_path, write_case, write_nifti):
    write_case(tmp_path / "a_good", "a_good")
    write_case(tmp_path / "b", "b", drop=["t2", "flair"], label=False)
    broken = write_case(tmp_path / "c", "c")
    cut(broken["t1"])
    empty(broken[LABEL])
    shaped = write_case(tmp_path / "d", "d")
    write_nifti(shaped["t2"], np.ones((2, 3, 4), np.int16))
    spaced = write_case(tmp_path / "e", "e", affine=np.diag([2.0, 2, 2, 1]))
    stray = write_nifti(tmp_path / "stray.nii", np.ones((2, 3, 4), np.int16))
    write_case(tmp_path / "f" / "one", "f")
    write_case(tmp_path / "f" / "two", "f")
    with pytest.raises(DataError) as error:
        find_cases(tmp_path, BRATS_2020)
    faults = error.value.faults
    expected = [
        *(tmp_path / "b" / f"b_{suffix}.nii.gz" for suffix in ("t2", "flair", "seg")),
        broken["t1"],
        broken[LABEL],
        shaped["t2"],
        spaced["t1"],
        stray,
        f"{tmp_path / 'f' / 'one'} and {tmp_path / 'f' / 'two'}",
    ]
    assert sorted(fault.split(": ")[0] for fault in faults) == sorted(map(str, expected))
    lines = str(error.value).splitlines()
    assert lines == ["9 faults in the data:", *faults]


def test_a_single_fault_is_the_whole_message():
    assert str(DataError(["a.nii: broken; fix it"])) == "a.nii: broken; fix it"
    assert isinstance(DataError([]), ValueError)


def test_reports_that_are_not_there(tmp_path, write_case):
    write_case(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"reports\.json: no such file; check the path"):
        find_cases(tmp_path, BRATS_2020, reports=tmp_path / "reports.json")


def test_reports_that_cannot_be_read_are_one_of_the_faults(tmp_path, write_case):
    write_case(tmp_path / "cases", drop=["t1"])
    path = tmp_path / "reports.json"
    path.write_text("{")
    first, second = find_faults(tmp_path / "cases", reports=path)
    assert "_t1.nii.gz: missing" in first
    assert second.startswith(f"{path}: not valid JSON")


def test_reports_of_other_cases(tmp_path, write_case):
    write_case(tmp_path / "cases")
    path = tmp_path / "reports.json"
    path.write_text(json.dumps({"Brats18_2013_2_1": "text"}))
    fault = one_fault(tmp_path / "cases", reports=path)
    assert fault.startswith(f"{path}: has no report of the cases in {tmp_path / 'cases'}; check")


def test_a_report_that_is_not_utf8_is_one_of_the_faults(tmp_path, write_case):
    write_case(tmp_path, ONE)
    beside = tmp_path / f"{ONE}_flair_text.txt"
    beside.write_bytes("Ödem".encode("latin-1"))
    write_case(tmp_path, TWO, drop=["t1"])
    assert [fault.split(": ")[0] for fault in find_faults(tmp_path)] == [
        str(beside),
        str(tmp_path / f"{TWO}_t1.nii.gz"),
    ]


def test_reports_with_a_byte_order_mark(tmp_path, write_case):
    write_case(tmp_path, ONE)
    (tmp_path / f"{ONE}_flair_text.txt").write_text("beside", encoding="utf-8-sig")
    assert find_cases(tmp_path, BRATS_2020)[0].report == "beside"
    (tmp_path / "reports.json").write_text(json.dumps({ONE: "of one file"}), encoding="utf-8-sig")
    (case,) = find_cases(tmp_path, BRATS_2020, reports=tmp_path / "reports.json")
    assert case.report == "of one file"


def test_reports_of_an_incomplete_case_are_not_called_wrong(tmp_path, write_case):
    write_case(tmp_path / "cases", ONE, drop=["t2"])
    (tmp_path / "reports.json").write_text(json.dumps({ONE: "text"}))
    fault = one_fault(tmp_path / "cases", reports=tmp_path / "reports.json")
    assert fault.startswith(f"{tmp_path / 'cases' / f'{ONE}_t2.nii.gz'}: missing")


def test_an_incomplete_case_has_its_other_files_checked(tmp_path, write_case):
    files = write_case(tmp_path, ONE, drop=["t1"])
    empty(files["t2"])
    assert [fault.split(": ")[1].split(";")[0] for fault in find_faults(tmp_path)] == [
        "missing",
        "the file is empty",
    ]


@pytest.mark.parametrize("value", [np.nan, 0])
def test_a_header_without_a_place_in_space(tmp_path, write_case, value):
    files = write_case(tmp_path)
    stored = nib.load(files["t2"])
    header = stored.header
    header["srow_z"] = value
    header["qform_code"] = 0
    nib.save(nib.Nifti1Image(np.asarray(stored.dataobj), None, header), files["t2"])
    assert one_fault(tmp_path).startswith(
        f"{files['t2']}: its affine has no inverse, or is not finite"
    )


def test_a_colon_in_the_path_is_kept(tmp_path, write_nifti):
    stray = write_nifti(tmp_path / "a:b" / "x.nii.gz", np.ones((3, 4, 5), np.int16))
    with pytest.raises(FileNotFoundError, match=f"it holds files such as {stray}; check"):
        find_cases(tmp_path / "a:b", BRATS_2020)


# Cases of loose files


def loose(write_case, folder, stems):
    """Write one case and rename its files."""
    files = write_case(folder / "written", "x", label=False)
    moved = {}
    for sequence, stem in zip(SEQUENCES, stems, strict=True):
        moved[sequence] = folder / f"{stem}.nii.gz"
        moved[sequence].parent.mkdir(parents=True, exist_ok=True)
        files[sequence].rename(moved[sequence])
    return moved


def test_loose_files_are_named_by_their_folder(tmp_path, write_case):
    files = loose(write_case, tmp_path / "Ann B.", ("p9_t1", "p9_t1ce", "p9_t2", "p9_flair"))
    shuffled = {s: str(files[s]) for s in reversed(SEQUENCES)}
    case = case_from_files(shuffled)
    assert (case.case_id, case.patient, case.label, case.report) == ("Ann B.", "Ann B.", None, "")
    assert list(case.sequences.items()) == list(files.items())  # channel order, not as given


def test_loose_files_may_be_given_a_name(tmp_path, write_case):
    files = loose(write_case, tmp_path, ("t1/p7", "t1ce/p7", "t2/p7", "flair/p7"))
    with pytest.raises(ValueError, match=r"lie in 4 folders, such as .*; give the case a name"):
        case_from_files(files)
    assert case_from_files(files, name="p7").case_id == "p7"
    for name in ("", "a/b", ".."):
        with pytest.raises(ValueError, match="cannot be that of a file"):
            case_from_files(files, name=name)


def test_loose_files_in_the_current_folder_are_named_by_it(tmp_path, write_case, monkeypatch):
    loose(write_case, tmp_path / "p8", ("t1", "t1ce", "t2", "flair"))
    monkeypatch.chdir(tmp_path / "p8")
    assert case_from_files({s: f"{s}.nii.gz" for s in SEQUENCES}).case_id == "p8"


def test_loose_files_of_any_spacing(tmp_path, write_case):
    files = write_case(tmp_path, label=False, affine=np.diag([3.0, 2, 1, 1]))
    assert case_from_files(files).case_id == tmp_path.name


def test_a_loose_sequence_is_missing(tmp_path, write_case):
    files = write_case(tmp_path, label=False, drop=["t1ce", "flair"])
    with pytest.raises(DataError) as error:
        case_from_files(files)
    assert [fault.split(": ")[0] for fault in error.value.faults] == ["t1ce", "flair"]
    assert all("name one for each of t1, t1ce, t2, flair" in f for f in error.value.faults)


def test_a_loose_case_may_lack_sequences_if_it_is_let(tmp_path, write_case):
    files = write_case(tmp_path, label=False, drop=["t1", "t2"])
    case = case_from_files(files, allow_missing=True)
    assert list(case.sequences) == ["t1ce", "flair"]
    with pytest.raises(DataError, match="t1: no file given; name one for each"):
        case_from_files({}, allow_missing=True)


def test_faults_go_to_the_case_whose_files_they_start_with(tmp_path, write_case):
    for name in ("a_1", "a_10"):
        write_case(tmp_path / name, name, label=False, drop=["t2"] if name == "a_10" else [])
    empty(tmp_path / "a_1" / "a_1_t1.nii.gz")
    (tmp_path / "stray.nii.gz").write_bytes(b"")
    cases, faults = index_cases(tmp_path, BRATS_2020, require_label=False)
    (first, second), others = faults_by_case(cases, faults)
    assert [f.split(": ")[0] for f in first] == [str(tmp_path / "a_1" / "a_1_t1.nii.gz")]
    assert [f.split(": ")[0] for f in second] == [str(tmp_path / "a_10" / "a_10_t2.nii.gz")]
    assert [f.split(": ")[0] for f in others] == [str(tmp_path / "stray.nii.gz")]
    assert sorted([*first, *second, *others]) == sorted(faults)


def test_one_loose_file_for_two_sequences(tmp_path, write_case):
    files = write_case(tmp_path, label=False)
    with pytest.raises(DataError) as error:
        case_from_files({**files, "t2": files["t1"]})
    (fault,) = error.value.faults
    assert fault.startswith(f"{files['t1']}: given for t1 and t2; name one file for each")


def test_bad_loose_files_are_all_listed(tmp_path, write_case, write_nifti):
    files = write_case(tmp_path, label=False)
    empty(files["t1"])
    files["t2"].unlink()
    write_nifti(files["flair"], np.ones((3, 4, 5, 2), np.int16))
    with pytest.raises(DataError) as error:
        case_from_files(files)
    assert [fault.split(": ")[0] for fault in error.value.faults] == [
        str(files[s]) for s in ("t1", "t2", "flair")
    ]


def test_check_geometry_of_a_good_case_finds_nothing(tmp_path, write_case):
    write_case(tmp_path)
    (case,) = find_cases(tmp_path, BRATS_2020)
    assert check_geometry(case) == check_geometry(case, spacing_mm=1.0) == []
    assert len(check_geometry(case, spacing_mm=2.0)) == 1


# Releases of other names


@pytest.mark.parametrize(
    ("release", "one", "patient"),
    [
        (BRATS_2023_GLI, "BraTS-GLI-00008-001", "BraTS-GLI-00008"),
        (BRATS_2024_GLI, "BraTS-GLI-00005-100", "BraTS-GLI-00005"),
        (BRATS_2024_PED, "BraTS-PED-00001-000", "BraTS-PED-00001"),
        (BRATS_2023_MET, "BraTS-MET-00001-000", "BraTS-MET-00001"),
    ],
)
def test_layout_since_2023(tmp_path, write_release, release, one, patient):
    files = write_release(tmp_path, release, one, [1, 2, 3])
    assert find_cases(tmp_path, release) == [
        Case(one, patient, {s: files[s] for s in SEQUENCES}, label=files[LABEL])
    ]
    assert [files[s].name[len(one) :] for s in SEQUENCES] == [
        f"-{suffix}.nii.gz" for suffix in ("t1n", "t1c", "t2w", "t2f")
    ]


def test_decathlon(tmp_path, write_msd):
    root = write_msd(tmp_path / "Task01_BrainTumour", ["BRATS_002", "BRATS_001"])
    (root / "imagesTr" / "._BRATS_001.nii.gz").write_bytes(b"resource fork")
    one, two = find_cases(tmp_path, MSD_TASK01)
    image = root / "imagesTr" / "BRATS_001.nii.gz"
    assert one == Case(
        "BRATS_001",
        "BRATS_001",
        dict.fromkeys(SEQUENCES, image),
        label=root / "labelsTr" / "BRATS_001.nii.gz",
        channels={"t1": 1, "t1ce": 2, "t2": 3, "flair": 0},
    )
    assert tuple(one.sequences) == SEQUENCES
    assert (one.axes, two.case_id) == (4, "BRATS_002")


def test_faults_of_decathlon(tmp_path, write_nifti, write_msd):
    write_msd(tmp_path, ["BRATS_001", "BRATS_002", "BRATS_003", "BRATS_004"])
    images = tmp_path / "imagesTr"
    (images / "BRATS_001.nii.gz").unlink()
    write_nifti(images / "BRATS_002.nii.gz", np.ones(SHAPE, np.int16))
    write_nifti(images / "BRATS_003.nii.gz", np.ones((*SHAPE, 3), np.int16))
    write_nifti(tmp_path / "labelsTr" / "BRATS_004.nii.gz", np.ones((3, 4, 5), np.uint8))
    write_nifti(images / "BRATS_009.nii.gz", np.ones((*SHAPE, 4), np.int16))
    cases, faults = index_cases(tmp_path, MSD_TASK01)
    assert len(cases) == 4
    assert [fault.removeprefix(f"{images}/") for fault in faults] == [
        "BRATS_001.nii.gz: no such file; check the path",
        "BRATS_002.nii.gz: has 3 axes (13, 17, 11), expected 4 (x, y, z, sequence); save all "
        "sequences in one file",
        "BRATS_003.nii.gz: holds 3 volumes, too few for channels 1, 2, 3, 0; export the file again",
        "BRATS_009.nii.gz: not a file of msd_task01; list it in dataset.json, or move it out of "
        f"{tmp_path}",
        f"{tmp_path}/labelsTr/BRATS_004.nii.gz: shape 3x4x5 differs from 13x17x11 of "
        "BRATS_004.nii.gz; register both to one grid",
    ]


@pytest.mark.parametrize("spacing", [1.0, 2.0])
def test_the_grid_of_decathlon_is_checked(tmp_path, write_msd, spacing):
    write_msd(tmp_path, ["BRATS_001"])
    _, faults = index_cases(tmp_path, MSD_TASK01, spacing_mm=spacing)
    assert len(faults) == (spacing != 1.0)


def test_a_manifest_of_something_else_does_not_disturb(tmp_path, write_case):
    write_case(tmp_path)
    (tmp_path / "dataset.json").write_text("[]")
    assert names(find_cases(tmp_path, BRATS_2020)) == [ONE]
    assert detect_release(tmp_path) is BRATS_2020


# Missing sequences


@pytest.mark.parametrize("drop", [["t1"], ["t1", "t2", "flair"]])
def test_sequences_may_be_missing_where_that_is_allowed(tmp_path, write_case, drop):
    files = write_case(tmp_path, ONE, drop=drop)
    (case,) = find_cases(tmp_path, BRATS_2020, allow_missing=True)
    assert case.sequences == {s: files[s] for s in SEQUENCES if s not in drop}
    assert tuple(case.sequences) == tuple(s for s in SEQUENCES if s not in drop)


def test_a_label_may_not_be_missing_with_them(tmp_path, write_case):
    write_case(tmp_path, ONE, drop=["t2"], label=False)
    assert "_seg.nii.gz: missing" in one_fault(tmp_path, allow_missing=True)


# Cases and their faults


def test_an_index_has_faulty_cases_too_and_never_fails_for_them(tmp_path, write_case):
    write_case(tmp_path / "a", ONE)
    files = write_case(tmp_path / "b", TWO, drop=["t2"], affine=np.diag([2.0, 2, 2, 1]))
    empty(files["t1"])
    cases, faults = index_cases(tmp_path, BRATS_2020)
    assert names(cases) == [ONE, TWO]
    assert tuple(cases[1].sequences) == ("t1", "t1ce", "flair")
    assert [fault.split(": ")[1].split(";")[0] for fault in faults] == [
        "the file is empty",
        "missing",
    ]


def test_an_index_of_nothing(tmp_path, write_nifti):
    assert index_cases(tmp_path, BRATS_2020)[0] == []
    write_nifti(tmp_path / "x.nii.gz", np.ones((3, 4, 5), np.int16))
    cases, (fault,) = index_cases(tmp_path, BRATS_2020)
    assert cases == []
    assert "no case of brats2020" in fault
    assert f"it holds files such as {tmp_path / 'x.nii.gz'}; check the path" in fault


def test_faults_of_the_layout_are_in_the_index(tmp_path, write_case):
    write_case(tmp_path, drop=["t1"])
    (tmp_path / "HGG").symlink_to("/mnt/unmounted")
    assert [fault.split(": ")[0] for fault in index_cases(tmp_path, BRATS_2020)[1]] == [
        str(tmp_path / f"{ONE}_t1.nii.gz"),
        str(tmp_path / "HGG"),
    ]


def test_an_index_of_a_broken_manifest(tmp_path):
    (tmp_path / "dataset.json").write_text("{")
    cases, (none, fault) = index_cases(tmp_path, MSD_TASK01)
    assert cases == []
    assert none.startswith(
        f"{tmp_path}: no case of msd_task01 in it (files listed in dataset.json)"
    )
    assert fault.startswith(f"{tmp_path / 'dataset.json'}: not valid JSON")


def test_an_index_wants_its_folder_and_its_reports(tmp_path, write_case):
    write_case(tmp_path)
    with pytest.raises(FileNotFoundError, match="absent: no such folder"):
        index_cases(tmp_path / "absent", BRATS_2020)
    with pytest.raises(FileNotFoundError, match=r"absent\.json: no such file"):
        index_cases(tmp_path, BRATS_2020, reports=tmp_path / "absent.json")


def test_an_index_takes_any_spacing_unless_one_is_due(tmp_path, write_case):
    write_case(tmp_path, affine=np.diag([-3.0, -2, 1, 1]))
    assert index_cases(tmp_path, BRATS_2020)[1] == []
    assert len(index_cases(tmp_path, BRATS_2020, spacing_mm=1.0)[1]) == 1


def test_files_of_textbrats_beside_a_case_are_no_faults(tmp_path, write_case):
    write_case(tmp_path, report="Left.")
    np.save(tmp_path / f"{ONE}_flair_text.npy", np.zeros((1, 128, 768), np.float32))
    (case,) = find_cases(tmp_path, BRATS_2020)
    assert case.report == "Left."


def test_reports_of_a_table(tmp_path, write_case):
    write_case(tmp_path / "cases", report="beside")
    (tmp_path / "reports.csv").write_text(f'case,report\n{ONE},"Left, large."\n')
    (case,) = find_cases(tmp_path / "cases", BRATS_2020, reports=tmp_path / "reports.csv")
    assert case.report == "Left, large."


# Grades

MAPPING = (
    "Grade,BraTS_2017_subject_ID,BraTS_2018_subject_ID,BraTS_2019_subject_ID,BraTS_2020_subject_ID\n"
    "HGG,NA,NA,BraTS19_CBICA_AAB_1,BraTS20_Training_001\n"
    "LGG,Brats17_TCIA_101_1,Brats18_TCIA09_141_1,BraTS19_TCIA09_141_1,BraTS20_Training_002\n"
    "NA,NA,NA,NA,BraTS20_Training_003\n"
)


@pytest.mark.parametrize("folder", ["", "a", "a/b", "a/b/c"])
def test_grades_of_2020_come_from_the_table_wherever_it_lies(tmp_path, write_case, folder):
    root = tmp_path / "a" / "b"
    for number in (1, 2, 3, 4):
        name = f"BraTS20_Training_{number:03d}"
        write_case(root / "c" / name, name)
    (tmp_path / folder / "name_mapping.csv").write_text(MAPPING)
    assert [case.grade for case in find_cases(root, BRATS_2020)] == [1, 0, -1, -1]


def test_the_nearest_table_above_counts(tmp_path, write_case):
    write_case(tmp_path / "a" / ONE, ONE)
    (tmp_path / "name_mapping.csv").write_text(MAPPING)
    (tmp_path / "a" / "name_mapping.csv").write_text(MAPPING.replace("HGG", "LGG"))
    (case,) = find_cases(tmp_path / "a" / ONE, BRATS_2020)
    assert case.grade == 0


def test_a_table_above_counts_only_without_one_below(tmp_path, write_case):
    write_case(tmp_path / "a" / ONE, ONE)
    (tmp_path / "a" / "name_mapping.csv").write_text(MAPPING)
    (tmp_path / "name_mapping.csv").write_text(MAPPING.replace("HGG", "LGG"))
    (case,) = find_cases(tmp_path / "a", BRATS_2020)
    assert case.grade == 1


def test_a_folder_of_a_grade_counts_before_the_table(tmp_path, write_case):
    one, two = "BraTS19_CBICA_AAB_1", "BraTS19_TCIA09_141_1"
    write_case(tmp_path / "LGG" / one, one)
    write_case(tmp_path / two, two)
    (tmp_path / "name_mapping.csv").write_text(MAPPING)
    assert [case.grade for case in find_cases(tmp_path, BRATS_2019)] == [0, 0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("Subject,BraTS_2020_subject_ID\na,b\n", "has no column Grade"),
        ("Grade,BraTS_2020_subject_ID\nHGG\n", "row 1 has more or fewer cells"),
        ("Grade,Größe\n", "not UTF-8 text"),
    ],
)
def test_a_table_of_grades_that_cannot_be_used(tmp_path, write_case, content, reason):
    write_case(tmp_path)
    path = tmp_path / "name_mapping.csv"
    path.write_bytes(content.encode("latin-1"))
    assert one_fault(tmp_path).startswith(f"{path}: {reason}")


# Which release

CASES_OF = {
    "brats2018": (BRATS_2018, "Brats18_2013_2_1", [1, 2, 4]),
    "brats2019": (BRATS_2019, "BraTS19_TCIA10_109_1", [2]),
    "brats2020": (BRATS_2020, ONE, [1, 2, 4]),
    "brats2021": (BRATS_2021, "BraTS2021_00495", [1, 2, 4]),
    "brats2023_gli": (BRATS_2023_GLI, "BraTS-GLI-00008-001", [1, 2, 3]),
    "brats2024_gli": (BRATS_2024_GLI, "BraTS-GLI-00005-100", [1, 2, 3, 4]),
    "brats2024_ped": (BRATS_2024_PED, "BraTS-PED-00001-000", [1, 2, 3, 4]),
    "brats2023_ssa": (BRATS_2023_SSA, "BraTS-SSA-00002-000", [1, 2, 3]),
    "brats2023_men": (BRATS_2023_MEN, "BraTS-MEN-00004-000", [3]),
    "brats2023_met": (BRATS_2023_MET, "BraTS-MET-00001-000", [1, 2, 3]),
    "phantom": (PHANTOM, "Phantom_00000", [1, 2, 4]),
}


@pytest.mark.parametrize("name", CASES_OF)
def test_a_release_is_told_by_names_and_labels(tmp_path, write_release, name):
    release, case_id, labels = CASES_OF[name]
    write_release(tmp_path, release, case_id, labels)
    write_release(tmp_path, release, f"{case_id[:-1]}7", [])
    assert detect_release(str(tmp_path)) is release


def test_decathlon_is_told(tmp_path, write_msd):
    write_msd(tmp_path / "Task01_BrainTumour", ["BRATS_001"])
    assert detect_release(tmp_path) is MSD_TASK01


@pytest.mark.parametrize("name", [name for name in CASES_OF if "ped" not in name])
def test_names_suffice_where_there_are_no_masks(tmp_path, write_release, name):
    release, case_id, _ = CASES_OF[name]
    write_release(tmp_path, release, case_id)
    assert detect_release(tmp_path) is release


def test_the_misnamed_mask_does_not_disturb(tmp_path, write_case):
    name = "BraTS20_Training_355"
    write_case(tmp_path, name, label_stem="W39_1998.09.19_Segm")
    assert detect_release(tmp_path) is BRATS_2020


def undecided(root):
    with pytest.raises(ValueError, match="name the release, one of brats2018, ") as error:
        detect_release(root)
    message = str(error.value)
    assert message.startswith(f"{root}: holds ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("release", "case_id", "labels", "others"),
    [
        (BRATS_2020, ONE, [1, 2, 3], "these are labels of brats2023_gli"),
        (BRATS_2023_GLI, "BraTS-GLI-00008-001", [1, 2, 4], "these are labels of brats2018"),
        (BRATS_2018, "Brats18_2013_2_1", [5], "has 0, 1, 2, 4"),
    ],
)
def test_labels_that_contradict_names_are_faults_of_their_files(
    tmp_path, write_release, release, case_id, labels, others
):
    files = write_release(tmp_path, release, case_id, labels)
    assert detect_release(tmp_path) is release
    (fault,) = label_faults(files[LABEL], read_voxels(files[LABEL]), release)
    assert others in fault


def test_one_wrong_mask_does_not_hide_the_release(tmp_path, write_release):
    write_release(tmp_path, BRATS_2024_PED, "BraTS-PED-00001-000", [7])
    write_release(tmp_path, BRATS_2024_PED, "BraTS-PED-00002-000", [4])
    assert detect_release(tmp_path) is BRATS_2024_PED


def test_labels_stored_as_floats_are_rounded(tmp_path, write_release, write_nifti):
    files = write_release(tmp_path, BRATS_2024_PED, "BraTS-PED-00001-000", [4])
    write_nifti(files[LABEL], read_voxels(files[LABEL]).astype(np.float32) * np.float32(0.9999999))
    assert detect_release(tmp_path) is BRATS_2024_PED


def test_time_points_before_and_after_treatment_are_of_the_wider_release(tmp_path, write_release):
    write_release(tmp_path, BRATS_2023_GLI, "BraTS-GLI-00008-000", [1, 2, 3])
    write_release(tmp_path, BRATS_2024_GLI, "BraTS-GLI-00008-100", [1, 2, 3, 4])
    assert detect_release(tmp_path) is BRATS_2025_GLI
    assert len(find_cases(tmp_path, BRATS_2025_GLI)) == 2


@pytest.mark.parametrize(
    ("name", "head"),
    [
        (f"{ONE}_t1ce.mha", b"ObjectType = Image"),
        (f"{ONE}_t1ce.nii.gz.part", b""),
        (f"{ONE}_t1ce.nii.zip", b"PK"),
        (f"{ONE}_t1ce.mgz", b""),
        (f"{ONE}_t1ce.nrrd", b"NRRD"),
    ],
)
def test_a_sequence_in_another_format_is_a_fault_of_its_case(tmp_path, write_case, name, head):
    write_case(tmp_path, drop=["t1ce"])
    (tmp_path / name).write_bytes(head)
    cases, faults = index_cases(tmp_path, BRATS_2020, allow_missing=True)
    (fault,) = faults
    assert fault.startswith(f"{tmp_path / name}: looks like t1ce of the case, but is not a NIfTI")
    assert faults_by_case(cases, faults) == ([[fault]], [])
    write_case(tmp_path)  # now the NIfTI file is there too
    assert index_cases(tmp_path, BRATS_2020)[1] == []


def test_a_folder_of_dicom_files_is_named(tmp_path):
    (tmp_path / "IM0001").write_bytes(bytes(128) + b"DICM" + bytes(300))
    assert "IM0001 is DICOM, not NIfTI; convert the whole series with dcm2niix" in undecided(
        tmp_path
    )
    with pytest.raises(FileNotFoundError, match="is DICOM, not NIfTI"):
        find_cases(tmp_path, BRATS_2020)


def test_children_of_2023_and_2024_differ_by_label_4_alone(tmp_path, write_release):
    name = "BraTS-PED-{:05d}-000"
    for number in range(30):
        write_release(tmp_path, BRATS_2024_PED, name.format(number), [1, 2, 3])
    message = undecided(tmp_path)
    assert (
        "which fit each of brats2023_ped (0, 1, 2, 3) and brats2024_ped (0, 1, 2, 3, 4)" in message
    )
    assert "brats2024_ped (30, such as BraTS-PED-00000-000)" in message
    write_release(tmp_path, BRATS_2024_PED, name.format(17), [4])
    assert detect_release(tmp_path) is BRATS_2024_PED


def test_releases_may_not_be_mixed(tmp_path, write_case):
    write_case(tmp_path / "a", ONE)
    write_case(tmp_path / "b", "BraTS2021_00495")
    with pytest.raises(ValueError, match=r"holds cases of brats2020 \(1, .*\) and brats2021 \(1, "):
        detect_release(tmp_path)


def test_names_of_no_release(tmp_path, write_case):
    write_case(tmp_path, "patient7")
    assert "files such as patient7_flair.nii.gz, " in undecided(tmp_path)
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    assert "holds no NIfTI file, and so is of no known release; check" in undecided(tmp_path)
    with pytest.raises(FileNotFoundError, match="absent: no such folder"):
        detect_release(tmp_path / "absent")


def test_broken_masks_are_left_to_the_index(tmp_path, write_release):
    one = write_release(tmp_path, BRATS_2024_PED, "BraTS-PED-00001-000", [1])
    write_release(tmp_path, BRATS_2024_PED, "BraTS-PED-00002-000", [4])
    cut(one[LABEL])
    assert detect_release(tmp_path) is BRATS_2024_PED


def test_no_masks_are_read_where_names_leave_no_choice(tmp_path, write_case, monkeypatch):
    for number in range(3):
        write_case(tmp_path, f"BraTS20_Training_{number:03d}", seed=number)
    monkeypatch.setattr(cases_module, "read_voxels", None)
    assert detect_release(tmp_path) is BRATS_2020


# Odd file systems


@pytest.mark.parametrize("kind", ["t2", LABEL])
def test_a_file_that_may_not_be_read(tmp_path, write_case, monkeypatch, kind):
    files = write_case(tmp_path)
    original = Path.open

    def refuse(self, *args, **options):
        if self == files[kind]:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return original(self, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    fault = one_fault(tmp_path)
    assert fault.startswith(f"{files[kind]}: cannot be opened (Permission denied); check its perm")


def test_a_link_to_a_file_that_is_gone(tmp_path, write_case):
    files = write_case(tmp_path)
    files["t2"].unlink()
    files["t2"].symlink_to(tmp_path / "gone.nii.gz")
    fault = one_fault(tmp_path)
    assert fault.startswith(
        f"{files['t2']}: a link to {tmp_path / 'gone.nii.gz'}, which is not a file"
    )


def test_a_file_that_is_a_link_to_itself(tmp_path, write_case):
    files = write_case(tmp_path)
    files["t1"].unlink()
    files["t1"].symlink_to(files["t1"])
    fault = one_fault(tmp_path)
    assert fault.startswith(f"{files['t1']}: cannot be opened (Too many levels of symbolic links)")


def test_names_in_other_scripts(tmp_path, write_case):
    folder = tmp_path / "Üniversite hastanesi" / "患者 7 术前"
    write_case(folder, "患者_7é", report="左")
    (case,) = find_cases(tmp_path, BRATS_2020)
    assert (case.case_id, case.report) == ("患者_7é", "左")


@pytest.mark.parametrize(
    "dtype",
    [np.complex64, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])],
    ids=["complex", "RGB"],
)
@pytest.mark.parametrize("kind", ["t1", LABEL])
def test_voxels_that_are_no_numbers_are_seen_in_the_header(tmp_path, write_case, dtype, kind):
    files = write_case(tmp_path)
    affine = nib.load(files[kind]).affine
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, dtype), affine), files[kind])
    fault = one_fault(tmp_path)
    assert fault.startswith(f"{files[kind]}: voxels are ")
    assert fault.endswith("expected real numbers; export one number per voxel")


# Real cases, where there are some

REAL = os.environ.get("CLIPSEG3D_BRATS_DIR")


@pytest.mark.skipif(REAL is None, reason="set CLIPSEG3D_BRATS_DIR to a folder of BraTS 2018")
def test_real_cases_are_told_and_found():
    release = detect_release(REAL)
    assert release is BRATS_2018
    cases, faults = index_cases(REAL, release, spacing_mm=1.0)
    assert cases
    assert faults == []
