"""What the library expects of encoders."""

from abc import ABC
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor


class TextEncoder(Protocol):
    """An encoder of texts, as the library uses it; its name is saved with trained networks."""

    name: str

    @property
    def embed_dim(self) -> int:
        """Number of embedding channels e."""

    @property
    def max_tokens(self) -> int:
        """Longest text that the encoder reads, in tokens, start and end included."""

    def count_tokens(self, text: str) -> int:
        """Return the length of a text in tokens, start and end included."""

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Embed n texts as unit vectors (n, e)."""

    def fingerprint(self) -> str:
        """Return a hash of the weights."""


class ClipEncoder(TextEncoder, Protocol):
    """A CLIP, as the library uses it: texts and images are embedded in one space."""

    def encode_image(self, images: Tensor) -> Tensor:
        """Embed RGB images (n, 3, h, w) in [0, 1] as unit vectors (n, e)."""

    def encode_patches(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return unit vectors of images (n, e) and of their patches (n, g, g, e)."""


if TYPE_CHECKING:
    InjectedClip = ClipEncoder
else:

    class InjectedClip(ABC):  # noqa: B024 - it is only for issubclass
        """Any class with the methods of :class:`ClipEncoder`: the type of a class path in YAML.

        jsonargparse compares the methods of a protocol with their annotations, which yours need not
        have; that their names are there is enough here.
        """

        @classmethod
        def __subclasshook__(cls, other: type) -> bool:
            methods = ("count_tokens", "encode_text", "encode_image", "encode_patches")
            return all(callable(getattr(other, name, None)) for name in (*methods, "fingerprint"))
