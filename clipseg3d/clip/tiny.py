"""The CLIP that comes with the package, and one that needs no file."""

from clipseg3d.clip.hugging_face_clip import TINY_RANDOM, HuggingFaceCLIP
from clipseg3d.clip.registry import register
from clipseg3d.weights import BUNDLED

TINY = "tiny"
"""Name of the trained CLIP that comes with the package."""


def load_tiny(rest: str, *, local_files_only: bool = False) -> HuggingFaceCLIP:
    """Load the trained CLIP that comes with the package; ``rest`` must be empty."""
    _require_nothing(TINY, rest)
    return HuggingFaceCLIP.from_pretrained(str(BUNDLED / "tiny" / "clip"))


def load_tiny_random(rest: str, *, local_files_only: bool = False) -> HuggingFaceCLIP:
    """Build the CLIP with random weights; ``rest`` must be empty."""
    _require_nothing(TINY_RANDOM, rest)
    return HuggingFaceCLIP.tiny_random()


def _require_nothing(name: str, rest: str) -> None:
    """Raise a ValueError if a name goes on."""
    if rest:
        raise ValueError(f"encoder '{name}:{rest}': there is one only; its name is {name!r}")


register(TINY, load_tiny)
register(TINY_RANDOM, load_tiny_random)
