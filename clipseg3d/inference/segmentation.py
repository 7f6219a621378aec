"""What was found in one case, and how it is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clipseg3d.data.cases import Case, DataError
from clipseg3d.data.nifti import read_voxels, write_label, write_map
from clipseg3d.data.preprocessing import Grid
from clipseg3d.data.releases import BraTSRelease
from clipseg3d.vocabulary import REGIONS

ENTROPY, VARIANCE = "entropy", "ensemble variance"
"""Maps of uncertainty."""
Map = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the network saw and how it came to its result, on the brain box in LPS order.

    Attributes:
        grid: where the brain box lies in the source.
        images: sequence -> (x, y, z), z-scored; those that were acquired.
        text: report that a text encoder read; empty if none.
        attention: guided region -> (x, y, z), scores of semantic attention.
        similarity: guided region -> (x, y, z), cosine of voxel and text, -1 to 1.
        views: what CLIP saw: ``axial``, ``coronal`` or ``sagittal``, numbered where there are
            several, and (h, w, s) uint8. Empty if nothing looked at views.
        provenance: name -> value: weights, versions, settings.
    """

    grid: Grid
    images: Mapping[str, Map]
    text: str
    attention: Mapping[str, Map]
    similarity: Mapping[str, Map]
    views: Sequence[tuple[str, npt.NDArray[np.uint8]]]
    provenance: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What was found in one case, in the source's own voxel order.

    Attributes:
        case: what was segmented.
        label: (x, y, z) uint8, in the label values of ``release``.
        release: label convention.
        probabilities: (3, x, y, z) of WT, TC and ET, before post-processing; None unless asked for.
        uncertainty: name -> (x, y, z); empty unless asked for. ``entropy``: of the probabilities,
            in bits, the highest of the three regions'. ``ensemble variance``: of the probabilities
            over all passes, networks times mirrorings, the highest of the three regions'; only
            where there are several.
        evidence: what :meth:`save_case_page` shows; None unless asked for.
    """

    case: Case
    label: npt.NDArray[np.uint8] = field(repr=False)
    release: BraTSRelease
    probabilities: Map | None = field(default=None, repr=False)
    uncertainty: Mapping[str, Map] = field(default_factory=dict, repr=False)
    evidence: Evidence | None = field(default=None, repr=False)

    def save(self, path: str | Path) -> None:
        """Write the labels as NIfTI with the source's header and affine, all or nothing.

        Raises:
            ValueError: ``path`` ends neither in .nii.gz nor in .nii.
            OSError: ``path`` cannot be written.
        """
        write_label(Path(path), self.label, source=self._source, axes=self.case.axes)

    def save_probabilities(self, folder: str | Path) -> None:
        """Write ``folder/{case}_WT.nii.gz``, ``_TC`` and ``_ET``, each all or nothing.

        Raises:
            ValueError: the case was segmented without ``probabilities=True``.
            OSError: a file cannot be written.
        """
        if self.probabilities is None:
            raise ValueError(
                f"{self.case.case_id}: its probabilities were not kept; segment it with "
                "probabilities=True"
            )
        maps = dict(zip(REGIONS, self.probabilities, strict=True))
        self._save_maps(Path(folder), maps)

    def save_uncertainty(self, folder: str | Path) -> None:
        """Write ``folder/{case}_entropy.nii.gz`` and, of several passes, ``_ensemble_variance``.

        Raises:
            ValueError: the case was segmented without ``uncertainty=True``.
            OSError: a file cannot be written.
        """
        if not self.uncertainty:
            raise ValueError(
                f"{self.case.case_id}: its uncertainty was not computed; segment it with "
                "uncertainty=True"
            )
        self._save_maps(Path(folder), self.uncertainty)

    def save_case_page(self, path: str | Path, *, reference: str | Path | None = None) -> None:
        """Write the case page: one HTML file that needs no network, all or nothing.

        Args:
            path: file to write.
            reference: expert mask on the grid of the scan, shown beside the segmentation.

        Raises:
            ValueError: the case was segmented without ``explain=True``; the reference is broken,
                of another shape, or holds labels that the release does not have.
            OSError: ``path`` cannot be written.
        """
        # figures and templates load for those who want a page
        from clipseg3d.reporting.case_page import CasePage

        if self.evidence is None:
            raise ValueError(
                f"{self.case.case_id}: what a case page shows was not kept; segment it with "
                "explain=True"
            )
        expert = None if reference is None else self._read_reference(Path(reference))
        grid = self.evidence.grid
        CasePage(
            case_id=self.case.case_id,
            images=self.evidence.images,
            spacing_mm=grid.spacing_mm,
            prediction=self.release.to_regions(grid.crop(self.label)),
            reference=None if expert is None else self.release.to_regions(grid.crop(expert)),
            text=self.evidence.text,
            attention=self.evidence.attention,
            similarity=self.evidence.similarity,
            views=self.evidence.views,
            uncertainty={name: grid.crop(values) for name, values in self.uncertainty.items()},
            provenance=self.evidence.provenance,
        ).save(Path(path))

    @property
    def _source(self) -> Path:
        return next(iter(self.case.sequences.values()))

    def _save_maps(self, folder: Path, maps: Mapping[str, Map]) -> None:
        for name, values in maps.items():
            path = folder / map_file(self.case.case_id, name)
            write_map(path, values, source=self._source, axes=self.case.axes)

    def _read_reference(self, path: Path) -> npt.NDArray[np.integer]:
        """Read an expert mask and check that it can be compared."""
        mask = read_voxels(path)
        if mask.shape != self.label.shape:
            raise DataError(
                [f"{path}: shape {mask.shape} differs from the scan's {self.label.shape}"]
            )
        unknown = np.setdiff1d(mask, self.release.labels)
        if len(unknown):
            raise DataError(
                [
                    f"{path}: holds {unknown[0]:g}, but {self.release.name} has the labels "
                    f"{', '.join(map(str, self.release.labels))}; give a mask of that release"
                ]
            )
        return mask.astype(np.uint8)


def map_file(case_id: str, name: str) -> str:
    """Return the name of the file of a map, such as ``WT`` or ``ensemble variance``."""
    return f"{case_id}_{name.replace(' ', '_')}.nii.gz"
