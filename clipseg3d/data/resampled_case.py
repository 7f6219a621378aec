"""A case on grids of any kind, brought to the one grid that networks were trained on."""

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from nibabel.affines import from_matvec, voxel_sizes

from clipseg3d.data.array_volume import ArrayVolume, VolumeSource
from clipseg3d.data.cases import Case, DataError, same_grid
from clipseg3d.data.nifti import geometry_notes, open_nifti, read_voxels
from clipseg3d.data.release import BraTSRelease
from clipseg3d.data.resampling import Block, carry_brain, extent
from clipseg3d.data.scan_checks import check_volume
from clipseg3d.data.scan_grid import ScanGrid
from clipseg3d.formatting import join_sizes

DETAILED = "t1ce"
"""Sequence whose grid labels get if nobody asks for another one: of most protocols the one with the
smallest voxels, which enhancing tumour is outlined on, and which the others are registered to."""
FIELD_OF_VIEW_MM = (50.0, 600.0)
"""Least and largest length of the longest side of a scan; outside, voxel sizes are not in mm."""
MIN_VOLUME = 0.5
"""Least volume of a voxel as a share of the product of its sides; a tilted gantry leaves 0.8."""
MIN_SHARED = 0.1
"""Share of the smaller brain that must lie in the brain of the sequence with the labels' grid."""
THICK_MM = 3.0
"""Largest voxel side, above which parts of a tumour are lost; see ``examples/scanner_grids.py``."""


@dataclass(frozen=True, eq=False)
class ResampledCase:
    """A case on the grid that networks were trained on, and where its labels belong.

    The grid has the axes of one sequence, and cubic voxels. Where that sequence has them already,
    it is its own grid. It holds the brain of all sequences.

    Attributes:
        case: of volumes in memory, all on the grid of training.
        grid_of: sequence whose grid the labels get.
        scan_grid: this grid, whole.
        notes: what was resampled, and what is unusual or in doubt about the files, a line each.
    """

    case: Case = field(repr=False)
    grid_of: str
    scan_grid: ScanGrid
    notes: tuple[str, ...]

    @classmethod
    def make(
        cls, case: Case, release: BraTSRelease, *, spacing_mm: float, grid_of: str | None = None
    ) -> "ResampledCase":
        """Resample the sequences of a case, one after the other.

        Memory: at most one sequence as it was acquired, three float32 volumes of its brain, and all
        sequences on the grid of training.

        Args:
            case: whose files :func:`clipseg3d.data.cases.check_geometry` has no fault to find in,
                but for their grids. An expert mask is left out.
            release: says whether scans are skull-stripped.
            spacing_mm: voxel size of training.
            grid_of: sequence whose grid labels get; None takes ``t1ce``, or without it the first.

        Raises:
            DataError: a file is broken, holds no brain, does not say where it lies, is no head in
                millimetres, or shows another part of space than the others.
        """
        if faults := _odd_headers(case):
            raise DataError(faults)
        grid_of = grid_of or (
            DETAILED if DETAILED in case.sequences else next(iter(case.sequences))
        )
        source = case.sequences[grid_of]
        affine = _training_affine(source, case.axes, spacing_mm)
        blocks: dict[str, Block] = {}
        notes: list[str] = []
        for path in dict.fromkeys(case.sequences.values()):
            names = [name for name, file in case.sequences.items() if file == path]
            try:
                voxels = read_voxels(path, axes=case.axes, allow_nan=True, dtype=np.float32)
            except (ValueError, FileNotFoundError) as error:
                faults.append(str(error))
                continue
            notes += geometry_notes(path, axes=case.axes)
            file_affine = open_nifti(path, axes=case.axes).affine
            for name in names:
                volume = voxels[..., case.channels[name]] if case.channels else voxels
                try:
                    volume, own_notes = check_volume(
                        volume, name, path, skull_stripped=release.skull_stripped
                    )
                except ValueError as error:
                    faults.append(str(error))
                    continue
                notes += own_notes
                blocks[name] = carry_brain(volume, file_affine, affine)
            del voxels, volume
        faults = faults or _elsewhere(blocks, case, grid_of)
        if faults:
            raise DataError(faults)
        volumes, affine = _assemble(blocks, affine, source, case.axes)
        sequences = {
            name: ArrayVolume(str(case.sequences[name]), voxels, affine)
            for name, voxels in volumes.items()
        }
        return cls(
            replace(case, sequences=sequences, label=None, channels={}),
            grid_of,
            _whole(source, case.axes),
            (_what_was_done(case, grid_of, spacing_mm), *notes),
        )


def _whole(source: VolumeSource, axes: int) -> ScanGrid:
    """Return the whole grid of a file."""
    image = open_nifti(source, axes=axes)
    grid = ScanGrid(image.shape[:3], image.affine, ((0, 0),) * 3)
    return replace(grid, box=tuple((0, side) for side in grid.lps_shape))


def _training_affine(source: VolumeSource, axes: int, spacing_mm: float) -> npt.NDArray[np.float64]:
    """Return the affine of a grid of cubes that begins where a file's first voxel begins."""
    image = open_nifti(source, axes=axes)
    sizes = voxel_sizes(image.affine)
    steps = np.where(np.isclose(sizes, spacing_mm, rtol=0.02), 1, spacing_mm / sizes)
    affine: npt.NDArray[np.float64] = image.affine @ from_matvec(np.diag(steps), (steps - 1) / 2)
    return affine


def _odd_headers(case: Case) -> list[str]:
    """Return a fault for each file whose header cannot be right, or says too little."""
    images = {path: open_nifti(path, axes=case.axes) for path in case.sequences.values()}
    first = next(iter(images.values()))
    many_grids = not all(same_grid(image, first) for image in images.values())
    faults = []
    for path, image in images.items():
        sizes = voxel_sizes(image.affine)
        longest = float((sizes * image.shape[:3]).max())
        if not FIELD_OF_VIEW_MM[0] <= longest <= FIELD_OF_VIEW_MM[1]:
            faults.append(
                f"{path}: {join_sizes(image.shape[:3])} voxels of {join_sizes(sizes)} mm are "
                f"{longest:.3g} mm long, which no scan of a head is; correct the voxel size in its "
                "header"
            )
        elif abs(np.linalg.det(image.affine[:3, :3] / sizes)) < MIN_VOLUME:
            faults.append(
                f"{path}: its axes are far from right angles to each other; export the file again"
            )
        elif many_grids and not (image.header["sform_code"] or image.header["qform_code"]):
            faults.append(
                f"{path}: does not say how it lies in space, and the files of {case.case_id} have "
                "several grids; restore its orientation from the source, or register all files to "
                "one grid"
            )
    return faults


def _elsewhere(blocks: dict[str, Block], case: Case, grid_of: str) -> list[str]:
    """Return the fault that sequences lie elsewhere than the one that gives the grid, if any do."""
    strays = [name for name in blocks if _shared(blocks[grid_of], blocks[name]) < MIN_SHARED]
    if not strays:
        return []
    files = ", ".join(str(case.sequences[name]) for name in strays)
    return [
        f"{files}: shows another place than {case.sequences[grid_of]}; register all files of a "
        "case to one space, or restore their orientation from the source"
    ]


def _shared(one: Block, other: Block) -> float:
    """Return the share of the smaller brain that lies in the larger one."""
    starts = np.maximum(one.start, other.start)
    stops = np.minimum(*(np.add(block.start, block.values.shape) for block in (one, other)))
    if (stops <= starts).any():
        return 0.0
    brains = [
        block.values[tuple(map(slice, starts - block.start, stops - block.start))] != 0
        for block in (one, other)
    ]
    shared = int(np.count_nonzero(brains[0] & brains[1]))
    return shared / min(max(1, int(np.count_nonzero(block.values))) for block in (one, other))


def _assemble(
    blocks: dict[str, Block], affine: npt.NDArray[np.float64], source: VolumeSource, axes: int
) -> tuple[dict[str, npt.NDArray[np.float32]], npt.NDArray[np.float64]]:
    """Return all blocks on one grid that holds them and the field of view of a file; its affine."""
    image = open_nifti(source, axes=axes)
    begin, end = extent(image.shape[:3], image.affine, affine)
    starts = [np.array(block.start) for block in blocks.values()]
    stops = [np.add(block.start, block.values.shape) for block in blocks.values()]
    start = np.min([begin, *starts], axis=0)
    shape = np.max([end, *stops], axis=0) - start
    volumes = {}
    for name, block in blocks.items():
        volumes[name] = np.zeros(shape, np.float32)
        there = map(slice, block.start - start, np.add(block.start - start, block.values.shape))
        volumes[name][tuple(there)] = block.values
    return volumes, affine @ from_matvec(np.eye(3), start)


def _what_was_done(case: Case, grid_of: str, spacing_mm: float) -> str:
    """Return the note that says what was resampled."""
    sizes: dict[str, list[str]] = {}
    thickest = 0.0
    for name, path in case.sequences.items():
        voxel = voxel_sizes(open_nifti(path, axes=case.axes).affine)
        sizes.setdefault(join_sizes(voxel), []).append(name)
        thickest = max(thickest, float(voxel.max()))
    before = "; ".join(f"{', '.join(names)} from {size} mm" for size, names in sizes.items())
    note = (
        f"{case.case_id}: resampled to the {spacing_mm:g} mm of the weights: {before}; the result "
        f"is resampled to the grid of {grid_of}"
    )
    if thickest > max(THICK_MM, 1.02 * spacing_mm):
        note += f"; voxels of {thickest:.3g} mm are thick, so expect small parts to be missed"
    return note
