"""What all frozen CLIPs share: how images are prepared, and what becomes of the towers' outputs."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipseg3d.clip.frozen_encoder import FrozenEncoder

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of red, green and blue, by which OpenAI's CLIP and those like it normalise images."""


class FrozenCLIP(FrozenEncoder):
    """A pretrained model of texts and images that is used and never trained.

    A family of CLIPs is a subclass with ``_image_features``, ``_patch_features`` and
    ``_text_features``.

    Args:
        model: with both towers.
        tokenizer: of the same model.
        name: as for :class:`clipseg3d.clip.frozen_encoder.FrozenEncoder`.
        embed_dim: number of embedding channels e.
        max_tokens: longest text it reads, in tokens, start and end included.
        image_size: height and width that the image tower takes, in pixels.
        mean: of red, green and blue, by which images in [0, 1] are normalised.
        std: likewise.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        embed_dim: int,
        max_tokens: int,
        image_size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__(model, tokenizer, name=name, embed_dim=embed_dim, max_tokens=max_tokens)
        self.image_size = image_size
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def encode_image(self, images: Tensor) -> Tensor:
        """Embed RGB images (n, 3, h, w) in [0, 1] as unit vectors (n, e) float32.

        Images are resized to the tower's image size, and normalised as it was trained.
        Gradients reach images that require them; the towers themselves get none.
        """
        return self._run_image_tower(images)[0]

    def encode_patches(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Embed whole images and each of their patches, in one pass of the image tower.

        A patch goes the way of the whole image from the last layer on, to unit norm. The towers
        were not trained to align patches with texts, so they are aligned only in part.

        Args:
            images: as for :meth:`encode_image`, (n, 3, h, w).

        Returns:
            Unit vectors of the images (n, e), equal to those of :meth:`encode_image`, and of the
            patches (n, g, g, e): rows run along h, columns along w.

        Raises:
            ValueError: the image tower has no patches.

        Source: Zhou et al., ECCV 2022, arXiv 2112.01071. Differs: the last attention layer is kept.
        """
        vectors, hidden = self._run_image_tower(images)
        with torch.autocast(images.device.type, enabled=False):
            return vectors, F.normalize(self._patch_features(hidden), dim=-1)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Embed n texts as unit vectors (n, e) float32; tokens beyond max_tokens are cut off."""
        with torch.autocast(self.mean.device.type, enabled=False):
            return F.normalize(self._text_features(texts), dim=-1)

    def _run_image_tower(self, images: Tensor) -> tuple[Tensor, Any]:
        """Return unit vectors (n, e), and the tower's last hidden states."""
        with (
            torch.autocast(images.device.type, enabled=False),
            torch.set_grad_enabled(torch.is_grad_enabled() and images.requires_grad),
        ):
            images = F.interpolate(
                images.float(), size=self.image_size, mode="bicubic", antialias=True
            ).clamp(0, 1)
            features, hidden = self._image_features((images - self.mean) / self.std)
            return F.normalize(features, dim=-1), hidden

    def _image_features(self, pixels: Tensor) -> tuple[Tensor, Any]:
        """Return features (n, e) of normalised pixels, and hidden states for the patches."""
        raise NotImplementedError

    def _patch_features(self, hidden: Any) -> Tensor:
        """Return features (n, g, g, e) of the patches."""
        raise NotImplementedError

    def _text_features(self, texts: Sequence[str]) -> Tensor:
        """Return features (n, e) of texts."""
        raise NotImplementedError


def pooled(features: Any) -> Tensor:
    """Return pooled features: transformers 4 gives them as a tensor, 5 in an output object."""
    vectors: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return vectors
