"""One patient, from scans of heads to a case in the grid of BraTS."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.affines import apply_affine, voxel_sizes
from scipy import ndimage
from tqdm import tqdm

from clipseg3d import __version__
from clipseg3d.atomic_write import atomic_folder
from clipseg3d.data.cases import Case, DataError, case_from_files
from clipseg3d.data.releases import PHANTOM
from clipseg3d.data.resampling import carry, carry_brain
from clipseg3d.prepare import atlas
from clipseg3d.prepare.bias_field import correct_bias
from clipseg3d.prepare.brain_extraction import ENGINES, extract_brain, locate_brain
from clipseg3d.prepare.extra import import_extra
from clipseg3d.prepare.native_scan import NativeScan
from clipseg3d.prepare.page import save_page
from clipseg3d.prepare.record import RECORD_SUFFIX, describe_scan
from clipseg3d.prepare.registration import Fit, register, rigid_part, to_itk
from clipseg3d.prepare.volume import Affine, Bool, Volume
from clipseg3d.ranges import require_names
from clipseg3d.vocabulary import SEQUENCES

PAGE_SUFFIX = "_prepare.png"
MIN_OVERLAP = 0.6
"""Share of the brain that must lie in the field of view of a sequence."""
CUT_OFF = 0.97
"""Share below which the user is told that a sequence is cut off."""
MAX_MISS_MM = 15.0
"""How far the brain of a sequence may be from where registration says that it is. A network finds
it within 2 mm in simulated heads; registration that has failed is off by 25 mm and more."""
MIN_AGREEMENT = 0.85
"""Dice of a brain and the atlas, after registration with a factor."""
SCALES = (0.75, 1.25)
"""Least and largest size of a brain, as a factor of that of the atlas."""
MARGIN_MM = 8.0
"""How far around the brain sequences are to fit: the skull is part of a head, the neck is not."""
MAX_NEGATIVE = 0.01
"""Share of a brain that may be below 0."""
_THIN_MM = 2.0
"""Voxels of T1 up to this size are as good as those of T1ce, to find the brain in."""


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case in the grid of BraTS, and how it got there.

    Attributes:
        case_id: name of the case.
        sequences: sequence -> (240, 240, 155) float32, the brain alone, at 1 mm, in LPS order.
        scans: sequence -> the scan that it was made of.
        matrices: sequence -> 4 x 4 rigid, from mm of the case to mm of the scan.
        record: what was done, as plain values. Of the patient, it holds the name of the case alone.
        notes: what is missing, unusual or in doubt, a line each.
    """

    case_id: str
    sequences: Mapping[str, npt.NDArray[np.float32]] = field(repr=False)
    scans: Mapping[str, NativeScan] = field(repr=False)
    matrices: Mapping[str, Affine] = field(repr=False)
    record: Mapping[str, Any] = field(repr=False)
    notes: tuple[str, ...]

    def save(self, root: Path) -> Path:
        """Write a case folder that ``clipseg3d segment`` reads, all or nothing.

        Beside the sequences, it holds the record, the picture of each step, and for each scan a
        transform of ITK, ``CASE_t1.tfm``, which resamples it to the grid of the case.

        Returns:
            The folder, ``root / case_id``.

        Raises:
            FileExistsError: the folder exists; it stays unchanged.
            OSError: ``root`` cannot be written.
        """
        target = root / self.case_id
        require_new(target)
        sitk = import_extra("SimpleITK", needed_for="a file of a transform")
        with atomic_folder(target) as tmp:
            for name, volume in self.sequences.items():
                image = nib.Nifti1Image(volume, atlas.AFFINE)
                image.set_qform(atlas.AFFINE, code=1)
                image.set_sform(atlas.AFFINE, code=1)
                image.header.set_xyzt_units("mm")
                nib.save(image, tmp / f"{PHANTOM.file_name(self.case_id, name)}.nii.gz")
                transform = to_itk(self.matrices[name])
                sitk.WriteTransform(transform, str(tmp / f"{self.case_id}_{name}.tfm"))
            record = json.dumps(self.record, indent=1)
            (tmp / f"{self.case_id}{RECORD_SUFFIX}").write_text(record + "\n", encoding="utf-8")
            save_page(tmp / f"{self.case_id}{PAGE_SUFFIX}", self)
        return target


def require_new(target: Path) -> None:
    """Raise a FileExistsError if there is a file or folder of this name."""
    if target.exists():
        raise FileExistsError(f"{target} exists; delete it, or choose another name (--name)")


def prepare_case(
    files: Mapping[str, Path],
    *,
    name: str | None = None,
    brain_extraction: str = "deepbet",
    n4: bool = True,
) -> PreparedCase:
    """Bring the scans of one patient to the grid of BraTS: brains alone, of 240x240x155 mm.

    The brain is found in T1ce, and in T1 as well where its voxels are small. All other sequences
    are registered to T1ce, rigidly, and T1ce to the atlas. There, a factor is found as well, to
    tell whether it is a brain, but only the rigid part is applied, as in BraTS: a millimetre stays
    one. Every sequence is interpolated once.

    Args:
        files: sequence -> NIfTI file; T1ce or T1 is among them.
        name: of the case; None takes that of the folder that holds the files.
        brain_extraction: ``deepbet``; ``hd-bet`` where it is installed; ``none`` for scans that
            hold the brain alone, with background 0.
        n4: whether the shading of coils is removed, by N4.

    Raises:
        ImportError: a library of the extra ``prepare`` is not installed.
        ValueError: a file is broken, holds no head or was normalised to values below 0, no sequence
            is T1-weighted, or a registration has failed.
    """
    require_names([brain_extraction], list(ENGINES), of="brain_extraction")
    case = case_from_files(files, name=name, allow_missing=True)
    reference = next(s for s in ("t1ce", "t1", *files) if s in files)
    if brain_extraction != "none" and reference not in ("t1ce", "t1"):
        raise ValueError(
            f"{case.case_id}: has {', '.join(files)} alone; the brain is found in a T1-weighted "
            "scan, so give --t1ce FILE or --t1 FILE"
        )
    steps = 2 * len(files) + 3
    with tqdm(total=steps, unit="step", delay=2, disable=None) as progress:
        return _Preparation(case, reference, brain_extraction, progress).run(n4=n4)


class _Preparation:
    """The steps, one after the other."""

    def __init__(self, case: Case, reference: str, engine: str, progress: Any) -> None:
        self._case_id, self._reference, self._engine = case.case_id, reference, engine
        self._progress = progress
        self._scans: dict[str, NativeScan] = {}
        faults = []
        self._step("reading scans")
        for name, path in case.files.items():
            try:
                self._scans[name] = NativeScan.read(path)
            except ValueError as error:
                faults.append(str(error))
        if faults:
            raise DataError(faults)
        self._notes = [note for scan in self._scans.values() for note in scan.notes]

    def run(self, *, n4: bool) -> PreparedCase:
        """Return the case."""
        scan = self._scans[self._reference]
        self._step(f"finding the brain in {self._reference}")
        mask = extract_brain(scan, self._engine)
        to_atlas, agreement = self._fit_to_atlas(scan, mask)
        matrices = {self._reference: rigid_part(to_atlas.matrix, about=atlas.centre_mm())}
        fits = {}
        for name in self._scans:
            if name != self._reference:
                fits[name] = self._fit_to_reference(name, mask)
                matrices[name] = fits[name].matrix @ matrices[self._reference]
        brain = self._brain({self._reference: mask}, matrices)
        volumes = {}
        for name in self._scans:
            self._step(f"resampling {name}")
            volume = self._resampled(name, matrices[name], brain)
            volumes[name] = correct_bias(volume, brain, atlas.AFFINE) if n4 else volume
        self._step("writing")
        lacking = [name for name in SEQUENCES if name not in self._scans]
        if lacking:
            self._notes.append(
                f"{self._case_id}: has no {', '.join(lacking)}; use weights that were trained to "
                "do without, such as tiny"
            )
        record = {
            "case": self._case_id,
            "versions": _versions(self._engine),
            "reference": self._reference,
            "brain_extraction": self._engine,
            "n4": n4,
            "brain_ml": round(float(brain.sum()) / 1000, 1),
            "atlas": {
                "name": "ICBM152 2009, of nilearn, at the size of brains in BraTS",
                "grid": [*atlas.SHAPE],
                "affine": atlas.AFFINE.tolist(),
                "factor_found": round(to_atlas.scale, 4),
                "agreement": round(agreement, 4),
                "mutual_information": round(to_atlas.mutual_information, 4),
            },
            "sequences": {
                name: _about(scan, matrices[name], fits.get(name))
                for name, scan in self._scans.items()
            },
        }
        return PreparedCase(
            self._case_id, volumes, self._scans, matrices, record, tuple(self._notes)
        )

    def _step(self, what: str) -> None:
        self._progress.set_description(f"{self._case_id}: {what}")
        self._progress.update()

    def _fit_to_atlas(self, scan: NativeScan, mask: Bool) -> tuple[Fit, float]:
        """Return the similarity from the atlas to the reference, and the Dice of the two brains.

        Raises:
            ValueError: it is no brain.
        """
        self._step(f"registering {self._reference} to the atlas")
        average, average_mask = atlas.load_atlas()
        brain = Volume(np.where(mask, scan.voxels, 0), scan.affine)
        shape = Volume(mask.astype(np.float32), scan.affine)
        fit = register(average, average_mask, brain, shape, margin_mm=4.0, scaling=True)
        there = carry(
            mask.astype(np.float32),
            np.linalg.inv(fit.matrix) @ scan.affine,
            average_mask.shape,
            average.affine,
        )
        agreement = (
            2
            * float((average_mask & (there >= 0.5)).sum())
            / float(average_mask.sum() + (there >= 0.5).sum())
        )
        if agreement < MIN_AGREEMENT or not SCALES[0] <= fit.scale <= SCALES[1]:
            raise ValueError(
                f"{scan.path}: what was found does not look like a brain (Dice {agreement:.2f} "
                f"with the atlas, {fit.scale:.2f} of its size); check that it is a scan of a whole "
                "head"
            )
        return fit, agreement

    def _fit_to_reference(self, name: str, mask: Bool) -> Fit:
        """Return the rigid motion from the reference to another sequence.

        Raises:
            ValueError: it was not found.
        """
        self._step(f"registering {name} to {self._reference}")
        fixed, scan = self._scans[self._reference], self._scans[name]
        found = locate_brain(scan, self._engine)
        fit = register(
            Volume(fixed.voxels, fixed.affine),
            mask,
            Volume(scan.voxels, scan.affine),
            found,
            margin_mm=MARGIN_MM if self._engine != "none" else 0.0,
        )
        if fit.overlap < MIN_OVERLAP:
            raise ValueError(
                f"{scan.path}: registration to {fixed.path} failed, {fit.overlap:.0%} of the brain "
                "lie in its field of view; check that both show the whole head of one patient"
            )
        if not fit.confirmed:
            raise ValueError(
                f"{scan.path}: registration to {fixed.path} failed, what the two show does not fit "
                "where their brains do; check that both show the whole head of one patient"
            )
        where = apply_affine(fit.matrix @ fixed.affine, np.argwhere(mask[::4, ::4, ::4]) * 4)
        voxels = apply_affine(np.linalg.inv(scan.affine), where)
        inside = ((voxels > -1) & (voxels < scan.voxels.shape)).all(axis=1)
        middle = apply_affine(found.affine, ndimage.center_of_mass(found.voxels))
        miss = float(np.linalg.norm(where[inside].mean(axis=0) - middle))
        if miss > MAX_MISS_MM:
            raise ValueError(
                f"{scan.path}: registration to {fixed.path} failed, its brain is {miss:.0f} mm "
                "off; check that both show the whole head of one patient"
            )
        if fit.overlap < CUT_OFF:
            self._notes.append(
                f"{scan.path}: {1 - fit.overlap:.0%} of the brain lie outside of its field of "
                "view, where it is 0"
            )
        return fit

    def _brain(self, masks: dict[str, Bool], matrices: Mapping[str, Affine]) -> Bool:
        """Return the brain mask on the grid of the case; T1 has a say if its voxels are small."""
        t1 = self._scans.get("t1")
        if (
            self._engine != "none"
            and t1 is not None
            and "t1" not in masks
            and voxel_sizes(t1.affine).max() <= _THIN_MM
        ):
            self._progress.set_description(f"{self._case_id}: finding the brain in t1")
            masks = {**masks, "t1": extract_brain(t1, self._engine)}
        shares = [
            carry(
                mask.astype(np.float32),
                np.linalg.inv(matrices[name]) @ self._scans[name].affine,
                atlas.SHAPE,
                atlas.AFFINE,
            )
            for name, mask in masks.items()
        ]
        return np.asarray(np.mean(shares, axis=0) >= 0.5)

    def _resampled(self, name: str, matrix: Affine, brain: Bool) -> npt.NDArray[np.float32]:
        """Return a sequence on the grid of the case, 0 outside of the brain and above 0 in it."""
        scan = self._scans[name]
        affine = np.linalg.inv(matrix) @ scan.affine
        if self._engine == "none":
            _require_positive(scan, scan.voxels[scan.voxels != 0])
            block = carry_brain(scan.voxels, affine, atlas.AFFINE)
            volume = np.zeros(atlas.SHAPE, np.float32)
            low = np.maximum(block.start, 0)
            high = np.minimum(np.add(block.start, block.values.shape), atlas.SHAPE)
            there = tuple(map(slice, low, high))
            volume[there] = block.values[tuple(map(slice, low - block.start, high - block.start))]
            return volume
        volume = carry(scan.voxels, affine, atlas.SHAPE, atlas.AFFINE)
        _require_positive(scan, volume[brain])
        shown = carry(np.ones(scan.voxels.shape, np.float32), affine, atlas.SHAPE, atlas.AFFINE)
        least = np.float32(1e-3) * volume[brain].max()  # 0 would be background
        return np.asarray(
            np.where(brain & (shown >= 0.5), np.maximum(volume, least), 0), np.float32
        )


def _require_positive(scan: NativeScan, values: npt.NDArray[np.float32]) -> None:
    """Raise a ValueError if many values of a brain are below 0, which is its background here."""
    share = float((values < 0).mean()) if values.size else 0.0
    if share > MAX_NEGATIVE:
        raise ValueError(
            f"{scan.path}: {share:.0%} of the brain are below 0, which no scanner gives; give the "
            "scan as it was before it was normalised"
        )


def _about(scan: NativeScan, matrix: Affine, fit: Fit | None) -> dict[str, Any]:
    """Return what the record says of a sequence."""
    about = describe_scan(scan, matrix)
    if fit is not None:
        about |= {
            "registered": {
                "degrees": round(fit.degrees, 2),
                "mutual_information": round(fit.mutual_information, 4),
                "overlap": round(fit.overlap, 4),
            }
        }
    return about


def _versions(engine: str) -> dict[str, str]:
    """Return the versions of what was used."""
    libraries = ["SimpleITK", "nilearn", *({"deepbet", engine} - {"none"})]
    found = {"clipseg3d": __version__}
    for library in sorted(libraries):
        with suppress(PackageNotFoundError):
            found[library] = version(library)
    return found
