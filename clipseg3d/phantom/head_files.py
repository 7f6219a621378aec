"""Simulated heads as the files of one patient."""

from pathlib import Path

import nibabel as nib

from clipseg3d.atomic_write import atomic_folder
from clipseg3d.phantom.head import Head


def write_head(head: Head, root: Path, name: str) -> Path:
    """Write the scans of a head as ``root / name / NAME_t1.nii.gz`` and so on, all or nothing.

    Args:
        head: what to write; the truth about it is not written.
        root: folder of patients; made if missing.
        name: of the patient's folder.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder exists; it stays unchanged.
        OSError: ``root`` cannot be written.
    """
    target = root / name
    if target.exists():
        raise FileExistsError(f"{target} exists; choose another name, or delete that folder first")
    with atomic_folder(target) as tmp:
        for sequence, scan in head.scans.items():
            image = nib.Nifti1Image(scan.voxels, scan.affine)
            image.set_qform(scan.affine, code=1)
            image.set_sform(scan.affine, code=1)
            image.header.set_xyzt_units("mm")
            nib.save(image, tmp / f"{name}_{sequence}.nii.gz")
    return target
