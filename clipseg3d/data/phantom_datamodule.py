"""Simulated patients as a data module: no licence, no download."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from clipseg3d.data.brats import BraTSDataModule
from clipseg3d.data.cases import Case, find_cases
from clipseg3d.data.phantom import simulate_phantom, write_phantom
from clipseg3d.data.releases import PHANTOM
from clipseg3d.data.survey import DataSurvey

MEGABYTES = 12
"""What the files of a patient take at 1 mm."""


def write_phantoms(
    root: Path, num_cases: int, *, spacing_mm: float = 2.0, seed: int = 0
) -> list[str]:
    """Write simulated patients in BraTS layout; those that are there already stay.

    Args:
        root: folder to write ``Phantom_00000``, ``Phantom_00001``, ... into.
        num_cases: how many patients.
        spacing_mm: voxel size.
        seed: of the first patient; the others follow.

    Returns:
        Case names.
    """
    names = _names(num_cases, seed)
    missing = [index for index, name in enumerate(names) if not (root / name).is_dir()]
    for index in tqdm(missing, desc="Simulating patients", unit="case", delay=2):
        phantom = simulate_phantom(seed + index, spacing_mm=spacing_mm)
        write_phantom(phantom, root, names[index])
    return names


def _names(num_cases: int, seed: int) -> list[str]:
    """Return the names of patients."""
    return [f"Phantom_{seed + index:05d}" for index in range(num_cases)]


class PhantomDataModule(BraTSDataModule):
    """Simulated patients with true reports; made on first use, then read like any BraTS folder.

    Args:
        root: folder that the patients are written to.
        num_cases: how many patients.
        first_seed: seed, and number in the name, of the first patient.
        spacing_mm: voxel size of the patients.
        **options: as for :class:`clipseg3d.data.brats.BraTSDataModule`.

    Raises:
        ValueError: ``num_cases`` is not positive.
    """

    release = PHANTOM

    def __init__(
        self,
        root: str = "phantoms",
        *,
        num_cases: int = 20,
        first_seed: int = 0,
        spacing_mm: float = 2.0,
        **options: Any,
    ) -> None:
        if num_cases < 1:
            raise ValueError(f"num_cases={num_cases} is not positive")
        super().__init__(root, spacing_mm=spacing_mm, **options)
        self.num_cases = num_cases
        self.first_seed = first_seed

    def survey(self) -> DataSurvey:
        """Check the patients that are there, and plan with those that are not."""
        names = _names(self.num_cases, self.first_seed)
        there = [name for name in names if (self.root / name).is_dir()]
        planned = [Case(name, name, {}) for name in names if name not in there]
        survey = self._survey([self.root / name for name in there], planned)
        if not planned:
            return survey
        note = f"{len(planned)} of {len(names)} patients are still to be simulated"
        size = int(len(planned) * MEGABYTES * 1e6 / self.spacing_mm**3)
        return replace(survey, notes=(*survey.notes, note), disk={**survey.disk, self.root: size})

    def _cases(self) -> list[Case]:
        """Write the patients that are missing, and index them; the folder may hold others too."""
        names = write_phantoms(
            self.root, self.num_cases, spacing_mm=self.spacing_mm, seed=self.first_seed
        )
        cases = [
            case
            for name in names
            for case in find_cases(
                self.root / name,
                self.release,
                reports=self.reports,
                spacing_mm=self.spacing_mm,
            )
        ]
        return self._reported(cases)
