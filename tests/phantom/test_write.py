"""Mirrors clipseg3d/phantom/write.py."""

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from clipseg3d.data.cases import find_cases
from clipseg3d.data.nifti import read_voxels
from clipseg3d.data.releases import BRATS_2021, BRATS_2024_GLI, RELEASES, get_release
from clipseg3d.phantom import write
from clipseg3d.phantom.simulate import simulate_phantom
from clipseg3d.phantom.write import case_names, write_phantom, write_phantoms
from clipseg3d.vocabulary import SEQUENCES


def test_written_case_reads_back(tmp_path, phantoms):
    phantom = phantoms[0]
    folder = write_phantom(phantom, tmp_path / "new", "Phantom_007")
    assert folder == tmp_path / "new" / "Phantom_007"
    suffixes = [
        "flair.nii.gz",
        "flair_text.txt",
        *(f"{s}.nii.gz" for s in ("seg", "t1", "t1ce", "t2")),
    ]
    assert sorted(p.name for p in folder.iterdir()) == [f"Phantom_007_{s}" for s in suffixes]
    assert [p.name for p in folder.parent.iterdir()] == ["Phantom_007"]
    for name, volume in zip((*SEQUENCES, "seg"), (*phantom.image, phantom.label), strict=True):
        stored = nib.load(folder / f"Phantom_007_{name}.nii.gz")
        assert stored.get_data_dtype() == (np.uint8 if name == "seg" else np.int16)
        np.testing.assert_array_equal(np.asarray(stored.dataobj), volume)
        np.testing.assert_allclose(stored.affine, phantom.affine)
        assert nib.aff2axcodes(stored.affine) == ("L", "P", "S")
        assert (stored.header["qform_code"], stored.header["sform_code"]) == (1, 1)
        np.testing.assert_allclose(stored.header.get_zooms(), phantom.spacing_mm)
        np.testing.assert_allclose(stored.get_qform(), phantom.affine)
    text = (folder / "Phantom_007_flair_text.txt").read_text(encoding="utf-8")
    assert text.strip() == phantom.report


def test_faint_brain_is_not_written_as_background(tmp_path, phantoms):
    image = phantoms[0].image
    faint = replace(phantoms[0], image=image * np.float32(3 / image[0].max()))
    assert (np.rint(faint.image[0]) > 0).sum() < (faint.image[0] > 0).sum()
    folder = write_phantom(faint, tmp_path, "faint")
    stored = np.asarray(nib.load(folder / "faint_t1.nii.gz").dataobj)
    np.testing.assert_array_equal(stored > 0, faint.image[0] > 0)


def test_values_beyond_int16_are_written_as_float(tmp_path, phantoms):
    bright = replace(phantoms[0], image=phantoms[0].image * np.float32(1000))
    folder = write_phantom(bright, tmp_path, "bright")
    stored = nib.load(folder / "bright_flair.nii.gz")
    assert stored.get_data_dtype() == np.float32
    np.testing.assert_allclose(np.asarray(stored.dataobj), bright.image[3])


def test_existing_case_is_left_alone(tmp_path, phantoms):
    folder = write_phantom(phantoms[0], tmp_path, "case")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(FileExistsError, match="choose another case_id"):
        write_phantom(phantoms[1], tmp_path, "case")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["case"]


def test_an_empty_folder_is_left_alone_too(tmp_path, phantoms):
    (tmp_path / "case").mkdir()
    with pytest.raises(FileExistsError, match="case exists"):
        write_phantom(phantoms[0], tmp_path, "case")
    assert [path.name for path in tmp_path.rglob("*")] == ["case"]


def test_a_failed_write_leaves_nothing(tmp_path, phantoms):
    unsavable = replace(phantoms[0], image=phantoms[0].image[:3])  # fails at the fourth sequence
    with pytest.raises(IndexError):
        write_phantom(unsavable, tmp_path, "case")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case_id", ["", ".", "..", "a/b", ".hidden"])
def test_rejects_case_id(tmp_path, phantoms, case_id):
    with pytest.raises(ValueError, match="case_id="):
        write_phantom(phantoms[0], tmp_path / "root", case_id)
    assert list(tmp_path.iterdir()) == []


def test_a_case_that_another_process_writes_at_the_same_time_is_left_alone(
    tmp_path, phantoms, monkeypatch
):
    save = write._save

    def race(path, volume, affine):
        (tmp_path / "case").mkdir(exist_ok=True)
        (tmp_path / "case" / "theirs").touch()
        save(path, volume, affine)

    monkeypatch.setattr(write, "_save", race)
    with pytest.raises(FileExistsError, match="case exists; choose another case_id"):
        write_phantom(phantoms[0], tmp_path, "case")
    assert [p.name for p in tmp_path.rglob("*")] == ["case", "theirs"]


def test_names_count_up_from_the_first_seed():
    assert case_names(3, 98) == ["Phantom_00098", "Phantom_00099", "Phantom_00100"]


def test_only_missing_patients_are_written(tmp_path, phantoms, phantom_folder, monkeypatch):
    simulated = []

    def simulate(seed, *, spacing_mm, **shares):
        simulated.append((seed, spacing_mm))
        return phantoms[seed]

    monkeypatch.setattr(write, "simulate_phantom", simulate)
    names = [f"Phantom_{number:05d}" for number in (2, 3, 4)]
    for name in (names[0], names[2]):
        shutil.copytree(phantom_folder / name, tmp_path / name)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert write_phantoms(tmp_path, 3, spacing_mm=8.0, seed=2) == names
    assert simulated == [(3, 8.0)]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert before.items() <= {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}.items()
    for file in (phantom_folder / names[1]).iterdir():
        assert (tmp_path / names[1] / file.name).read_bytes() == file.read_bytes()


def test_equal_seeds_give_equal_patients(tmp_path, phantom_folder):
    (name,) = write_phantoms(tmp_path, 1, spacing_mm=8.0, seed=5)
    assert name == "Phantom_00005"
    for suffix in (*SEQUENCES, "seg"):
        file = f"{name}/{name}_{suffix}.nii.gz"
        np.testing.assert_array_equal(
            read_voxels(tmp_path / file), read_voxels(phantom_folder / file)
        )
    report = f"{name}/{name}_flair_text.txt"
    assert (tmp_path / report).read_text() == (phantom_folder / report).read_text()


def test_two_commands_at_once_simulate_each_patient_once(tmp_path, phantoms, monkeypatch):
    simulated, both = [], threading.Barrier(2)

    def simulate(seed, *, spacing_mm, **shares):
        simulated.append(seed)
        time.sleep(0.05)
        return phantoms[seed]

    def command():
        both.wait(timeout=60)
        return write_phantoms(tmp_path, 3, spacing_mm=8.0)

    monkeypatch.setattr(write, "simulate_phantom", simulate)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(command), pool.submit(command)
        assert first.result() == second.result() == case_names(3, 0)
    assert sorted(simulated) == [0, 1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == case_names(3, 0)


@pytest.fixture(scope="module")
def resected():
    return simulate_phantom(0, spacing_mm=8.0, cavity_share=1.0)


def test_a_cavity_is_written_as_that_of_the_release(tmp_path, resected):
    folder = write_phantom(resected, tmp_path, "BraTS-GLI-00007-100", release="brats2024_gli")
    stems = ("seg", "t1c", "t1n", "t2f", "t2w")
    assert sorted(path.name for path in folder.iterdir()) == [
        *(f"BraTS-GLI-00007-100-{stem}.nii.gz" for stem in stems),
        "BraTS-GLI-00007-100_flair_text.txt",
    ]
    (case,) = find_cases(tmp_path, BRATS_2024_GLI, spacing_mm=8.0)
    assert case.report == resected.report
    stored = read_voxels(folder / "BraTS-GLI-00007-100-seg.nii.gz")
    for region, labels in {"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,), "RC": (3,)}.items():
        expected = np.isin(resected.label, labels)
        assert expected.any()
        np.testing.assert_array_equal(np.isin(stored, BRATS_2024_GLI.regions[region]), expected)
    t1ce = read_voxels(folder / "BraTS-GLI-00007-100-t1c.nii.gz")
    np.testing.assert_array_equal(t1ce, resected.image[SEQUENCES.index("t1ce")])


@pytest.mark.parametrize(
    "name", [name for name in RELEASES if name not in ("brats2024_men_rt", "msd_task01")]
)
def test_every_release_with_these_regions_can_be_written(tmp_path, phantoms, name):
    release = RELEASES[name]
    (case_id,) = case_names(1, 12, release)
    assert release.owns(case_id)
    folder = write_phantom(phantoms[4], tmp_path, case_id, release=release)
    (case,) = find_cases(tmp_path, release, spacing_mm=8.0)
    assert (case.case_id, case.report) == (case_id, phantoms[4].report)
    (file,) = [path for path in folder.iterdir() if "seg" in path.name]
    regions = dict(zip(release.regions, release.to_regions(read_voxels(file)), strict=True))
    for region, labels in {"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,)}.items():
        np.testing.assert_array_equal(regions.pop(region), np.isin(phantoms[4].label, labels))
    assert not any(mask.any() for mask in regions.values())


def test_some_sequences_of_a_release_can_be_written(tmp_path, phantoms):
    release = BRATS_2021.select(sequences=["flair", "t1ce"])
    folder = write_phantom(phantoms[1], tmp_path, "case", release=release)
    images = {path.name for path in folder.glob("*.nii.gz")}
    assert images == {"case_flair.nii.gz", "case_t1ce.nii.gz", "case_seg.nii.gz"}
    flair = read_voxels(folder / "case_flair.nii.gz")
    np.testing.assert_array_equal(flair, phantoms[1].image[3])


@pytest.mark.parametrize(
    ("release", "message"),
    [
        ("phantom", "phantom has no region RC, but the phantom has; write it as brats2024_gli"),
        ("brats2024_men_rt", "has no region WT"),
        ({"name": "own", "sequences": {"dwi": "{case}_dwi"}, "regions": {"WT": 1}}, "sequence dwi"),
    ],
)
def test_refuses_releases_without_what_phantoms_have(tmp_path, resected, release, message):
    with pytest.raises(ValueError, match=message):
        write_phantom(resected, tmp_path, "case", release=get_release(release))
    with pytest.raises(ValueError, match=message):
        write_phantoms(tmp_path, 1, release=get_release(release), cavity_share=0.5)
    assert list(tmp_path.iterdir()) == []


def test_refuses_a_release_that_is_a_list_of_4d_images(tmp_path, phantoms):
    with pytest.raises(ValueError, match="msd_task01 does not keep the files"):
        write_phantom(phantoms[0], tmp_path, "case", release="msd_task01")


def test_a_release_without_a_name_of_ours_gets_the_usual_names():
    own = replace(BRATS_2021, name="own", case_pattern=r"(?P<patient>P\d)")
    assert case_names(1, 4, own) == ["Phantom_00004"]
    assert case_names(1, 4, BRATS_2024_GLI) == ["BraTS-GLI-00004-100"]


def test_shares_reach_the_patients(tmp_path):
    (name,) = write_phantoms(tmp_path, 1, spacing_mm=8.0, plain_share=1.0)
    label = read_voxels(tmp_path / name / f"{name}_seg.nii.gz")
    assert set(np.unique(label)) == {0, 1, 2}


def test_patients_of_another_voxel_size_are_refused_before_any_is_simulated(tmp_path):
    write_phantoms(tmp_path, 1, spacing_mm=8.0)
    with pytest.raises(
        ValueError, match=r"Phantom_00000: was simulated with voxels of 8 mm, not 6"
    ):
        write_phantoms(tmp_path, 2, spacing_mm=6.0)
    assert [folder.name for folder in tmp_path.iterdir() if folder.is_dir()] == ["Phantom_00000"]
    assert write_phantoms(tmp_path, 2, spacing_mm=8.0) == ["Phantom_00000", "Phantom_00001"]
