"""3D-2D semantic bridging: slices of the volume through CLIP's image tower."""

from typing import Protocol

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from clipseg3d.volume import cut_views


class ImageEncoder(Protocol):
    """What the bridge asks of an image tower."""

    @property
    def embed_dim(self) -> int:
        """Number of embedding channels e."""

    def encode_image(self, images: Tensor) -> Tensor:
        """Turn RGB images (n, 3, h, w) in [0, 1] into unit vectors (n, e)."""


class SemanticBridge(nn.Module):
    """Embed the axial, coronal and sagittal middle slice of a volume with a 2D encoder.

    The paper's F3D is the mean of the returned tokens; they are kept apart here, since attention
    over one averaged vector does nothing (its softmax has a single key).

    Args:
        encoder: image tower; an ``nn.Module`` is moved to devices with the bridge.

    Source: arXiv 2507.09966, 3D-2D semantic bridging. See :func:`clipseg3d.volume.cut_views` for
    how slices are cut.
    """

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, volume: Tensor) -> tuple[Tensor, Tensor]:
        """Cut a whole volume (b, s, x, y, z) into views and embed them; see :meth:`embed`."""
        return self.embed(cut_views(volume))

    def embed(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Embed views that were cut before.

        Args:
            views: (b, v, h, w, 3) uint8.

        Returns:
            Unit-norm tokens (b, v, e), and (b,) bool: False where a case has no signal at all, so
            that its semantics are to be ignored.

        Raises:
            ValueError: ``views`` are not uint8 or not of that shape.
        """
        if views.dtype != torch.uint8 or views.ndim != 5 or views.shape[-1] != 3:
            raise ValueError(
                f"views are {views.dtype} {tuple(views.shape)}, expected uint8 (b, v, h, w, 3); "
                "cut them with clipseg3d.volume.cut_views"
            )
        images = rearrange(views, "b v h w rgb -> (b v) rgb h w").float() / 255
        tokens = self.encoder.encode_image(images)
        valid = reduce(views != 0, "b v h w rgb -> b", "max")
        return rearrange(tokens, "(b v) e -> b v e", b=views.shape[0]), valid
