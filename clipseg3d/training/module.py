"""CLIPSeg3D as a LightningModule: losses, optimiser, full-volume validation, checkpoints."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from inspect import currentframe, getargvalues, signature
from io import BytesIO
from math import ceil, inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.cli import instantiate_class
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_warn
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.optim import Optimizer

from clipseg3d.batch import Batch, complete, unpack
from clipseg3d.blocks.prompt_head import PromptHead
from clipseg3d.clip.encoder import InjectedClip
from clipseg3d.clip.text_bank import TextBank
from clipseg3d.data.cases import Case
from clipseg3d.data.releases import GivenRelease, get_release, release_values
from clipseg3d.data.sample_order import derived_seed, global_seed
from clipseg3d.inference.postprocessing import PostProcessing
from clipseg3d.inference.predictor import Predictor
from clipseg3d.inference.sliding_window import segment_volume
from clipseg3d.lightning_bases import LightningModule
from clipseg3d.losses import RegionLoss, cosine_loss, grade_loss, presence_loss
from clipseg3d.metrics.dice import CaseDice
from clipseg3d.metrics.score_table import ScoreTable
from clipseg3d.networks.build import build_clipseg3d
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.networks.prediction_settings import PredictionSettings
from clipseg3d.networks.presets import network_config
from clipseg3d.pretrained.checkpoint import read_checkpoint_file
from clipseg3d.pretrained.formats import FORMAT, check_format, upgrade_checkpoint
from clipseg3d.pretrained.reader import weight_mismatches
from clipseg3d.ranges import require_count, require_share
from clipseg3d.training.fit_settings import changed_settings, fit_settings, is_plain
from clipseg3d.training.non_finite import NonFinite, first_non_finite
from clipseg3d.training.plan import TrainingPlan, resolve_plan
from clipseg3d.training.predictions import Predictions
from clipseg3d.training.prompt_task import (
    coarsen,
    draw_sentences,
    draw_tasks,
    prompt_loss,
    sentence_loss,
)
from clipseg3d.training.report_swap import swap_reports
from clipseg3d.training.sequence_dropout import draw_kept_sequences, withhold_sequences

PROMPTS_PER_STEP, SENTENCES_PER_STEP = 16, 8
"""Numbers of prompts, and of sentences of reports, that are drawn in a step."""
PROMPT_GRID = 32
"""Longest axis of the grid of the masks of prompts."""


class CLIPSeg3DModule(LightningModule):
    """Train CLIPSeg3D, or with ``ablation`` parts of it, on any data module of this library.

    Logs ``train/loss``, and over full volumes at native resolution ``val/dice_wt``,
    ``val/dice_tc``, ``val/dice_et`` and ``val/dice_mean`` (``test/...`` likewise). Every case
    counts once, however many ranks there are. Checkpoints hold plain values and tensors only, so
    that they load with ``weights_only=True``. They hold no weights of the frozen CLIP, but its name
    and hash.

    Random numbers of a step (for dropout, and for withholding reports and sequences) depend on
    ``seed_everything``, the epoch and the index of the batch only, so that a resumed fit gives the
    same weights as one that was never interrupted. For reports and sequences they are drawn for
    the batches of all ranks together: two ranks withhold the same as one with twice the batch.

    Loss, optimiser and schedule are replaced by overriding :meth:`configure_loss`,
    :meth:`configure_optimizer` and :meth:`configure_schedule`, or all of the optimisation by
    ``configure_optimizers``; on the command line by ``--loss``, ``--optimizer`` and
    ``--lr_scheduler``. Arguments of a subclass that are plain values are kept in ``hparams`` and in
    checkpoints; others must be given again when a checkpoint is loaded.

    Args:
        network: a preset's name or a NetworkConfig; also its values, as in checkpoints.
        encoder: CLIP itself, instead of the network's ``clip``: anything with the methods of
            :class:`clipseg3d.clip.ClipEncoder`. Checkpoints keep its name and hash only, so that it
            must be given again when they are loaded.
        ablation: name of the parts to switch off; see :data:`clipseg3d.networks.presets.ABLATIONS`.
        release: of the training data: a name, a YAML file, its values, or a BraTSRelease.
            Predictions are written in its labels. A preset takes its sequences and regions; those
            of a NetworkConfig must be among them.
        spacing_mm: voxel size of the training data; the predictor resamples other scans to it.
        plan: optimiser, schedule and losses: a name of :data:`clipseg3d.training.plan.PLANS`, or
            a TrainingPlan, or its values; None takes the ``plan`` of the network's config.
        lr: peak learning rate; None takes the plan's.
        report_dropout: share of training samples whose report is withheld, so that the network
            also works without one.
        sequence_dropout: share of training samples from which one to three of the four sequences
            are withheld, so that the network also works without them.
        text_cache: file of text embeddings written by ``clipseg3d embed-text``; None embeds texts
            when they are needed.
        roi_size: size of the sliding window (x, y, z) of validation, in voxels.
        overlap: share of overlap of neighbouring windows, in [0, 1).
        postprocessing: rules that clean up what the weights predict, as plain values: rule ->
            thresholds, see :class:`clipseg3d.inference.PostProcessing`. They are saved with the
            weights; losses and scores of training, validation and test are without them.
        swap_cases: number of validation cases of each rank whose report is swapped after every
            epoch, to log ``val/obey_text`` and ``val/obey_image``, see
            :func:`clipseg3d.training.report_swap.swap_reports`; each takes five segmentations
            instead of one. Needs t1ce, WT, TC and ET.
        resume_changed: whether a fit may be resumed with other settings than those saved in the
            checkpoint; learning rate and schedule are then those of the new settings at the
            checkpoint's step.

    Attributes:
        scores: Dice of every case in the last validation or test; None before the first.
        replaced: what stands in for the plan's ``loss``, ``optimizer`` or ``lr_scheduler``: name ->
            class path and arguments, as plain values, to be compared when a fit is resumed.
        segment_case: what :meth:`predict_step` calls with a predictor and a case.

    Raises:
        ValueError: unknown preset, ablation, plan, release or rule; a value out of its range; a
            CLIP folder without weights.
        OSError: a CLIP hub name without network.

    Example:
        >>> module = CLIPSeg3DModule("tiny", ablation="unet3d", spacing_mm=2.0)
        >>> module.network.unet.channels
        (16, 32, 64, 128, 160)
    """

    def __init__(
        self,
        # A dict works too. It is not part of the type, because LightningCLI would accept any dict.
        network: NetworkConfig | str = "recommended",
        *,
        encoder: InjectedClip | None = None,
        ablation: str | None = None,
        release: GivenRelease = "brats2020",
        spacing_mm: float = 1.0,
        plan: TrainingPlan | dict[str, Any] | str | None = None,
        lr: float | None = None,
        report_dropout: float = 0.15,
        sequence_dropout: float = 0.0,
        text_cache: str | None = None,
        roi_size: tuple[int, int, int] = (128, 128, 128),
        overlap: float = 0.5,
        postprocessing: dict[str, Any] | None = None,
        swap_cases: int = 0,
        resume_changed: bool = False,
    ) -> None:
        super().__init__()
        require_share(report_dropout=report_dropout, sequence_dropout=sequence_dropout)
        require_count(swap_cases=swap_cases, at_least=0)
        config = network_config(network, ablation=ablation)
        if encoder is not None:
            config = replace(config, clip=encoder.name)
        whole_release = get_release(release)
        if isinstance(network, str):
            config = config.with_names(
                list(whole_release.sequences),
                list(whole_release.regions),
                prompts=whole_release.prompts,
            )
        self.plan = resolve_plan(plan, config)
        if lr is not None:
            self.plan = replace(self.plan, lr=lr)
        # The full config instead of the preset's name: a later release may change the preset.
        self.save_hyperparameters(
            {
                **_arguments_of_subclasses(self),
                "network": asdict(config),
                "release": release_values(whole_release),
                "spacing_mm": spacing_mm,
                "plan": asdict(self.plan),
                "report_dropout": report_dropout,
                "sequence_dropout": sequence_dropout,
                "roi_size": tuple(roi_size),
                "overlap": overlap,
                "postprocessing": postprocessing,
            }
        )
        settings = PredictionSettings.from_hyperparameters(self.hparams)
        self.config = config
        self.release = whole_release.select(sequences=config.sequences, regions=config.regions)
        if postprocessing is not None:
            PostProcessing.from_values(postprocessing).require_regions(self.release)
        lacking = [
            *(name for name in ("WT", "TC", "ET") if name not in config.regions),
            *(name for name in ("t1ce",) if name not in config.sequences),
        ]
        if swap_cases and lacking:
            raise ValueError(
                f"swap_cases={swap_cases} swaps what reports say of enhancement, but the network "
                f"has no {', '.join(lacking)}; set it to 0"
            )
        self.swap_cases = swap_cases
        self.resume_changed = resume_changed
        self.scores: ScoreTable | None = None
        self._restart_schedule = False
        self._forget_moments = False
        self.network = build_clipseg3d(config, encoder=encoder, text_cache=text_cache)
        # save_pretrained writes them beside the weights, for the predictor.
        self.network.settings = settings
        self.replaced: dict[str, Any] = {}
        self.segment_case: Callable[[Predictor, Case], Any] = Predictor.__call__
        self.loss = RegionLoss(self.configure_loss())
        self.val_dice = CaseDice(config.regions)
        self.test_dice = CaseDice(config.regions)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # only a file
        cls, checkpoint_path: str | Path, **options: Any
    ) -> "CLIPSeg3DModule":
        """Load a module from a checkpoint, which may be of an older format.

        Args:
            checkpoint_path: file written by a fit.
            options: of :meth:`LightningModule.load_from_checkpoint`, and arguments of the class,
                such as ``encoder`` for a module that was trained with one.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, or its weights do not fit.
            OSError: an encoder that it was trained with is not found by its name.
        """
        saved = read_checkpoint_file(Path(checkpoint_path))
        content = BytesIO()
        torch.save(saved, content)
        content.seek(0)
        try:
            return super().load_from_checkpoint(content, **options)
        except OSError as error:
            names = " and ".join(
                f"{role} encoder {identity['name']!r}"
                for role, identity in saved.get("encoders", {}).items()
            )
            raise OSError(
                f"{checkpoint_path}: trained with {names}, which is not found by name ({error}); "
                "give the encoder itself: load_from_checkpoint(path, encoder=...)"
            ) from error

    def setup(self, stage: str) -> None:
        """Check that the data module has the settings that the network needs.

        Raises:
            ValueError: its ``view_selection`` or ``shuffle_reports`` is another one, or its
                sequences or regions are.
        """
        data = self._data()
        release = getattr(data, "release", None)
        for name, own in (("sequences", self.config.sequences), ("regions", self.config.regions)):
            given = own if release is None else tuple(getattr(release, name))
            if given != own:
                raise ValueError(
                    f"the data module has the {name} {', '.join(given)}, but the network "
                    f"{', '.join(own)}; give the data module {name}={list(own)}"
                )
        required = {
            "view_selection": self.config.view_selection,
            "shuffle_reports": self.config.text == "shuffled",
        }
        for name, value in required.items():
            if self.config.semantics and getattr(data, name, value) != value:
                raise ValueError(
                    f"the data module has {name}={getattr(data, name)!r}, but the network needs "
                    f"{value!r}; give the data module {name}={value!r}"
                )

    def on_fit_start(self) -> None:
        """Embed all texts and views before the first step.

        Views are embedded case by case, each on one rank.
        """
        data = self._data()
        if hasattr(data, "texts"):
            self.network.embed_text(data.texts())
        fusion = self.network.semantic_fusion
        if fusion is not None and hasattr(data, "views"):
            fusion.bridge.precompute(
                (images.to(self.device) for images in data.views()),
                rank=self.global_rank,
                world_size=self.trainer.world_size,
            )

    def on_train_start(self) -> None:
        """Warn of a fit that ends before semantics are switched on; move a changed schedule."""
        if self.network.semantic_fusion is not None and (note := self._short_ramp()):
            rank_zero_warn(note)
        self._move_schedule()

    def _short_ramp(self) -> str | None:
        """Return what a short fit means for semantics; None if it is long enough."""
        steps, batches = self.trainer.estimated_stepping_batches, self.trainer.num_training_batches
        if steps == inf:
            return None
        if batches == inf:  # all of the fit is the first epoch
            return self.plan.short_ramp(1)
        per_epoch = ceil(batches / self.trainer.accumulate_grad_batches)
        return self.plan.short_ramp(ceil(steps / per_epoch))

    def _move_schedule(self) -> None:
        """Move the schedule of changed settings to the current step."""
        if not self._restart_schedule:
            return
        self._restart_schedule = False
        if is_overridden("configure_optimizers", self, CLIPSeg3DModule):
            return
        (optimizer,), (config,) = self.trainer.optimizers, self.trainer.lr_scheduler_configs
        if self._forget_moments:
            optimizer.state.clear()
        fresh = self.configure_optimizer()
        for group, new in zip(optimizer.param_groups, fresh.param_groups, strict=True):
            weights = group["params"]
            group.clear()
            group.update({**new, "params": weights})
        schedule = config.scheduler = self.configure_schedule(optimizer)["scheduler"]
        done = self.trainer.global_step
        if config.interval == "epoch":
            done = 0 if config.reduce_on_plateau else self.trainer.current_epoch
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            for _ in range(done):
                schedule.step()

    def on_train_epoch_start(self) -> None:
        """Set the strength of semantics to the plan's for this epoch."""
        self.network.semantic_strength.fill_(self.plan.semantic_strength(self.current_epoch))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Take no step with weights of the semantic path that do nothing yet.

        While the strength of semantics is 0, their gradients are 0, not None: distributed training
        waits for each of them. Adam would turn weight decay alone into steps of the full learning
        rate, and AdamW would shrink the weights. Weights that :func:`cosine_loss` trains have other
        gradients, and are trained.
        """
        fusion = self.network.semantic_fusion
        if fusion is None or self.network.semantic_strength > 0:
            return
        weights = [weight for weight in fusion.parameters() if weight.grad is not None]
        if not weights:
            return
        acts = torch.stack([weight.grad.any() for weight in weights if weight.grad is not None])
        for weight, keep in zip(weights, acts.tolist(), strict=True):
            if not keep:
                weight.grad = None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch of crops.

        Raises:
            ValueError: the loss is NaN or infinite; the message names the case, its crop and the
                first layer whose output is not finite.
        """
        batch = self._prepare(batch, batch_idx)
        graded = self._mean_graded(batch)
        loss = self._loss(batch, batch_idx, graded)
        finite = bool(loss.isfinite())
        if self._trainer is not None:  # all ranks stop together; the others would wait for ever
            finite = self.trainer.strategy.reduce_boolean_decision(finite)
        if not finite:
            self._raise_non_finite(batch, batch_idx, graded, float(loss.detach()))
        self.log(
            "train/loss",
            loss,
            prog_bar=True,
            batch_size=len(batch["report"]),
            sync_dist=True,
        )
        if self._trainer is not None:
            self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def _prepare(self, batch: Batch, batch_idx: int) -> Batch:
        """Return an unpacked batch with all keys; a plain data set gives image and label alone."""
        whole = complete(
            batch,
            sequences=self.config.sequences,
            view_selection=self.config.view_selection,
            name=f"rank {self.global_rank}, batch {batch_idx}",
            reduced_views=self.hparams["sequence_dropout"] > 0,
        )
        return unpack(whole, num_regions=len(self.config.regions))

    def _mean_graded(self, batch: Batch) -> Tensor | None:
        """Return the mean number of cases with a grade over the ranks; None without classifier."""
        if not self.config.grade_classifier:
            return None
        count = (batch["grade"] >= 0).sum().float()
        if self._trainer is None:
            return count
        mean: Tensor = self.trainer.strategy.reduce(count, reduce_op="mean")
        return mean

    def _loss(self, batch: Batch, batch_idx: int, graded: Tensor | None) -> Tensor:
        """Return the loss of a batch; calls with equal weights return equal losses.

        Nothing here waits for other ranks: a rank may call it once more than they do.
        """
        count = len(batch["report"])
        seeds = (global_seed(), self.current_epoch, batch_idx)
        torch.manual_seed(derived_seed(*seeds, self.global_rank))  # for dropout
        generator = torch.Generator().manual_seed(derived_seed(*seeds))
        dropped = self._draw(count, generator=generator) < self.hparams["report_dropout"]
        reports = [
            "" if drop else report for drop, report in zip(dropped, batch["report"], strict=True)
        ]
        acquired = batch["statistics"].any(dim=2)
        kept = self._draw_sequences(*acquired.shape, generator=generator).to(self.device)
        # A case may lack sequences itself; if none would be left, all are kept.
        kept |= ~(kept & acquired).any(dim=1, keepdim=True)
        image, statistics, views = withhold_sequences(
            batch["image"],
            batch["statistics"],
            batch["views"],
            kept,
            reduced_views=batch["reduced_views"],
            sequences=self.config.sequences,
        )
        text, mask = self.network.embed_text(reports)
        shown = self.config.region_contrast or self.config.presence
        prediction = self.network.segment(
            image,
            self.network.encode_semantics(views, text, mask),
            crop_box=batch["crop_box"],
            statistics=statistics,
            regions=batch["label"] if shown else None,
            deep=True,
        )
        loss: Tensor = self.loss([prediction.logits, *prediction.auxiliary], batch["label"])
        cosines = None if prediction.maps is None else prediction.maps.cosines
        if self.plan.cosine_weight and cosines is not None:
            guided = [region in (self.config.guided or ()) for region in self.config.regions]
            loss = loss + self.plan.cosine_weight * cosine_loss(
                cosines,
                batch["label"][:, guided],
                temperature=self.plan.cosine_temperature,
            )
        if prediction.presence is not None:
            weight = self.plan.presence_weight * self.network.semantic_strength
            loss = loss + weight * presence_loss(*prediction.presence, batch["label"])
        head, bank = self.network.prompt_head, self.network.text_bank
        if head is not None and bank is not None:
            prompts = self._prompt_loss(head, bank, batch, seeds)
            loss = loss + self.plan.prompt_weight * prompts
        if prediction.grade is not None:
            loss = loss + self.plan.grade_weight * grade_loss(
                prediction.grade, batch["grade"], count=graded
            )
        return loss

    def _prompt_loss(
        self, head: PromptHead, bank: TextBank, batch: Batch, seeds: tuple[int, ...]
    ) -> Tensor:
        """Return the loss of prompts about the true regions, which needs no image.

        Only how prompts are read is learned here; the network finds the regions.
        """
        rng = np.random.default_rng(derived_seed(*seeds, self.global_rank))
        tasks = draw_tasks(PROMPTS_PER_STEP, self.config.regions, bank.prompts, rng)
        label = coarsen(batch["label"], PROMPT_GRID)
        embeddings = bank.encoder.encode_text([task.text for task in tasks])  # each is met once
        reading = head.read(embeddings[None].to(label))
        loss = prompt_loss(head, reading, label, tasks, batch["crop_box"])
        sentences, several = draw_sentences(SENTENCES_PER_STEP, rng)
        embeddings = bank.encoder.encode_text(sentences)
        return loss + sentence_loss(head.read(embeddings[None].to(label)), several)

    def _raise_non_finite(
        self, batch: Batch, batch_idx: int, graded: Tensor | None, loss: float
    ) -> None:
        """Raise a ValueError that names where the first number is not finite."""
        step = f"epoch {self.current_epoch}, batch {batch_idx}"
        advice = (
            "The last checkpoint stands. Look at the case with 'clipseg3d check-data'; if it is in "
            "order, take precision bf16-mixed or 32-true, a lower learning rate or "
            "trainer.gradient_clip_val"
        )
        count = len(batch["report"])
        inputs = batch["image"].flatten(1).isfinite().all(dim=1)
        if not inputs.all():
            fault = NonFinite("the image itself", tuple((~inputs).nonzero().flatten().tolist()))
        else:
            layer = first_non_finite(
                self.network, lambda: self._loss(batch, batch_idx, graded), count
            )
            fault = layer or NonFinite("the loss, of finite outputs", ())
        if not np.isfinite(loss):
            crops = "; ".join(
                f"case {batch['case_id'][index]}, crop from "
                f"{_numbers(batch['crop_box'][index, 0])} of size "
                f"{_numbers(batch['crop_box'][index, 1:].sum(dim=0))} in shares of its brain box"
                for index in fault.samples or range(count)
            )
            message = f"the loss is {loss} in {step}: {crops}; first in {fault.layer}. {advice}"
        else:
            message = f"the loss of another rank is not finite in {step}, whose message says why"
        raise ValueError(message)

    def _draw(self, count: int, *shape: int, generator: torch.Generator) -> Tensor:
        """Return uniform numbers for the samples of this rank, (count, ...).

        Numbers are drawn for all ranks, and dealt out in turn as :class:`EpochSampler` deals out
        samples.
        """
        ranks = 1 if self._trainer is None else self.trainer.world_size
        return torch.rand(count * ranks, *shape, generator=generator)[self.global_rank :: ranks]

    def _draw_sequences(
        self, count: int, num_sequences: int, *, generator: torch.Generator
    ) -> Tensor:
        """Return which sequences each of ``count`` samples keeps, (count, s) bool."""
        share = self.hparams["sequence_dropout"]
        if not share:
            return torch.ones(count, num_sequences, dtype=torch.bool)
        chance, choice = self._draw(count, 2, generator=generator).unbind(dim=1)
        return draw_kept_sequences(chance, choice, share, num_sequences=num_sequences)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Score one full volume; return its predicted regions (b, r, x, y, z) as ``prediction``."""
        batch = self._prepare(batch, batch_idx)
        if batch_idx < self.swap_cases:
            self._swap_reports(batch, batch_idx)
        return {"prediction": self._score(batch, self.val_dice)}

    def _swap_reports(self, batch: Batch, batch_idx: int) -> None:
        """Log how far text is obeyed, and the image, over the first cases of all ranks."""
        scores = swap_reports(
            batch,
            self._segment,
            sequences=self.config.sequences,
            regions=self.config.regions,
            spacing_mm=self.hparams["spacing_mm"],
            seed=batch_idx,
        )
        if scores is None:
            return
        for name, score in zip(("obey_text", "obey_image"), scores, strict=True):
            # Ranks may have different numbers of cases with a core.
            self.log(f"val/{name}", score, on_epoch=True, batch_size=1, sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Log the mean over cases."""
        self._log_scores("val", self.val_dice)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Score one full volume."""
        self._score(self._prepare(batch, batch_idx), self.test_dice)

    def on_test_epoch_end(self) -> None:
        """Log the mean over cases."""
        self._log_scores("test", self.test_dice)

    def on_predict_start(self) -> None:
        """Make the predictor of this rank's device."""
        settings = self.network.settings
        if settings is None:
            raise ValueError("network.settings is None; set it to PredictionSettings")
        self._predictor = Predictor(
            self.network,
            release=get_release(settings.release),
            spacing_mm=settings.spacing_mm,
            roi_size=settings.roi_size,
            overlap=settings.overlap,
            device=str(self.device),
            allow_missing=settings.allow_missing,
        )

    def predict_step(self, batch: Sequence[Case], batch_idx: int) -> Predictions:
        """Return a :class:`clipseg3d.inference.Segmentation` of each case.

        With :class:`clipseg3d.training.SegmentationWriter` among the callbacks, files are written
        and each :class:`clipseg3d.inference.CaseResult` is returned.
        """
        with torch.autocast(self.device.type, enabled=False):  # as 'clipseg3d segment'
            return Predictions([self.segment_case(self._predictor, case) for case in batch])

    def configure_loss(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """Return the loss of one level, called as ``loss(logits, label)``; override it.

        It is called when the module is built, after ``hparams`` has been set. None takes
        :class:`clipseg3d.losses.DiceBCELoss`.
        """
        return None

    def replace_parts(
        self, parts: dict[str, Any], *, loss: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> None:
        """Use other parts than the plan's, as the command line does.

        Args:
            parts: name -> class path and arguments; see ``replaced``.
            loss: that ``parts`` describes; None leaves it as it is.

        Raises:
            ValueError: the loss takes probabilities, not logits.
        """
        self.replaced.update(parts)
        if loss is not None:
            self.loss = RegionLoss(loss)

    def configure_optimizer(self) -> Optimizer:
        """Return the optimiser: the plan's, or that of ``--optimizer`` with the plan's groups."""
        spec = self.replaced.get("optimizer")
        make = None if spec is None else partial(instantiate_class, init=spec)
        optimizer = self.plan.optimizer_for(self.network, make)
        if weights := [weight for weight in self.loss.parameters() if weight.requires_grad]:
            optimizer.add_param_group({"params": weights})
        return optimizer

    def configure_schedule(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the schedule, as Lightning takes it: the plan's, or that of ``--lr_scheduler``."""
        spec = self.replaced.get("lr_scheduler")
        if spec is None:
            steps = int(self.trainer.estimated_stepping_batches)
            return {"scheduler": self.plan.schedule_for(optimizer, steps), "interval": "step"}
        schedule = instantiate_class(optimizer, spec)
        if not hasattr(schedule, "monitor"):
            return {"scheduler": schedule}
        every = self.trainer.check_val_every_n_epoch
        return {
            "scheduler": schedule,
            "monitor": schedule.monitor,
            "frequency": every or 1,
            "strict": self.trainer.enable_validation,
        }

    def configure_optimizers(self) -> Any:
        """Return optimiser and schedule."""
        optimizer = self.configure_optimizer()
        return {"optimizer": optimizer, "lr_scheduler": self.configure_schedule(optimizer)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the format, the frozen encoders' hashes and the settings of the fit.

        Raises:
            ValueError: a weight is NaN or infinite; the checkpoint before it stays as it is.
        """
        for name, weight in checkpoint["state_dict"].items():
            if not weight.isfinite().all():
                raise ValueError(
                    f"weight {name} is not finite after step {self.trainer.global_step}, so no "
                    "checkpoint is written and the one before stands; go on from it with a lower "
                    "learning rate or trainer.gradient_clip_val"
                )
        checkpoint["format"] = FORMAT
        checkpoint["encoders"] = self.network.encoder_identities()
        if self._fitting():
            checkpoint["settings"] = fit_settings(self, self.trainer, self._data())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights that do not fit, and to resume a fit with other settings.

        Raises:
            ValueError: a frozen encoder has another hash than in training; the weights are of
                another architecture; a fit is resumed with other settings and ``resume_changed`` is
                not set; the labels of the cases to score mean other regions than in training.
        """
        if check_format(checkpoint.get("format")) != FORMAT:  # AtomicCheckpointIO upgrades it too
            checkpoint.update(upgrade_checkpoint(checkpoint))
        fitting = self._fitting()
        if self._trainer is not None and not fitting:
            self._require_labels(checkpoint["hyper_parameters"]["release"])
        if fitting and "settings" in checkpoint:
            now = fit_settings(self, self.trainer, self._data())
            changed = changed_settings(checkpoint["settings"], now)
            if changed and not self.resume_changed:
                raise ValueError(
                    f"the checkpoint was saved with other settings ({'; '.join(changed)}); give "
                    "those of the fit that it is of, or --model.resume_changed true to go on with "
                    "these"
                )
            self._restart_schedule = bool(changed)
            # Those of another class of optimiser.
            self._forget_moments = any(name.startswith("optimizer.class") for name in changed)
        if not fitting:  # scoring and predicting need no loss, whose weights are kept too
            weights = checkpoint["state_dict"].items()
            checkpoint["state_dict"] = {
                **{name: weight for name, weight in weights if not name.startswith("loss.")},
                **self.loss.state_dict(prefix="loss."),
            }
        if faults := weight_mismatches(checkpoint["state_dict"], self.state_dict()):
            raise ValueError(
                f"the checkpoint is of another architecture ({'; '.join(faults)}); give the "
                "network that it was trained as"
            )
        self.network.require_encoders(checkpoint["encoders"])

    def _require_labels(self, trained: str | dict[str, Any]) -> None:
        """Raise a ValueError if the data's labels mean other regions than in training."""
        data = self._data()
        release = getattr(data, "release", None)
        expected = get_release(trained)
        if release is not None and release.regions.items() - expected.regions.items():
            raise ValueError(
                f"the checkpoint was trained on {expected.name}, whose labels mean other regions "
                f"than those of {release.name}; give cases of the release that it was trained on"
            )

    def _data(self) -> Any:
        """Return the trainer's data module; None if it has loaders alone."""
        return getattr(self.trainer, "datamodule", None)

    def _fitting(self) -> bool:
        """Return whether a trainer is fitting this module; it can be saved or read without any."""
        return self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING

    def _score(self, batch: Batch, metric: CaseDice) -> Tensor:
        """Segment a full volume, add its Dice to the metric, and return the predicted regions."""
        prediction = self._segment(batch)
        metric.update(prediction, batch["label"] > 0, batch["case_id"])
        return prediction

    def _segment(self, batch: Batch) -> Tensor:
        """Return the regions of a full volume, (b, r, x, y, z) bool, as the label map says them."""
        text, mask = self.network.embed_text(batch["report"])
        semantics = self.network.encode_semantics(batch["views"], text, mask)
        logits = segment_volume(
            self.network,
            batch["image"],
            semantics,
            batch["statistics"],
            roi_size=self.hparams["roi_size"],
            overlap=self.hparams["overlap"],
        )
        # Scored as label maps, which are what is written.
        regions = [
            self.release.to_regions(self.release.to_labels(mask))
            for mask in (logits > 0).cpu().numpy()
        ]
        return torch.from_numpy(np.stack(regions)).to(self.device)

    def _log_scores(self, stage: str, metric: CaseDice) -> None:
        """Log the scores of all ranks, keep them in ``scores``, and reset the metric."""
        scores = metric.compute()
        with metric.sync_context():
            self.scores = metric.table()
        metric.reset()
        self.log_dict(
            {f"{stage}/dice_{name.lower()}": value.float() for name, value in scores.items()},
            prog_bar=True,
        )


def _arguments_of_subclasses(module: CLIPSeg3DModule) -> dict[str, Any]:
    """Return the plain arguments that subclasses have added, while the module is being built."""
    own = signature(CLIPSeg3DModule.__init__).parameters
    frame = currentframe()
    frame = frame and frame.f_back  # of CLIPSeg3DModule.__init__
    added: dict[str, Any] = {}
    while frame is not None and frame.f_code.co_name == "__init__":
        names, _, keywords, values = getargvalues(frame)
        if values[names[0]] is not module:
            break
        added |= {name: values[name] for name in names[1:]} | values.get(str(keywords), {})
        frame = frame.f_back
    return {name: value for name, value in added.items() if name not in own and is_plain(value)}


def _numbers(values: Tensor) -> str:
    """Format a few numbers as (0.25, 0.5, 1)."""
    return f"({', '.join(f'{value:.3g}' for value in values.tolist())})"
