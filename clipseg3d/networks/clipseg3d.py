"""CLIPSeg3D: pixel, feature and semantic fusion in one network, and the builder that sizes it."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipseg3d.blocks.bridge import SemanticBridge
from clipseg3d.blocks.guidance import CrossModalGuidance
from clipseg3d.blocks.pixel_fusion import PixelFusion
from clipseg3d.blocks.semantic_fusion import SemanticFusion, Semantics
from clipseg3d.clip.encoder import ClipEncoder, load_encoder
from clipseg3d.clip.text_bank import TextBank
from clipseg3d.networks.config import NetworkConfig, network_config
from clipseg3d.networks.unet import UNet3D, crop_like


class CLIPSeg3D(nn.Module):
    """3D U-Net guided by what CLIP sees in slices of the volume and reads in text.

    Built parts are injected; :func:`build_clipseg3d` makes them from a preset. Without views and
    text the network is its U-Net, to the last bit.

    Args:
        unet: backbone.
        pixel_fusion: normalises and weighs the sequences; None takes images as they are given,
            which should then be z-scored.
        semantic_fusion: semantic path; None leaves the plain U-Net.
        text_bank: reports -> text embeddings; goes with ``semantic_fusion``.

    Source: arXiv 2507.09966.
    """

    def __init__(
        self,
        unet: UNet3D,
        *,
        pixel_fusion: PixelFusion | None = None,
        semantic_fusion: SemanticFusion | None = None,
        text_bank: TextBank | None = None,
    ) -> None:
        super().__init__()
        self.unet = unet
        self.pixel_fusion = pixel_fusion
        self.semantic_fusion = semantic_fusion
        self.text_bank = text_bank

    def forward(
        self,
        image: Tensor,
        *,
        views: Tensor | None = None,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        window: Tensor | None = None,
        statistics: Tensor | None = None,
    ) -> Tensor:
        """Return logits (b, r, x, y, z).

        Args:
            image: (b, s, x, y, z): a whole volume, or a crop together with ``window`` and
                ``statistics``.
            views: (b, v, h, w, 3) uint8 slices of the whole volume
                (:func:`clipseg3d.volume.cut_views`), or None.
            text: (b, n, e) embeddings, one prompt per region first, or None.
            text_mask: (b, n) bool, True for real tokens; None keeps all.
            window: (b, 2, 3) where the image lies in the brain box; None covers it.
            statistics: (b, s, 4) of the whole brain; None takes them from ``image``.
        """
        semantics = self.encode_semantics(views, text, text_mask)
        return self.segment(image, semantics, window=window, statistics=statistics)[0]

    def encode_semantics(
        self, views: Tensor | None, text: Tensor | None, text_mask: Tensor | None = None
    ) -> Semantics | None:
        """Return the semantics of a batch; None without semantic path, or without views and text.

        They depend on the whole volume only: compute them once per case, not per window.
        """
        if self.semantic_fusion is None or (views is None and text is None):
            return None
        return self.semantic_fusion.encode(views, text, text_mask)

    def embed_text(self, reports: list[str]) -> tuple[Tensor | None, Tensor | None]:
        """Return text embeddings (b, n, e) and their mask (b, n); None without semantic path."""
        if self.text_bank is None:
            return None, None
        device = next(self.parameters()).device
        text, mask = self.text_bank(reports)
        return text.to(device), mask.to(device)

    def clip_identity(self) -> dict[str, str] | None:
        """Return name and weight hash of the CLIP in use, for checkpoints to keep; None without."""
        if self.text_bank is None:
            return None
        encoder = self.text_bank.encoder
        return {"name": encoder.name, "sha256": encoder.fingerprint()}

    def require_clip(self, trained_with: Mapping[str, str] | None) -> None:
        """Refuse a CLIP other than the one that weights were trained with.

        Args:
            trained_with: from :meth:`clip_identity` at training time; None requires nothing.

        Raises:
            ValueError: the hashes differ.
        """
        here = self.clip_identity()
        if here is None or trained_with is None or here["sha256"] == trained_with["sha256"]:
            return
        raise ValueError(
            f"CLIP {here['name']!r} has other weights than {trained_with['name']!r} (SHA-256 "
            f"{trained_with['sha256'][:12]}...), which this network was trained with; load that one"
        )

    def segment(
        self,
        image: Tensor,
        semantics: Semantics | None,
        *,
        window: Tensor | None = None,
        statistics: Tensor | None = None,
        deep: bool = False,
    ) -> list[Tensor]:
        """Return logits (b, r, x, y, z), followed by the auxiliary ones if ``deep``.

        Args:
            image: as for :meth:`forward`.
            semantics: from :meth:`encode_semantics`; None runs the plain U-Net.
            window: as for :meth:`forward`.
            statistics: as for :meth:`forward`.
            deep: whether to add the logits of lower decoder levels, on their own grids.
        """
        fused = image if self.pixel_fusion is None else self.pixel_fusion(image, statistics)
        levels = self.unet.encode(fused)
        if self.semantic_fusion is not None and semantics is not None:
            levels[-1] = self.semantic_fusion.guide(levels[-1], semantics)
        decoded = self.unet.decode(levels)
        logits = self.unet.logits(decoded, image)
        if self.semantic_fusion is not None and semantics is not None:
            place = self._padded_window(window, image)
            added = self.semantic_fusion.attend(decoded[0], semantics, place)
            if self.unet.fold > 1:
                added = F.interpolate(added, scale_factor=self.unet.fold, mode="trilinear")
            logits = logits + crop_like(added, image)
        return [logits, *(self.unet.auxiliary_logits(decoded) if deep else [])]

    def _padded_window(self, window: Tensor | None, image: Tensor) -> Tensor:
        """Return the window (b, 2, 3) that the image covers once the U-Net has padded it."""
        if window is None:
            window = image.new_tensor([[[0.0] * 3, [1.0] * 3]]).expand(image.shape[0], 2, 3)
        size = image.shape[2:]
        padded = [n + -n % self.unet.multiple for n in size]
        stretch = window.new_tensor(padded) / window.new_tensor(size)
        return torch.stack([window[:, 0], window[:, 1] * stretch], dim=1)


def build_clipseg3d(
    config: NetworkConfig | str = "recommended", *, encoder: ClipEncoder | None = None
) -> CLIPSeg3D:
    """Build the network that a config, or the preset of that name, describes.

    Args:
        config: sizes and switches, or a preset's name.
        encoder: CLIP to use; None loads ``config.clip``.

    Raises:
        ValueError: unknown preset; sizes that do not fit; a CLIP folder without weights.
        OSError: a hub name without network.
    """
    if isinstance(config, str):
        config = network_config(config)
    unet = UNet3D(
        len(config.sequences),
        len(config.regions),
        channels=config.channels,
        fold=config.fold,
        cbam=config.cbam,
        attention_skips=config.attention_skips,
        num_auxiliary=config.num_auxiliary,
        dropout=config.dropout,
    )
    pixel_fusion = PixelFusion() if config.pixel_fusion else None
    if not config.semantics:
        return CLIPSeg3D(unet, pixel_fusion=pixel_fusion)
    encoder = encoder or load_encoder(config.clip)
    semantic_fusion = SemanticFusion(
        SemanticBridge(encoder),
        CrossModalGuidance(encoder.embed_dim, config.semantic_dim, num_heads=config.num_heads),
        bottleneck_channels=unet.channels[-1],
        decoder_channels=unet.channels[0],
        regions=config.regions,
        guided=config.guided,
    )
    return CLIPSeg3D(
        unet,
        pixel_fusion=pixel_fusion,
        semantic_fusion=semantic_fusion,
        text_bank=TextBank(encoder, config.regions),
    )
