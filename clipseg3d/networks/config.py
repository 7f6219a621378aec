"""What a network is made of, as plain values: presets by name, ablations by name."""

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class NetworkConfig:
    """The sizes and switches of a CLIPSeg3D.

    Attributes:
        sequences: input channels, by name and in order.
        regions: output channels, by name and in order.
        channels: feature channels per level; see :class:`clipseg3d.networks.unet.UNet3D`.
        fold: voxels per axis that the stem folds into channels.
        pixel_fusion: whether the network normalises and weighs the sequences itself.
        cbam: channel and spatial attention in every block.
        attention_skips: attention gates on skip connections.
        num_auxiliary: decoder levels with heads for deep supervision.
        dropout: share of channels dropped in every block, in training only.
        semantics: whether the semantic path is built.
        guided: regions whose logits the semantic path may change.
        clip: ``tiny-random``, a folder with a saved CLIPModel, or a hub name.
        semantic_dim: channels of semantic tokens.
        num_heads: heads of the guidance's attention.
    """

    sequences: tuple[str, ...] = ("t1", "t1ce", "t2", "flair")
    regions: tuple[str, ...] = ("WT", "TC", "ET")
    channels: tuple[int, ...] = (32, 64, 128, 256, 512)
    fold: int = 1
    pixel_fusion: bool = True
    cbam: bool = True
    attention_skips: bool = True
    num_auxiliary: int = 2
    dropout: float = 0.0
    semantics: bool = True
    guided: tuple[str, ...] = ("TC", "ET")
    clip: str = "openai/clip-vit-base-patch32"
    semantic_dim: int = 256
    num_heads: int = 8


PRESETS = {
    # The paper's layout; its body states dropout 0.2.
    "paper": NetworkConfig(dropout=0.2),
    # The same layout without dropout, which short patch training cannot afford (nnU-Net has none).
    "recommended": NetworkConfig(),
    # For two CPU cores: all convolutions at half resolution, a CLIP that needs no download.
    "tiny": NetworkConfig(
        channels=(16, 32, 64, 128, 160), fold=2, semantic_dim=64, num_heads=4, clip="tiny-random"
    ),
}
ABLATIONS: dict[str, dict[str, Any]] = {
    # The paper's baseline: no pixel, feature or semantic fusion.
    "unet3d": {
        "pixel_fusion": False,
        "cbam": False,
        "attention_skips": False,
        "semantics": False,
    },
    "no_semantic": {"semantics": False},
}


def network_config(preset: str, *, ablation: str | None = None) -> NetworkConfig:
    """Return a preset, with the parts that an ablation names switched off.

    Raises:
        ValueError: there is no preset or ablation of that name; the message lists those there are.
    """
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}: choose one of {', '.join(PRESETS)}")
    if ablation is None:
        return PRESETS[preset]
    if ablation not in ABLATIONS:
        raise ValueError(f"unknown ablation {ablation!r}: choose one of {', '.join(ABLATIONS)}")
    return replace(PRESETS[preset], **ABLATIONS[ablation])
