"""Configs of networks, as plain values; presets and ablations by name."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from clipseg3d.blocks.guidance import GuidanceKind
from clipseg3d.blocks.pixel_fusion import Norm
from clipseg3d.blocks.semantic_attention import AttentionMode
from clipseg3d.views import ViewSelection
from clipseg3d.vocabulary import REGIONS, SEQUENCES


@dataclass(frozen=True)
class NetworkConfig:
    """The sizes and switches of a CLIPSeg3D.

    Attributes:
        sequences: input channels, by name and in order.
        regions: output channels, by name and in order.
        channels: feature channels per level; see :class:`clipseg3d.networks.unet.UNet3D`.
        space_to_depth: edge of the cubes of voxels that the stem turns into channels; 1 for none.
        refinement: hidden channels of a light head that reads the voxels of each cube again; needs
            ``space_to_depth`` above 1.
        pixel_fusion: whether the network normalises and weighs the sequences itself.
        norms: of each sequence in pixel fusion: ``zscore``, or ``minmax``, the paper's for T2 and
            FLAIR.
        difference_channels: append t1ce - t1 and t2 - flair; needs ``pixel_fusion``.
        region_contrast: probability of the paper's contrast enhancement inside TC and ET, in
            training only; needs ``pixel_fusion``.
        cbam: channel and spatial attention in every block.
        attention_skips: attention gates on skip connections.
        num_auxiliary: decoder levels with heads for deep supervision.
        dropout: share of channels dropped in every block, in training only.
        head: ``sigmoid``, or ``nested`` for ET within TC within WT by construction.
        conditional_norm: normalise the features before the head, scaled and shifted by semantics.
        grade_classifier: also predict whether a glioma is of high grade.
        checkpointing: recompute blocks in the backward pass: less memory, more time.
        semantics: whether the semantic path is built.
        guided: regions whose logits semantic attention may change.
        view_selection: how slices for CLIP are chosen; see :func:`clipseg3d.views.cut_views`.
        mix_rgb: learn how the sequences are mixed into CLIP's red, green and blue.
        adapter: a small residual network after CLIP's image tower.
        dense: lift CLIP's patch embeddings to a 3D map at the bottleneck.
        guidance: how text guides image semantics; see
            :mod:`clipseg3d.blocks.guidance`.
        guidance_tokens: ``views``, or ``mean`` for the paper's single token.
        attention_mode: how semantic attention changes logits; see
            :func:`clipseg3d.blocks.semantic_attention.apply_scores`.
        text: ``own`` reads prompts and the report of the case, ``shuffled`` is for training with
            reports of other cases, ``none`` builds no part for text.
        clip: ``tiny``, ``tiny-random``, a folder with a saved CLIPModel, or a hub name.
        text_encoder: another encoder for text, by folder or hub name; None takes CLIP's own.
        semantic_dim: channels of semantic tokens.
        num_heads: heads of the guidance's attention.
    """

    sequences: tuple[str, ...] = SEQUENCES
    regions: tuple[str, ...] = REGIONS
    channels: tuple[int, ...] = (32, 64, 128, 256, 512)
    space_to_depth: int = 1
    refinement: int = 0
    pixel_fusion: bool = True
    norms: tuple[Norm, ...] = ("zscore", "zscore", "zscore", "zscore")
    difference_channels: bool = False
    region_contrast: float = 0.0
    cbam: bool = True
    attention_skips: bool = True
    num_auxiliary: int = 2
    dropout: float = 0.0
    head: Literal["sigmoid", "nested"] = "sigmoid"
    conditional_norm: bool = False
    grade_classifier: bool = False
    checkpointing: bool = False
    semantics: bool = True
    guided: tuple[str, ...] = ("TC", "ET")
    view_selection: ViewSelection = "energy"
    mix_rgb: bool = False
    adapter: bool = False
    dense: bool = False
    guidance: GuidanceKind = "gate"
    guidance_tokens: Literal["views", "mean"] = "views"
    attention_mode: AttentionMode = "residual"
    text: Literal["own", "shuffled", "none"] = "own"
    clip: str = "openai/clip-vit-base-patch32"
    text_encoder: str | None = None
    semantic_dim: int = 256
    num_heads: int = 8

    def __post_init__(self) -> None:
        """Refuse switches without effect, and unknown values of ``text``."""
        if self.text not in ("own", "shuffled", "none"):
            raise ValueError(f"text={self.text!r}: choose from own, shuffled, none")
        if (self.difference_channels or self.region_contrast) and not self.pixel_fusion:
            raise ValueError(
                "difference_channels and region_contrast are parts of pixel fusion; "
                "set pixel_fusion, or leave them out"
            )
        if self.conditional_norm and not self.semantics:
            raise ValueError(
                "conditional_norm is steered by semantics; set semantics, or leave it out"
            )


# Every mechanism as in the paper, where it is specified: min-max of T2 and FLAIR, the middle slice
# of each axis, the mean of their embeddings, and probabilities multiplied (equation 6). Region
# contrast is an augmentation in its appendix.
_PAPER = NetworkConfig(
    norms=("zscore", "zscore", "minmax", "minmax"),
    region_contrast=0.5,
    view_selection="center",
    mix_rgb=True,
    guidance_tokens="mean",
    attention_mode="paper",
)
PRESETS = {
    "paper": _PAPER,
    # The paper's body and appendix contradict each other; see clipseg3d.training.plan too.
    "paper_body": replace(_PAPER, dropout=0.2),
    "paper_appendix": replace(_PAPER, adapter=True),
    # The same layout, but parts that have no effect in the paper's equations are repaired, and all
    # norms are z-scores: with min-max, T2 and FLAIR have a sixth of the spread of T1, and training
    # is slower.
    "recommended": NetworkConfig(),
    # For two CPU cores: all convolutions at half resolution, the CLIP that comes with the package.
    "tiny": NetworkConfig(
        channels=(16, 32, 64, 128, 160),
        space_to_depth=2,
        refinement=48,
        semantic_dim=64,
        num_heads=4,
        clip="tiny",
    ),
    # All convolutions at half resolution, where recommended spends seven eighths of its time: about
    # an eighth of the time of a training step. 12 M weights; patches longer than 32 voxels. Small
    # networks that differ in the same way, trained alike at 2 mm, are five to six points of Dice
    # apart (rows refinement and full_resolution of examples/ablation.py).
    "fast": NetworkConfig(channels=(24, 48, 96, 192, 320), space_to_depth=2, refinement=48),
}
_NO_PIXEL: dict[str, Any] = {
    "pixel_fusion": False,
    "difference_channels": False,
    "region_contrast": 0.0,
}
_NO_FEATURE: dict[str, Any] = {"cbam": False, "attention_skips": False}
_NO_SEMANTIC: dict[str, Any] = {"semantics": False, "conditional_norm": False}
ABLATIONS: dict[str, dict[str, Any]] = {
    # Rows of the paper's tables 1 and 3. Deep supervision stays on in all of them.
    "no_pixel": _NO_PIXEL,
    "no_feature": _NO_FEATURE,
    "no_semantic": _NO_SEMANTIC,
    "center_mean_bridge": {
        "view_selection": "center",
        "guidance_tokens": "mean",
        "mix_rgb": False,
        "adapter": False,
        "dense": False,
    },
    "no_guidance": {"guidance": "none"},
    "no_attention": {"guided": ()},
    "unet3d": _NO_PIXEL | _NO_FEATURE | _NO_SEMANTIC,
    # Not in the paper.
    "shuffled_text": {"text": "shuffled"},
    "no_text": {"text": "none"},
}


def network_config(
    network: NetworkConfig | Mapping[str, Any] | str, *, ablation: str | None = None
) -> NetworkConfig:
    """Return a config with the parts that an ablation names switched off.

    Args:
        network: a preset's name, a config, or its values.
        ablation: a name in ``ABLATIONS``; None switches nothing off.

    Raises:
        ValueError: there is no preset or ablation of that name; the message lists all names.

    Example:
        >>> config = network_config("recommended", ablation="no_guidance")
        >>> config.channels, config.guidance
        ((32, 64, 128, 256, 512), 'none')
    """
    if isinstance(network, str):
        if network not in PRESETS:
            raise ValueError(f"unknown preset {network!r}: choose one of {', '.join(PRESETS)}")
        config = PRESETS[network]
    else:
        config = NetworkConfig(**network) if isinstance(network, Mapping) else network
    if ablation is None:
        return config
    if ablation not in ABLATIONS:
        raise ValueError(f"unknown ablation {ablation!r}: choose one of {', '.join(ABLATIONS)}")
    return replace(config, **ABLATIONS[ablation])
