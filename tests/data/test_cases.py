"""Mirrors clipseg3d/data/cases.py."""

import json
import re
import shutil
from collections import Counter
from itertools import combinations

import nibabel as nib
import numpy as np
import pytest

from clipseg3d.data.cases import (
    LABEL,
    Case,
    DataError,
    case_from_files,
    check_geometry,
    find_cases,
    read_reports,
    split_by_patient,
)
from clipseg3d.data.releases import (
    BRATS_2018,
    BRATS_2019,
    BRATS_2020,
    BRATS_2021,
    SEQUENCES,
)

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
    found = find_cases(tmp_path, BRATS_2020)
    assert names(found) == [ONE, TWO, "BraTS20_Training_010"]
    assert all(path.name.startswith(c.case_id) for c in found for path in c.sequences.values())


def test_result_is_sorted_by_name_whatever_the_folders(tmp_path, write_case):
    for folder, name in (("z", "a_1"), ("a", "c_1"), ("m", "b_1")):
        write_case(tmp_path / folder, name)
    assert names(find_cases(tmp_path, BRATS_2020)) == ["a_1", "b_1", "c_1"]


@pytest.mark.parametrize("name", ["site.A_pat.01_t1_scan", "x", "a_t1", "a_seg", "W39_1998.09.19"])
@pytest.mark.parametrize("ext", [".nii.gz", ".nii"])
def test_names_with_dots_and_underscores(tmp_path, write_case, name, ext):
    write_case(tmp_path, name, ext=ext)
    (case,) = find_cases(tmp_path, BRATS_2020)
    assert (case.case_id, case.patient) == (name, name)


def test_names_that_start_alike_stay_apart(tmp_path, write_case):
    for seed, name in enumerate(("a", "a_t1", "a_t1_2")):
        write_case(tmp_path, name, seed=seed)
    found = find_cases(tmp_path, BRATS_2020)
    assert {c.case_id: c.sequences["t1"].name for c in found} == {
        "a": "a_t1.nii.gz",
        "a_t1": "a_t1_t1.nii.gz",
        "a_t1_2": "a_t1_2_t1.nii.gz",
    }


def test_hidden_files_and_folders_are_passed_over(tmp_path, write_case):
    files = write_case(tmp_path / ONE)
    (tmp_path / ONE / f"._{files['t1'].name}").write_bytes(b"resource fork")
    (tmp_path / ".DS_Store").write_bytes(b"")
    shutil.copytree(tmp_path / ONE, tmp_path / ".trash" / ONE)
    assert names(find_cases(tmp_path, BRATS_2020)) == [ONE]


def test_the_misnamed_mask_of_case_355(tmp_path, write_case):
    name, stem = "BraTS20_Training_355", "W39_1998.09.19_Segm"
    write_case(tmp_path / name, name, ext=".nii", label_stem=stem)
    (case,) = find_cases(tmp_path, BRATS_2020)
    assert case.case_id == name
    assert case.label == tmp_path / name / f"{stem}.nii"


def test_the_misnamed_mask_and_its_repaired_copy(tmp_path, write_case):
    name, stem = "BraTS20_Training_355", "W39_1998.09.19_Segm"
    files = write_case(tmp_path, name, ext=".nii", label_stem=stem)
    shutil.copy(files[LABEL], tmp_path / f"{name}_seg.nii")
    fault = one_fault(tmp_path)
    assert f"{name}_seg.nii" in fault
    assert f"{stem}.nii" in fault
    assert "keep one" in fault


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
    found = find_cases(root, BRATS_2020, reports=reports)
    assert [c.report for c in found] == ["", text]
    assert found == find_cases(root, BRATS_2020, reports=str(reports))


def test_label_is_optional_where_it_is_not_required(tmp_path, write_case):
    write_case(tmp_path, ONE, label=False)
    files = write_case(tmp_path, TWO)
    found = find_cases(tmp_path, BRATS_2020, require_label=False)
    assert [c.label for c in found] == [None, files[LABEL]]


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
    assert message.startswith(f"{tmp_path}: no case of brats2020 in it (files ending in _t1.nii.gz")
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
    assert "the data module fits the release" in message


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_missing_sequence(tmp_path, write_case, sequence):
    write_case(tmp_path / ONE, ONE, drop=[sequence])
    fault = one_fault(tmp_path)
    assert fault.startswith(f"{tmp_path / ONE / f'{ONE}_{sequence}.nii.gz'}: missing; add it")


def test_missing_label(tmp_path, write_case):
    write_case(tmp_path / ONE, ONE, label=False)
    fault = one_fault(tmp_path)
    assert fault.startswith(f"{tmp_path / ONE / f'{ONE}_seg.nii.gz'}: missing; add it")


def test_doubled_file(tmp_path, write_case):
    files = write_case(tmp_path, ONE)
    write_case(tmp_path, ONE, ext=".nii", drop=["t1", "t1ce", "flair"], label=False)
    fault = one_fault(tmp_path)
    assert f"{ONE}_t2.nii" in fault
    assert files["t2"].name in fault
    assert fault.endswith("keep one of the two")


def test_one_case_in_two_folders(tmp_path, write_case):
    write_case(tmp_path / "a", ONE)
    write_case(tmp_path / "b", ONE)
    fault = one_fault(tmp_path)
    assert f"{tmp_path / 'a'} and {tmp_path / 'b'}: both hold case {ONE}; keep one" == fault


def test_a_volume_that_is_no_part_of_a_case(tmp_path, write_case, write_nifti):
    write_case(tmp_path)
    stray = write_nifti(tmp_path / "prediction.nii.gz", np.ones((3, 4, 5), np.uint8))
    fault = one_fault(tmp_path)
    assert fault.startswith(f"{stray}: not a file of brats2020; rename it")
    assert "t1, t1ce, t2, flair, seg" in fault


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
        (web_page, "not a readable NIfTI file"),
    ],
)
def test_broken_file(tmp_path, write_case, kind, spoil, reason):
    files = write_case(tmp_path)
    spoil(files[kind])
    fault = one_fault(tmp_path)
    assert fault.startswith(f"{files[kind]}: {reason}")
    assert fault.endswith("copy or download it again")


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
    due = [
        *(tmp_path / "b" / f"b_{suffix}.nii.gz" for suffix in ("t2", "flair", "seg")),
        broken["t1"],
        broken[LABEL],
        shaped["t2"],
        spaced["t1"],
        stray,
        f"{tmp_path / 'f' / 'one'} and {tmp_path / 'f' / 'two'}",
    ]
    assert sorted(fault.split(": ")[0] for fault in faults) == sorted(map(str, due))
    lines = str(error.value).splitlines()
    assert lines == ["9 faults in the data:", *faults]


def test_a_single_fault_is_the_whole_message():
    assert str(DataError(["a.nii: broken; fix it"])) == "a.nii: broken; fix it"
    assert isinstance(DataError([]), ValueError)


def test_reports_that_are_not_there(tmp_path, write_case):
    write_case(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"reports\.json: no such file; check the path"):
        find_cases(tmp_path, BRATS_2020, reports=tmp_path / "reports.json")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"a": "text"', "not valid JSON"),
        (b"", "not valid JSON"),
        (b'["a", "b"]', "holds a list, expected case name -> report"),
        (b'"text"', "holds a str, expected case name -> report"),
        (b'{"a": 3}', "the report of a is a int, expected text"),
        (b'{"a": null}', "the report of a is a NoneType, expected text"),
        (b'{"a": {"text": "b"}}', "the report of a is a NoneType, expected text"),
        ('{"a": "Ödem"}'.encode("latin-1"), "not UTF-8 text"),
    ],
)
def test_reports_that_cannot_be_read(tmp_path, write_case, data, reason):
    write_case(tmp_path / "cases")
    path = tmp_path / "reports.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(f"{path}: {reason}")):
        find_cases(tmp_path / "cases", BRATS_2020, reports=path)


def test_reports_of_other_cases(tmp_path, write_case):
    write_case(tmp_path / "cases")
    path = tmp_path / "reports.json"
    path.write_text(json.dumps({"Brats18_2013_2_1": "text"}))
    fault = one_fault(tmp_path / "cases", reports=path)
    assert fault.startswith(f"{path}: names none of the cases in {tmp_path / 'cases'}; check")


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


def test_linked_folders_are_searched_and_circles_end(tmp_path, write_case):
    write_case(tmp_path / "elsewhere" / ONE, ONE)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere" / ONE)
    (tmp_path / "elsewhere" / ONE / "circle").symlink_to(tmp_path / "root")
    assert names(find_cases(tmp_path / "root", BRATS_2020)) == [ONE]


@pytest.mark.parametrize("value", [np.nan, 0])
def test_a_header_without_a_place_in_space(tmp_path, write_case, value):
    files = write_case(tmp_path)
    stored = nib.load(files["t2"])
    header = stored.header
    header["srow_z"] = value
    header["qform_code"] = 0
    nib.save(nib.Nifti1Image(np.asarray(stored.dataobj), None, header), files["t2"])
    assert one_fault(tmp_path).startswith(f"{files['t2']}: its affine is no place in space")


def test_a_colon_in_the_path_is_kept(tmp_path, write_nifti):
    stray = write_nifti(tmp_path / "a:b" / "x.nii.gz", np.ones((3, 4, 5), np.int16))
    with pytest.raises(FileNotFoundError, match=f"files there are {stray} and the like"):
        find_cases(tmp_path / "a:b", BRATS_2020)


def test_reports_of_one_file_are_read_as_utf8(tmp_path):
    path = tmp_path / "reports.json"
    path.write_text('{"a": "Größe 3 cm³", "b": {"report": ""}}', encoding="utf-8")
    assert read_reports(path) == {"a": "Größe 3 cm³", "b": ""}


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


@pytest.mark.parametrize(
    ("stems", "name"),
    [
        (("s01_t1", "s01_t1ce", "s01_t2", "s01_flair"), "s01"),
        (("Ann B.-T1", "Ann B.-T1gd", "Ann B.-T2", "Ann B.-FLAIR"), "Ann B"),
        (("p_1_a", "p_1_b", "p_1_c", "p_1_d"), "p_1"),
        (("t1/p7", "t1ce/p7", "t2/p7", "flair/p7"), "p7"),
        (("t1/pat1", "t1ce/pat1", "t2/pat1", "flair/pat1"), "pat1"),
        (("p9/t1", "p9/t1ce", "p9/t2", "p9/flair"), "p9"),
    ],
)
def test_loose_files_are_named_by_what_they_share(tmp_path, write_case, stems, name):
    files = loose(write_case, tmp_path, stems)
    shuffled = {s: str(files[s]) for s in reversed(SEQUENCES)}
    case = case_from_files(shuffled)
    assert (case.case_id, case.patient, case.label, case.report) == (name, name, None, "")
    assert list(case.sequences.items()) == list(files.items())  # channel order, not as given


def test_loose_files_in_the_current_folder_are_named_by_it(tmp_path, write_case, monkeypatch):
    loose(write_case, tmp_path / "p8", ("t1", "t1ce", "t2", "flair"))
    monkeypatch.chdir(tmp_path / "p8")
    assert case_from_files({s: f"{s}.nii.gz" for s in SEQUENCES}).case_id == "p8"


def test_loose_files_of_any_spacing(tmp_path, write_case):
    files = write_case(tmp_path, label=False, affine=np.diag([3.0, 2, 1, 1]))
    assert case_from_files(files).case_id == ONE


def test_a_loose_sequence_is_missing(tmp_path, write_case):
    files = write_case(tmp_path, label=False, drop=["t1ce", "flair"])
    with pytest.raises(DataError) as error:
        case_from_files(files)
    assert [fault.split(": ")[0] for fault in error.value.faults] == ["t1ce", "flair"]
    assert all("name one for each of t1, t1ce, t2, flair" in f for f in error.value.faults)


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
    write_nifti(files["flair"], np.ones((3, 4, 5), np.int16))
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


# Splits


def cases_of(scans_per_patient):
    """Cases without files; patient i has scans_per_patient[i] scans."""
    return [
        Case(f"p{patient:02d}_{scan}", f"p{patient:02d}", {})
        for patient, count in enumerate(scans_per_patient)
        for scan in range(count)
    ]


COUNTS = [1, 3, 1, 2, 1, 1, 4, 1, 2, 1, 1, 2, 1]  # 13 patients, 21 scans


@pytest.mark.parametrize("num_folds", [2, 3, 5, 13])
@pytest.mark.parametrize("seed", [0, 7])
def test_every_case_is_validated_exactly_once(num_folds, seed):
    cases = cases_of(COUNTS)
    validated = []
    for fold in range(num_folds):
        train, val = split_by_patient(cases, fold=fold, num_folds=num_folds, seed=seed)
        assert sorted(names(train) + names(val)) == names(cases)
        assert not {c.patient for c in train} & {c.patient for c in val}
        assert names(train) == sorted(names(train))
        assert names(val) == sorted(names(val))
        validated += names(val)
    assert sorted(validated) == names(cases)


@pytest.mark.parametrize("num_folds", [2, 5, 13])
def test_folds_differ_by_one_patient_at_most(num_folds):
    sizes = [
        len({c.patient for c in split_by_patient(cases_of(COUNTS), fold=f, num_folds=num_folds)[1]})
        for f in range(num_folds)
    ]
    assert max(sizes) - min(sizes) <= 1
    assert sum(sizes) == len(COUNTS)


def test_equal_seeds_give_equal_splits_in_any_order():
    cases = cases_of(COUNTS)
    mixed = [cases[i] for i in np.random.default_rng(0).permutation(len(cases))]
    for fold in range(5):
        assert split_by_patient(cases, fold=fold, seed=3) == split_by_patient(
            mixed, fold=fold, seed=3
        )


def test_seeds_differ():
    held_out = [tuple(names(split_by_patient(cases_of(COUNTS), seed=s)[1])) for s in range(6)]
    assert all(one != other for one, other in combinations(held_out, 2))


def test_no_patient_is_favoured():
    cases = cases_of([1] * 10)
    often = Counter(c.patient for seed in range(300) for c in split_by_patient(cases, seed=seed)[1])
    assert min(often.values()) > 30  # 60 on average
    assert len(often) == 10


def test_scans_of_brats_2018_stay_together(tmp_path, write_case):
    for name in ("TCIA01_201_1", "TCIA01_201_2", "TCIA01_203_1", "2013_20_1", "2013_21_1"):
        write_case(tmp_path, f"Brats18_{name}")
    cases = find_cases(tmp_path, BRATS_2018)
    for fold in range(4):
        for part in split_by_patient(cases, fold=fold, num_folds=4):
            scans = [c.case_id for c in part if "_201_" in c.case_id]
            assert len(scans) in (0, 2)


@pytest.mark.parametrize(("fold", "num_folds"), [(5, 5), (-1, 5), (0, 1), (0, 0), (1, 1)])
def test_bad_fold(fold, num_folds):
    with pytest.raises(ValueError, match=rf"fold={fold} .*num_folds={num_folds}"):
        split_by_patient(cases_of(COUNTS), fold=fold, num_folds=num_folds)


def test_too_few_patients():
    with pytest.raises(ValueError, match=r"2 patients cannot fill num_folds=3 folds; add cases"):
        split_by_patient(cases_of([2, 3]), num_folds=3)
    train, val = split_by_patient(cases_of([2, 3]), num_folds=2)
    assert {len(train), len(val)} == {2, 3}
