"""Building a network from its config; the sizes of all parts are set here."""

from dataclasses import replace

from clipseg3d.blocks.grade_classifier import GradeClassifier
from clipseg3d.blocks.guidance import build_guidance
from clipseg3d.blocks.pixel_fusion import PixelFusion
from clipseg3d.blocks.prompt_head import PromptHead
from clipseg3d.blocks.semantic_bridge import SemanticBridge
from clipseg3d.blocks.semantic_fusion import SemanticFusion
from clipseg3d.clip.encoder import ClipEncoder, TextEncoder
from clipseg3d.clip.registry import load_encoder, load_text_encoder
from clipseg3d.clip.text_bank import TextBank
from clipseg3d.networks.clipseg3d import CLIPSeg3D
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.networks.presets import network_config
from clipseg3d.networks.unet import UNet3D

DIFFERENCES = (("t1ce", "t1"), ("t2", "flair"))
"""Pairs of sequences whose differences are channels."""


def build_clipseg3d(
    config: NetworkConfig | str = "recommended",
    *,
    encoder: ClipEncoder | None = None,
    text_cache: str | None = None,
    local_files_only: bool = False,
) -> CLIPSeg3D:
    """Build the network of a config, or of a preset.

    Args:
        config: a config, or a preset's name.
        encoder: the CLIP to use, instead of that of ``config.clip``; the network's config has its
            name. None loads ``config.clip``.
        text_cache: file of text embeddings written by ``clipseg3d embed-text``, or None.
        local_files_only: load encoders from folders or the Hugging Face cache, without network.

    Raises:
        ValueError: unknown preset; sizes that do not fit together; a folder without weights; a text
            cache of another encoder.
        OSError: an encoder on the hub is not cached and cannot be downloaded.
    """
    if isinstance(config, str):
        config = network_config(config)
    pixel_fusion = None
    if config.pixel_fusion:
        pixel_fusion = PixelFusion(
            sequences=config.sequences,
            norms=config.norms,
            gate=config.sequence_gate,
            differences=_differences(config),
            contrast=config.region_contrast,
            regions=config.regions,
        )
    in_channels = pixel_fusion.out_channels if pixel_fusion else len(config.sequences)
    unet = UNet3D(
        in_channels,
        len(config.regions),
        channels=config.channels,
        space_to_depth=config.space_to_depth,
        refinement=config.refinement,
        cbam=config.cbam,
        attention_skips=config.attention_skips,
        num_auxiliary=config.num_auxiliary,
        dropout=config.dropout,
        extra_channels=in_channels - len(config.sequences),
        head=config.head,
        head_norm=config.conditional_norm,
        checkpointing=config.checkpointing,
    )
    grade_classifier = GradeClassifier(unet.channels[-1]) if config.grade_classifier else None
    if not config.semantics:
        return CLIPSeg3D(
            unet, pixel_fusion=pixel_fusion, grade_classifier=grade_classifier, config=config
        )
    if encoder is None:
        encoder = load_encoder(config.clip, local_files_only=local_files_only)
    else:  # what is saved must name the CLIP that is used
        config = replace(config, clip=encoder.name)
    encoders: dict[str, TextEncoder] = {"CLIP": encoder}
    text_bank, text_dim = None, 0
    if config.text != "none":
        text_encoder: TextEncoder = encoder
        if config.text_encoder is not None:
            text_encoder = encoders["text"] = load_text_encoder(
                config.text_encoder, local_files_only=local_files_only
            )
        prompts = dict(zip(config.regions, config.prompts, strict=False))
        text_bank = TextBank(
            text_encoder,
            config.regions,
            prompts=prompts,
            cache=text_cache,
            by_sentence=config.sentences,
        )
        text_dim = text_encoder.embed_dim
    bridge = SemanticBridge(
        encoder,
        selection=config.view_selection,
        sequences=config.sequences,
        rgb=config.rgb or None,
        mix_rgb=config.mix_rgb,
        adapter=config.adapter,
        dense=config.dense,
    )
    guidance = build_guidance(
        config.guidance,
        encoder.embed_dim,
        config.semantic_dim,
        tokens=config.guidance_tokens,
        # Without guidance, only regions read text.
        text_dim=text_dim if config.guided or config.sentences or config.guidance != "none" else 0,
        num_heads=config.num_heads,
    )
    default_stride = 1 if config.space_to_depth > 1 or config.attention_mode == "paper" else 2
    semantic_fusion = SemanticFusion(
        bridge,
        guidance,
        bottleneck_channels=unet.channels[-1],
        decoder_channels=unet.channels[0],
        regions=config.regions,
        guided=config.guided or (),
        mode=config.attention_mode,
        attention_stride=config.attention_stride or default_stride,
        conditional=config.conditional_norm,
        running_norms=config.running_norms,
        guiding_text=config.guiding_text,
        sentences=config.sentences,
        presence_channels=unet.channels[1:] if config.presence else (),
        nested=config.head == "nested",
        skip_channels=unet.channels[-2 : -2 - config.guided_skips : -1],
    )
    return CLIPSeg3D(
        unet,
        pixel_fusion=pixel_fusion,
        semantic_fusion=semantic_fusion,
        text_bank=text_bank if guidance.map_text is not None or config.prompt_head else None,
        grade_classifier=grade_classifier,
        prompt_head=PromptHead(text_dim, len(config.regions)) if config.prompt_head else None,
        encoders=encoders,
        config=config,
    )


def _differences(config: NetworkConfig) -> list[tuple[str, str]]:
    """Return the pairs of sequences whose differences are channels.

    Raises:
        ValueError: they are wanted, but no pair is there.
    """
    if not config.difference_channels:
        return []
    pairs = [pair for pair in DIFFERENCES if set(pair) <= set(config.sequences)]
    if not pairs:
        raise ValueError(
            f"difference_channels: the sequences {', '.join(config.sequences)} hold neither t1ce "
            "and t1 nor t2 and flair; leave it out"
        )
    return pairs
