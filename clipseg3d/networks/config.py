"""Configs of networks, as plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from clipseg3d.blocks.guidance import GuidanceKind
from clipseg3d.blocks.pixel_fusion import Norm
from clipseg3d.blocks.semantic_attention import AttentionMode
from clipseg3d.blocks.semantic_fusion import GuidingText
from clipseg3d.clip.prompts import REGION_PROMPTS
from clipseg3d.ranges import require_count, require_share
from clipseg3d.views import ViewSelection
from clipseg3d.vocabulary import REGIONS, SEQUENCES

MAX_CHANNELS = 8192
"""Of a level or a token; more is a slip, and would take all memory."""


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
        prompts: what the text encoder reads about each region; empty takes the library's own
            prompts, and the names of regions that have none.
        norms: of each sequence in pixel fusion: ``zscore``, or ``minmax``, the paper's for T2 and
            FLAIR; empty takes ``zscore`` for all.
        sequence_gate: whether pixel fusion weights the sequences by a learned gate.
        difference_channels: append t1ce - t1 and t2 - flair, as far as these are there; needs
            ``pixel_fusion``.
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
        guided: regions whose logits semantic attention may change; None takes TC and ET, or all
            regions if there are neither.
        view_selection: how slices for CLIP are chosen; see :func:`clipseg3d.views.cut_views`.
        rgb: sequences that CLIP sees in red, green and blue; empty takes the default of
            :class:`clipseg3d.blocks.semantic_bridge.SemanticBridge`.
        mix_rgb: learn how the sequences are mixed into CLIP's red, green and blue.
        adapter: a small residual network after CLIP's image tower.
        dense: lift CLIP's patch embeddings to a 3D map at the bottleneck.
        guidance: how text guides image semantics; see
            :mod:`clipseg3d.blocks.guidance`.
        guidance_tokens: ``views``, or ``mean`` for the paper's single token.
        running_norms: centre the embeddings of views and prompts and whiten those of reports; see
            :class:`clipseg3d.blocks.semantic_fusion.SemanticFusion`.
        guiding_text: ``report``, or ``all`` for prompts and report; see
            :class:`clipseg3d.blocks.semantic_fusion.SemanticFusion`.
        attention_mode: how semantic attention changes logits; see
            :func:`clipseg3d.blocks.semantic_attention.apply_scores`. With ``paper`` it reads the
            decoder at full resolution, else averaged over 2 x 2 x 2 voxels.
        sentences: the report is read sentence by sentence, and each region weighs them; else the
            mean of its chunks is added to all regions, as in the paper.
        presence: tell whether there is any of each region, from image and text, and empty those
            that are absent; see :class:`clipseg3d.blocks.region_presence.RegionPresence`.
        guided_skips: number of encoder levels above the bottleneck that semantics scale and shift
            too; never the first, whose grid is the largest.
        prompt_head: a head that answers prompts; see
            :class:`clipseg3d.blocks.prompt_head.PromptHead`.
        attention_stride: edge of the cubes of stem voxels that semantic attention averages first;
            None takes 1 with ``space_to_depth``, and 2 without, but 1 in mode ``paper``.
        text: ``own`` reads prompts and the report of the case, ``shuffled`` is for training with
            reports of other cases, ``none`` builds no part for text.
        clip: name of a CLIP; see :func:`clipseg3d.clip.load_encoder`.
        text_encoder: name of another encoder for text; see
            :func:`clipseg3d.clip.load_text_encoder`. None takes CLIP's own.
        semantic_dim: channels of semantic tokens.
        num_heads: heads of the guidance's attention.
        plan: name of the training plan of :data:`clipseg3d.training.plan.PLANS` that a module with
            this network takes if it is given none.

    Raises:
        ValueError: a value out of its range, an unknown ``text``, a switch without effect, or not
            one norm per sequence and one prompt per region.
    """

    sequences: tuple[str, ...] = SEQUENCES
    regions: tuple[str, ...] = REGIONS
    prompts: tuple[str, ...] = ()
    channels: tuple[int, ...] = (32, 64, 128, 256, 512)
    space_to_depth: int = 1
    refinement: int = 0
    pixel_fusion: bool = True
    norms: tuple[Norm, ...] = ()
    sequence_gate: bool = True
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
    guided: tuple[str, ...] | None = None
    view_selection: ViewSelection = "energy"
    rgb: tuple[str, ...] = ()
    mix_rgb: bool = False
    adapter: bool = False
    dense: bool = False
    guidance: GuidanceKind = "gate"
    guidance_tokens: Literal["views", "mean"] = "views"
    running_norms: bool = True
    guiding_text: GuidingText = "report"
    attention_mode: AttentionMode = "residual"
    sentences: bool = False
    presence: bool = False
    guided_skips: int = 0
    prompt_head: bool = False
    attention_stride: int | None = None
    text: Literal["own", "shuffled", "none"] = "own"
    clip: str = "openai/clip-vit-base-patch32"
    text_encoder: str | None = None
    semantic_dim: int = 256
    num_heads: int = 8
    plan: str = "recommended"

    def __post_init__(self) -> None:
        """Refuse what no network can be built of, and fill in what depends on names."""
        for kind, names in (("sequences", self.sequences), ("regions", self.regions)):
            if not names or len(set(names)) < len(names):
                raise ValueError(f"{kind}={names}: give at least one name, and none twice")
        norms = self.norms or ("zscore",) * len(self.sequences)
        guided = self.guided
        if guided is None:
            guided = tuple(r for r in self.regions if r in ("TC", "ET")) or self.regions
        object.__setattr__(self, "norms", tuple(norms))
        object.__setattr__(self, "guided", tuple(guided))
        for kind, values, names in (
            ("norms", norms, self.sequences),
            ("prompts", self.prompts or self.regions, self.regions),
        ):
            if len(values) != len(names):
                raise ValueError(
                    f"{kind}={values} for {', '.join(names)}; give one for each, or none"
                )
        require_share(dropout=self.dropout, region_contrast=self.region_contrast)
        for width in self.channels:
            require_count(channels=width, at_most=MAX_CHANNELS)
        require_count(
            semantic_dim=self.semantic_dim, num_heads=self.num_heads, at_most=MAX_CHANNELS
        )
        require_count(refinement=self.refinement, at_least=0, at_most=MAX_CHANNELS)
        require_count(num_auxiliary=self.num_auxiliary, at_least=0)
        if self.attention_stride is not None:
            require_count(attention_stride=self.attention_stride, at_most=8)
        require_count(guided_skips=self.guided_skips, at_least=0, at_most=len(self.channels) - 2)
        if not isinstance(self.clip, str):
            raise ValueError(f"clip={self.clip!r} is no name; give that of a CLIP, such as 'tiny'")
        if not isinstance(self.plan, str):
            raise ValueError(
                f"plan={self.plan!r} is no name; give that of a plan, such as 'recommended'"
            )
        if self.text not in ("own", "shuffled", "none"):
            raise ValueError(f"text={self.text!r}: choose from own, shuffled, none")
        if (self.difference_channels or self.region_contrast) and not self.pixel_fusion:
            raise ValueError(
                "difference_channels and region_contrast are parts of pixel fusion; "
                "set pixel_fusion, or leave them out"
            )
        if self.dense and self.view_selection == "volume_center":
            raise ValueError(
                "dense lifts patches of views that are cut to the brain, which those of "
                "volume_center are not; choose another view_selection, or leave dense out"
            )
        steered = ("conditional_norm", "sentences", "presence", "guided_skips", "prompt_head")
        if not self.semantics and (given := [name for name in steered if getattr(self, name)]):
            raise ValueError(
                f"{', '.join(given)}: steered by semantics; set semantics, or leave it out"
            )
        reading = ("sentences", "prompt_head")
        if self.text == "none" and (given := [name for name in reading if getattr(self, name)]):
            raise ValueError(
                f"{', '.join(given)} with text='none', which reads no text; leave it out"
            )

    def with_names(
        self,
        sequences: Sequence[str],
        regions: Sequence[str],
        *,
        prompts: Mapping[str, str] | None = None,
    ) -> "NetworkConfig":
        """Return the same network for other sequences and regions.

        Sequences keep their norm, and regions their prompt and guidance, by name. If no guided
        region is left, the default is taken.

        Args:
            sequences: names, in order.
            regions: names, in order.
            prompts: region -> prompt.
        """
        norm_of = dict(zip(self.sequences, self.norms, strict=True))
        prompt_of = {**dict(zip(self.regions, self.prompts, strict=False)), **(prompts or {})}
        guided = tuple(region for region in self.guided or () if region in regions)
        return replace(
            self,
            sequences=tuple(sequences),
            regions=tuple(regions),
            prompts=tuple(prompt_of.get(r, REGION_PROMPTS.get(r, r)) for r in regions)
            if prompt_of
            else (),
            norms=tuple(norm_of.get(name, "zscore") for name in sequences),
            guided=guided if guided or not self.guided else None,
            rgb=self.rgb if set(self.rgb) <= set(sequences) else (),
        )
