"""CLIPSeg3D: pixel, feature and semantic fusion in one network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clipseg3d.batch import whole_box
from clipseg3d.blocks.grade_classifier import GradeClassifier
from clipseg3d.blocks.pixel_fusion import PixelFusion
from clipseg3d.blocks.prompt_head import PromptHead, PromptReading
from clipseg3d.blocks.region_presence import Presence, apply_presence, known_presence
from clipseg3d.blocks.semantic_fusion import RegionMaps, SemanticFusion, Semantics
from clipseg3d.clip.encoder import TextEncoder
from clipseg3d.clip.text_bank import TextBank
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.networks.prediction_settings import PredictionSettings
from clipseg3d.networks.unet import UNet3D
from clipseg3d.views import Views, ViewSelection


class Prediction(NamedTuple):
    """Outputs of the network for one batch."""

    logits: Tensor
    """(b, r, x, y, z)."""
    auxiliary: list[Tensor]
    """Logits of lower decoder levels on their own, padded grids, for deep supervision."""
    maps: RegionMaps | None
    """Scores and text-voxel cosines of the guided regions, on a coarse grid of the padded image."""
    grade: Tensor | None
    """(b,) logits of a high grade; None without classifier."""
    presence: Presence | None = None
    """Whether there is any of each region; None if the network does not tell."""


class CLIPSeg3D(nn.Module):
    """3D U-Net guided by CLIP's embeddings of slices of the volume and of text.

    It takes parts that are already built; :func:`clipseg3d.networks.build.build_clipseg3d` builds
    them from a preset. Without views and text, its logits are exactly those of the U-Net.

    Args:
        unet: backbone.
        pixel_fusion: normalises and weighs the sequences; None leaves the images unchanged, which
            should then be z-scored.
        semantic_fusion: semantic path; None leaves the plain U-Net.
        text_bank: embeds reports; None reads no text.
        grade_classifier: predicts the grade from the bottleneck; None predicts none.
        prompt_head: answers prompts; None answers none.
        encoders: role -> frozen encoder; checkpoints name them.
        config: that the parts were built from; with None, ``save_pretrained`` fails.

    Attributes:
        settings: what the network was trained for, saved with it; None if unknown.
        semantic_strength: weight of the semantic path, 0 to 1; a training schedule may raise it.
            It is in the state_dict, so that a checkpoint predicts as the network did when saved.

    Source: arXiv 2507.09966.
    """

    def __init__(
        self,
        unet: UNet3D,
        *,
        pixel_fusion: PixelFusion | None = None,
        semantic_fusion: SemanticFusion | None = None,
        text_bank: TextBank | None = None,
        grade_classifier: GradeClassifier | None = None,
        prompt_head: PromptHead | None = None,
        encoders: Mapping[str, TextEncoder] | None = None,
        config: NetworkConfig | None = None,
    ) -> None:
        super().__init__()
        self.unet = unet
        self.pixel_fusion = pixel_fusion
        self.semantic_fusion = semantic_fusion
        self.text_bank = text_bank
        self.grade_classifier = grade_classifier
        self.prompt_head = prompt_head
        self.config = config
        self.settings: PredictionSettings | None = None
        self._encoders = dict(encoders or {})
        self.semantic_strength: Tensor
        self.register_buffer("semantic_strength", torch.ones(()))

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> "CLIPSeg3D":
        """Load a trained network; see :func:`clipseg3d.pretrained.reader.load_pretrained`."""
        from clipseg3d.pretrained.reader import load_pretrained  # it imports this class

        return load_pretrained(source, **options)

    def save_pretrained(self, folder: str | Path, **options: Any) -> str | None:
        """Save for others; see :func:`clipseg3d.pretrained.writer.save_pretrained`."""
        from clipseg3d.pretrained.writer import save_pretrained

        return save_pretrained(self, folder, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload to the hub; see :func:`clipseg3d.pretrained.writer.push_to_hub`."""
        from clipseg3d.pretrained.writer import push_to_hub

        return push_to_hub(self, repo_id, **options)

    def forward(
        self,
        image: Tensor,
        *,
        views: Views | None = None,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        crop_box: Tensor | None = None,
        statistics: Tensor | None = None,
    ) -> Tensor:
        """Return logits (b, r, x, y, z).

        Args:
            image: (b, s, x, y, z), a whole volume; or a crop, with its ``crop_box`` and
                ``statistics``.
            views: slices of the whole volume (:func:`clipseg3d.views.cut_views`), or None.
            text: (b, n, e) embeddings, one prompt per region first, or None.
            text_mask: (b, n) bool, True for real tokens; None keeps all.
            crop_box: (b, 2, 3) or (b, 4, 3) where the image lies in the brain box, see
                :class:`clipseg3d.batch.Batch`; None means that it covers it.
            statistics: (b, s, 4) of the whole brain; None takes them from ``image``.
        """
        semantics = self.encode_semantics(views, text, text_mask)
        return self.segment(image, semantics, crop_box=crop_box, statistics=statistics).logits

    def encode_semantics(
        self,
        views: Views | None,
        text: Tensor | None,
        text_mask: Tensor | None = None,
        *,
        trust: float = 1.0,
    ) -> Semantics | None:
        """Return the semantics of a batch; None without a semantic path, or without views and text.

        They depend on the whole volume only: compute them once per case, not per crop. ``trust``
        says how far reports are trusted, from 0, as if there were none, to 1.
        """
        if self.semantic_fusion is None or (views is None and text is None):
            return None
        semantics = self.semantic_fusion.encode(views, text, text_mask, trust=trust)
        return semantics._replace(weight=semantics.weight * self.semantic_strength)

    @property
    def view_selection(self) -> ViewSelection:
        """How slices for CLIP are chosen; see :func:`clipseg3d.views.cut_views`."""
        return "center" if self.semantic_fusion is None else self.semantic_fusion.bridge.selection

    def embed_text(self, reports: list[str]) -> tuple[Tensor | None, Tensor | None]:
        """Return text embeddings (b, n, e) and their mask (b, n); None if no text is read."""
        if self.text_bank is None:
            return None, None
        text, mask = self.text_bank(reports)
        return text.to(self.semantic_strength.device), mask.to(self.semantic_strength.device)

    @property
    def text_encoder(self) -> TextEncoder:
        """What embeds texts.

        Raises:
            ValueError: the network reads no text.
        """
        if self.text_bank is None:
            raise ValueError("this network reads no text; take one with text='own'")
        return self.text_bank.encoder

    def read_prompts(self, prompts: list[str]) -> PromptReading:
        """Read prompts, once for all cases; the batch of the result is 1.

        Raises:
            ValueError: the network answers no prompts.
        """
        if self.prompt_head is None or self.text_bank is None:
            raise ValueError(
                "these weights answer no prompts; take some that were trained with a prompt head "
                "(--model.network.prompt_head true)"
            )
        embeddings = self.text_bank.embed(prompts).to(self.semantic_strength.device)
        reading: PromptReading = self.prompt_head.read(embeddings[None])
        return reading

    def encoder_identities(self) -> dict[str, dict[str, str]]:
        """Return name and weight hash of each frozen encoder, by role; checkpoints keep them."""
        return {
            role: {"name": encoder.name, "sha256": encoder.fingerprint()}
            for role, encoder in self._encoders.items()
        }

    def require_encoders(self, trained_with: Mapping[str, Mapping[str, str]]) -> None:
        """Check that the encoders are those that the weights were trained with.

        Args:
            trained_with: from :meth:`encoder_identities` at training time.

        Raises:
            ValueError: the hashes differ.
        """
        for role, own in self.encoder_identities().items():
            expected = trained_with.get(role, own)
            if own["sha256"] != expected["sha256"]:
                raise ValueError(
                    f"{role} encoder {own['name']!r} has other weights than {expected['name']!r} "
                    f"(SHA-256 {expected['sha256'][:12]}...), which this network was trained with; "
                    "load that one"
                )

    def segment(
        self,
        image: Tensor,
        semantics: Semantics | None,
        *,
        crop_box: Tensor | None = None,
        statistics: Tensor | None = None,
        regions: Tensor | None = None,
        deep: bool = False,
    ) -> Prediction:
        """Return logits, auxiliary logits, maps and grade.

        Args:
            image: as for :meth:`forward`.
            semantics: from :meth:`encode_semantics`; None runs the U-Net alone.
            crop_box: as for :meth:`forward`.
            statistics: as for :meth:`forward`.
            regions: (b, r, x, y, z) true regions, in training alone: for region contrast, and for
                presence (:func:`clipseg3d.blocks.region_presence.known_presence`).
            deep: whether to compute the logits of lower decoder levels too.

        Raises:
            ValueError: ``regions`` are given in evaluation.
        """
        if regions is not None and not self.training:
            raise ValueError(
                "regions in evaluation: the true mask would leak into the prediction; pass no "
                "regions, or call .train() if this is training"
            )
        padded_box = self._padded_crop_box(crop_box, image)
        fused = self._fuse(image, statistics, regions)
        levels = self.unet.encode(fused)
        fusion = self.semantic_fusion
        presence = None
        if fusion is not None and semantics is not None:
            presence = fusion.tell_presence(levels[1:], semantics)
            levels = fusion.guide_levels(levels, semantics, padded_box)
        decoded = self.unet.decode(levels)
        bottleneck = levels[-1]
        del levels  # the next steps need the most memory
        features, maps = self.unet.head_input(decoded), None
        if fusion is not None and semantics is not None:
            raw, maps = fusion.attend_with_maps(
                features, semantics, self.unet.head_logits, padded_box
            )
        else:
            raw = self.unet.head_logits(features)
        logits = self.unet.finish_logits(raw, fused)
        if presence is not None and semantics is not None:
            applied = presence.log_odds if regions is None else known_presence(regions)
            logits = apply_presence(logits, applied, semantics.weight)
        return Prediction(
            logits,
            self.unet.auxiliary_logits(decoded) if deep else [],
            maps,
            None if self.grade_classifier is None else self.grade_classifier(bottleneck),
            presence,
        )

    def _fuse(self, image: Tensor, statistics: Tensor | None, regions: Tensor | None) -> Tensor:
        """Return the input of the U-Net."""
        if self.pixel_fusion is None:
            return image
        fused: Tensor = self.pixel_fusion(image, statistics, regions=regions)
        return fused

    def _padded_crop_box(self, crop_box: Tensor | None, image: Tensor) -> Tensor:
        """Return where the image lies in the brain box after the U-Net has padded it."""
        if crop_box is None:
            crop_box = whole_box(image)
        size = image.shape[2:]
        padded = [n + -n % self.unet.multiple for n in size]
        growth = crop_box.new_tensor(padded) / crop_box.new_tensor(size)
        corner, edges = crop_box[:, :1], crop_box[:, 1:]
        longer = edges * (growth if edges.shape[1] == 1 else growth[:, None])
        return torch.cat([corner, longer], dim=1)
