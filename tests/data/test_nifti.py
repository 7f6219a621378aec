"""Mirrors clipseg3d/data/nifti.py."""

import errno
import gzip
import os
import struct
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from clipseg3d.data.nifti import (
    geometry_notes,
    open_nifti,
    read_voxels,
    strip_extension,
    write_label,
    write_map,
)

SHAPE = (4, 6, 5)
LPS = np.array([[-1, 0, 0, 3], [0, -1, 0, 239], [0, 0, 1, -7], [0, 0, 0, 1]], dtype=float)
RAS = np.array([[2, 0, 0, -90], [0, 3, 0, -126], [0, 0, 1.5, -72], [0, 0, 0, 1]], dtype=float)
PIR = np.array([[0, 0, 1, -20], [-1, 0, 0, 30], [0, -1, 0, 40], [0, 0, 0, 1]], dtype=float)


def oblique():
    a, b = 0.3, -0.2
    about_z = [[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]
    about_x = [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    affine = np.eye(4)
    affine[:3, :3] = np.array(about_z) @ about_x @ np.diag([-1, -1.25, 2])
    affine[:3, 3] = 11, -12, 13
    return affine


AFFINES = {"LPS": LPS, "RAS": RAS, "PIR": PIR, "oblique": oblique()}


def voxels(dtype=np.int16):
    return np.random.default_rng(0).integers(1, 90, SHAPE).astype(dtype)


def label_map():
    return np.random.default_rng(1).choice([0, 1, 2, 4], SHAPE).astype(np.uint8)


def save_raw(path, dtype, array, *, slope=np.nan, inter=np.nan):
    """Write stored values as they are, with a scaling that readers must apply."""
    image = nib.Nifti1Image(array.astype(dtype), LPS)
    image.header.set_data_dtype(dtype)
    image.header.set_slope_inter(slope, inter)
    nib.save(image, path)
    return path


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a_t1.nii.gz", "a_t1"),
        ("a_t1.nii", "a_t1"),
        ("W39_1998.09.19_Segm.nii", "W39_1998.09.19_Segm"),
        ("a.b.nii.gz", "a.b"),
        ("a.nii.gz.part", None),
        ("a.gz", None),
        ("nii", None),
        ("report.txt", None),
    ],
)
def test_strip_extension(name, stem):
    assert strip_extension(name) == stem


@pytest.mark.parametrize("ext", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64, np.float32, np.float64])
def test_reads_every_usual_number_type(tmp_path, dtype, ext):
    stored = voxels(dtype)
    nib.save(nib.Nifti1Image(stored, LPS, dtype=dtype), tmp_path / f"a{ext}")
    read = read_voxels(tmp_path / f"a{ext}")
    assert read.shape == SHAPE
    np.testing.assert_array_equal(read, stored)


def test_reads_big_endian_files(tmp_path):
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    nib.save(nib.Nifti1Image(voxels(), LPS, header), tmp_path / "a.nii")
    assert (tmp_path / "a.nii").read_bytes()[:4] == (348).to_bytes(4, "big")
    np.testing.assert_array_equal(read_voxels(tmp_path / "a.nii"), voxels())


def test_honours_the_scaling_in_the_header(tmp_path):
    path = save_raw(tmp_path / "a.nii", np.int16, voxels())
    data = bytearray(path.read_bytes())
    data[112:120] = np.array([0.5, -3], "<f4").tobytes()  # scl_slope, scl_inter
    path.write_bytes(data)
    np.testing.assert_allclose(read_voxels(path), voxels() * 0.5 - 3)


def test_counts_voxels_that_are_no_numbers(tmp_path):
    bad = voxels(np.float32)
    bad[0, 1, 2] = np.nan
    bad[3, 5, 4] = np.inf
    bad[2, 0, 0] = -np.inf
    nib.save(nib.Nifti1Image(bad, LPS), tmp_path / "a.nii.gz")
    with pytest.raises(ValueError, match=r"a\.nii\.gz: 3 voxels are NaN or infinite; repeat"):
        read_voxels(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("dtype", [np.complex64, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])])
def test_refuses_voxels_that_are_not_real(tmp_path, dtype):
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, dtype), LPS), tmp_path / "a.nii")
    with pytest.raises(ValueError, match=r"a\.nii: voxels are .*, expected real numbers"):
        read_voxels(tmp_path / "a.nii")


def empty(path):
    path.write_bytes(b"")


def cut_voxels(path):
    path.write_bytes(path.read_bytes()[:-60])


def cut_header(path):
    path.write_bytes(path.read_bytes()[:90])


def web_page(path):
    path.write_text("<html>404 not found</html>")


def wrong_magic(path):
    gz = path.name.endswith(".gz")
    data = bytearray(gzip.decompress(path.read_bytes()) if gz else path.read_bytes())
    data[344:348] = b"nope"
    path.write_bytes(gzip.compress(bytes(data)) if gz else data)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (empty, "the file is empty"),
        (cut_voxels, "not a readable NIfTI file|declares .* more than the file holds"),
        (cut_header, "not a readable NIfTI file"),
        (web_page, "is a web page, not NIfTI; download the file itself"),
        (wrong_magic, "not a readable NIfTI file"),
    ],
)
def test_broken_files_are_named_with_a_cure(tmp_path, name, spoil, reason):
    path = tmp_path / name
    nib.save(nib.Nifti1Image(voxels(), LPS), path)
    spoil(path)
    with pytest.raises(ValueError, match=reason) as error:
        read_voxels(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert message.endswith(("copy or download it again", "download the file itself"))
    assert "\n" not in message


@pytest.mark.parametrize(
    ("position", "value"), [(70, 999), (42, -5), (40, 9)], ids=["datatype", "dim[1]", "dim[0]"]
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_impossible_headers_are_named_with_a_cure(tmp_path, name, position, value):
    nib.save(nib.Nifti1Image(voxels(), LPS), tmp_path / "good.nii")
    data = bytearray((tmp_path / "good.nii").read_bytes())
    data[position : position + 2] = value.to_bytes(2, "little", signed=True)
    path = tmp_path / name
    path.write_bytes(gzip.compress(bytes(data)) if name.endswith(".gz") else data)
    with pytest.raises(ValueError, match="not a readable NIfTI file") as error:
        read_voxels(path)
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize("lost", [1, 8])
def test_a_download_that_stopped_just_before_the_end(tmp_path, lost):
    path = tmp_path / "a.nii.gz"
    noise = np.random.default_rng(0).integers(0, 9999, (48, 48, 48), np.int16)
    nib.save(nib.Nifti1Image(noise, LPS), path)  # so large that its header is read without its end
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(ValueError, match=r"not a readable NIfTI file \(it is cut off\)"):
        read_voxels(path)


def test_a_flipped_bit_in_a_compressed_file_is_found(tmp_path):
    path = tmp_path / "a.nii.gz"
    image = nib.Nifti1Image(voxels(), LPS)
    data = bytearray(gzip.compress(image.to_bytes(), compresslevel=0))
    data[-30] ^= 1  # in the voxels: without compression it still reads as a number
    path.write_bytes(data)
    with pytest.raises(ValueError, match="not a readable NIfTI file"):
        read_voxels(path)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 5, 2), (4, 6, 5, 1, 2)])
def test_refuses_other_than_three_axes(tmp_path, shape):
    nib.save(nib.Nifti1Image(np.ones(shape, np.int16), LPS), tmp_path / "a.nii.gz")
    with pytest.raises(ValueError, match=rf"a\.nii\.gz: has {len(shape)} axes .*one 3D volume"):
        open_nifti(tmp_path / "a.nii.gz")


def test_refuses_other_image_formats(tmp_path):
    path = tmp_path / "a.mgz"
    nib.save(nib.MGHImage(voxels(np.float32), LPS), path)
    with pytest.raises(ValueError, match=r"a\.mgz: not a NIfTI volume; convert it"):
        open_nifti(path)


@pytest.mark.parametrize("name", ["absent.nii.gz", "folder.nii"])
def test_missing_file(tmp_path, name):
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(FileNotFoundError, match=f"{name}: no such file; check the path"):
        open_nifti(tmp_path / name)


def scan(path, affine, *, qform=1, sform=2):
    """Write a scan whose header says more than its shape."""
    image = nib.Nifti1Image(voxels(), affine)
    image.set_qform(affine, code=qform)
    image.set_sform(affine, code=sform)
    header = image.header
    header.set_xyzt_units("mm", "sec")
    header["descrip"] = b"skull-stripped"
    header["aux_file"] = b"atlas"
    header["cal_min"], header["cal_max"] = 5, 900
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"kept"))
    nib.save(image, path)
    return path


@pytest.mark.parametrize("codes", [(1, 1), (1, 2), (0, 1), (1, 0), (4, 3)])
@pytest.mark.parametrize("axes", AFFINES)
def test_a_written_label_lies_where_its_scan_lies(tmp_path, axes, codes):
    source = scan(tmp_path / "scan.nii.gz", AFFINES[axes], qform=codes[0], sform=codes[1])
    write_label(tmp_path / "label.nii.gz", label_map(), source=source)
    before, after = nib.load(source), nib.load(tmp_path / "label.nii.gz")
    np.testing.assert_array_equal(np.asarray(after.dataobj), label_map())
    np.testing.assert_array_equal(after.affine, before.affine)
    np.testing.assert_allclose(after.affine, AFFINES[axes], atol=1e-4)
    for form in ("get_qform", "get_sform"):
        (old, old_code), (new, new_code) = (getattr(i, form)(coded=True) for i in (before, after))
        assert new_code == old_code
        np.testing.assert_array_equal(new, old)
    assert (int(after.header["qform_code"]), int(after.header["sform_code"])) == codes


GEOMETRY = {
    *("dim", "pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c"),
    *("quatern_d", "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
}


def test_a_written_label_has_geometry_and_units_of_its_scan_and_no_names(tmp_path):
    source = scan(tmp_path / "scan.nii", oblique())
    image = nib.load(source)
    image.header["descrip"] = b"Doe^Jane 1960-01-01"
    image.header["aux_file"] = b"Doe"
    image.header.set_intent("vector", name="Doe")
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Doe^Jane"))
    nib.save(image, tmp_path / "named.nii")
    write_label(tmp_path / "label.nii", label_map(), source=tmp_path / "named.nii")
    assert b"Doe" in (tmp_path / "named.nii").read_bytes()
    assert b"Doe" not in (tmp_path / "label.nii").read_bytes()
    before, after = (nib.load(tmp_path / name).header for name in ("named.nii", "label.nii"))
    assert all(before[key].tobytes() == after[key].tobytes() for key in GEOMETRY)
    assert after.get_data_dtype() == np.uint8
    assert after.get_intent()[0] == "none"
    assert (float(after["cal_min"]), float(after["cal_max"])) == (0, 0)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".NII.GZ"])
def test_a_fourth_axis_of_one_is_read(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    nib.save(nib.Nifti1Image(voxels()[..., None], LPS), path)
    np.testing.assert_array_equal(read_voxels(path), voxels())
    write_label(tmp_path / "label.nii.gz", label_map(), source=path)
    assert nib.load(tmp_path / "label.nii.gz").shape == label_map().shape


def test_a_file_of_the_wrong_ending_says_how_to_rename_it(tmp_path):
    nib.save(nib.Nifti1Image(voxels(), LPS), tmp_path / "a.nii")
    nib.save(nib.Nifti1Image(voxels(), LPS), tmp_path / "b.nii.gz")
    (tmp_path / "a.nii").rename(tmp_path / "plain.nii.gz")
    (tmp_path / "b.nii.gz").rename(tmp_path / "zipped.nii")
    with pytest.raises(ValueError, match=r"not compressed .* rename it to plain\.nii$"):
        read_voxels(tmp_path / "plain.nii.gz")
    with pytest.raises(ValueError, match=r"compressed although .* rename it to zipped\.nii\.gz$"):
        read_voxels(tmp_path / "zipped.nii")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (bytes(128) + b"DICM", "is DICOM, not NIfTI; .*dcm2niix"),
        (b"NRRD0004\n", "is NRRD, not NIfTI"),
        (b"ObjectType = Image\n", "is MetaImage, not NIfTI"),
        (b"PK\x03\x04", "is a zip archive"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
    ],
)
def test_other_formats_are_named_with_a_cure(tmp_path, head, message):
    path = tmp_path / "a.nii"
    path.write_bytes(head + bytes(400))
    with pytest.raises(ValueError, match=rf"a\.nii: {message}|a\.nii: is a {message}"):
        open_nifti(path)


def test_a_gzip_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(voxels(), LPS), path)
    path.write_bytes(path.read_bytes() + gzip.compress(bytes(1 << 24), 9) * 64)
    tracemalloc.start()
    with pytest.raises(ValueError, match="holds more than its header declares"):
        read_voxels(path)
    assert tracemalloc.get_traced_memory()[1] < 2**25
    tracemalloc.stop()


@pytest.mark.parametrize("dims", [(0, 60, 39), (32767, 32767, 32767)])
def test_impossible_sizes_are_a_fault_of_the_file(tmp_path, dims):
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(voxels(), LPS), path)
    data = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into("<4h", data, 40, 3, *dims)
    path.write_bytes(gzip.compress(bytes(data)))
    fault = r"a\.nii\.gz: (has an axis of length 0|its header declares)"
    with pytest.raises(ValueError, match=fault):
        open_nifti(path)


def test_doubtful_geometry_is_noted(tmp_path):
    def notes(sform, qform, other=None):
        image = nib.Nifti1Image(voxels(), LPS)
        image.set_sform(LPS, code=sform)
        image.set_qform(LPS if other is None else other, code=qform)
        nib.save(image, tmp_path / "a.nii")
        return geometry_notes(tmp_path / "a.nii")

    assert notes(1, 1) == notes(2, 0) == notes(0, 1) == []
    (note,) = notes(0, 0)
    assert "does not say how it lies in space; LAS is assumed" in note
    moved = np.array(LPS)
    moved[0, 3] += 7
    (note,) = notes(1, 1, moved)
    assert "sform and qform disagree by up to 7 mm; the sform is used" in note
    nib.save(nib.Nifti1Image(voxels(), np.eye(4)), tmp_path / "b.nii")
    (note,) = geometry_notes(tmp_path / "b.nii")
    assert "identity affine" in note
    assert "RAS is assumed" in note


def test_the_scaling_of_the_scan_does_not_change_labels(tmp_path):
    source = save_raw(tmp_path / "scan.nii.gz", np.int16, voxels(), slope=0.25, inter=7)
    write_label(tmp_path / "label.nii.gz", label_map(), source=source)
    np.testing.assert_array_equal(read_voxels(tmp_path / "label.nii.gz"), label_map())


def test_labels_fit_a_scan_of_floats_and_other_integers(tmp_path):
    source = save_raw(tmp_path / "scan.nii", np.float64, voxels())
    write_label(tmp_path / "label.nii", label_map().astype(np.int64), source=source)
    stored = nib.load(tmp_path / "label.nii")
    assert stored.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(stored.dataobj), label_map())


def test_writing_makes_the_folder_and_leaves_the_source_alone(tmp_path):
    source = scan(tmp_path / "scan.nii.gz", RAS)
    before = source.read_bytes(), source.stat().st_mtime_ns
    write_label(tmp_path / "new" / "deep" / "label.nii.gz", label_map(), source=source)
    assert (source.read_bytes(), source.stat().st_mtime_ns) == before
    assert [p.name for p in (tmp_path / "new" / "deep").iterdir()] == ["label.nii.gz"]


def test_writing_replaces_an_older_file(tmp_path):
    source = scan(tmp_path / "scan.nii.gz", LPS)
    target = tmp_path / "label.nii.gz"
    write_label(target, np.zeros(SHAPE, np.uint8), source=source)
    write_label(target, label_map(), source=source)
    np.testing.assert_array_equal(read_voxels(target), label_map())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["label.nii.gz", "scan.nii.gz"]


@pytest.mark.parametrize("older", [True, False])
def test_a_failed_save_leaves_no_trace(tmp_path, monkeypatch, older):
    source = scan(tmp_path / "scan.nii.gz", LPS)
    target = tmp_path / "out" / "label.nii.gz"
    target.parent.mkdir()
    if older:
        write_label(target, label_map(), source=source)
    before = {p.name: p.read_bytes() for p in target.parent.iterdir()}

    def fill_the_disk(image, path):
        Path(path).write_bytes(b"half a file")
        raise OSError("No space left on device")

    monkeypatch.setattr(nib, "save", fill_the_disk)
    with pytest.raises(OSError, match=r"label\.nii\.gz: cannot be written \(No space left.*; free"):
        write_label(target, np.zeros(SHAPE, np.uint8), source=source)
    assert {p.name: p.read_bytes() for p in target.parent.iterdir()} == before


def test_refuses_another_ending(tmp_path):
    source = scan(tmp_path / "scan.nii.gz", LPS)
    with pytest.raises(
        ValueError, match=r"label\.mha: is not a name of a \.nii\.gz or \.nii file; rename it"
    ):
        write_label(tmp_path / "label.mha", label_map(), source=source)
    assert [p.name for p in tmp_path.iterdir()] == ["scan.nii.gz"]


def test_refuses_a_label_of_another_shape(tmp_path):
    source = scan(tmp_path / "scan.nii.gz", LPS)
    with pytest.raises(ValueError, match=r"scan\.nii\.gz: shape \(4, 6, 5\) .*\(6, 4, 5\) .*label"):
        write_label(tmp_path / "label.nii.gz", label_map().swapaxes(0, 1), source=source)
    assert [p.name for p in tmp_path.iterdir()] == ["scan.nii.gz"]


def test_reads_a_file_of_four_axes_where_it_is_due(tmp_path):
    nib.save(nib.Nifti1Image(np.stack([voxels(), 2 * voxels()], axis=-1), LPS), tmp_path / "a.nii")
    assert open_nifti(tmp_path / "a.nii", axes=4).shape == (*SHAPE, 2)
    np.testing.assert_array_equal(read_voxels(tmp_path / "a.nii", axes=4)[..., 1], 2 * voxels())
    nib.save(nib.Nifti1Image(voxels(), LPS), tmp_path / "b.nii")
    with pytest.raises(ValueError, match=r"b\.nii: has 3 axes .*, expected 4 .*all sequences in"):
        read_voxels(tmp_path / "b.nii", axes=4)


def test_a_label_of_a_file_of_four_axes_has_three(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((*SHAPE, 4), np.float32), oblique()), tmp_path / "a.nii.gz")
    write_label(tmp_path / "label.nii.gz", label_map(), source=tmp_path / "a.nii.gz", axes=4)
    stored = open_nifti(tmp_path / "label.nii.gz")
    np.testing.assert_array_equal(np.asarray(stored.dataobj), label_map())
    np.testing.assert_allclose(stored.affine, oblique(), atol=1e-4)
    np.testing.assert_allclose(
        stored.header.get_zooms(), nib.load(tmp_path / "a.nii.gz").header.get_zooms()[:3]
    )


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(voxels(), LPS), path)

    def refuse(self, *args, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(
        ValueError, match=r"a\.nii\.gz: cannot be opened \(Permission denied\); check"
    ):
        open_nifti(path)


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "a.nii")
    with pytest.raises(FileNotFoundError, match=r"a\.nii: no such file"):
        open_nifti(tmp_path / "a.nii")


def test_links_that_lead_nowhere(tmp_path):
    (tmp_path / "a.nii").symlink_to("gone.nii")
    with pytest.raises(
        FileNotFoundError, match=r"a\.nii: a link to gone\.nii, which is not a file"
    ):
        open_nifti(tmp_path / "a.nii")
    (tmp_path / "b.nii").symlink_to("b.nii")
    with pytest.raises(ValueError, match=r"b\.nii: cannot be opened \(Too many levels"):
        open_nifti(tmp_path / "b.nii")


def test_a_name_that_is_too_long(tmp_path):
    with pytest.raises(
        ValueError, match=r"cannot be opened \(File name too long\); check its perm"
    ):
        open_nifti(tmp_path / f"{'x' * 300}.nii")


def test_a_map_is_float32_on_the_grid_of_its_scan(tmp_path):
    source = scan(tmp_path / "scan.nii.gz", oblique())
    values = np.random.default_rng(2).random(SHAPE)
    write_map(tmp_path / "map.nii.gz", values, source=source)
    before, after = nib.load(source), nib.load(tmp_path / "map.nii.gz")
    assert after.get_data_dtype() == np.float32
    np.testing.assert_allclose(np.asarray(after.dataobj), values, rtol=2**-11)
    np.testing.assert_array_equal(after.affine, before.affine)
    assert (float(after.header["cal_min"]), float(after.header["cal_max"])) == (0, 0)


def test_a_map_of_a_scan_of_four_axes_has_three(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((*SHAPE, 4), np.int16), LPS), tmp_path / "a.nii.gz")
    write_map(tmp_path / "map.nii.gz", np.ones(SHAPE), source=tmp_path / "a.nii.gz", axes=4)
    assert nib.load(tmp_path / "map.nii.gz").shape == SHAPE


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    source = scan(tmp_path / "scan.nii.gz", LPS)
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OSError, match=r"label\.nii\.gz: cannot be written \("):
        write_label(tmp_path / "taken" / "label.nii.gz", label_map(), source=source)
    assert (tmp_path / "taken").read_text() == "a file"
