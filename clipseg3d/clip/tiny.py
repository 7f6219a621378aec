"""The CLIP that comes with the package, and one that needs no file."""

from typing import TYPE_CHECKING

from clipseg3d.clip.bundled_clip import BundledCLIP
from clipseg3d.clip.registry import register
from clipseg3d.weights import BUNDLED

if TYPE_CHECKING:
    from clipseg3d.clip.hugging_face_clip import HuggingFaceCLIP

TINY = "tiny"
"""Name of the trained CLIP that comes with the package."""
TINY_RANDOM = "tiny-random"
"""Name of the encoder that :meth:`HuggingFaceCLIP.tiny_random` builds without any file."""


def load_tiny(rest: str, *, local_files_only: bool = False) -> BundledCLIP:
    """Load the trained CLIP that comes with the package; ``rest`` must be empty."""
    _require_nothing(TINY, rest)
    return BundledCLIP(BUNDLED / TINY / "clip")


def load_tiny_random(rest: str, *, local_files_only: bool = False) -> "HuggingFaceCLIP":
    """Build the CLIP with random weights; ``rest`` must be empty."""
    _require_nothing(TINY_RANDOM, rest)
    from clipseg3d.clip.hugging_face_clip import HuggingFaceCLIP  # brings transformers

    return HuggingFaceCLIP.tiny_random()


def _require_nothing(name: str, rest: str) -> None:
    """Raise a ValueError if a name goes on."""
    if rest:
        raise ValueError(f"encoder '{name}:{rest}': there is one only; its name is {name!r}")


register(TINY, load_tiny)
register(TINY_RANDOM, load_tiny_random)
