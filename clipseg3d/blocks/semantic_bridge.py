"""3D-2D semantic bridging: CLIP's image tower embeds slices of the volume."""

import hashlib
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple, Protocol

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from clipseg3d.blocks.attention_pooling import GatedAttentionPooling
from clipseg3d.blocks.residual_adapter import ResidualAdapter
from clipseg3d.blocks.zero_init import zero_init
from clipseg3d.views import Views, ViewSelection, cut_views
from clipseg3d.vocabulary import PLANES, SEQUENCES

MAX_CACHED_CASES = 4096
"""Largest number of cases in the cache of tokens; 6 KB each with three views and ViT-B/32."""


class ImageEncoder(Protocol):
    """The methods of an image tower that the bridge calls."""

    @property
    def embed_dim(self) -> int:
        """Number of embedding channels e."""

    def encode_image(self, images: Tensor) -> Tensor:
        """Return unit vectors (n, e) for RGB images (n, 3, h, w) in [0, 1]."""

    def encode_patches(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same, and unit vectors (n, g, g, e) of the images' patches."""


class ViewTokens(NamedTuple):
    """CLIP's embeddings of the views of a batch."""

    tokens: Tensor
    """(b, n, e): one token per view, or one per axis if views are pooled. In the type of the
    encoder's embeddings, or of the weights that pool or adapt them."""
    valid: Tensor
    """(b,) bool: False if all views of a case are black, so that they must be ignored."""
    patches: Tensor | None
    """(b, v, g, g, e): patch embeddings of the views; None unless ``dense``."""
    planes: Tensor
    """(b, v, 3): positions of the views; see :class:`clipseg3d.views.Views`."""


class SemanticBridge(nn.Module):
    """Embed axial, coronal and sagittal slices of a volume with a 2D encoder.

    The paper's F3D is the mean of the returned tokens. The bridge returns them separately, since
    attention over one averaged vector has no effect (its softmax has a single key).

    Args:
        encoder: image tower; an ``nn.Module`` is moved to devices with the bridge. The bridge does
            not freeze it. If the encoder has an attribute ``frozen`` that is True, the views of a
            case are embedded once and their tokens stay in memory, unless ``mix_rgb`` or ``dense``.
        selection: which slices :meth:`forward` cuts; see :func:`clipseg3d.views.cut_views`. With
            ``attention``, the slices of each axis are pooled into one token.
        sequences: names of the sequences s of the views.
        rgb: those shown in red, green and blue; None takes t1ce, flair and t2, and where one is
            not there, the next sequence that is.
        mix_rgb: add a learned mixture of all sequences to red, green and blue (the paper's "2D
            processing network"); it starts at zero.
        adapter: pass the tokens through a residual adapter; a new one changes nothing.
        dense: whether to return patch embeddings too, for
            :func:`~clipseg3d.blocks.patch_lifting.lift_patches`.

    Raises:
        ValueError: ``rgb`` does not name three sequences that there are.

    Source: arXiv 2507.09966, 3D-2D semantic bridging; ``energy``, ``attention`` and ``dense`` are
    ours.

    Example:
        >>> from clipseg3d.clip import load_encoder
        >>> bridge = SemanticBridge(load_encoder("tiny"), selection="energy")
        >>> bridge(torch.rand(1, 4, 40, 48, 36)).tokens.shape  # axial, coronal, sagittal
        torch.Size([1, 3, 96])
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        *,
        selection: ViewSelection = "center",
        sequences: Sequence[str] = SEQUENCES,
        rgb: Sequence[str] | None = None,
        mix_rgb: bool = False,
        adapter: bool = False,
        dense: bool = False,
    ) -> None:
        super().__init__()
        self.sequences = list(sequences)
        rgb = _default_rgb(self.sequences) if rgb is None else rgb
        if len(rgb) != 3 or not set(rgb) <= set(sequences):
            raise ValueError(
                f"rgb={tuple(rgb)}: name three sequences, of {', '.join(self.sequences)}"
            )
        self.encoder = encoder
        self.selection: ViewSelection = selection
        self.rgb = [self.sequences.index(name) for name in rgb]
        num_sequences = len(self.sequences)
        self.dense = dense
        self.mixture: nn.Sequential | None = None
        if mix_rgb:
            self.mixture = nn.Sequential(
                nn.Conv2d(num_sequences, 16, 3, padding=1),
                nn.LeakyReLU(0.01, inplace=True),
                nn.Conv2d(16, 3, 1),
            )
            zero_init(self.mixture[-1])
        self.pooling = (
            GatedAttentionPooling(encoder.embed_dim) if selection == "attention" else None
        )
        self.adapter = ResidualAdapter(encoder.embed_dim) if adapter else None
        self._token_cache: dict[bytes, Tensor] = {}

    def forward(self, volume: Tensor) -> ViewTokens:
        """Cut a whole volume (b, s, x, y, z) into views and embed them; see :meth:`embed`.

        Which slices are cut depends on values, so that this cannot be one graph for torch.export
        and torch.compile. :meth:`embed` can.
        """
        return self.embed(cut_views(volume, selection=self.selection, sequences=self.sequences))

    def embed(self, views: Views) -> ViewTokens:
        """Embed views that were already cut; tokens have unit norm unless pooled or adapted.

        Raises:
            ValueError: the images are not uint8, not (b, v, h, w, s), or not the same number per
                axis.
        """
        images = views.images
        fits = images.ndim == 5 and images.shape[4] == len(self.sequences)
        if images.dtype != torch.uint8 or not fits or images.shape[1] % len(PLANES):
            raise ValueError(
                f"views are {images.dtype} {tuple(images.shape)}, expected uint8 (b, v, h, w, "
                f"{len(self.sequences)}) with equally many views per axis; give "
                "clipseg3d.views.cut_views and SemanticBridge the same sequences"
            )
        batch = images.shape[0]
        patches = None
        if self.dense:
            tokens, patches = self.encoder.encode_patches(self._to_rgb(images))
            patches = rearrange(patches, "(b v) g h e -> b v g h e", b=batch)
        elif self.caches_tokens and not torch.compiler.is_compiling():  # values break graphs
            tokens = torch.cat([self._cached_tokens(case) for case in images])
        else:
            tokens = self.encoder.encode_image(self._to_rgb(images))
        tokens = rearrange(tokens, "(b a k) e -> b a k e", b=batch, a=len(PLANES))
        if self.pooling is None:
            tokens = rearrange(tokens, "b a k e -> b (a k) e")
        else:
            tokens = self.pooling(_as_weights(tokens, self.pooling))
        if self.adapter is not None:
            tokens = self.adapter(_as_weights(tokens, self.adapter))
        valid = reduce(images != 0, "b v h w s -> b", "max")
        return ViewTokens(tokens, valid, patches, views.planes)

    @property
    def caches_tokens(self) -> bool:
        """Whether the tokens of a case stay in memory once they are computed."""
        return not self.dense and self.mixture is None and getattr(self.encoder, "frozen", False)

    def precompute(self, cases: Iterable[Tensor], *, rank: int = 0, world_size: int = 1) -> None:
        """Compute the tokens of many cases in advance, each case on one rank only.

        All ranks must call it. It does nothing unless :attr:`caches_tokens`.

        Args:
            cases: views (v, h, w, s) of each case, on the encoder's device; the same on all ranks.
            rank: rank of this process.
            world_size: number of processes that divide the work and exchange the tokens.
        """
        if not self.caches_tokens:
            return
        for images in islice(cases, rank, MAX_CACHED_CASES, world_size):
            self._cached_tokens(images)
        if world_size > 1:
            caches: list[dict[bytes, Tensor]] = [{}] * world_size
            torch.distributed.all_gather_object(caches, self._token_cache)
            for cache in caches:
                self._token_cache.update(cache)

    def _to_rgb(self, images: Tensor) -> Tensor:
        """Return views (b, v, h, w, s) as RGB images (b v, 3, h, w) in [0, 1]."""
        sequences = rearrange(images, "b v h w s -> (b v) s h w").float() / 255
        rgb = sequences[:, self.rgb]
        if self.mixture is None:
            return rgb
        mixed: Tensor = self.mixture(_as_weights(sequences, self.mixture))
        return rgb + mixed.float()

    @torch.no_grad()
    def _cached_tokens(self, images: Tensor) -> Tensor:
        """Return the tokens (v, e) of the views (v, h, w, s) of one case.

        Each case is encoded alone: the batch size changes the last digits of the tokens.
        """
        rgb = images[..., self.rgb].cpu()
        key = hashlib.sha256(str(tuple(rgb.shape)).encode() + rgb.numpy().tobytes()).digest()
        if key not in self._token_cache:
            if len(self._token_cache) >= MAX_CACHED_CASES:
                del self._token_cache[next(iter(self._token_cache))]
            with torch.inference_mode(False):  # training may use tokens that validation computed
                self._token_cache[key] = self.encoder.encode_image(self._to_rgb(images[None])).cpu()
        return self._token_cache[key].to(images.device)


def _as_weights(values: Tensor, layers: nn.Module) -> Tensor:
    """Return values in the type of weights: encoders stay in float32, blocks may be in half."""
    return values.to(next(layers.parameters()).dtype)


def _default_rgb(sequences: Sequence[str]) -> list[str]:
    """Return t1ce, flair and t2, as far as they are there, then others; the last one repeated."""
    usual = [name for name in ("t1ce", "flair", "t2") if name in sequences]
    order = [*usual, *(name for name in sequences if name not in usual)]
    return [*order, *order[-1:] * 3][:3]
