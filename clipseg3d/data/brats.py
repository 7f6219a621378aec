"""Lightning data modules for BraTS: one base class, one short subclass per release."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from clipseg3d.batch import Batch, Sample, unpack
from clipseg3d.checksums import sha256_of_file, sha256_of_values
from clipseg3d.data.cache import (
    MEGABYTES,
    CachedCase,
    build_cache,
    cached_case,
    default_cache_dir,
    require_cache_folder,
)
from clipseg3d.data.cases import Case, detect_release, find_cases, index_cases, segmentable_cases
from clipseg3d.data.check import check_data
from clipseg3d.data.dataset import BraTSDataset
from clipseg3d.data.release import BraTSRelease
from clipseg3d.data.releases import (
    BRATS_2018,
    BRATS_2019,
    BRATS_2020,
    BRATS_2021,
    BRATS_2023_GLI,
    BRATS_2023_MEN,
    BRATS_2023_MET,
    BRATS_2023_PED,
    BRATS_2023_SSA,
    BRATS_2024_GLI,
    BRATS_2024_MEN_RT,
    BRATS_2024_PED,
    BRATS_2025_GLI,
    BRATS_2025_MET,
    MSD_TASK01,
    RELEASES,
    get_release,
)
from clipseg3d.data.sample_order import CountingLoader, EpochSampler, global_seed
from clipseg3d.data.splits import Splits
from clipseg3d.data.survey import DataSurvey
from clipseg3d.data.text_twins import TextTwins
from clipseg3d.data.transforms import Augmentation, OwnAugmentation, describe
from clipseg3d.lightning_bases import LightningDataModule
from clipseg3d.ranges import require_above_zero, require_count, require_share
from clipseg3d.views import ViewSelection

MAX_CROPS = 1_000_000
"""Of a case, or in a batch; more is a slip."""
MAX_WORKERS = 1024
"""Starting more processes would take all memory."""


class BraTSDataModule(LightningDataModule):
    """Training, validation and test cases of one release; independent of the model.

    Batches are :class:`clipseg3d.batch.Batch`. Training gives random crops, two thirds of them
    with tumour. Validation and test give whole brains, one case per batch, so that scores are
    those of full volumes.

    Args:
        root: folder that holds the cases, at any depth; only read. Or a table of cases, see
            :func:`clipseg3d.data.case_table.read_case_table`.
        release: name of the release, one of :data:`clipseg3d.data.releases.RELEASES`, or a YAML
            file of your own. ``auto`` detects it from case names and label values; a subclass uses
            its own release.
        sequences: those to read, by name and in order; None takes all of the release.
        regions: those to learn, by name and in order; None takes all of the release.
        reports: JSON or CSV file of reports by case name (see
            :func:`clipseg3d.data.reports.read_reports`). None reads ``{case}_flair_text.txt``
            in the folder of each case, where there is one.
        allow_missing_sequences: whether a case may lack sequences. A missing sequence is 0
            throughout, like one that ``sequence_dropout`` withholds in training. ``clipseg3d fit``
            allows missing sequences if the network trains with ``sequence_dropout``.
        splits: file of folds, or the folder with the two lists of TextBraTS, see
            :meth:`clipseg3d.data.splits.Splits.read`. None draws folds.
        fold: index of the fold to validate on, from 0.
        num_folds: number of folds to draw. All cases of a patient are in the same fold; grades
            are spread evenly.
        seed: seed of the drawn folds; equal seeds give equal folds on every rank.
        patch_size: size of training crops (x, y, z), in voxels.
        crops_per_case: number of crops of each training case in one epoch.
        batch_size: crops per device; the global batch size is this times the world size.
        num_workers: loader processes per device, and threads that build the cache.
        augment: whether training crops are augmented.
        augmentation: of your own, instead of :class:`clipseg3d.data.transforms.Augmentation`: see
            :class:`clipseg3d.data.transforms.OwnAugmentation`.
        view_selection: which slices CLIP sees; must be that of the network (``clipseg3d fit``
            takes it from there).
        text_twins: share of training samples in which only the text knows the answer, or is wrong;
            see :class:`clipseg3d.data.text_twins.TextTwins`.
        written_reports: share of the other training samples whose report is written from the
            expert mask, in many wordings.
        shuffle_reports: give every case the report of another case. A control experiment: useful
            text must do better than shuffled text.
        spacing_mm: voxel size that every case must have.
        cache_dir: folder for preprocessed cases, 20 MB each at 1 mm. None uses
            ``$CLIPSEG3D_CACHE``, or ``clipseg3d`` in the user's cache folder.

    Raises:
        ValueError: ``patch_size``, ``batch_size``, ``crops_per_case`` or ``spacing_mm`` is not
            positive; ``num_workers``, ``fold`` or ``seed`` is negative; or ``release`` is unknown,
            differs from that of the subclass, or cannot be detected.
        NotADirectoryError: ``cache_dir`` is a file, or lies below one.
        FileNotFoundError: from :meth:`prepare_data`, if ``root`` holds no case.
        DataError: from :meth:`prepare_data`, listing every fault of every case.
    """

    published: ClassVar[BraTSRelease | None] = None
    """The release that a subclass reads; None takes the argument."""

    def __init__(
        self,
        root: str,
        *,
        release: str = "auto",
        sequences: tuple[str, ...] | None = None,
        regions: tuple[str, ...] | None = None,
        reports: str | None = None,
        allow_missing_sequences: bool = False,
        splits: str | None = None,
        fold: int = 0,
        num_folds: int = 5,
        seed: int = 0,
        patch_size: tuple[int, int, int] = (128, 128, 128),
        crops_per_case: int = 1,
        batch_size: int = 1,
        num_workers: int = 2,
        augment: bool = True,
        augmentation: Callable | None = None,  # type: ignore[type-arg]  # as jsonargparse has it
        view_selection: ViewSelection = "energy",
        text_twins: float = 0.0,
        written_reports: float = 0.0,
        shuffle_reports: bool = False,
        spacing_mm: float = 1.0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        if len(patch_size) != 3:
            raise ValueError(f"patch_size={tuple(patch_size)} needs three sizes: x, y, z")
        for size in patch_size:
            require_count(patch_size=size)
        require_count(batch_size=batch_size, crops_per_case=crops_per_case, at_most=MAX_CROPS)
        require_count(num_workers=num_workers, at_least=0, at_most=MAX_WORKERS)
        require_count(fold=fold, seed=seed, at_least=0)
        require_count(num_folds=num_folds)
        require_above_zero(spacing_mm=spacing_mm)
        require_share(text_twins=text_twins, written_reports=written_reports)
        if shuffle_reports and (text_twins or written_reports):
            raise ValueError(
                "shuffle_reports with text_twins or written_reports, which are true; leave out one"
            )
        if augmentation is not None and not augment:
            raise ValueError("augment=False, but an augmentation is given; leave one of them out")
        # Only plain values: checkpoints are loaded with weights_only=True. Model and data share
        # their hyperparameters, and the model stores the release that was detected or read:
        # Lightning would refuse "auto" or a file here, which the command line gives.
        self.save_hyperparameters(ignore=["augmentation", "release"])
        if release in RELEASES:
            self.hparams["release"] = release
        if augmentation is not None:
            self.hparams["augmentation"] = describe(augmentation)
        self.root = Path(root)
        self.release_name = release
        self.sequences, self.regions = sequences, regions
        own = type(self).published
        if own is not None and release not in ("auto", own.name):
            raise ValueError(
                f"{type(self).__name__} reads {own.name}, not release={release!r}; use "
                "BraTSDataModule"
            )
        if own is not None or release != "auto":
            _ = self.release  # wrong names are found out before the folder is read
        self.reports = reports
        self.allow_missing_sequences = allow_missing_sequences
        self.splits = splits
        self.fold = fold
        self.num_folds = num_folds
        self.seed = seed
        self.patch_size = patch_size
        self.crops_per_case = crops_per_case
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.augment = augment
        self.augmentation = augmentation
        self.view_selection = view_selection
        self.text_twins = text_twins
        self.written_reports = written_reports
        self.shuffle_reports = shuffle_reports
        self.spacing_mm = spacing_mm
        self.cache_dir = Path(cache_dir) if cache_dir else default_cache_dir()
        require_cache_folder(self.cache_dir)
        self._resume_from = (0, 0)  # epoch, and batches of it to skip
        self._train_loader: CountingLoader | None = None
        self._index: list[Case] | None = None
        self._cached_cases: dict[str, CachedCase] = {}
        self._provenance: dict[str, Any] | None = None

    @cached_property
    def release(self) -> BraTSRelease:
        """The release of the cases, with the chosen sequences and regions.

        Raises:
            ValueError: it cannot be detected, or has no such sequence or region.
        """
        release = type(self).published
        if release is None and self.release_name == "auto":
            release = detect_release(self.root)
        elif release is None:
            release = get_release(self.release_name)
        return release.select(sequences=self.sequences, regions=self.regions)

    def survey(self) -> DataSurvey:
        """Check all cases and report what :meth:`prepare_data` would write; nothing is written.

        Raises:
            FileNotFoundError: ``root`` or ``reports`` is missing.
            ValueError: the release cannot be detected.
        """
        return self._survey([self.root], [])

    def prepare_data(self) -> None:
        """Check all cases and fill the cache; runs once per node, at the start of a run."""
        self._forget_cases()  # an interrupted run has had no teardown
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.PREDICTING:
            return  # masks and a cache are for training and scoring
        cases = self._cases()
        self._divide(cases)
        self._cache(cases)

    def setup(self, stage: str) -> None:
        """Split the cases; runs on every rank and may run more than once."""
        self._provenance = None
        if stage == "predict":
            return
        training, validation, test = self._divide(self._cases())
        self.train_set = BraTSDataset(
            self._cache(training),
            self.release,
            crop=self.patch_size,
            crops_per_case=self.crops_per_case,
            augment=self._augmentation(),
            twins=self._twins(),
            packed=True,
        )
        self.val_set = BraTSDataset(self._cache(validation), self.release)
        # BraTS publishes no labels of test cases: without a test list, test on the validation fold.
        self.test_set = BraTSDataset(self._cache(test or validation), self.release)

    def teardown(self, stage: str) -> None:
        """Forget the cases: the next run reads the folder again."""
        self._forget_cases()

    def train_dataloader(self) -> DataLoader[Sample]:
        """Shuffled crops of this rank, packed until the trainer has moved them to the device.

        Crops, their order and their augmentation depend only on ``seed_everything`` and on the
        epoch, not on the number of workers, nor on whether the fit was interrupted. Without a
        trainer, :func:`clipseg3d.batch.unpack` turns a packed batch into a ``Batch``, augmented,
        and ``loader.sampler.set_epoch`` chooses the epoch.

        Raises:
            ValueError: an epoch does not fill one batch.
        """
        trainer, ranks = self.trainer, {}
        if trainer is not None:
            ranks = {"num_replicas": trainer.world_size, "rank": trainer.global_rank}
        epoch, batches = self._resume_from
        self._resume_from = (0, 0)  # only the next fit resumes; later ones start anew
        sampler = EpochSampler(
            len(self.train_set),
            seed=global_seed(),
            epoch=epoch,
            skip=batches * self.batch_size,
            **ranks,
        )
        if len(sampler) < self.batch_size:
            raise ValueError(
                f"batch_size={self.batch_size} is more than the {len(sampler)} samples that an "
                "epoch has for each device; lower it, or raise crops_per_case"
            )
        self._train_loader = CountingLoader(
            self.train_set,
            batch_size=self.batch_size,
            current_epoch=None if trainer is None else lambda: trainer.current_epoch,
            sampler=sampler,
            drop_last=True,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )
        return self._train_loader

    def count_folds(self) -> int:
        """Return the number of folds.

        Raises:
            ValueError: there are fewer patients than folds, or the file of folds is unusable.
        """
        return len(self._make_splits(self._cases()).folds)

    def texts(self) -> list[str]:
        """Return the reports of the training and validation cases."""
        return [case.report for case in (*self.train_set.cases, *self.val_set.cases)]

    def views(self) -> Iterator[Tensor]:
        """Yield the views (v, h, w, s) of the training and validation cases."""
        for case in (*self.train_set.cases, *self.val_set.cases):
            yield case.views().images

    def provenance(self) -> dict[str, Any]:
        """Return the cases of a fit and check sums of their content, as plain values.

        The name of a cache file holds a check sum of the source files of its case; see
        :func:`clipseg3d.data.cache.cached_case`. Computed once after each :meth:`setup`.
        """
        if self._provenance is None:
            self._provenance = self._describe_data()
        return self._provenance

    def _describe_data(self) -> dict[str, Any]:
        """Compute what :meth:`provenance` returns."""
        parts = {
            "training": self.train_set.cases,
            "validation": self.val_set.cases,
            "test": self.test_set.cases,
        }
        names = {part: [case.case_id for case in cases] for part, cases in parts.items()}
        all_cases = {case.case_id: case for cases in parts.values() for case in cases}
        files = {name: case.path.name for name, case in all_cases.items()}
        reports = {name: case.report for name, case in all_cases.items()}
        path = None if self.splits is None else Path(self.splits)
        return {
            "root": str(self.root),
            "release": self.release.name,
            "split": {
                **names,
                "sha256": sha256_of_values(names),
                "file": None if path is None else str(path),
                "file_sha256": None if path is None or path.is_dir() else sha256_of_file(path),
            },
            "cache_files": files,
            "sha256": sha256_of_values([files, reports]),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch and the number of its batches given so far, for a checkpoint."""
        if self._train_loader is None:
            return {}
        epoch, batches = self._train_loader.progress
        return {"epoch": epoch, "batches": batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Skip, in the next fit, the batches that were trained on before the checkpoint."""
        self._resume_from = (state_dict["epoch"], state_dict["batches"])

    def val_dataloader(self) -> DataLoader[Sample]:
        """Whole brains, one per batch, in the order of the cases."""
        return self._loader(self.val_set)

    def test_dataloader(self) -> DataLoader[Sample]:
        """Whole brains of the test cases in ``splits``; without those, of the validation cases."""
        return self._loader(self.test_set)

    def predict_dataloader(self) -> DataLoader[Case]:
        """The cases below ``root``, as files, one in each batch; expert masks are not needed.

        Raises:
            FileNotFoundError: there is no case.

        Warns:
            UserWarning: a case cannot be used, or its expert mask cannot.
        """
        cases, faults, notes = segmentable_cases(self.root, self.release, reports=self.reports)
        for message in (*faults, *notes):
            rank_zero_warn(message)
        return DataLoader(cases, collate_fn=list)  # type: ignore[arg-type]  # a list is a dataset

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Move a batch to the device; cases to predict stay as they are, files on disk."""
        if not isinstance(batch, Mapping):
            return batch
        moved = super().transfer_batch_to_device(batch, device, dataloader_idx)
        if "augmentation" in batch:  # asking the device for it would wait for the last step
            moved["augmentation"] = batch["augmentation"]
        return moved

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Unpack and augment a batch on the device to which it was moved; cases stay files."""
        if not isinstance(batch, Mapping):
            return batch
        return unpack(batch, num_regions=len(self.release.regions))

    def _cases(self) -> list[Case]:
        """Return all cases; the headers of their files are read once per run."""
        if self._index is None:
            self._index = self._with_reports(self._find_cases())
        return self._index

    def _forget_cases(self) -> None:
        """Forget which files the folder holds, and what is in them."""
        self._index, self._cached_cases = None, {}

    def _find_cases(self) -> list[Case]:
        """Index the folder."""
        return find_cases(
            self.root,
            self.release,
            reports=self.reports,
            allow_missing=self.allow_missing_sequences,
            spacing_mm=self.spacing_mm,
        )

    def _survey(self, folders: list[Path], planned: list[Case]) -> DataSurvey:
        """Survey the cases in some folders, and planned cases, which have no files yet."""
        options: dict[str, Any] = {
            "reports": self.reports,
            "allow_missing": self.allow_missing_sequences,
            "spacing_mm": self.spacing_mm,
        }
        faults: list[str] = []
        notes: list[str] = []
        cases: list[Case] = []
        for folder in folders:
            check = check_data(
                folder, self.release, num_threads=max(1, self.num_workers), **options
            )
            faults += check.faults
            if len(check.cases) > 1:  # notes on a folder compare its cases
                notes += check.notes
            notes += [note for case in check.cases for note in case.notes]
            cases += index_cases(folder, self.release, **options)[0]
        training: list[Case] = []
        validation: list[Case] = []
        try:
            training, validation, _ = self._divide([*cases, *planned])
        except ValueError as error:
            faults.append(str(error))
        missing = len(planned) + sum(
            not cached_case(
                case, self.release, self.cache_dir, view_selection=self.view_selection
            ).is_complete()
            for case in cases
        )
        size = int(missing * MEGABYTES * 1e6 / self.spacing_mm**3)
        disk = {self.cache_dir: size} if missing else {}
        return DataSurvey(tuple(faults), tuple(notes), len(training), len(validation), disk)

    def _augmentation(self) -> Callable[[Sample], Sample] | None:
        """Return what augments a packed sample."""
        if not self.augment:
            return None
        if self.augmentation is None:
            return Augmentation()
        return OwnAugmentation(self.augmentation, num_regions=len(self.release.regions))

    def _twins(self) -> TextTwins | None:
        """Return what writes reports and makes twins; None if neither is wanted."""
        if not self.text_twins and not self.written_reports:
            return None
        return TextTwins(
            self.release,
            spacing_mm=self.spacing_mm,
            twins=self.text_twins,
            written=self.written_reports,
        )

    def _divide(self, cases: list[Case]) -> tuple[list[Case], list[Case], list[Case]]:
        """Return the training, validation and test cases."""
        return self._make_splits(cases).divide(cases, fold=self.fold)

    def _make_splits(self, cases: list[Case]) -> Splits:
        """Draw folds, or read them from the file."""
        if self.splits is None:
            return Splits.draw(cases, num_folds=self.num_folds, seed=self.seed)
        return Splits.read(self.splits, cases)

    def _with_reports(self, cases: list[Case]) -> list[Case]:
        """Return the cases; with ``shuffle_reports``, each with the report of another one."""
        if not self.shuffle_reports:
            return cases
        # A cycle in random order: no case keeps its own report.
        order = np.random.default_rng(self.seed).permutation(len(cases))
        donors = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
        return [
            replace(case, report=cases[donors[index]].report) for index, case in enumerate(cases)
        ]

    def _cache(self, cases: list[Case]) -> list[CachedCase]:
        """Return the cached cases; those that are missing in the cache are built."""
        cached = self._cached_cases
        missing = [
            case
            for case in cases
            if case.case_id not in cached or not cached[case.case_id].is_complete()
        ]
        if missing:
            built = build_cache(
                missing,
                self.release,
                self.cache_dir,
                view_selection=self.view_selection,
                num_threads=max(1, self.num_workers),
            )
            cached.update({entry.case_id: entry for entry in built})
        return [cached[case.case_id] for case in cases]

    def _loader(self, dataset: BraTSDataset) -> DataLoader[Sample]:
        """Return a loader of whole brains."""
        return DataLoader(
            dataset, num_workers=self.num_workers, persistent_workers=self.num_workers > 0
        )


class BraTS2018DataModule(BraTSDataModule):
    """BraTS 2018: folders HGG and LGG; a patient may have several scans."""

    published = BRATS_2018


class BraTS2019DataModule(BraTSDataModule):
    """BraTS 2019: as 2018, with more cases."""

    published = BRATS_2019


class BraTS2020DataModule(BraTSDataModule):
    """BraTS 2020, the data of the paper; the label map of case 355 has an irregular name."""

    published = BRATS_2020


class BraTS2021DataModule(BraTSDataModule):
    """BraTS 2021: the last release in which enhancing tumour is label 4."""

    published = BRATS_2021


class BraTS2023GLIDataModule(BraTSDataModule):
    """BraTS 2023 adult glioma: new names of sequences; enhancing tumour is label 3."""

    published = BRATS_2023_GLI


class BraTS2024GLIDataModule(BraTSDataModule):
    """BraTS 2024 glioma after treatment: label 4, the resection cavity, is a region of its own."""

    published = BRATS_2024_GLI


class BraTS2025GLIDataModule(BraTSDataModule):
    """BraTS 2025 glioma, before and after treatment: regions as in 2024."""

    published = BRATS_2025_GLI


class BraTS2023PEDDataModule(BraTSDataModule):
    """BraTS-PEDs 2023, tumours of children: labels as in adults."""

    published = BRATS_2023_PED


class BraTS2024PEDDataModule(BraTSDataModule):
    """BraTS-PEDs 2024: enhancing tumour is label 1; cysts are a region of their own."""

    published = BRATS_2024_PED


class BraTS2023SSADataModule(BraTSDataModule):
    """BraTS-Africa 2023: gliomas from Sub-Saharan Africa."""

    published = BRATS_2023_SSA


class BraTS2023MENDataModule(BraTSDataModule):
    """BraTS 2023 meningioma, before surgery."""

    published = BRATS_2023_MEN


class BraTS2023METDataModule(BraTSDataModule):
    """BraTS 2023 metastases."""

    published = BRATS_2023_MET


class BraTS2025METDataModule(BraTSDataModule):
    """BraTS 2025 metastases: label 4, the resection cavity, is a region of its own."""

    published = BRATS_2025_MET


class BraTS2024MENRTDataModule(BraTSDataModule):
    """BraTS 2024 meningioma before radiotherapy: T1ce alone, with skull; one region, GTV."""

    published = BRATS_2024_MEN_RT


class MSDTask01DataModule(BraTSDataModule):
    """Task01_BrainTumour of the Medical Segmentation Decathlon: 4D images, its own labels."""

    published = MSD_TASK01
