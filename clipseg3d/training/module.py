"""CLIPSeg3D as a LightningModule: loss, optimiser, full-volume validation, checkpoints."""

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule
from torch import Tensor

from clipseg3d.batch import Batch, unpack
from clipseg3d.data.releases import get_release
from clipseg3d.inference.window import segment_volume
from clipseg3d.losses import RegionLoss, cosine_loss, grade_loss
from clipseg3d.metrics.dice import CaseDice
from clipseg3d.networks.clipseg3d import build_clipseg3d
from clipseg3d.networks.config import NetworkConfig, network_config
from clipseg3d.networks.settings import PredictionSettings
from clipseg3d.training.plan import TrainingPlan, resolve_plan
from clipseg3d.volume import withhold_sequences


class CLIPSeg3DModule(LightningModule):
    """Train CLIPSeg3D, or with ``ablation`` a part of it, on any data module of this library.

    Logs ``train/loss`` and, over full volumes at native resolution with every case counted once
    whatever the number of ranks, ``val/dice_wt``, ``val/dice_tc``, ``val/dice_et`` and
    ``val/dice_mean`` (``test/...`` likewise). Checkpoints hold plain values and tensors only, no
    weight of the frozen CLIP but its name and hash, and load with ``weights_only=True``.

    Args:
        network: a preset's name, or a NetworkConfig (as a dict in checkpoints).
        ablation: parts to switch off, by name; see :data:`clipseg3d.networks.config.ABLATIONS`.
        release: label convention of the training data; predictions are written in it.
        spacing_mm: voxel size of the training data; the predictor refuses other scans.
        plan: optimiser, schedule and losses: a name of :data:`clipseg3d.training.plan.PLANS`, or
            a TrainingPlan (as a dict in checkpoints); None takes the plan named as the network, or
            ``recommended``.
        lr: peak learning rate; None takes the plan's.
        report_dropout: share of training samples whose report is withheld, so that the network
            also works without one.
        sequence_dropout: share of training samples from which one to three of the four sequences
            are withheld, so that the network also works without them.
        text_cache: file of text embeddings written by ``clipseg3d embed-text``; None embeds texts
            when they are met.
        window: sliding window (x, y, z) of validation, in voxels.
        overlap: of neighbouring windows, in [0, 1).

    Raises:
        ValueError: unknown preset, ablation, plan or release; a CLIP folder without weights.
        OSError: a CLIP hub name without network.
    """

    def __init__(
        self,
        network: NetworkConfig | dict[str, Any] | str = "recommended",
        *,
        ablation: str | None = None,
        release: str = "brats2020",
        spacing_mm: float = 1.0,
        plan: TrainingPlan | dict[str, Any] | str | None = None,
        lr: float | None = None,
        report_dropout: float = 0.15,
        sequence_dropout: float = 0.0,
        text_cache: str | None = None,
        window: tuple[int, int, int] = (128, 128, 128),
        overlap: float = 0.5,
    ) -> None:
        super().__init__()
        config = network_config(network, ablation=ablation)
        self.plan = resolve_plan(plan, network)
        if lr is not None:
            self.plan = replace(self.plan, lr=lr)
        # The full config instead of the preset's name: a later release may change the preset.
        self.save_hyperparameters(
            {
                "network": asdict(config),
                "release": get_release(release).name,
                "spacing_mm": spacing_mm,
                "plan": asdict(self.plan),
                "report_dropout": report_dropout,
                "sequence_dropout": sequence_dropout,
                "window": tuple(window),
                "overlap": overlap,
            }
        )
        self.config = config
        self.network = build_clipseg3d(config, text_cache=text_cache)
        # What is published from here says what it is for.
        self.network.settings = PredictionSettings(
            release=get_release(release).name,
            spacing_mm=spacing_mm,
            window=window,
            overlap=overlap,
            allow_missing=sequence_dropout > 0,
        )
        self.loss = RegionLoss()
        self.val_dice = CaseDice(config.regions)
        self.test_dice = CaseDice(config.regions)

    def setup(self, stage: str) -> None:
        """Check that the data give what the network is built for.

        Raises:
            ValueError: the data module cuts other views, or does not shuffle reports where it is
                to, or does where it is not.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        due = {
            "view_selection": self.config.view_selection,
            "shuffle_reports": self.config.text == "shuffled",
        }
        for name, value in due.items():
            if self.config.semantics and getattr(data, name, value) != value:
                raise ValueError(
                    f"the data module has {name}={getattr(data, name)!r}, but the network needs "
                    f"{value!r}; give the data module {name}={value!r}"
                )

    def on_train_epoch_start(self) -> None:
        """Switch semantics in as the plan says."""
        self.network.semantic_strength.fill_(self.plan.semantic_strength(self.current_epoch))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch of crops."""
        batch = unpack(batch)
        count = len(batch["report"])
        dropped = torch.rand(count) < self.hparams["report_dropout"]
        reports = [
            "" if drop else report for drop, report in zip(dropped, batch["report"], strict=True)
        ]
        image, statistics, views = withhold_sequences(
            batch["image"],
            batch["statistics"],
            batch["views"],
            self._draw_sequences(count, batch["image"].shape[1]).to(self.device),
        )
        text, mask = self.network.embed_text(reports)
        prediction = self.network.segment(
            image,
            self.network.encode_semantics(views, text, mask),
            window=batch["window"],
            statistics=statistics,
            regions=batch["label"] if self.config.region_contrast else None,
            deep=True,
        )
        loss: Tensor = self.loss([prediction.logits, *prediction.auxiliary], batch["label"])
        if self.plan.cosine_weight and prediction.maps is not None:
            guided = [region in self.config.guided for region in self.config.regions]
            loss = loss + self.plan.cosine_weight * cosine_loss(
                prediction.maps.cosines,
                batch["label"][:, guided],
                temperature=self.plan.cosine_temperature,
            )
        if prediction.grade is not None:
            loss = loss + self.plan.grade_weight * grade_loss(prediction.grade, batch["grade"])
        self.log("train/loss", loss, prog_bar=True, batch_size=count, sync_dist=True)
        return loss

    def _draw_sequences(self, count: int, num_sequences: int) -> Tensor:
        """Return which sequences each of ``count`` samples keeps, (count, s) bool.

        Samples chosen for it keep one to s - 1 sequences, every choice being equally likely.
        """
        kept = torch.ones(count, num_sequences, dtype=torch.bool)
        if self.hparams["sequence_dropout"]:
            chosen = torch.rand(count) < self.hparams["sequence_dropout"]
            codes = torch.randint(1, 2**num_sequences - 1, (count,))
            subsets = (codes[:, None] >> torch.arange(num_sequences)) & 1 > 0
            kept[chosen] = subsets[chosen]
        return kept

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score one full volume."""
        self._score(batch, self.val_dice)

    def on_validation_epoch_end(self) -> None:
        """Log the mean over cases."""
        self._log_scores("val", self.val_dice)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Score one full volume."""
        self._score(batch, self.test_dice)

    def on_test_epoch_end(self) -> None:
        """Log the mean over cases."""
        self._log_scores("test", self.test_dice)

    def configure_optimizers(self) -> Any:
        """Return the plan's optimiser and its schedule over all steps of the fit."""
        optimizer = self.plan.optimizer_for(self.network)
        schedule = self.plan.schedule_for(optimizer, int(self.trainer.estimated_stepping_batches))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note which frozen encoders the weights were trained with."""
        checkpoint["encoders"] = self.network.encoder_identities()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights that were trained with other encoders.

        Raises:
            ValueError: an encoder that was loaded has another hash than the one trained with.
        """
        self.network.require_encoders(checkpoint["encoders"])

    def _score(self, batch: Batch, metric: CaseDice) -> None:
        """Segment a full volume with its report and add its Dice."""
        text, mask = self.network.embed_text(batch["report"])
        semantics = self.network.encode_semantics(batch["views"], text, mask)
        logits = segment_volume(
            self.network,
            batch["image"],
            semantics,
            batch["statistics"],
            window=self.hparams["window"],
            overlap=self.hparams["overlap"],
        )
        release = get_release(self.hparams["release"])
        # Scored as they would be written: a label map holds nested regions only.
        written = [
            release.to_regions(release.to_labels(mask)) for mask in (logits > 0).cpu().numpy()
        ]
        prediction = torch.from_numpy(np.stack(written)).to(self.device)
        metric.update(prediction, batch["label"] > 0, batch["case_id"])

    def _log_scores(self, stage: str, metric: CaseDice) -> None:
        """Log and reset a metric; its values are those of all ranks already."""
        scores = metric.compute()
        metric.reset()
        self.log_dict(
            {f"{stage}/dice_{name.lower()}": value.float() for name, value in scores.items()},
            prog_bar=True,
        )
