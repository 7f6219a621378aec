"""Mirrors clipseg3d/data/preprocessing.py."""

import os
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from clipseg3d.data.cases import Case, DataError, find_cases
from clipseg3d.data.nifti import read_voxels, write_label
from clipseg3d.data.preprocessing import preprocess
from clipseg3d.data.releases import BRATS_2018, BRATS_2020
from clipseg3d.intensity import intensity_statistics
from clipseg3d.views import Views, cut_views
from clipseg3d.vocabulary import SEQUENCES

ONE = "BraTS20_Training_001"
ORDERS = ["LPS", "RAS", "PIR", "ASL", "SRA", "IPL", "LAI"]


def tilted(affine):
    """Tilt a scan in the world by some degrees, so that no axis is straight."""
    a, b = 0.25, -0.15
    tilt = np.eye(4)
    tilt[:3, :3] = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) @ [
        [1, 0, 0],
        [0, np.cos(b), -np.sin(b)],
        [0, np.sin(b), np.cos(b)],
    ]
    return tilt @ affine


@pytest.fixture
def patient(fake_patient):
    images, label = fake_patient()
    return images, label


@pytest.fixture
def write_as(write_case, reorder):
    """Write a case in another voxel order."""

    def write(folder, images, label, order, *, tilt=False):
        stored = [reorder(volume, order)[0] for volume in images]
        mask, affine = reorder(label, order)
        affine = tilted(affine) if tilt else affine
        write_case(folder, ONE, images=stored, label=mask, affine=affine)
        (case,) = find_cases(folder, BRATS_2020)
        return case

    return write


def case_of(write_case, folder, **options):
    write_case(folder, ONE, **options)
    (case,) = find_cases(folder, BRATS_2020, require_label=options.get("label") is not False)
    return case


def faults_of(case, release=BRATS_2020):
    with pytest.raises(DataError) as error:
        preprocess(case, release)
    return error.value.faults


# The box in LPS order


def test_shapes_and_types(tmp_path, write_case):
    ready = preprocess(case_of(write_case, tmp_path), BRATS_2020)
    assert ready.grid.box == ((1, 12), (2, 16), (3, 10))  # the brain that fake_patient draws
    assert ready.image.shape == (4, 11, 14, 7)
    assert ready.image.dtype == torch.float32
    assert ready.label.shape == (11, 14, 7)
    assert ready.label.dtype == np.uint8
    assert ready.statistics.shape == (4, 4)
    assert ready.views.images.shape == (3, 224, 224, 4)
    assert ready.views.images.dtype == torch.uint8
    assert ready.views.planes.shape == (3, 3)
    assert ready.views.planes.dtype == torch.float32
    assert ready.grid.shape == (13, 17, 11)


@pytest.mark.parametrize("tilt", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_the_voxel_order_of_files_does_not_matter(
    tmp_path, write_as, patient, order, tilt, equal_views
):
    upright = write_as(tmp_path / "lps", *patient, "LPS")
    case = write_as(tmp_path / "turned", *patient, order, tilt=tilt)
    expected, result = (preprocess(one, BRATS_2020) for one in (upright, case))
    torch.testing.assert_close(result.image, expected.image, rtol=0, atol=1e-6)
    torch.testing.assert_close(result.statistics, expected.statistics, rtol=0, atol=1e-6)
    assert equal_views(result.views, expected.views)
    middle = [
        preprocess(one, BRATS_2020, view_selection="volume_center").views for one in (upright, case)
    ]
    assert equal_views(*middle)
    np.testing.assert_array_equal(result.label, expected.label)
    assert result.label.flags["C_CONTIGUOUS"]
    assert result.grid.box == expected.grid.box


def test_the_box_is_cut_from_the_files_in_lps_order(tmp_path, write_as, patient):
    images, label = patient
    ready = preprocess(write_as(tmp_path, images, label, "RAS"), BRATS_2020)
    np.testing.assert_array_equal(ready.label, label[1:12, 2:16, 3:10])
    raw = images[:, 1:12, 2:16, 3:10]
    for result, stored in zip(ready.image, raw, strict=True):  # ranks survive clipping and scaling
        order = np.argsort(stored, axis=None, kind="stable")
        assert (np.diff(result.numpy().ravel()[order]) >= 0).all()


def test_sequences_come_in_channel_order(tmp_path, write_case, patient):
    images = np.zeros_like(patient[0])
    for channel in range(4):
        images[channel, 2:9, 3:12, 4:9] = 100
        images[channel, 3 + channel, 3:12, 4:9] = 500  # one slice, too many voxels to be clipped
    ready = preprocess(case_of(write_case, tmp_path, images=images), BRATS_2020)
    peaks = [np.unravel_index(int(volume.argmax()), volume.shape) for volume in ready.image]
    x0 = ready.grid.box[0][0]
    assert [peak[0] + x0 for peak in peaks] == [3, 4, 5, 6]


def test_the_order_in_which_a_case_names_its_sequences_does_not_matter(tmp_path, write_case):
    case = case_of(write_case, tmp_path)
    shuffled = replace(case, sequences=dict(reversed(case.sequences.items())))
    assert torch.equal(preprocess(shuffled, BRATS_2020).image, preprocess(case, BRATS_2020).image)


def test_the_box_does_not_depend_on_the_label(tmp_path, write_case, patient):
    """Otherwise a crop of a case would lie elsewhere in its box with and without a label."""
    images, label = patient
    label[12, 0, 10] = label[0, 16, 3] = 2
    case = case_of(write_case, tmp_path, images=images, label=label)
    ready, unlabelled = (preprocess(one, BRATS_2020) for one in (case, replace(case, label=None)))
    assert ready.grid.box == unlabelled.grid.box == ((1, 12), (2, 16), (3, 10))
    assert torch.equal(ready.image, unlabelled.image)
    assert torch.equal(ready.statistics, unlabelled.statistics)
    assert all(map(torch.equal, ready.views, unlabelled.views))
    label[12, 0, 10] = label[0, 16, 3] = 0  # where no prediction is made
    np.testing.assert_array_equal(ready.grid.restore(ready.label), label)


def test_labels_in_the_box_are_kept_where_there_is_no_signal(tmp_path, write_case, patient):
    images, label = patient
    images[:, 5, 8, 5] = 0
    assert label[5, 8, 5] > 0
    ready = preprocess(case_of(write_case, tmp_path, images=images, label=label), BRATS_2020)
    np.testing.assert_array_equal(ready.grid.restore(ready.label), label)


@pytest.mark.parametrize(("outside", "refused"), [(13, False), (14, True), (40, True)])
def test_a_mask_outside_the_brain(tmp_path, write_case, patient, outside, refused):
    images, label = patient
    label[0].flat[:outside] = 2  # 120 voxels lie inside
    case = case_of(write_case, tmp_path, images=images, label=label)
    if not refused:
        assert np.count_nonzero(preprocess(case, BRATS_2020).label) == 120
        return
    (fault,) = faults_of(case)
    assert fault == (
        f"{case.label}: {outside} of its {120 + outside} labelled voxels lie outside the brain; "
        "register expert mask and sequences to one grid"
    )


def test_the_box_covers_every_sequence(tmp_path, write_case, patient):
    images, label = patient
    images[3, 0, 9, 4] = 7  # flair alone
    ready = preprocess(case_of(write_case, tmp_path, images=images, label=label), BRATS_2020)
    assert ready.grid.box == ((0, 12), (2, 16), (3, 10))


def test_a_case_without_label(tmp_path, write_case):
    labelled = preprocess(case_of(write_case, tmp_path / "a"), BRATS_2020)
    ready = preprocess(case_of(write_case, tmp_path / "b", label=False), BRATS_2020)
    assert ready.label is None
    assert torch.equal(ready.image, labelled.image)


# Sequences that were not acquired, sequences in one file


@pytest.mark.parametrize("missing", [("t1",), ("flair",), ("t1", "t2", "flair")])
def test_missing_sequences_are_zero(tmp_path, write_case, patient, missing):
    images, label = patient
    complete = case_of(write_case, tmp_path, images=images, label=label)
    kept = {name: path for name, path in complete.sequences.items() if name not in missing}
    ready = preprocess(replace(complete, sequences=kept), BRATS_2020)
    expected = preprocess(complete, BRATS_2020)
    assert ready.image.shape == expected.image.shape
    for channel, name in enumerate(SEQUENCES):
        if name in missing:
            assert not ready.image[channel].any()
            assert not ready.statistics[channel].any()
            assert not ready.views.images[..., channel].any()
        else:
            assert torch.equal(ready.image[channel], expected.image[channel])
            assert torch.equal(ready.statistics[channel], expected.statistics[channel])
            assert torch.equal(
                ready.views.images[..., channel], expected.views.images[..., channel]
            )


def test_the_box_is_that_of_the_sequences_there_are(tmp_path, write_case, patient):
    images, label = patient
    images[3, 0, 9, 4] = 7  # flair alone
    case = case_of(write_case, tmp_path, images=images, label=label)
    few = {name: case.sequences[name] for name in ("t1", "t2")}
    ready = preprocess(replace(case, sequences=few), BRATS_2020)
    assert ready.grid.box == ((1, 12), (2, 16), (3, 10))


def test_at_least_one_sequence_is_needed(tmp_path, write_case):
    case = replace(case_of(write_case, tmp_path), sequences={})
    assert faults_of(case) == (f"{ONE}: has no sequence; give one of t1, t1ce, t2, flair",)


@pytest.fixture
def in_one_file(write_nifti, reorder):
    """Write the sequences into one 4D file, flair first, as the Medical Decathlon does."""

    def write(folder, images, label, order, *, spacing=(1, 1, 1)):
        stored = np.stack([reorder(volume, order)[0] for volume in images[[3, 0, 1, 2]]], axis=-1)
        mask, affine = reorder(label, order)
        affine[:3, :3] *= spacing
        path = write_nifti(folder / "BRATS_001.nii.gz", stored, affine)
        return Case(
            ONE,
            ONE,
            dict.fromkeys(SEQUENCES, path),
            label=write_nifti(folder / "labels" / "BRATS_001.nii.gz", mask, affine),
            channels={"flair": 0, "t1": 1, "t1ce": 2, "t2": 3},
        )

    return write


@pytest.mark.parametrize("order", ["LPS", "RAS", "PIR"])
def test_sequences_in_one_file(tmp_path, write_as, in_one_file, patient, order, equal_views):
    expected = preprocess(write_as(tmp_path / "a", *patient, "LPS"), BRATS_2020)
    case = in_one_file(tmp_path / "b", *patient, order)
    result = preprocess(case, BRATS_2020)
    torch.testing.assert_close(result.image, expected.image, rtol=0, atol=1e-6)
    torch.testing.assert_close(result.statistics, expected.statistics, rtol=0, atol=1e-6)
    assert equal_views(result.views, expected.views)
    np.testing.assert_array_equal(result.label, expected.label)
    np.testing.assert_array_equal(result.grid.restore(result.label), read_voxels(case.label))
    fewer = {name: path for name, path in case.sequences.items() if name != "t1"}
    assert not preprocess(replace(case, sequences=fewer), BRATS_2020).image[0].any()


def test_a_fault_in_one_of_the_volumes_of_a_file(tmp_path, in_one_file, patient):
    images, label = patient
    images[1] = 0
    case = in_one_file(tmp_path, images, label, "LPS")
    assert faults_of(case) == (
        f"{case.sequences['t1ce']}: every voxel of t1ce is 0; export the sequence again",
    )


# The way back


@pytest.mark.parametrize("spacing", [(1, 1, 3), (0.5, 2, 0.9)])
@pytest.mark.parametrize("order", ["LPS", "RAS", "ASL"])
def test_the_way_back_from_voxels_that_are_no_cubes(tmp_path, in_one_file, patient, order, spacing):
    case = in_one_file(tmp_path, *patient, order, spacing=spacing)
    ready = preprocess(case, BRATS_2020)
    assert ready.grid.box == ((1, 12), (2, 16), (3, 10))
    np.testing.assert_array_equal(ready.grid.restore(ready.label), read_voxels(case.label))
    back = ready.grid.restore(ready.image.numpy())
    assert back.shape == (4, *read_voxels(case.label).shape)
    raw = np.moveaxis(read_voxels(case.sequences["t1"], axes=4), -1, 0)[[1, 2, 3, 0]]
    np.testing.assert_array_equal(back != 0, raw != 0)
    for z_scored, intensities in zip(back, raw, strict=True):  # ranks survive clipping and scaling
        ranked = np.argsort(intensities[intensities != 0], kind="stable")
        assert (np.diff(z_scored[intensities != 0][ranked]) >= 0).all()


@pytest.mark.parametrize("tilt", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_restore_is_the_way_back(tmp_path, write_as, patient, order, tilt):
    case = write_as(tmp_path, *patient, order, tilt=tilt)
    ready = preprocess(case, BRATS_2020)
    restored = ready.grid.restore(ready.label)
    np.testing.assert_array_equal(restored, read_voxels(case.label))
    assert restored.dtype == np.uint8
    assert restored.flags["C_CONTIGUOUS"]
    write_label(tmp_path / "out.nii.gz", restored, source=case.sequences["t1"])
    written, source = nib.load(tmp_path / "out.nii.gz"), nib.load(case.label)
    np.testing.assert_array_equal(written.affine, source.affine)
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(source.dataobj))


# Intensities


def test_brain_voxels_are_z_scored(tmp_path, write_case, patient):
    images, label = patient
    images[1] = images[1] // 3 + 20 * (images[1] > 0)
    images[2, 5:] = 0  # a sequence with a smaller field of view
    ready = preprocess(case_of(write_case, tmp_path, images=images, label=label), BRATS_2020)
    raw = torch.from_numpy(images[:, 1:12, 2:16, 3:10])
    for volume, stored in zip(ready.image, raw, strict=True):
        assert (volume[stored == 0] == 0).all()
        inside = volume[stored != 0]
        assert float(inside.mean()) == pytest.approx(0, abs=1e-5)
        assert float(inside.std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_statistics_are_in_the_units_of_the_image(tmp_path, write_case, patient):
    images, label = patient
    images[0, 4, 4, 4] = 30_000
    ready = preprocess(case_of(write_case, tmp_path, images=images, label=label), BRATS_2020)
    low, high, mean, std = ready.statistics.T
    torch.testing.assert_close(low, ready.image.flatten(1).min(1).values)
    torch.testing.assert_close(high, ready.image.flatten(1).max(1).values)
    assert torch.equal(mean, torch.zeros(4))
    assert torch.equal(std, torch.ones(4))


def test_statistics_match_those_of_the_image_itself(tmp_path, write_case):
    ready = preprocess(case_of(write_case, tmp_path), BRATS_2020)
    torch.testing.assert_close(
        ready.statistics, intensity_statistics(ready.image[None])[0], rtol=0, atol=1e-4
    )


def test_a_hot_voxel_does_not_squeeze_the_others(tmp_path, write_case, patient):
    images, label = patient
    cool = preprocess(
        case_of(write_case, tmp_path / "a", images=images, label=label), BRATS_2020
    ).image
    hot = images.copy()
    hot[0, 6, 8, 5] = 32_767
    squeezed = preprocess(
        case_of(write_case, tmp_path / "b", images=hot, label=label), BRATS_2020
    ).image
    others = torch.from_numpy(hot == images)[:, 1:12, 2:16, 3:10]
    assert float((squeezed - cool)[others].abs().max()) < 0.1
    assert float(squeezed.abs().max()) < 3


@pytest.mark.parametrize("factor", [0.25, 40])
def test_the_unit_of_the_scanner_does_not_matter(tmp_path, write_case, patient, factor):
    images, label = patient
    one = case_of(write_case, tmp_path / "a", images=images, label=label)
    scaled = images * np.float32(factor)
    other = case_of(write_case, tmp_path / "b", images=scaled, label=label)
    torch.testing.assert_close(
        preprocess(one, BRATS_2020).image,
        preprocess(other, BRATS_2020).image,
        rtol=0,
        atol=1e-4,
    )


def test_negative_intensities_are_brain(tmp_path, write_case, patient):
    images, label = patient
    images[0] -= 500 * (images[0] != 0).astype(np.int16)
    images[0, 6, 8, 5] = -1200
    ready = preprocess(case_of(write_case, tmp_path, images=images, label=label), BRATS_2020)
    inside = ready.image[0][torch.from_numpy(images[0] != 0)[1:12, 2:16, 3:10]]
    assert float(inside.mean()) == pytest.approx(0, abs=1e-5)
    assert float(inside.std(correction=0)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("selection", [None, "center", "energy", "attention", "volume_center"])
def test_views_are_those_of_the_whole_volume(tmp_path, write_case, patient, selection, equal_views):
    images, label = patient
    case = case_of(write_case, tmp_path, images=images, label=label)
    chosen = {} if selection is None else {"view_selection": selection}
    ready = preprocess(case, BRATS_2020, **chosen)
    complete = torch.from_numpy(images.astype(np.float32))[None]
    expected = cut_views(complete, selection=selection or "center")
    assert equal_views(ready.views, Views(expected.images[0], expected.planes[0]))
    assert ready.views.images.max() > 200


# Faults


def test_a_sequence_without_signal(tmp_path, write_case, patient):
    images, label = patient
    images[1] = 0
    case = case_of(write_case, tmp_path, images=images, label=label)
    (fault,) = faults_of(case)
    assert fault == (
        f"{case.sequences['t1ce']}: every voxel of t1ce is 0; export the sequence again"
    )


@pytest.mark.parametrize("spots", [0, 3])
def test_a_sequence_without_contrast(tmp_path, write_case, patient, spots):
    """A mask in the place of a scan, say; a few odd voxels make no scan of it."""
    images, label = patient
    images[2] = 300 * (images[2] != 0)
    images[2, 6, 8, 5 : 5 + spots] = 9000
    case = case_of(write_case, tmp_path, images=images, label=label)
    (fault,) = faults_of(case)
    assert fault == (
        f"{case.sequences['t2']}: voxels of t2 are 300 to 300 all over the brain; export the "
        "sequence again"
    )


@pytest.mark.parametrize("factor", [1e36, 1e100])
def test_numbers_that_are_too_large_to_compute_with(tmp_path, write_case, patient, factor):
    images, label = patient
    case = case_of(write_case, tmp_path, label=label)
    image = nib.Nifti1Image(images[3].astype(np.float64) * factor, nib.load(case.label).affine)
    nib.save(image, case.sequences["flair"])
    (fault,) = faults_of(case)
    assert fault.startswith(f"{case.sequences['flair']}: voxels of flair are ")
    assert fault.endswith(" all over the brain; export the sequence again")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_voxel_that_is_no_number(tmp_path, write_case, patient, value):
    images, label = patient
    images = images.astype(np.float32)
    images[0, 6, 8, 5] = value
    case = case_of(write_case, tmp_path, images=images, label=label)
    (fault,) = faults_of(case)
    assert fault.startswith(f"{case.sequences['t1']}: 1 voxels are NaN or infinite;")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (3, "holds label 3, but brats2020 has 0, 1, 2, 4; name the release that the case is from"),
        (1.5, "holds 1.5, no whole number; threshold probabilities"),
        (np.nan, "1 voxels are NaN or infinite"),
    ],
)
def test_a_value_that_is_no_label_of_the_release(tmp_path, write_case, patient, value, reason):
    images, label = patient
    label = label.astype(np.float32)
    label[6, 8, 5] = value
    case = case_of(write_case, tmp_path, images=images, label=label)
    (fault,) = faults_of(case)
    assert fault.startswith(f"{case.label}: {reason}")


def test_labels_that_are_whole_but_for_rounding(tmp_path, write_case, patient):
    images, label = patient
    rounded = label.astype(np.float32) - np.float32(1e-4) * (label > 0)
    rounded[0] = 1e-4  # outside the brain, where a label would be one too many
    case = case_of(write_case, tmp_path, images=images, label=rounded)
    np.testing.assert_array_equal(preprocess(case, BRATS_2020).label, label[1:12, 2:16, 3:10])


def test_a_mask_without_tumour(tmp_path, write_case, patient):
    images, label = patient
    ready = preprocess(case_of(write_case, tmp_path, images=images, label=0 * label), BRATS_2020)
    assert ready.label.shape == (11, 14, 7)
    assert not ready.label.any()


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64, np.int64])
def test_labels_may_be_stored_as_any_number(tmp_path, write_case, patient, dtype):
    images, label = patient
    case = case_of(write_case, tmp_path, images=images)
    stored = nib.Nifti1Image(label.astype(dtype), nib.load(case.label).affine, dtype=dtype)
    nib.save(stored, case.label)
    ready = preprocess(case, BRATS_2020)
    assert ready.label.dtype == np.uint8
    np.testing.assert_array_equal(ready.grid.restore(ready.label), label)


def test_all_faults_of_a_case_at_once(tmp_path, write_case, write_nifti, patient):
    images, label = patient
    images = images.astype(np.float32)
    images[2, 5, 5, 5] = np.inf
    images[3] = 0
    label[6, 8, 5] = 3
    case = case_of(write_case, tmp_path, images=images, label=label)
    case.sequences["t1"].write_bytes(case.sequences["t1"].read_bytes()[:900])
    case.sequences["t1ce"].unlink()
    assert [fault.split(": ")[0] for fault in faults_of(case)] == [
        *(str(case.sequences[s]) for s in SEQUENCES),
        str(case.label),
    ]


def test_files_of_different_shapes(tmp_path, write_case, write_nifti):
    case = case_of(write_case, tmp_path)
    write_nifti(case.sequences["t2"], np.ones((17, 13, 11), np.int16))
    (fault,) = faults_of(case)
    assert ONE in fault
    assert "(17, 13, 11)" in fault


# Real data, where there is some


@pytest.mark.skipif(
    "CLIPSEG3D_BRATS_DIR" not in os.environ,
    reason="set CLIPSEG3D_BRATS_DIR to a folder with the brats2018 cases to test on real ones",
)
def test_real_cases():
    root = Path(os.environ["CLIPSEG3D_BRATS_DIR"])
    root = root / "brats2018" if (root / "brats2018").is_dir() else root
    cases = find_cases(root, BRATS_2018)
    folders = {path.parent for path in root.rglob("*_t1ce.nii*")}
    assert {case.case_id for case in cases} == {folder.name for folder in folders}
    case = cases[0]
    ready = preprocess(case, BRATS_2018)
    assert ready.grid.shape == (240, 240, 155)
    starts, stops = np.transpose(ready.grid.box)
    assert (starts >= 0).all()
    assert (stops <= (240, 240, 155)).all()
    assert ready.image.shape[1:] == tuple(stops - starts)
    inside = ready.image[ready.image != 0]
    assert float(inside.mean()) == pytest.approx(0, abs=1e-3)
    np.testing.assert_array_equal(ready.grid.restore(ready.label), read_voxels(case.label))
