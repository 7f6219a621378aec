"""A check of what a fit needs, and whether it can run, before it starts; nothing is written."""

import math
import os
import shutil
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from clipseg3d.batch import Batch
from clipseg3d.intensity import intensity_statistics
from clipseg3d.training.memory import AUTOCAST, PeakMemory, predict_peak_memory
from clipseg3d.training.module import CLIPSeg3DModule
from clipseg3d.training.plan import PLANS
from clipseg3d.views import cut_reduced_views, cut_views

STEPS = 2
CHECKPOINTS = 2
"""The best one and the last one."""
GB = 1e9
ENOUGH_STEPS = 25_000
"""Optimiser steps that every full-size recipe makes at least; nnU-Net makes ten times as many."""
LR_TOLERANCE = 1.3
"""Factor by which a learning rate may differ from that of the rule, without a note."""


@dataclass(frozen=True)
class DryRun:
    """What a fit needs.

    Attributes:
        faults: reasons why the fit would fail, each with a cure.
        notes: what is unusual, but no fault.
        training: number of cases to train on.
        validation: number of cases to validate on.
        trained: number of weights that are trained.
        frozen: number of weights that are not.
        peak: predicted memory of each device; None for a precision that cannot be predicted.
        device: where the steps run.
        capacity: bytes of memory of one device.
        step_seconds: time of the faster of two steps; None if they were not tried.
        steps_per_epoch: training steps on each device.
        epochs: highest number of epochs; None if it is not limited.
        optimizer_steps: of the whole fit; None if it is not limited.
        global_batch: samples of one step of the optimiser, on all devices.
        lr: peak learning rate; None if another optimiser stands in for the plan's.
        disk: folder -> approximate bytes that will be written below it, and free bytes.
    """

    faults: tuple[str, ...]
    notes: tuple[str, ...]
    training: int
    validation: int
    trained: int
    frozen: int
    peak: PeakMemory | None
    device: str
    capacity: int
    step_seconds: float | None
    steps_per_epoch: int
    epochs: int | None
    optimizer_steps: int | None
    global_batch: int
    lr: float | None
    disk: Mapping[Path, tuple[int, int]]

    def __str__(self) -> str:
        """Return the result as lines of text."""
        rows = [
            ("cases", f"{self.training} to train on, {self.validation} to validate on"),
            ("weights", f"{self.trained / 1e6:.2f} M trained, {self.frozen / 1e6:.2f} M frozen"),
        ]
        if self.optimizer_steps is not None:
            samples = self.optimizer_steps * self.global_batch
            rate = "" if self.lr is None else f", peak learning rate {self.lr:.3g}"
            rows.append(
                (
                    "training",
                    f"{self.optimizer_steps:,} optimiser steps, each of a global batch of "
                    f"{self.global_batch}: {samples:,} samples{rate}",
                )
            )
        if self.peak is not None:
            rows.append(
                (
                    "peak memory",
                    f"{self.peak.total / GB:.2f} GB predicted (weights "
                    f"{self.peak.weights / GB:.2f}, gradients and optimiser "
                    f"{self.peak.training / GB:.2f}, activations "
                    f"{self.peak.activations / GB:.2f}) of {self.capacity / GB:.0f} GB on "
                    f"{self.device}",
                )
            )
        if self.step_seconds is not None:
            epoch = self.step_seconds * self.steps_per_epoch
            total = ""
            if self.epochs is not None:
                total = f", {self.epochs} epochs {_duration(epoch * self.epochs)}"
            rows.append(
                (
                    "time",
                    f"{self.step_seconds:.2f} s a step, {self.steps_per_epoch} steps and "
                    f"{_duration(epoch)} an epoch{total}, without validation",
                )
            )
        rows += [
            ("disk", f"{folder}: {needed / GB:.2f} GB to be written, {free / GB:.2f} GB free")
            for folder, (needed, free) in self.disk.items()
        ]
        rows += [("note", note) for note in self.notes]
        rows += [("fault", fault) for fault in self.faults]
        return "\n".join(f"{name:12s} {text}" for name, text in rows)


def dry_run(module: CLIPSeg3DModule, data: Any, trainer: Trainer) -> DryRun:
    """Check the data, count weights, predict memory, try two steps and check the disk.

    The steps run on one device, on crops of noise, so that their time does not include loading.
    They change the module's weights.

    Args:
        module: as it would be trained.
        data: data module, with its ``survey``.
        trainer: as it would train; only its settings are read.

    Raises:
        FileNotFoundError: the data's folder is missing.
        ValueError: the release cannot be detected, or the network refuses the patch.
    """
    survey = data.survey()
    faults, notes = [*survey.faults], [*survey.notes]
    device = trainer.strategy.root_device
    capacity = _capacity(device)
    weights = {True: 0, False: 0}
    for weight in module.network.parameters():
        weights[weight.requires_grad] += weight.numel()
    peak = None
    if str(trainer.precision) in AUTOCAST:
        peak = predict_peak_memory(
            module.network,
            data.patch_size,
            batch_size=data.batch_size,
            precision=str(trainer.precision),
        )
    else:
        notes.append(f"memory cannot be predicted for precision {trainer.precision}")
    fits = peak is None or peak.total < capacity
    if peak is not None and not fits:
        faults.append(
            f"patch_size={tuple(data.patch_size)} with batch_size={data.batch_size} needs "
            f"{peak.total / GB:.1f} GB, and {device} has {capacity / GB:.1f}; take a smaller patch "
            "or batch, bf16-mixed precision, checkpointing, or another preset"
        )
    seconds = _measure(module, data, trainer) if fits else None
    checkpoints = Path(trainer.default_root_dir)
    trained_bytes = sum(w.nbytes for w in module.network.parameters() if w.requires_grad)
    disk = dict(survey.disk)
    disk[checkpoints] = disk.get(checkpoints, 0) + CHECKPOINTS * 3 * trained_bytes
    space = {folder: (needed, _free(folder)) for folder, needed in disk.items()}
    for folder, (needed, free) in space.items():
        if needed > free:
            faults.append(
                f"{folder}: {needed / GB:.2f} GB to be written, {free / GB:.2f} GB free; make "
                "room, or choose another folder"
            )
    samples = -(-survey.training * data.crops_per_case // trainer.world_size)
    if 0 < samples < data.batch_size:
        faults.append(
            f"batch_size={data.batch_size} is more than the {samples} samples that an epoch has "
            "for each device; lower it, or raise crops_per_case"
        )
    steps = samples // data.batch_size  # an incomplete last batch is dropped
    limit = trainer.limit_train_batches
    steps = min(steps, limit) if isinstance(limit, int) else int(steps * limit)
    epochs = trainer.max_epochs if (trainer.max_epochs or -1) > 0 else None
    per_epoch = math.ceil(steps / trainer.accumulate_grad_batches)
    limits = [trainer.max_steps] if trainer.max_steps > 0 else []
    limits += [] if epochs is None else [epochs * per_epoch]
    optimizer_steps = min(limits, default=None)
    global_batch = data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
    lr = None if "optimizer" in module.replaced else module.plan.lr
    notes += _notes_on_recipe(module, data, optimizer_steps, per_epoch, global_batch, lr)
    return DryRun(
        faults=tuple(faults),
        notes=tuple(notes),
        training=survey.training,
        validation=survey.validation,
        trained=weights[True],
        frozen=weights[False],
        peak=peak,
        device=str(device),
        capacity=capacity,
        step_seconds=seconds,
        steps_per_epoch=steps,
        epochs=epochs,
        optimizer_steps=optimizer_steps,
        global_batch=global_batch,
        lr=lr,
        disk=space,
    )


def _notes_on_recipe(
    module: CLIPSeg3DModule,
    data: Any,
    steps: int | None,
    per_epoch: int,
    global_batch: int,
    lr: float | None,
) -> list[str]:
    """Return what is doubtful in a recipe: sizes, length and learning rate.

    Args:
        module: as it would be trained.
        data: data module.
        steps: steps of the optimiser in the whole fit; None if they are not limited.
        per_epoch: steps of the optimiser in an epoch.
        global_batch: samples of one step of the optimiser.
        lr: peak learning rate; None if it is not the plan's.
    """
    notes = []
    roi_size, patch_size = tuple(module.hparams["roi_size"]), tuple(data.patch_size)
    if roi_size != patch_size:
        notes.append(
            f"crops of training have the size {patch_size}, and windows of validation {roi_size}; "
            "give model.roi_size and data.patch_size the same"
        )
    if not per_epoch:  # a fault of its own
        return notes
    if steps and module.network.semantic_fusion is not None:
        notes += filter(None, [module.plan.short_ramp(math.ceil(steps / per_epoch))])
    named = [name for name, plan in PLANS.items() if replace(module.plan, lr=plan.lr) == plan]
    if "tiny" in named:  # for short runs
        return notes
    if steps and steps < ENOUGH_STEPS:
        notes.append(
            f"{steps:,} optimiser steps are few: every full-size one of 'clipseg3d configs' makes "
            f"at least {ENOUGH_STEPS:,}; give {math.ceil(ENOUGH_STEPS / per_epoch)} epochs"
        )
    for name in named if lr is not None else ():
        due = PLANS[name].scaled_lr(global_batch)
        if not due / LR_TOLERANCE <= module.plan.lr <= due * LR_TOLERANCE:
            notes.append(
                f"the learning rate is {lr:.3g}; that of the plan {name!r}, times the square root "
                f"of the global batch of {global_batch}, is {due:.3g}"
            )
    return notes


class _Clock(Callback):
    """Measures the time of every step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        _wait(module.device)
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        _wait(module.device)
        self.seconds.append(time.perf_counter() - self.start)


def _measure(module: CLIPSeg3DModule, data: Any, trainer: Trainer) -> float:
    """Return the seconds of the faster of two steps."""
    clock = _Clock()
    short = Trainer(
        # Its name, because an accelerator object makes Lightning set up autocast for a GPU.
        accelerator=trainer.strategy.root_device.type,
        devices=1,
        precision=trainer.precision,
        gradient_clip_val=trainer.gradient_clip_val,
        max_epochs=1,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = [_noise(module, data.patch_size, data.batch_size)] * STEPS
    with warnings.catch_warnings():
        # of the two steps, not of the fit
        warnings.filterwarnings("ignore", message="semantics rise|You defined a `validation_step`")
        short.fit(module, DataLoader(batches, batch_size=None, collate_fn=_identity))  # type: ignore[arg-type]
    return min(clock.seconds)


def _noise(module: CLIPSeg3DModule, patch_size: tuple[int, int, int], count: int) -> Batch:
    """Return a batch of noise in the shapes of training batches."""
    config = module.config
    image = torch.rand(count, len(config.sequences), *patch_size) + 0.1
    return {
        "image": image,
        "label": (torch.rand(count, len(config.regions), *patch_size) > 0.9).float(),
        "crop_box": torch.tensor([[[0.0] * 3, [1.0] * 3]]).repeat(count, 1, 1),
        "statistics": intensity_statistics(image),
        "views": cut_views(image, selection=config.view_selection, sequences=config.sequences),
        "reduced_views": cut_reduced_views(
            image, selection=config.view_selection, sequences=config.sequences
        ),
        "report": ["A mass in the left temporal lobe."] * count,
        "grade": torch.zeros(count, dtype=torch.int64),
        "case_id": [f"noise {index}" for index in range(count)],
    }


def _identity(batch: Any) -> Any:
    return batch


def _wait(device: torch.device) -> None:
    """Wait until a device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _capacity(device: torch.device) -> int:
    """Return the memory of a device in bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _free(folder: Path) -> int:
    """Return the free bytes on the disk of a folder, which need not exist yet."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def _duration(seconds: float) -> str:
    """Return a time span in its largest fitting unit."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
