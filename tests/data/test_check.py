"""Mirrors clipseg3d/data/check.py. Every fault is made, and must also stop training."""

import contextlib
import gzip
import json
import os
import shutil
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from clipseg3d.data.brats import BraTSDataModule
from clipseg3d.data.cases import DataError
from clipseg3d.data.check import check_data
from clipseg3d.data.releases import (
    BRATS_2018,
    BRATS_2020,
    BRATS_2023_GLI,
    MSD_TASK01,
)
from clipseg3d.vocabulary import SEQUENCES

ONE, TWO = "BraTS20_Training_001", "BraTS20_Training_002"
LPS = np.diag([-1.0, -1, 1, 1])


@pytest.fixture
def write_case(write_case, fake_patient):
    """Write a case whose mask, too, is like no other's."""

    def write(folder, case_id=ONE, *, seed=0, label=True, **options):
        steps = (seed % 3 - 1, seed // 3 % 3 - 1, seed // 9 - 1)
        moved = np.roll(fake_patient()[1], steps, (0, 1, 2)) if label is True else label
        return write_case(folder, case_id, seed=seed, label=moved, **options)

    return write


def voxels_of(path):
    return np.asanyarray(nib.load(path).dataobj)


def rewrite(change):
    """Return a spoiler that changes the voxels of a file."""

    def spoil(path):
        image = nib.load(path)
        voxels = change(np.asanyarray(image.dataobj))
        header = None if voxels.dtype.kind == "V" else image.header.copy()
        if header is not None:
            header.set_data_dtype(voxels.dtype)
            header.set_slope_inter(1, 0)
        nib.save(nib.Nifti1Image(voxels, image.affine, header), path)

    return spoil


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-40])


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


def empty(path):
    path.write_bytes(b"")


def wrong_magic(path):
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[344:348] = b"abc\0"
    path.write_bytes(gzip.compress(bytes(data)))


def link_to_itself(path):
    path.unlink()
    path.symlink_to(path.name)


def put(value):
    def change(voxels):
        voxels = voxels.astype(np.float32)
        voxels[6, 8, 5] = value
        return voxels

    return rewrite(change)


def shift(path):
    image = nib.load(path)
    affine = image.affine.copy()
    affine[2, 3] += 0.5
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), affine), path)


def rgb(voxels):
    return np.zeros(voxels.shape, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))


def outside_the_brain(voxels):
    moved = np.zeros_like(voxels)
    moved[0] = 2
    return moved


IN_HEADERS = {
    "zero bytes": (empty, "the file is empty; copy or download it again"),
    "wrong magic": (wrong_magic, "not a "),
    "truncated gzip": (cut_off, "not a readable NIfTI file"),
    "four axes": (rewrite(lambda v: np.stack([v, v], -1)), "has 4 axes (13, 17, 11, 2), expected"),
    "complex": (rewrite(lambda v: v.astype(np.complex64)), "voxels are complex64, expected real"),
    "RGB": (rewrite(rgb), "voxels are [('R', 'u1'), ('G', 'u1'), ('B', 'u1')], expected real"),
    "shape": (rewrite(lambda v: v[:, 1:]), "shape 13x16x11 differs from 13x17x11 of"),
    "affine": (shift, "affine differs from that of"),
    "no file": (Path.unlink, "missing; add it"),
    "a link to itself": (link_to_itself, ""),
}
IN_VOXELS = {
    "damaged gzip": (damage, "not a readable NIfTI file"),
    "NaN": (put(np.nan), "1 voxels are NaN or infinite"),
    "infinity": (put(np.inf), "1 voxels are NaN or infinite"),
}
IN_SEQUENCES = {
    "all zero": (rewrite(np.zeros_like), "every voxel of flair is 0"),
    "constant": (rewrite(lambda v: 7 * (v > 0).astype(np.int16)), "voxels of flair are 7 to 7"),
}
IN_MASKS = {
    "label 3": (rewrite(lambda v: np.where(v == 4, 3, v)), "holds label 3, but brats2020 has"),
    "fraction": (rewrite(lambda v: v * 0.5), "holds 0.5, no whole number; threshold"),
    "negative": (rewrite(lambda v: -v.astype(np.int16)), "holds label -4, -2, -1, but"),
    "outside the brain": (rewrite(outside_the_brain), "187 of its 187 labelled voxels lie outside"),
}
FAULTS = [
    *(("flair", name, *fault, True) for name, fault in IN_HEADERS.items()),
    *(("label", name, *fault, True) for name, fault in IN_HEADERS.items()),
    *(("flair", name, *fault, False) for name, fault in (IN_VOXELS | IN_SEQUENCES).items()),
    *(("label", name, *fault, True) for name, fault in IN_VOXELS.items()),
    *(("label", name, *fault, name != "outside the brain") for name, fault in IN_MASKS.items()),
]


def check(root, release=BRATS_2020, **options):
    return check_data(root, release, **options)


def refused(root, cache, release=BRATS_2020):
    """Return the faults that stop training before it starts."""
    module = BraTSDataModule(
        str(root), release=release.name, num_folds=2, cache_dir=str(cache), num_workers=0
    )
    with pytest.raises(DataError) as error:
        module.prepare_data()
    return list(error.value.faults)


@pytest.mark.parametrize(
    ("kind", "name", "spoil", "reason", "cheap"), FAULTS, ids=[f"{f[0]} {f[1]}" for f in FAULTS]
)
def test_every_fault_is_found_and_stops_training(
    tmp_path, write_case, kind, name, spoil, reason, cheap
):
    files = write_case(tmp_path / "cases" / ONE, ONE)
    write_case(tmp_path / "cases" / TWO, TWO, seed=1)
    spoil(files[kind])
    result = check(tmp_path / "cases", read_all=True)
    (fault,) = result.faults
    assert fault.startswith(f"{files[kind]}: {reason}")
    assert "; " in fault  # what to do
    assert "\n" not in fault
    spoiled, good = result.cases
    assert spoiled.faults == (fault,)
    assert good.faults == result.other_faults == ()
    assert refused(tmp_path / "cases", tmp_path / "cache") == [fault]
    assert check(tmp_path / "cases").faults == ([fault] if cheap else [])


def write_case_of_2023(write_nifti, images, label, folder, name):
    """Write one case under names of 2023, and return its mask."""
    for suffix, voxels in zip(("t1n", "t1c", "t2w", "t2f"), images, strict=True):
        write_nifti(folder / f"{name}-{suffix}.nii.gz", voxels)
    return write_nifti(folder / f"{name}-seg.nii.gz", label)


def test_label_4_in_a_case_of_2023(tmp_path, write_nifti, fake_patient):
    for patient, enhancing in ((2, 3), (3, 4)):
        images, label = fake_patient(seed=patient)
        label = np.where(label == 4, enhancing, label)
        name = f"BraTS-GLI-{patient:05d}-000"
        mask = write_case_of_2023(write_nifti, images, label, tmp_path / name, name)
    (fault,) = check(tmp_path, BRATS_2023_GLI).faults
    assert fault.startswith(f"{mask}: holds label 4, but brats2023_gli has 0, 1, 2, 3; name the")
    assert refused(tmp_path, tmp_path / "cache", BRATS_2023_GLI) == [fault]


def test_a_missing_file_of_2023_is_a_fault_of_its_case(tmp_path, write_nifti, fake_patient):
    name = "BraTS-GLI-00002-000"
    write_case_of_2023(write_nifti, *fake_patient(), tmp_path, name)
    (tmp_path / f"{name}-t1c.nii.gz").unlink()
    result = check(tmp_path, BRATS_2023_GLI)
    assert (result.cases[0].missing, result.other_faults) == (("t1ce",), ())
    assert result.cases[0].faults[0].startswith(f"{tmp_path / name}-t1c.nii.gz: missing")


def test_every_fault_of_one_case_at_once(tmp_path, write_case):
    files = write_case(tmp_path / ONE, ONE)
    cut_off(files["t1"])
    rewrite(np.zeros_like)(files["t1ce"])
    put(np.nan)(files["t2"])
    rewrite(lambda v: 7 * (v > 0).astype(np.int16))(files["flair"])
    rewrite(lambda v: v * 0.5)(files["label"])
    faults = check(tmp_path, read_all=True).faults
    assert [(f.split(": ")[0], f.split(": ")[1].split()[0]) for f in sorted(faults)] == [
        (str(files["flair"]), "voxels"),
        (str(files["label"]), "holds"),
        (str(files["t1"]), "not"),
        (str(files["t1ce"]), "every"),
        (str(files["t2"]), "1"),
    ]


def test_unequal_grids_do_not_hide_what_is_in_the_voxels(tmp_path, write_case):
    files = write_case(tmp_path / ONE, ONE)
    rewrite(lambda v: v[1:])(files["t1ce"])
    rewrite(np.zeros_like)(files["t2"])
    rewrite(lambda v: 7 * (v > 0).astype(np.int16))(files["flair"])
    rewrite(lambda v: np.where(v == 4, 3, v))(files["label"])
    faults = check(tmp_path, read_all=True).faults
    assert sorted(f.split(": ")[0] for f in faults) == sorted(
        str(files[kind]) for kind in ("t1ce", "t2", "flair", "label")
    )


def test_a_mask_outside_the_brain_is_found_despite_an_empty_sequence(tmp_path, write_case):
    files = write_case(tmp_path / ONE, ONE)
    rewrite(np.zeros_like)(files["t2"])
    rewrite(outside_the_brain)(files["label"])
    faults = check(tmp_path, read_all=True).faults
    assert sorted(f.split(": ")[0] for f in faults) == [str(files["label"]), str(files["t2"])]


def test_every_fault_of_every_case_at_once(tmp_path, write_case, write_nifti):
    expected = []
    for seed, (kind, _, spoil, _, _) in enumerate(FAULTS):
        name = f"BraTS20_Training_{seed:03d}"
        files = write_case(tmp_path / name, name, seed=seed)
        spoil(files[kind])
        expected.append(str(files[kind]))
    expected.append(str(write_nifti(tmp_path / "stray.nii", np.ones((2, 3, 4), np.int16))))
    result = check(tmp_path, read_all=True)
    assert sorted(fault.split(": ")[0] for fault in result.faults) == sorted(expected)
    assert [len(case.faults) for case in result.cases] == [1] * len(FAULTS)
    assert check(tmp_path, num_threads=4) == check(tmp_path, num_threads=1)


def test_missing_files_of_names_that_start_alike_stay_apart(tmp_path, write_case):
    for seed, name in enumerate(("a", "a_t1", "b")):
        write_case(tmp_path, name, seed=seed, drop=["t2"], label=name != "a")
    result = check(tmp_path)
    assert [(c.case_id, c.missing, len(c.faults)) for c in result.cases] == [
        ("a", ("t2", "label"), 2),
        ("a_t1", ("t2",), 1),
        ("b", ("t2",), 1),
    ]
    assert result.cases[1].faults[0].startswith(f"{tmp_path / 'a_t1_t2.nii.gz'}: missing")
    assert result.other_faults == ()


def test_missing_files_can_be_allowed(tmp_path, write_case):
    write_case(tmp_path, ONE, drop=["t1ce", "flair"], label=False)
    result = check(tmp_path, allow_missing=True, require_label=False, read_all=True)
    assert result.faults == []
    assert result.cases[0].missing == ("t1ce", "flair", "label")
    assert [set(case.files) for case in result.cases] == [{"t1", "t2"}]
    assert len(check(tmp_path, require_label=False).faults) == 2


def test_whole_numbers_stored_as_fractions_are_labels(tmp_path, write_case):
    files = write_case(tmp_path, ONE)
    (stored,) = check(tmp_path).cases
    for rounding in (0, 1e-4):
        rewrite(lambda v, error=rounding: v * (1.0 - error))(files["label"])
        result = check(tmp_path, read_all=True)
        assert result.faults == []
        assert set(result.cases[0].labels) == {"0", "1", "2", "4"}
        assert result.cases[0].labels == stored.labels
        assert result.cases[0].volumes_ml == stored.volumes_ml


def test_a_mask_without_tumour_is_no_fault(tmp_path, write_case):
    files = write_case(tmp_path, ONE)
    for number in (1, 2):  # nor are two of them copies of one another
        write_case(tmp_path, f"{ONE}{number}", label=np.zeros((13, 17, 11), np.uint8), seed=number)
    result = check(tmp_path, read_all=True)
    assert result.faults == []
    assert [len(case.notes) for case in result.cases] == [0, 1, 1]
    assert result.cases[1].notes == (f"{tmp_path / f'{ONE}1_seg.nii.gz'}: marks no tumour",)
    assert result.cases[1].volumes_ml == {"WT": 0, "TC": 0, "ET": 0}
    assert files["label"].name not in str(result.cases[1])


@contextlib.contextmanager
def unprivileged():
    """Give a folder that an ordinary user can read, and be one for a while."""
    if not hasattr(os, "geteuid"):
        pytest.skip("this system has no file permissions to take away")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder), os.geteuid()


def test_files_and_folders_that_may_not_be_read(write_case):
    with unprivileged() as (root, user):
        files = write_case(root / ONE, ONE)
        write_case(root / TWO, TWO, seed=1)
        check(root, read_all=True)  # loads all that is needed before rights are dropped
        for path in (files["t2"], files["label"], root / TWO):
            path.chmod(0)
        if user == 0:
            os.seteuid(65534)
        try:
            result = check(root, read_all=True)
        finally:
            os.seteuid(user)
            (root / TWO).chmod(0o755)
        assert sorted(fault.split(": ")[0] for fault in result.faults) == sorted(
            map(str, (root / TWO, files["t2"], files["label"]))
        )
        assert all("permissions" in fault for fault in result.faults)
        assert result.cases[0].files["t1"].high is not None


def test_folders_linked_in_a_circle(tmp_path, write_case):
    write_case(tmp_path / ONE, ONE)
    (tmp_path / ONE / "circle").symlink_to(tmp_path)
    result = check(tmp_path, read_all=True)
    assert (len(result.cases), result.faults) == (1, [])


def test_long_and_foreign_paths(tmp_path, write_case):
    folder = tmp_path / "Größe 脑肿瘤: 3 мм"
    while len(str(folder).encode()) < 3000:
        folder = folder / ("ö" * 120)
    name = "病例_" + "x" * 200
    write_case(folder, name, report="Ödem links.")
    result = check(tmp_path, read_all=True)
    assert result.faults == []
    assert result.cases[0].case_id == name
    result.save(tmp_path / "报告.json")
    assert json.loads((tmp_path / "报告.json").read_text())["cases"][0]["case_id"] == name


def test_facts_of_a_case(tmp_path, write_case, fake_patient):
    images, label = fake_patient()
    affine = np.array([[0, 0, -2.0, 5], [-2, 0, 0, 7], [0, -1.5, 0, 9], [0, 0, 0, 1]])
    name = "Brats18_TCIA01_201_1"
    folder = tmp_path / "LGG" / name
    files = write_case(
        folder, name, images=images, label=label, affine=affine, report="One left lesion."
    )
    (case,) = check(tmp_path, BRATS_2018, spacing_mm=None, read_all=True).cases
    assert (case.case_id, case.patient, case.grade) == (name, "Brats18_TCIA01_201", 0)
    assert case.missing == case.faults == case.notes == ()
    assert (case.report_words, case.report_tokens) == (3, None)
    assert set(case.files) == {*SEQUENCES, "label"}
    for index, sequence in enumerate(SEQUENCES):
        facts = case.files[sequence]
        assert facts.path == str(files[sequence])
        assert facts.shape == (13, 17, 11)
        assert facts.spacing_mm == (2, 1.5, 2)
        assert facts.orientation == "PIL"  # a left-handed grid: its volume must not be negative
        assert facts.affine == tuple(map(tuple, affine.tolist()))
        assert facts.dtype == "int16"
        assert (facts.low, facts.high) == (images[index].min(), images[index].max())
    assert (case.files["label"].low, case.files["label"].high) == (0, 4)
    counts = {value: int((label == value).sum()) for value in (0, 1, 2, 4)}
    assert case.labels == {f"{value}": count for value, count in counts.items()}
    ml = 0.006  # 2 x 1.5 x 2 mm
    assert case.volumes_ml == pytest.approx(
        {
            "WT": ml * (counts[1] + counts[2] + counts[4]),
            "TC": ml * (counts[1] + counts[4]),
            "ET": ml * counts[4],
        }
    )


def test_headers_and_masks_alone_leave_voxels_unread(tmp_path, write_case, monkeypatch):
    files = write_case(tmp_path, ONE)
    full = check(tmp_path, read_all=True).cases[0]
    read = []
    from clipseg3d.data import check as module

    inner = module.read_voxels
    monkeypatch.setattr(
        module, "read_voxels", lambda path, **o: read.append(path) or inner(path, **o)
    )
    quick = check(tmp_path).cases[0]
    assert read == [files["label"]]
    assert quick.labels == full.labels
    assert quick.files["label"] == full.files["label"]
    for sequence in SEQUENCES:
        assert quick.files[sequence].affine == full.files[sequence].affine
        assert (quick.files[sequence].low, quick.files[sequence].sha256) == (None, None)


def test_the_spacing_due(tmp_path, write_case):
    files = write_case(tmp_path, ONE, affine=np.diag([-2.0, -2, 2, 1]))
    (fault,) = check(tmp_path).faults
    assert fault.startswith(f"{files['t1']}: voxels of 2x2x2 mm, expected 1 mm")
    assert check(tmp_path, spacing_mm=2.0).faults == check(tmp_path, spacing_mm=None).faults == []


# Copies


def test_one_file_for_two_sequences_is_found_without_reading_all(tmp_path, write_case):
    files = write_case(tmp_path, ONE)
    write_case(tmp_path, TWO, seed=1)
    shutil.copy(files["t1"], files["t1ce"])
    for read_all in (False, True):
        assert check(tmp_path, read_all=read_all).faults == [
            f"{files['t1']} and {files['t1ce']}: the same voxels for t1 and t1ce; restore the "
            "right file of each"
        ]


@pytest.mark.parametrize("read_all", [False, True])
def test_one_patient_under_two_names(tmp_path, write_case, read_all):
    write_case(tmp_path / "a", ONE, seed=5)
    copy = write_case(tmp_path / "b", TWO, seed=5, ext=".nii")
    write_case(tmp_path / "c", f"{TWO}0", label=False)
    for path in copy.values():
        rewrite(lambda v: v.astype(np.float32))(path)  # other bytes, the same voxels
    result = check(tmp_path, read_all=read_all, require_label=False)
    (fault,) = result.faults
    kind, more = ("t1", ", as in 4 more files of each case") if read_all else ("seg", "")
    assert fault == (
        f"{tmp_path / 'a' / f'{ONE}_{kind}.nii.gz'} and {tmp_path / 'b' / f'{TWO}_{kind}.nii'}: "
        f"the same voxels{more}; keep one of the cases"
    )
    assert result.other_faults == (fault,)


def test_a_copy_in_three_cases(tmp_path, write_case):
    files = [write_case(tmp_path, f"{ONE}{seed}", seed=seed) for seed in range(3)]
    for other in files[1:]:
        shutil.copy(files[0]["t2"], other["t2"])
    (fault,) = check(tmp_path, read_all=True).faults
    paths = " and ".join(str(case["t2"]) for case in files)
    assert fault == f"{paths}: the same voxels; keep one of the cases"


def test_one_voxel_makes_no_copy(tmp_path, write_case):
    files = write_case(tmp_path, ONE)
    shutil.copy(files["t1"], files["t1ce"])
    put(5)(files["t1ce"])
    assert check(tmp_path, read_all=True).faults == []


def test_gzip_files_of_several_members_are_whole(tmp_path, write_case):
    files = write_case(tmp_path, ONE)
    for path in files.values():
        data = gzip.decompress(path.read_bytes())
        path.write_bytes(gzip.compress(data[:999]) + gzip.compress(data[999:]))
    result = check(tmp_path)
    assert result.faults == []
    assert result.cases[0].files["t1"].high is not None  # it looked wrong, and was read


@pytest.mark.parametrize("ext", [".nii", ".nii.gz"])
def test_a_case_that_is_cut_off_has_its_other_files_read_too(tmp_path, write_case, ext):
    files = write_case(tmp_path, ONE, ext=ext)
    cut_off(files["t1"])
    put(np.nan)(files["flair"])
    faults = check(tmp_path).faults
    assert sorted(f.split(": ")[0] for f in faults) == [str(files["flair"]), str(files["t1"])]


# One file that holds all sequences


@pytest.fixture
def decathlon(tmp_path, write_nifti, fake_patient):
    """Folder of two cases in the layout of the Medical Segmentation Decathlon."""
    root = tmp_path / "Task01_BrainTumour"
    listed = []
    for number in range(2):
        images, label = fake_patient(seed=number)
        name = f"BRATS_{number:03d}.nii.gz"
        order = [3, 0, 1, 2]  # FLAIR, T1w, t1gd, T2w
        write_nifti(root / "imagesTr" / name, np.stack([images[i] for i in order], axis=-1))
        write_nifti(root / "labelsTr" / name, np.roll(np.where(label == 4, 3, label), number, 0))
        listed.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    names = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    manifest = {"modality": names, "training": listed, "test": []}
    (root / "dataset.json").write_text(json.dumps(manifest))
    return root


def test_sequences_of_one_file_are_told_apart(decathlon, fake_patient):
    result = check(decathlon, MSD_TASK01, read_all=True)
    assert result.faults == []
    for seed, case in enumerate(result.cases):
        for index, sequence in enumerate(SEQUENCES):
            voxels = fake_patient(seed=seed)[0][index]
            facts = case.files[sequence]
            assert facts.shape == (13, 17, 11)
            assert (facts.low, facts.high) == (voxels.min(), voxels.max())
        assert len({case.files[sequence].sha256 for sequence in SEQUENCES}) == 4


def test_faults_in_one_file_of_all_sequences(decathlon, tmp_path):
    first, second = sorted((decathlon / "imagesTr").iterdir())
    rewrite(lambda v: v * np.array([1, 1, 0, 1], np.int16))(first)
    rewrite(lambda v: v[..., :2])(second)
    result = check(decathlon, MSD_TASK01, read_all=True)
    empty_t1ce, too_few = result.faults
    assert empty_t1ce.startswith(f"{first}: every voxel of t1ce is 0")
    assert too_few.startswith(f"{second}: holds 2 volumes, too few for channels")
    assert [len(case.faults) for case in result.cases] == [1, 1]
    cut_off(first)
    assert [f for f in check(decathlon, MSD_TASK01).faults if f.startswith(f"{first}: not a ")]


def test_one_channel_twice(decathlon):
    first = min((decathlon / "imagesTr").iterdir())
    rewrite(lambda v: v[..., [0, 1, 1, 3]])(first)
    assert check(decathlon, MSD_TASK01, read_all=True).faults == [
        f"{first}: the same voxels for t1 and t1ce; restore the right file of each"
    ]


# Reports of cases


def test_reports_are_counted(tmp_path, write_case):
    write_case(tmp_path, ONE, report="Left frontal\nlesion.")
    write_case(tmp_path, TWO, seed=1)
    plain = check(tmp_path)
    assert [(c.report_words, c.report_tokens) for c in plain.cases] == [(3, None), (0, None)]
    assert plain.notes == ("1 of 2 cases have no report",)
    counted = check(tmp_path, count_tokens=len)
    assert [c.report_tokens for c in counted.cases] == [20, None]
    table = tmp_path / "reports.json"
    table.write_text(json.dumps({ONE: "a b", TWO: "c d e f"}))
    both = check(tmp_path, reports=table)
    assert [c.report_words for c in both.cases] == [2, 4]
    assert both.notes == both.other_faults == ()


def test_a_report_that_cannot_be_read_is_a_fault_of_its_case(tmp_path, write_case):
    write_case(tmp_path, ONE)
    beside = tmp_path / f"{ONE}_flair_text.txt"
    beside.write_bytes("Ödem".encode("latin-1"))
    (case,) = check(tmp_path).cases
    assert [f.split(": ")[0] for f in case.faults] == [str(beside)]


# The folder


def test_a_folder_without_cases(tmp_path, write_nifti):
    stray = write_nifti(tmp_path / "x.nii.gz", np.ones((2, 3, 4), np.int16))
    result = check(tmp_path)
    (fault,) = result.faults
    assert str(stray) in fault
    assert result.cases == ()
    assert result.table().endswith("0 cases of brats2020: 1 faults")
    with pytest.raises(FileNotFoundError, match="gone: no such folder"):
        check(tmp_path / "gone")


def test_nothing_is_written_below_the_folder(tmp_path, write_case, content):
    write_case(tmp_path, ONE)
    before = content(tmp_path)
    check(tmp_path, read_all=True)
    assert content(tmp_path) == before


# What comes out


def test_the_file_holds_all_that_was_seen(tmp_path, write_case):
    files = write_case(tmp_path / "cases" / ONE, ONE, report="Three words here.")
    write_case(tmp_path / "cases" / TWO, TWO, seed=1, drop=["t2"])
    empty(files["flair"])
    result = check(tmp_path / "cases", read_all=True)
    path = tmp_path / "new" / "check.json"
    result.save(path)
    stored = json.loads(path.read_text())
    assert [p.name for p in path.parent.iterdir()] == ["check.json"]
    assert (stored["root"], stored["release"]) == (str(tmp_path / "cases"), "brats2020")
    assert stored["other_faults"] == []
    assert stored["notes"] == ["1 of 2 cases have no report"]
    one, two = stored["cases"]
    assert one["faults"] == list(result.cases[0].faults)
    assert one["files"]["flair"] == {
        "path": str(files["flair"]),
        **dict.fromkeys(("shape", "spacing_mm", "orientation", "affine", "dtype"), None),
        **dict.fromkeys(("low", "high", "sha256"), None),
    }
    assert one["files"]["t1"]["shape"] == [13, 17, 11]
    assert one["volumes_ml"] == result.cases[0].volumes_ml
    assert two["missing"] == ["t2"]


def test_an_affine_without_numbers_is_still_json(tmp_path, write_case):
    files = write_case(tmp_path, ONE)
    for kind in ("t2", "label"):
        image = nib.load(files[kind])
        image.header["srow_x"] = np.nan
        image.header["qform_code"] = 0
        nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), None, image.header), files[kind])
    result = check(tmp_path, read_all=True)
    for fault, kind in zip(result.faults, ("label", "t2"), strict=True):
        assert fault.startswith(f"{files[kind]}: its affine has no inverse, or is not finite")
    result.save(tmp_path / "check.json")
    (case,) = json.loads((tmp_path / "check.json").read_text())["cases"]
    assert case["files"]["t2"]["affine"][0] == [None] * 4
    assert case["files"]["t2"]["orientation"] is None
    assert case["labels"] == result.cases[0].labels
    assert case["volumes_ml"] is None
    assert result.table()


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path, write_case, monkeypatch):
    write_case(tmp_path / "cases", ONE)
    result = check(tmp_path / "cases")
    path = tmp_path / "check.json"
    path.write_text("before")
    with pytest.raises(OSError, match=r"before/check\.json: cannot be written"):
        result.save(tmp_path / "check.json" / "before" / "check.json")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"check\.json: cannot be written \(No space left"):
        result.save(path)
    assert path.read_text() == "before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cases", "check.json"]


def test_the_table_lines_up(tmp_path, write_case):
    for folder, name in (("HGG", "Brats18_2013_2_1"), ("LGG", "Brats18_TCIA10_109_1")):
        write_case(tmp_path / folder / name, name, seed=len(name), report="Left lesion")
    write_case(tmp_path, "other", drop=["t1", "t2"], seed=3, label=np.full((13, 17, 11), 2, "u1"))
    result = check(tmp_path, BRATS_2018, read_all=True)
    head, *rows = result.table().split("\n\n")[0].splitlines()
    assert len({len(line) for line in (head, *rows)}) == 1
    assert [row.split()[0] for row in rows] == [case.case_id for case in result.cases]
    images = [voxels_of(tmp_path / f"other_{s}.nii.gz") for s in ("t1ce", "flair")]
    whole = f"{13 * 17 * 11 / 1000:.1f}"
    assert rows[-1].split() == [
        *("other", "-", "13x17x11", "1x1x1", "LPS", f"0..{max(v.max() for v in images)}"),
        *("2", whole, "0.0", "0.0", "-", "3"),
    ]
    assert rows[0].split()[1] == "HGG"
    assert rows[0].split()[-2:] == ["2", "-"]
    assert head.split()[-2:] == ["words", "faults"]
    assert check(tmp_path, BRATS_2018, count_tokens=len).table().splitlines()[0].split()[-2:] == [
        "tokens",
        "faults",
    ]


def test_the_table_ends_with_every_fault_and_note(tmp_path, write_case):
    files = write_case(tmp_path, ONE, label=np.zeros((13, 17, 11), np.uint8), report="Nothing.")
    write_case(tmp_path, TWO, drop=["t1", "t2"], seed=1)
    empty(files["t1"])
    result = check(tmp_path)
    lines = result.table().splitlines()
    assert lines[4] == "Faults:"
    assert lines[5:8] == result.faults
    assert lines[9:12] == [
        "Notes:",
        f"{files['label']}: marks no tumour",
        "1 of 2 cases have no report",
    ]
    assert lines[-1] == "2 cases of brats2020: 3 faults"


def test_a_case_of_which_nothing_can_be_read_has_its_line(tmp_path, write_case):
    files = write_case(tmp_path, ONE)
    for path in files.values():
        empty(path)
    result = check(tmp_path)
    assert len(result.faults) == 5
    assert result.table().splitlines()[1].split() == [ONE, *"----------", "5"]


@pytest.mark.skipif(
    "CLIPSEG3D_BRATS_DIR" not in os.environ,
    reason="set CLIPSEG3D_BRATS_DIR to a folder with the brats2018 cases to test on real ones",
)
def test_real_cases_have_no_fault():
    result = check(os.environ["CLIPSEG3D_BRATS_DIR"], BRATS_2018)
    assert result.faults == []
    for case in result.cases:
        assert set(case.labels) == {"0", "1", "2", "4"}
        assert case.volumes_ml["WT"] >= case.volumes_ml["TC"] >= case.volumes_ml["ET"] > 0
        assert {f.orientation for f in case.files.values()} == {"LPS"}
