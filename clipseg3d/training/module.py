"""CLIPSeg3D as a LightningModule: loss, optimiser, full-volume validation, checkpoints."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from clipseg3d.batch import Batch
from clipseg3d.data.releases import get_release
from clipseg3d.inference.window import segment_volume
from clipseg3d.losses import RegionLoss
from clipseg3d.metrics.dice import CaseDice
from clipseg3d.networks.clipseg3d import build_clipseg3d
from clipseg3d.networks.config import NetworkConfig, network_config


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
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: share of all steps over which the learning rate rises; then it falls as a cosine.
        report_dropout: share of training samples whose report is withheld, so that the network
            also works without one.
        window: sliding window (x, y, z) of validation, in voxels.
        overlap: of neighbouring windows, in [0, 1).

    Raises:
        ValueError: unknown preset, ablation or release; a CLIP folder without weights.
        OSError: a CLIP hub name without network.
    """

    def __init__(
        self,
        network: NetworkConfig | dict[str, Any] | str = "recommended",
        *,
        ablation: str | None = None,
        release: str = "brats2020",
        spacing_mm: float = 1.0,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        warmup: float = 0.1,
        report_dropout: float = 0.15,
        window: tuple[int, int, int] = (128, 128, 128),
        overlap: float = 0.5,
    ) -> None:
        super().__init__()
        if isinstance(network, str):
            config = network_config(network, ablation=ablation)
        else:
            config = NetworkConfig(**network) if isinstance(network, Mapping) else network
        # The full config instead of the preset's name: a later release may change the preset.
        self.save_hyperparameters(
            {
                "network": asdict(config),
                "release": get_release(release).name,
                "spacing_mm": spacing_mm,
                "lr": lr,
                "weight_decay": weight_decay,
                "warmup": warmup,
                "report_dropout": report_dropout,
                "window": tuple(window),
                "overlap": overlap,
            }
        )
        self.config = config
        self.network = build_clipseg3d(config)
        self.loss = RegionLoss()
        self.val_dice = CaseDice(config.regions)
        self.test_dice = CaseDice(config.regions)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch of crops."""
        dropped = torch.rand(len(batch["report"])) < self.hparams["report_dropout"]
        reports = [
            "" if drop else report for drop, report in zip(dropped, batch["report"], strict=True)
        ]
        text, mask = self.network.embed_text(reports)
        semantics = self.network.encode_semantics(batch["views"], text, mask)
        logits = self.network.segment(
            batch["image"],
            semantics,
            window=batch["window"],
            statistics=batch["statistics"],
            deep=True,
        )
        loss: Tensor = self.loss(logits, batch["label"])
        self.log("train/loss", loss, prog_bar=True, batch_size=len(reports), sync_dist=True)
        return loss

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
        """Return AdamW with linear warm-up and cosine decay over all steps of the fit."""
        optimizer = AdamW(
            [p for p in self.parameters() if p.requires_grad],
            lr=self.hparams["lr"],
            weight_decay=self.hparams["weight_decay"],
        )
        schedule = OneCycleLR(
            optimizer,
            max_lr=self.hparams["lr"],
            total_steps=int(self.trainer.estimated_stepping_batches),
            pct_start=self.hparams["warmup"],
            cycle_momentum=False,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note which CLIP the weights were trained with."""
        checkpoint["clip"] = self.network.clip_identity()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights that were trained with another CLIP.

        Raises:
            ValueError: the CLIP that was loaded has another hash than the one trained with.
        """
        self.network.require_clip(checkpoint["clip"])

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
