"""Presets and ablations of networks, by name."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from clipseg3d.networks.config import NetworkConfig
from clipseg3d.ranges import UnknownNameError, require_names

# Equations 1 to 7 of the paper, also where they are degenerate; .github/PAPER.md lists what it
# leaves open and what differs. Region contrast is an augmentation in its appendix.
_PAPER = NetworkConfig(
    norms=("zscore", "zscore", "minmax", "minmax"),
    sequence_gate=False,
    region_contrast=0.5,
    view_selection="volume_center",
    mix_rgb=True,
    guidance_tokens="mean",
    running_norms=False,
    guiding_text="all",
    attention_mode="paper",
    plan="paper_body",
)
PRESETS = {
    "paper": _PAPER,
    # The paper's body and appendix contradict each other, in how they train too; see
    # clipseg3d.training.plan. "paper" has only what both say, and trains as the body does.
    "paper_body": replace(_PAPER, dropout=0.2),
    "paper_appendix": replace(_PAPER, adapter=True, plan="paper_appendix"),
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
        plan="tiny",
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
_PLAIN_BACKBONE: dict[str, Any] = {"cbam": False, "attention_skips": False}
_NO_SEMANTIC: dict[str, Any] = {
    "semantics": False,
    "conditional_norm": False,
    "sentences": False,
    "presence": False,
    "guided_skips": 0,
    "prompt_head": False,
}
ABLATIONS: dict[str, dict[str, Any]] = {
    # Rows of the paper's tables 1 and 3, as far as it says what they are. Deep supervision stays on
    # and blocks stay residual in all of them.
    "no_pixel": _NO_PIXEL,
    "no_semantic": _NO_SEMANTIC,
    "no_guidance": {"guidance": "none"},
    "no_attention": {"guided": ()},
    "unet3d": _NO_PIXEL | _PLAIN_BACKBONE | _NO_SEMANTIC,
    # Not in the paper. Without its feature level, the paper's network did not learn; here the U-Net
    # stays, without CBAM and attention gates.
    "plain_backbone": _PLAIN_BACKBONE,
    # Of the paper's bridge, what has no weights: middle slices, and the mean of their embeddings.
    # What its "traditional 3D-2D bridging" is, the paper does not say.
    "plain_bridge": {
        "view_selection": "volume_center",
        "guidance_tokens": "mean",
        "mix_rgb": False,
        "adapter": False,
        "dense": False,
    },
    "shuffled_text": {"text": "shuffled"},
    "no_text": {"text": "none", "sentences": False, "prompt_head": False},
}


def network_config(
    network: NetworkConfig | Mapping[str, Any] | str, *, ablation: str | None = None
) -> NetworkConfig:
    """Return a config with the parts that an ablation names switched off.

    Args:
        network: a preset's name, a config, or its values.
        ablation: a name in ``ABLATIONS``; None switches nothing off.

    Raises:
        UnknownNameError: there is no preset, ablation or setting of that name.
        ValueError: a value is out of range.

    Example:
        >>> config = network_config("recommended", ablation="no_guidance")
        >>> config.channels, config.guidance
        ((32, 64, 128, 256, 512), 'none')
    """
    if isinstance(network, str):
        if network not in PRESETS:
            raise UnknownNameError(
                f"unknown preset {network!r}: choose one of {', '.join(PRESETS)}"
            )
        config = PRESETS[network]
    elif isinstance(network, Mapping):
        require_names(network, [field.name for field in fields(NetworkConfig)], of="network")
        config = NetworkConfig(**network)
    else:
        config = network
    if ablation is None:
        return config
    if ablation not in ABLATIONS:
        raise UnknownNameError(
            f"unknown ablation {ablation!r}: choose one of {', '.join(ABLATIONS)}"
        )
    return replace(config, **ABLATIONS[ablation])
