"""CLIPSeg3D: pixel, feature and semantic fusion in one network, and the builder that sizes it."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from torch import Tensor, nn

from clipseg3d import __version__
from clipseg3d.blocks.bridge import SemanticBridge
from clipseg3d.blocks.grade_classifier import GradeClassifier
from clipseg3d.blocks.guidance import CrossModalGuidance
from clipseg3d.blocks.pixel_fusion import PixelFusion
from clipseg3d.blocks.semantic_fusion import RegionMaps, SemanticFusion, Semantics
from clipseg3d.clip.encoder import ClipEncoder, load_encoder
from clipseg3d.clip.text_bank import TextBank
from clipseg3d.clip.text_encoder import TextEncoder, load_text_encoder
from clipseg3d.hub import (
    CONFIG,
    MODEL_CARD,
    WEIGHTS,
    find_pretrained,
    parse_values,
    read_config,
    read_weights,
    reason_of,
    write_pretrained,
)
from clipseg3d.networks.config import NetworkConfig, network_config
from clipseg3d.networks.settings import PredictionSettings
from clipseg3d.networks.unet import UNet3D
from clipseg3d.volume import Views, ViewSelection

DIFFERENCES = ((1, 0), (2, 3))
"""Pairs of sequences that difference channels are made of: t1ce - t1, t2 - flair."""


class Prediction(NamedTuple):
    """What the network makes of one batch."""

    logits: Tensor
    """(b, r, x, y, z)."""
    auxiliary: list[Tensor]
    """Logits of lower decoder levels on their own, padded grids, for deep supervision."""
    maps: RegionMaps | None
    """Scores and text-voxel cosines of the guided regions, at half resolution or the folded stem's,
    of the padded image."""
    grade: Tensor | None
    """(b,) logits of a high grade; None without classifier."""


class CLIPSeg3D(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="clipseg3d",
    pipeline_tag="image-segmentation",
    tags=["medical", "mri", "brain-tumor", "brats", "3d", "clip"],
    model_card_template=MODEL_CARD,
):
    """3D U-Net guided by what CLIP sees in slices of the volume and reads in text.

    Built parts are injected; :func:`build_clipseg3d` makes them from a preset. Without views and
    text the network is its U-Net, to the last bit.

    Args:
        unet: backbone.
        pixel_fusion: normalises and weighs the sequences; None takes images as they are given,
            which should then be z-scored.
        semantic_fusion: semantic path; None leaves the plain U-Net.
        text_bank: reports -> text embeddings; None reads no text.
        grade_classifier: grade from the bottleneck; None tells no grade.
        encoders: the frozen encoders in use by role, for checkpoints to name.
        config: what the parts were built from; without it the network cannot be saved for others.

    Attributes:
        settings: what the network was trained for, to be saved with it; None where nobody said.
        semantic_strength: how far semantics count, 0 to 1; a schedule of the training may raise
            it. Part of the state, so that a checkpoint predicts as it did when it was saved.

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
        encoders: Mapping[str, TextEncoder] | None = None,
        config: NetworkConfig | None = None,
    ) -> None:
        super().__init__()
        self.unet = unet
        self.pixel_fusion = pixel_fusion
        self.semantic_fusion = semantic_fusion
        self.text_bank = text_bank
        self.grade_classifier = grade_classifier
        self.config = config
        self.settings: PredictionSettings | None = None
        self._encoders = dict(encoders or {})
        self.semantic_strength: Tensor
        self.register_buffer("semantic_strength", torch.ones(()))

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the mixin's takes arguments of __init__
        cls,
        source: str | Path,
        *,
        clip: ClipEncoder | str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> "CLIPSeg3D":
        """Load a trained network, in float32 and evaluation mode; no code in files is run.

        Args:
            source: a name of weights that come with the package, a folder written by
                :meth:`save_pretrained`, or a hub id; see :func:`clipseg3d.hub.find_pretrained`.
            clip: CLIP itself, its folder or its hub name, where it is not to be found under the
                name it had in training; its weights must be the same.
            revision: branch, tag or commit on the hub.
            token: for private models of the hub.
            cache_dir: folder of the Hugging Face cache.
            force_download: download even what is cached.
            local_files_only: use the cache and no network, for CLIP too.

        Raises:
            FileNotFoundError: no such folder, or it lacks a file.
            ValueError: unknown name; a damaged file, or one of another version of this library;
                weights of another architecture; a CLIP of other weights.
            OSError: the model or its CLIP is not at hand and cannot be downloaded.
        """
        folder = find_pretrained(
            source,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
        )
        content = read_config(folder)
        config = parse_values(NetworkConfig, content["network"], folder, content["clipseg3d"])
        settings = content["prediction"]
        if settings is not None:
            settings = parse_values(PredictionSettings, settings, folder, content["clipseg3d"])
        if clip is not None:
            config = replace(config, clip=clip if isinstance(clip, str) else clip.name)
        encoder = None if isinstance(clip, str) else clip
        try:
            network = build_clipseg3d(config, encoder=encoder, local_files_only=local_files_only)
        except OSError as error:
            raise OSError(
                f"{source}: an encoder it was trained with is not at hand ({error}); say where "
                "CLIP is (clip, --clip)"
            ) from error
        except ValueError as error:
            raise ValueError(
                f"{folder / CONFIG}: no network can be built as it says ({error}); copy or "
                "download it again"
            ) from error
        unnamed = network.encoder_identities().keys() - content["encoders"].keys()
        if unnamed:
            raise ValueError(
                f"{folder / CONFIG}: does not say which {min(unnamed)} encoder the network was "
                "trained with; save the network again"
            )
        network.require_encoders(content["encoders"])
        network._take_weights(read_weights(folder), folder / WEIGHTS)
        network.settings = settings
        return network.eval()

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write config.json, model.safetensors and, where there is none, a model card README.md.

        Frozen encoders are named, not written. Weights keep the type they have.

        Args:
            save_directory: folder; it is made.
            options: of :meth:`huggingface_hub.ModelHubMixin.save_pretrained`, such as
                ``push_to_hub=True``, and as ``model_card_kwargs`` a dict with texts for the card:
                ``name``, ``data``, ``metrics``, ``limits``.

        Returns:
            The address of the commit if it was pushed to the hub, else None.

        Raises:
            ValueError: the network was made of parts, without a config.
            OSError: a file cannot be written.
        """
        self._description()  # before the mixin removes a config.json that is there
        address: str | None = super().save_pretrained(save_directory, **options)
        return address

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Save for the Hugging Face hub, and upload config.json, model.safetensors and README.md.

        A README.md on the hub is replaced: give its texts as ``model_card_kwargs``, or upload the
        folder of :meth:`save_pretrained` with ``hf upload`` once its card is filled in.

        Args:
            repo_id: such as ``user/model``; made if missing.
            options: of :meth:`huggingface_hub.ModelHubMixin.push_to_hub`, such as ``private``,
                ``commit_message`` and ``model_card_kwargs``.

        Returns:
            The address of the commit.

        Raises:
            ValueError: the network was made of parts, without a config; ``repo_id`` is no such id.
            OSError: the hub cannot be reached, or refuses.
        """
        self._description()  # before the mixin makes a repository
        try:
            address: str = super().push_to_hub(repo_id, **options)
        except ValueError:  # no such id; its message says so
            raise
        except Exception as error:  # every version of huggingface_hub raises its own
            raise OSError(
                f"{repo_id!r} was not uploaded to the Hugging Face hub ({reason_of(error)}); check "
                "the network, the name and the login ('hf auth login')"
            ) from error
        return address

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Return the model card; see :meth:`save_pretrained`."""
        description = self._description()
        own = self.state_dict()
        sizes = [weight.numel() for name, weight in self.named_parameters() if name in own]
        facts = {
            "version": __version__,
            "regions": ", ".join(description["network"]["regions"]),
            "sequences": ", ".join(description["network"]["sequences"]),
            "parameters": f"{sum(sizes):,}",
            "settings": self.settings,
            "encoders": description["encoders"],
        }
        return super().generate_model_card(*args, **facts, **kwargs)

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write config.json and model.safetensors; called by the mixin."""
        write_pretrained(save_directory, self._description(), self.state_dict())

    def _description(self) -> dict[str, Any]:
        """Return what config.json is to say."""
        if self.config is None:
            raise ValueError(
                "a network that was made of parts has no config to be saved with; build it with "
                "build_clipseg3d, or give CLIPSeg3D the config of its parts"
            )
        return {
            "network": asdict(self.config),
            "prediction": None if self.settings is None else asdict(self.settings),
            "encoders": self.encoder_identities(),
        }

    def _take_weights(self, weights: Mapping[str, Tensor], path: Path) -> None:
        """Load weights; refuse those of another architecture in one sentence.

        Raises:
            ValueError: weights are missing, unknown or of another shape.
        """
        found = unlike_weights(weights, self.state_dict())
        if found:
            raise ValueError(
                f"{path}: weights of another architecture than {CONFIG} says ({'; '.join(found)}); "
                "give the two files that were saved together"
            )
        self.load_state_dict(weights)

    def forward(
        self,
        image: Tensor,
        *,
        views: Views | None = None,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        window: Tensor | None = None,
        statistics: Tensor | None = None,
    ) -> Tensor:
        """Return logits (b, r, x, y, z).

        Args:
            image: (b, s, x, y, z): a whole volume, or a crop together with ``window`` and
                ``statistics``.
            views: slices of the whole volume (:func:`clipseg3d.volume.cut_views`), or None.
            text: (b, n, e) embeddings, one prompt per region first, or None.
            text_mask: (b, n) bool, True for real tokens; None keeps all.
            window: (b, 2, 3) where the image lies in the brain box; None covers it.
            statistics: (b, s, 4) of the whole brain; None takes them from ``image``.
        """
        semantics = self.encode_semantics(views, text, text_mask)
        return self.segment(image, semantics, window=window, statistics=statistics).logits

    def encode_semantics(
        self, views: Views | None, text: Tensor | None, text_mask: Tensor | None = None
    ) -> Semantics | None:
        """Return the semantics of a batch; None without semantic path, or without views and text.

        They depend on the whole volume only: compute them once per case, not per window.
        """
        if self.semantic_fusion is None or (views is None and text is None):
            return None
        semantics = self.semantic_fusion.encode(views, text, text_mask)
        return semantics._replace(weight=semantics.weight * self.semantic_strength)

    @property
    def view_selection(self) -> ViewSelection:
        """Which slices CLIP is to see; see :func:`clipseg3d.volume.cut_views`."""
        return "center" if self.semantic_fusion is None else self.semantic_fusion.bridge.selection

    def embed_text(self, reports: list[str]) -> tuple[Tensor | None, Tensor | None]:
        """Return text embeddings (b, n, e) and their mask (b, n); None where no text is read."""
        if self.text_bank is None:
            return None, None
        text, mask = self.text_bank(reports)
        return text.to(self.semantic_strength.device), mask.to(self.semantic_strength.device)

    def encoder_identities(self) -> dict[str, dict[str, str]]:
        """Return name and weight hash of each frozen encoder, for checkpoints to keep."""
        return {
            role: {"name": encoder.name, "sha256": encoder.fingerprint()}
            for role, encoder in self._encoders.items()
        }

    def require_encoders(self, trained_with: Mapping[str, Mapping[str, str]]) -> None:
        """Refuse encoders other than those that weights were trained with.

        Args:
            trained_with: from :meth:`encoder_identities` at training time.

        Raises:
            ValueError: the hashes differ.
        """
        for role, here in self.encoder_identities().items():
            there = trained_with.get(role, here)
            if here["sha256"] != there["sha256"]:
                raise ValueError(
                    f"{role} encoder {here['name']!r} has other weights than {there['name']!r} "
                    f"(SHA-256 {there['sha256'][:12]}...), which this network was trained with; "
                    "load that one"
                )

    def segment(
        self,
        image: Tensor,
        semantics: Semantics | None,
        *,
        window: Tensor | None = None,
        statistics: Tensor | None = None,
        regions: Tensor | None = None,
        deep: bool = False,
    ) -> Prediction:
        """Return logits and what comes with them.

        Args:
            image: as for :meth:`forward`.
            semantics: from :meth:`encode_semantics`; None runs the plain U-Net.
            window: as for :meth:`forward`.
            statistics: as for :meth:`forward`.
            regions: (b, r, x, y, z) the true regions, for region contrast in training.
            deep: whether to compute the logits of lower decoder levels too.

        Raises:
            ValueError: ``regions`` are given in evaluation.
        """
        place = self._padded_window(window, image)
        fused = self._fuse(image, statistics, regions)
        levels = self.unet.encode(fused)
        fusion = self.semantic_fusion
        if fusion is not None and semantics is not None:
            levels[-1] = fusion.guide(levels[-1], semantics, place)
        decoded = self.unet.decode(levels)
        bottleneck = levels[-1]
        del levels  # what is largest in memory comes next
        features, maps = self.unet.top(decoded), None
        if fusion is not None and semantics is not None:
            raw, maps = fusion.attend_with_maps(features, semantics, self.unet.raw_logits, place)
        else:
            raw = self.unet.raw_logits(features)
        return Prediction(
            self.unet.finish(raw, fused),
            self.unet.auxiliary_logits(decoded) if deep else [],
            maps,
            None if self.grade_classifier is None else self.grade_classifier(bottleneck),
        )

    def _fuse(self, image: Tensor, statistics: Tensor | None, regions: Tensor | None) -> Tensor:
        """Return what the U-Net is given."""
        if self.pixel_fusion is None:
            return image
        fused: Tensor = self.pixel_fusion(image, statistics, regions=regions)
        return fused

    def _padded_window(self, window: Tensor | None, image: Tensor) -> Tensor:
        """Return the window (b, 2, 3) that the image covers once the U-Net has padded it."""
        if window is None:
            window = image.new_tensor([[[0.0] * 3, [1.0] * 3]]).expand(image.shape[0], 2, 3)
        size = image.shape[2:]
        padded = [n + -n % self.unet.multiple for n in size]
        stretch = window.new_tensor(padded) / window.new_tensor(size)
        return torch.stack([window[:, 0], window[:, 1] * stretch], dim=1)


def unlike_weights(saved: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Return how weights differ from those of a network, in few words; nothing if they fit."""
    faults = {
        "missing": own.keys() - saved.keys(),
        "unknown": saved.keys() - own.keys(),
        "of another shape": {
            name for name in own.keys() & saved.keys() if own[name].shape != saved[name].shape
        },
    }
    return [
        f"{len(names)} {fault}, such as {min(names)}" for fault, names in faults.items() if names
    ]


def build_clipseg3d(
    config: NetworkConfig | str = "recommended",
    *,
    encoder: ClipEncoder | None = None,
    text_cache: str | None = None,
    local_files_only: bool = False,
) -> CLIPSeg3D:
    """Build the network that a config, or the preset of that name, describes.

    Args:
        config: sizes and switches, or a preset's name.
        encoder: CLIP to use; None loads ``config.clip``.
        text_cache: file of text embeddings written by ``clipseg3d embed-text``, or None.
        local_files_only: load encoders from folders or the Hugging Face cache, without network.

    Raises:
        ValueError: unknown preset; sizes that do not fit; a folder without weights; a text cache
            of another encoder.
        OSError: a hub name without network.
    """
    if isinstance(config, str):
        config = network_config(config)
    pixel_fusion = None
    if config.pixel_fusion:
        pixel_fusion = PixelFusion(
            norms=config.norms,
            differences=DIFFERENCES if config.difference_channels else (),
            contrast=config.region_contrast,
        )
    in_channels = pixel_fusion.out_channels if pixel_fusion else len(config.sequences)
    unet = UNet3D(
        in_channels,
        len(config.regions),
        channels=config.channels,
        fold=config.fold,
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
    encoder = encoder or load_encoder(config.clip, local_files_only=local_files_only)
    encoders: dict[str, TextEncoder] = {"CLIP": encoder}
    text_bank, text_dim = None, 0
    if config.text != "none":
        reader: TextEncoder = encoder
        if config.text_encoder is not None:
            reader = encoders["text"] = load_text_encoder(
                config.text_encoder, local_files_only=local_files_only
            )
        text_bank = TextBank(reader, config.regions, cache=text_cache)
        text_dim = reader.embed_dim
    bridge = SemanticBridge(
        encoder,
        selection=config.view_selection,
        num_sequences=len(config.sequences),
        mix_rgb=config.mix_rgb,
        adapter=config.adapter,
        dense=config.dense,
    )
    guidance = CrossModalGuidance(
        encoder.embed_dim,
        config.semantic_dim,
        kind=config.guidance,
        tokens=config.guidance_tokens,
        # Without guidance, text has its say in semantic attention only.
        text_dim=text_dim if config.guided or config.guidance != "none" else 0,
        num_heads=config.num_heads,
    )
    semantic_fusion = SemanticFusion(
        bridge,
        guidance,
        bottleneck_channels=unet.channels[-1],
        decoder_channels=unet.channels[0],
        regions=config.regions,
        guided=config.guided,
        mode=config.attention_mode,
        attention_stride=1 if config.fold > 1 else 2,
        conditional=config.conditional_norm,
    )
    return CLIPSeg3D(
        unet,
        pixel_fusion=pixel_fusion,
        semantic_fusion=semantic_fusion,
        text_bank=text_bank if guidance.map_text is not None else None,
        grade_classifier=grade_classifier,
        encoders=encoders,
        config=config,
    )
