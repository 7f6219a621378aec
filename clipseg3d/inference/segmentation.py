"""The segmentation of one case, and how its files are written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipseg3d.data.array_volume import VolumeSource
from clipseg3d.data.cases import Case, DataError
from clipseg3d.data.label_checks import label_faults, round_labels
from clipseg3d.data.nifti import read_voxels, write_label, write_map
from clipseg3d.data.release import BraTSRelease
from clipseg3d.data.scan_grid import ScanGrid
from clipseg3d.inference.prompt_answer import PromptAnswer, prompt_file

ENTROPY, VARIANCE = "entropy", "ensemble variance"
"""Names of the uncertainty maps."""
Map = npt.NDArray[np.float32]


class ScanWarning(UserWarning):
    """Something about a scan that may make its segmentation wrong; the words are its notes."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """Inputs of the network and the maps behind its result, on the brain box in LPS order.

    Attributes:
        grid: the brain box on the grid of training.
        scan_grid: the box of the labels' grid that holds it; ``grid`` itself if nothing was
            resampled.
        images: sequence -> (x, y, z), z-scored; acquired sequences only.
        text: report that a text encoder read; empty if none.
        attention: guided region -> (x, y, z), scores of semantic attention.
        similarity: guided region -> (x, y, z), cosine of voxel and text, -1 to 1.
        views: views that CLIP was given, each a name and (h, w, 3) uint8. The name is ``axial``,
            ``coronal`` or ``sagittal``, with a number if there are several. Empty if no network
            takes views.
        view_colours: sequences that they show in red, green and blue.
        provenance: name -> value: weights, versions, settings.
    """

    grid: ScanGrid
    scan_grid: ScanGrid
    images: Mapping[str, Map]
    text: str
    attention: Mapping[str, Map]
    similarity: Mapping[str, Map]
    views: Sequence[tuple[str, npt.NDArray[np.uint8]]]
    view_colours: Sequence[str]
    provenance: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Labels and maps of one case, in the voxel order of the scan.

    If the sequences have several grids, that of the scan is the grid of ``grid_of``.

    Attributes:
        case: the case that was segmented.
        label: (x, y, z) uint8, in the label values of ``release``.
        release: label convention.
        probabilities: (r, x, y, z) of the regions, before post-processing; None unless requested.
        uncertainty: name -> (x, y, z), the maximum over the regions; empty unless requested.
            ``entropy`` is that of the probabilities, in bits. ``ensemble variance`` is that of the
            probabilities over all passes (networks times mirrorings); it is there only if there
            are several.
        evidence: what :meth:`save_case_page` shows; None unless requested.
        notes: what was changed, missing, unusual or in doubt, a line each.
        prompts: the answer to each prompt, with its mask.
        presence: region -> probability that the case has any of it, as the network tells it: the
            largest over the sliding windows, the mean over networks and mirrorings. Empty if no
            network tells it.
        grid_of: sequence whose grid labels and maps have, and whose header is written; None takes
            the first.
    """

    case: Case
    label: npt.NDArray[np.uint8] = field(repr=False)
    release: BraTSRelease
    probabilities: Map | None = field(default=None, repr=False)
    uncertainty: Mapping[str, Map] = field(default_factory=dict, repr=False)
    evidence: Evidence | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()
    prompts: tuple[PromptAnswer, ...] = ()
    presence: Mapping[str, float] = field(default_factory=dict)
    grid_of: str | None = None

    def save(self, path: str | Path) -> None:
        """Write the labels as NIfTI on the grid of the scan, without the texts in its header.

        The file is complete or absent; so are all files that other methods write.

        Raises:
            ValueError: ``path`` ends neither in .nii.gz nor in .nii.
            OSError: ``path`` cannot be written.
        """
        write_label(Path(path), self.label, source=self._source, axes=self.case.axes)

    def save_probabilities(self, folder: str | Path) -> None:
        """Write the probability of each region, such as ``folder/{case}_WT.nii.gz``.

        Raises:
            ValueError: the case was segmented without ``probabilities=True``.
            OSError: a file cannot be written.
        """
        if self.probabilities is None:
            raise ValueError(
                f"{self.case.case_id}: its probabilities were not kept; segment it with "
                "probabilities=True"
            )
        maps = dict(zip(self.release.regions, self.probabilities, strict=True))
        self._save_maps(Path(folder), maps)

    def save_uncertainty(self, folder: str | Path) -> None:
        """Write ``folder/{case}_entropy.nii.gz`` and, after several passes, ``_ensemble_variance``.

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

    def save_prompts(self, folder: str | Path) -> None:
        """Write the mask of each prompt, such as ``folder/the-enhancing-rim.nii.gz``.

        Voxels are 1 inside and 0 outside, uint8, on the grid of the scan. What was not found gets
        an empty mask. See :func:`clipseg3d.inference.prompt_answer.prompt_file`.

        Raises:
            ValueError: the case was segmented without prompts.
            OSError: a file cannot be written.
        """
        if not self.prompts:
            raise ValueError(
                f"{self.case.case_id}: no prompt was asked; segment it with prompts=[...]"
            )
        for answer in self.prompts:
            path = Path(folder) / prompt_file(answer.text)
            write_label(path, answer.mask, source=self._source, axes=self.case.axes)

    def save_case_page(self, path: str | Path, *, reference: str | Path | None = None) -> None:
        """Write the case page: one HTML file that works without internet access.

        Args:
            path: file to write.
            reference: expert mask on the grid of the scan, shown beside the segmentation.

        Raises:
            ValueError: the case was segmented without ``explain=True``; or the reference is broken,
                has another shape, or holds labels that the release does not have.
            OSError: ``path`` cannot be written.
        """
        # Imported here: matplotlib and jinja2 load only when a page is written.
        from clipseg3d.reporting.case_page import CasePage

        if self.evidence is None:
            raise ValueError(
                f"{self.case.case_id}: what a case page shows was not kept; segment it with "
                "explain=True"
            )
        mask = None if reference is None else self._read_reference(Path(reference))
        grid, scan_grid = self.evidence.grid, self.evidence.scan_grid

        def shown(volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
            """Return a volume of the scan's grid where the images are."""
            return scan_grid.carry(scan_grid.crop(volume), grid, order=0)

        CasePage(
            case_id=self.case.case_id,
            images=self.evidence.images,
            spacing_mm=grid.spacing_mm,
            regions=list(self.release.regions),
            prediction=self.release.to_regions(shown(self.label)),
            reference=None if mask is None else self.release.to_regions(shown(mask)),
            text=self.evidence.text,
            attention=self.evidence.attention,
            similarity=self.evidence.similarity,
            views=self.evidence.views,
            view_colours=self.evidence.view_colours,
            uncertainty={name: shown(values) for name, values in self.uncertainty.items()},
            provenance=self.evidence.provenance,
            notes=self._notes_of_page(),
            prompts=[
                (a.text, a.grid.carry(a.box_mask, grid, order=0), a.presence) for a in self.prompts
            ],
            presence=self.presence,
        ).save(Path(path))

    @property
    def _source(self) -> VolumeSource:
        if self.grid_of is not None:
            return self.case.sequences[self.grid_of]
        return next(iter(self.case.sequences.values()))

    def _notes_of_page(self) -> list[str]:
        """Return all notes, with file names in place of paths, which are nobody's business."""
        notes = [*self.notes, *(answer.note for answer in self.prompts if answer.note)]
        # The longest first: one path may be the beginning of another.
        for path in sorted(self.case.files.values(), key=lambda path: -len(str(path))):
            notes = [note.replace(str(path), path.name) for note in notes]
        return notes

    def _save_maps(self, folder: Path, maps: Mapping[str, Map]) -> None:
        for name, values in maps.items():
            path = folder / map_file(self.case.case_id, name)
            write_map(path, values, source=self._source, axes=self.case.axes)

    def _read_reference(self, path: Path) -> npt.NDArray[np.uint8]:
        """Read an expert mask; refuse one that cannot be compared with the labels."""
        mask = read_voxels(path)
        if mask.shape != self.label.shape:
            raise DataError(
                [
                    f"{path}: shape {mask.shape} differs from that of the scan, "
                    f"{self.label.shape}; give a mask on the grid of the scan"
                ]
            )
        if faults := label_faults(path, mask, self.release):
            raise DataError(faults)
        return round_labels(mask)


def map_file(case_id: str, name: str) -> str:
    """Return the file name of a map, such as ``WT`` or ``ensemble variance``."""
    return f"{case_id}_{name.replace(' ', '_')}.nii.gz"
