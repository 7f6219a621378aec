"""Simulated patients as a data module, without licence or download."""

from dataclasses import replace
from typing import Any

from clipseg3d.data.brats import BraTSDataModule
from clipseg3d.data.cases import Case, find_cases
from clipseg3d.data.releases import PHANTOM, get_release
from clipseg3d.data.survey import DataSurvey
from clipseg3d.phantom.write import MAX_CASES, case_names, require_writable, write_phantoms
from clipseg3d.ranges import require_count, require_share

MEGABYTES = 12
"""Size of the files of a patient at 1 mm."""


class PhantomDataModule(BraTSDataModule):
    """Simulated patients with true reports; written on first use, then read like any BraTS folder.

    Args:
        root: folder for the cases.
        num_cases: number of patients.
        first_seed: seed of the first patient, and the number in its name.
        spacing_mm: voxel size of the patients.
        release: whose names and labels the files have, see
            :func:`clipseg3d.phantom.write_phantom`; ``auto`` is ``phantom``.
        plain_share: share of patients whose tumour does not enhance; None leaves it at one in
            eight. Other shares and releases need another ``root``: patients who exist are kept.
        cavity_share: share of patients after a resection; needs a release with the region RC,
            such as ``brats2024_gli``.
        **options: as for :class:`clipseg3d.data.brats.BraTSDataModule`.

    Raises:
        ValueError: ``num_cases`` is not positive or above 100,000, ``first_seed`` is negative, a
            share is outside [0, 1], or the release has no place for what phantoms have.
    """

    def __init__(
        self,
        root: str = "phantoms",
        *,
        num_cases: int = 20,
        first_seed: int = 0,
        spacing_mm: float = 2.0,
        release: str = "auto",
        plain_share: float | None = None,
        cavity_share: float = 0.0,
        **options: Any,
    ) -> None:
        require_count(num_cases=num_cases, at_most=MAX_CASES)
        require_count(first_seed=first_seed, at_least=0)
        require_share(plain_share=plain_share or 0.0, cavity_share=cavity_share)
        release = PHANTOM.name if release == "auto" else release
        super().__init__(root, spacing_mm=spacing_mm, release=release, **options)
        require_writable(get_release(release), cavity=cavity_share > 0)
        self.num_cases = num_cases
        self.first_seed = first_seed
        self.plain_share = plain_share
        self.cavity_share = cavity_share

    def survey(self) -> DataSurvey:
        """Check the existing patients, and count those that are still to be simulated."""
        names = case_names(self.num_cases, self.first_seed, get_release(self.release_name))
        existing = [name for name in names if (self.root / name).is_dir()]
        planned = [Case(name, name, {}) for name in names if name not in existing]
        survey = self._survey([self.root / name for name in existing], planned)
        if not planned:
            return survey
        note = f"{len(planned)} of {len(names)} patients are still to be simulated"
        size = int(len(planned) * MEGABYTES * 1e6 / self.spacing_mm**3)
        return replace(survey, notes=(*survey.notes, note), disk={**survey.disk, self.root: size})

    def _find_cases(self) -> list[Case]:
        """Write the missing patients and index all; other patients in the folder are ignored."""
        names = write_phantoms(
            self.root,
            self.num_cases,
            spacing_mm=self.spacing_mm,
            seed=self.first_seed,
            release=self.release_name,
            plain_share=self.plain_share,
            cavity_share=self.cavity_share,
        )
        return [
            case
            for name in names
            for case in find_cases(
                self.root / name,
                self.release,
                reports=self.reports,
                spacing_mm=self.spacing_mm,
            )
        ]
