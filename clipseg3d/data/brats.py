"""Lightning data modules for BraTS: one base class, one short subclass per release."""

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader

from clipseg3d.batch import Sample
from clipseg3d.data.cache import CachedCase, build_cache, default_cache_dir
from clipseg3d.data.cases import Case, find_cases, split_by_patient
from clipseg3d.data.dataset import BraTSDataset
from clipseg3d.data.releases import BRATS_2018, BRATS_2019, BRATS_2020, BRATS_2021, BraTSRelease
from clipseg3d.data.transforms import Augmentation
from clipseg3d.volume import ViewSelection


class BraTSDataModule(LightningDataModule):
    """Training and validation cases of one BraTS release; knows nothing of any model.

    Batches are :class:`clipseg3d.batch.Batch`. Training gives random crops, two thirds of them
    with tumour; validation and test give the whole brain, one case a batch, so that scores are
    those of full volumes.

    Args:
        root: folder that holds the cases, however deep; read only.
        reports: JSON file of reports by case name; None takes ``{case}_flair_text.txt`` beside a
            case where there is one.
        fold: the part to validate on, 0 to ``num_folds`` - 1.
        num_folds: number of parts that patients (not scans) are split into.
        seed: split seed; equal seeds give equal splits on every rank.
        patch_size: training crop (x, y, z), in voxels.
        crops_per_case: crops of each training case in one epoch.
        batch_size: crops per device, so the global batch is this times the world size.
        num_workers: loader processes per device, and threads that build the cache.
        augment: whether training crops are augmented.
        view_selection: which slices CLIP sees; must be that of the network (``clipseg3d fit``
            takes it from there).
        shuffle_reports: give every case the report of another one: a control, which text that
            helps must beat.
        spacing_mm: voxel size of every case; another one is refused.
        cache_dir: where preprocessed cases go, 40 MB each at 1 mm; None takes
            ``$CLIPSEG3D_CACHE`` or ``clipseg3d`` in the user's cache folder.

    Raises:
        ValueError: ``patch_size``, ``batch_size`` or ``crops_per_case`` is not positive.
        FileNotFoundError: from :meth:`prepare_data`, if ``root`` holds no case.
        DataError: from :meth:`prepare_data`, listing every fault of every case.
    """

    release: ClassVar[BraTSRelease]

    def __init__(
        self,
        root: str,
        *,
        reports: str | None = None,
        fold: int = 0,
        num_folds: int = 5,
        seed: int = 0,
        patch_size: tuple[int, int, int] = (128, 128, 128),
        crops_per_case: int = 1,
        batch_size: int = 1,
        num_workers: int = 2,
        augment: bool = True,
        view_selection: ViewSelection = "energy",
        shuffle_reports: bool = False,
        spacing_mm: float = 1.0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        if len(patch_size) != 3:
            raise ValueError(f"patch_size={tuple(patch_size)} needs three sizes: x, y, z")
        for name, value in (
            ("patch_size", min(patch_size)),
            ("batch_size", batch_size),
            ("crops_per_case", crops_per_case),
        ):
            if value < 1:
                raise ValueError(f"{name}={value} is not positive")
        self.save_hyperparameters()  # plain values only: checkpoints load with weights_only=True
        self.root = Path(root)
        self.reports = reports
        self.fold = fold
        self.num_folds = num_folds
        self.seed = seed
        self.patch_size = patch_size
        self.crops_per_case = crops_per_case
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.augment = augment
        self.view_selection = view_selection
        self.shuffle_reports = shuffle_reports
        self.spacing_mm = spacing_mm
        self.cache_dir = Path(cache_dir) if cache_dir else default_cache_dir()

    def prepare_data(self) -> None:
        """Check all cases and fill the cache; runs once per node."""
        self._entries(self._cases())

    def setup(self, stage: str) -> None:
        """Split the cases; runs on every rank and may run more than once."""
        train, held_out = split_by_patient(
            self._cases(), fold=self.fold, num_folds=self.num_folds, seed=self.seed
        )
        self.train_set = BraTSDataset(
            self._entries(train),
            self.release,
            crop=self.patch_size,
            crops_per_case=self.crops_per_case,
            augment=Augmentation() if self.augment else None,
        )
        self.val_set = BraTSDataset(self._entries(held_out), self.release)

    def train_dataloader(self) -> DataLoader[Sample]:
        """Shuffled crops; Lightning adds the distributed sampler."""
        return self._loader(self.train_set, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Sample]:
        """Whole brains, one at a time, in case order."""
        return self._loader(self.val_set, batch_size=1, shuffle=False)

    def test_dataloader(self) -> DataLoader[Sample]:
        """Give the held-out fold, as for validation: BraTS publishes no test labels."""
        return self.val_dataloader()

    def _cases(self) -> list[Case]:
        """Index the folder."""
        cases = find_cases(
            self.root, self.release, reports=self.reports, spacing_mm=self.spacing_mm
        )
        return self._reported(cases)

    def _reported(self, cases: list[Case]) -> list[Case]:
        """Hand the reports round in a circle of random order, if they are to be shuffled."""
        if not self.shuffle_reports:
            return cases
        order = np.random.default_rng(self.seed).permutation(len(cases))
        donors = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
        return [
            replace(case, report=cases[donors[index]].report) for index, case in enumerate(cases)
        ]

    def _entries(self, cases: list[Case]) -> list[CachedCase]:
        return build_cache(
            cases,
            self.release,
            self.cache_dir,
            view_selection=self.view_selection,
            num_threads=max(1, self.num_workers),
        )

    def _loader(self, cases: BraTSDataset, *, batch_size: int, shuffle: bool) -> DataLoader[Sample]:
        return DataLoader(
            cases,
            batch_size=batch_size,
            shuffle=shuffle,
            drop_last=shuffle and len(cases) > batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )


class BraTS2018DataModule(BraTSDataModule):
    """BraTS 2018: HGG and LGG folders, a patient may have several scans."""

    release = BRATS_2018


class BraTS2019DataModule(BraTSDataModule):
    """BraTS 2019: as 2018, with more cases."""

    release = BRATS_2019


class BraTS2020DataModule(BraTSDataModule):
    """BraTS 2020, the paper's: one mask (case 355) was published under another name."""

    release = BRATS_2020


class BraTS2021DataModule(BraTSDataModule):
    """BraTS 2021: the last release in which enhancing tumour is label 4."""

    release = BRATS_2021
