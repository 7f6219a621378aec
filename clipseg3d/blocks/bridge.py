"""3D-2D semantic bridging: slices of the volume through CLIP's image tower."""

import hashlib
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from clipseg3d.blocks.adapter import ResidualAdapter
from clipseg3d.blocks.pooling import GatedAttentionPooling
from clipseg3d.blocks.positions import voxel_positions
from clipseg3d.blocks.zero_init import zero_init
from clipseg3d.volume import Views, ViewSelection, cut_views

NUM_AXES = 3
MAX_KNOWN = 4096
"""Cases whose tokens are kept, 6 KB each with three views and ViT-B/32."""


class ImageEncoder(Protocol):
    """What the bridge asks of an image tower."""

    @property
    def embed_dim(self) -> int:
        """Number of embedding channels e."""

    def encode_image(self, images: Tensor) -> Tensor:
        """Turn RGB images (n, 3, h, w) in [0, 1] into unit vectors (n, e)."""

    def encode_patches(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same, and unit vectors (n, g, g, e) of the image's patches."""


class ViewTokens(NamedTuple):
    """What CLIP sees in the views of a batch."""

    tokens: Tensor
    """(b, n, e): one token per view, or one per axis where views are pooled."""
    valid: Tensor
    """(b,) bool: False where a case has no signal at all, so that its views are to be ignored."""
    patches: Tensor | None
    """(b, v, g, g, e): the views' patch embeddings, for a dense map; else None."""
    planes: Tensor
    """(b, v, 3): where the views lie; see :class:`clipseg3d.volume.Views`."""


class SemanticBridge(nn.Module):
    """Embed axial, coronal and sagittal slices of a volume with a 2D encoder.

    The paper's F3D is the mean of the returned tokens; they are kept apart here, since attention
    over one averaged vector does nothing (its softmax has a single key).

    Args:
        encoder: image tower; an ``nn.Module`` is moved to devices with the bridge. Freezing it is
            the encoder's affair. One that says of itself that it is ``frozen`` is asked once for
            the views of a case, unless ``mix_rgb`` or ``dense``; what it saw is kept in memory.
        selection: which slices :meth:`forward` cuts; see :func:`clipseg3d.volume.cut_views`. With
            ``attention``, the slices of each axis are pooled into one token.
        rgb: sequences shown as red, green and blue: t1ce, flair, t2.
        num_sequences: sequences s of the views.
        mix_rgb: add a learned mixture of all sequences to red, green and blue, nothing at first;
            the paper's "2D processing network".
        adapter: add what a small residual network makes of the tokens, nothing at first.
        dense: whether patch embeddings are returned too, for :func:`lift_patches`.

    Source: arXiv 2507.09966, 3D-2D semantic bridging; ``energy``, ``attention`` and ``dense`` are
    ours.

    Example:
        >>> from clipseg3d.clip.encoder import load_encoder
        >>> bridge = SemanticBridge(load_encoder("tiny"), selection="energy")
        >>> bridge(torch.rand(1, 4, 40, 48, 36)).tokens.shape  # axial, coronal, sagittal
        torch.Size([1, 3, 96])
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        *,
        selection: ViewSelection = "center",
        rgb: Sequence[int] = (1, 3, 2),
        num_sequences: int = 4,
        mix_rgb: bool = False,
        adapter: bool = False,
        dense: bool = False,
    ) -> None:
        super().__init__()
        if len(rgb) != 3 or max(rgb) >= num_sequences:
            raise ValueError(f"rgb={tuple(rgb)}: name three of {num_sequences} sequences by index")
        self.encoder = encoder
        self.selection: ViewSelection = selection
        self.rgb = list(rgb)
        self.num_sequences = num_sequences
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
        self._known: dict[bytes, Tensor] = {}

    def forward(self, volume: Tensor) -> ViewTokens:
        """Cut a whole volume (b, s, x, y, z) into views and embed them; see :meth:`embed`."""
        return self.embed(cut_views(volume, selection=self.selection))

    def embed(self, views: Views) -> ViewTokens:
        """Embed views that were cut before; tokens have unit norm unless pooled or adapted.

        Raises:
            ValueError: the images are not uint8, not (b, v, h, w, s) with s = ``num_sequences``,
                or not equally many per axis.
        """
        images = views.images
        fits = images.ndim == 5 and images.shape[4] == self.num_sequences
        if images.dtype != torch.uint8 or not fits or images.shape[1] % NUM_AXES:
            raise ValueError(
                f"views are {images.dtype} {tuple(images.shape)}, expected uint8 (b, v, h, w, "
                f"{self.num_sequences}) with equally many views per axis; cut them with "
                "clipseg3d.volume.cut_views"
            )
        batch = images.shape[0]
        patches = None
        if self.dense:
            tokens, patches = self.encoder.encode_patches(self._colours(images))
            patches = rearrange(patches, "(b v) g h e -> b v g h e", b=batch)
        elif self.recalls and not torch.compiler.is_compiling():  # a look at values breaks graphs
            tokens = torch.cat([self._recall(case) for case in images])
        else:
            tokens = self.encoder.encode_image(self._colours(images))
        tokens = rearrange(tokens, "(b a k) e -> b a k e", b=batch, a=NUM_AXES)
        if self.pooling is None:
            tokens = rearrange(tokens, "b a k e -> b (a k) e")
        else:
            tokens = self.pooling(tokens)
        if self.adapter is not None:
            tokens = self.adapter(tokens)
        valid = reduce(images != 0, "b v h w s -> b", "max")
        return ViewTokens(tokens, valid, patches, views.planes)

    @property
    def recalls(self) -> bool:
        """Whether what the encoder saw in a case is kept."""
        return not self.dense and self.mixture is None and getattr(self.encoder, "frozen", False)

    def look(self, cases: Iterable[Tensor], *, rank: int = 0, world_size: int = 1) -> None:
        """See the views of many cases before they are asked for, each case on one rank only.

        To be called on all ranks at once, and to no effect unless :attr:`recalls`.

        Args:
            cases: views (v, h, w, s) of each case, on the encoder's device; the same on all ranks.
            rank: this process.
            world_size: processes that share the work, and what they saw.
        """
        if not self.recalls:
            return
        for images in islice(cases, rank, MAX_KNOWN, world_size):
            self._recall(images)
        if world_size > 1:
            seen: list[dict[bytes, Tensor]] = [{}] * world_size
            torch.distributed.all_gather_object(seen, self._known)
            for known in seen:
                self._known.update(known)

    def _colours(self, images: Tensor) -> Tensor:
        """Return views (b, v, h, w, s) as RGB images (b v, 3, h, w) in [0, 1]."""
        shown = rearrange(images, "b v h w s -> (b v) s h w").float() / 255
        colours = shown[:, self.rgb]
        return colours if self.mixture is None else colours + self.mixture(shown)

    @torch.no_grad()
    def _recall(self, images: Tensor) -> Tensor:
        """Return what the encoder sees in the views of one case, (v, h, w, s) -> (v, e).

        Each case is shown by itself: last digits depend on what is encoded together.
        """
        shown = images[..., self.rgb].cpu()
        content = str(tuple(shown.shape)).encode() + shown.numpy().tobytes()
        key = hashlib.sha256(content).digest()
        if key not in self._known:
            if len(self._known) == MAX_KNOWN:
                del self._known[next(iter(self._known))]
            with torch.inference_mode(False):  # training may go on from what validation has seen
                self._known[key] = self.encoder.encode_image(self._colours(images[None])).cpu()
        return self._known[key].to(images.device)


def lift_patches(
    patches: Tensor, planes: Tensor, features: Tensor, window: Tensor | None = None
) -> Tensor:
    """Lift embeddings of 2D patches to a 3D map: tri-planar, linear between slices.

    Every voxel takes, from each of the three axes, the embedding of the patch it projects to,
    interpolated in the plane and between the two nearest slices; the three are averaged.

    Args:
        patches: (b, v, g, g, e), v views in the order of :class:`clipseg3d.volume.Views`.
        planes: (b, v, 3) where they lie.
        features: (b, c, x, y, z), for its grid.
        window: (b, 2, 3) where ``features`` lie in the brain box; None covers it.

    Returns:
        (b, e, x, y, z) in the type of ``patches``.
    """
    place = voxel_positions(features.float(), window)
    grids = rearrange(patches, "b (a k) g h e -> a b e k g h", a=NUM_AXES)
    where = rearrange(planes.float(), "b (a k) three -> a b k three", a=NUM_AXES)
    maps = []
    for axis, (along, rows, columns) in enumerate(((2, 0, 1), (1, 0, 2), (0, 1, 2))):
        slices = 2 * where[axis, :, :, 0] - 1
        count = slices.shape[1]
        steps = (slices[:, 1:] - slices[:, :-1]).clamp(min=1e-6)
        index = torch.zeros_like(place[:, along])
        for step in range(count - 1):
            start = rearrange(slices[:, step], "b -> b 1 1 1")
            length = rearrange(steps[:, step], "b -> b 1 1 1")
            index = index + ((place[:, along] - start) / length).clamp(0, 1)
        coordinates = torch.stack(
            [
                place[:, columns] * rearrange(where[axis, :, 0, 2], "b -> b 1 1 1"),
                place[:, rows] * rearrange(where[axis, :, 0, 1], "b -> b 1 1 1"),
                (2 * index + 1) / count - 1,
            ],
            dim=-1,
        )
        maps.append(
            F.grid_sample(
                grids[axis].float(), coordinates, padding_mode="border", align_corners=False
            )
        )
    return torch.stack(maps).mean(dim=0).to(patches.dtype)
