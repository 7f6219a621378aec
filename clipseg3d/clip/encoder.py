"""CLIP encoders: any CLIPModel of Hugging Face, or a tiny one, trained or random."""

import json
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from clipseg3d.clip.frozen_encoder import FrozenEncoder, check_complete, read_pretrained
from clipseg3d.weights import BUNDLED, CONFIG

TINY = "tiny"
"""Name of the trained CLIP that comes with the package."""
TINY_RANDOM = "tiny-random"
"""Name of the encoder that :func:`load_encoder` builds without any file."""
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


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


class HuggingFaceCLIP(FrozenEncoder):
    """A frozen CLIPModel of transformers.

    Its weights are never in a ``state_dict``: checkpoints keep its name and fingerprint instead.
    It stays in evaluation mode, whatever the mode of the network around it.

    Args:
        model: with both towers.
        tokenizer: of the same CLIP.
        name: folder or hub name it was loaded from.
    """

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer, *, name: str) -> None:
        super().__init__(
            model,
            tokenizer,
            name=name,
            embed_dim=int(model.config.projection_dim),
            max_tokens=int(model.config.text_config.max_position_embeddings),
        )
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(3, 1, 1), persistent=False)

    @classmethod
    def from_pretrained(cls, name: str, *, local_files_only: bool = False) -> "HuggingFaceCLIP":
        """Load a CLIPModel and its tokenizer from a local folder or the Hugging Face hub.

        Args:
            name: folder written by ``save_pretrained`` (model and tokenizer), or a hub name such
                as ``openai/clip-vit-base-patch32``, the paper's.
            local_files_only: use a folder or the Hugging Face cache, and no network.

        Raises:
            FileNotFoundError: the name is a path, and there is no such folder.
            ValueError: the folder lacks weights or a tokenizer, or they are no complete CLIP.
            OSError: the hub has no such model, or it cannot be reached and no copy is cached.
        """
        (model, report), tokenizer = read_pretrained(
            name,
            "CLIPModel",
            lambda source: (
                CLIPModel.from_pretrained(
                    source, output_loading_info=True, local_files_only=local_files_only
                ),
                CLIPTokenizer.from_pretrained(source, local_files_only=local_files_only),
            ),
        )
        check_complete(name, "CLIPModel", list(report["missing_keys"]), tokenizer, model.config)
        return cls(model, tokenizer, name=name)

    @classmethod
    def tiny_random(cls, *, seed: int = 0) -> "HuggingFaceCLIP":
        """Build a small CLIP with random weights, and warn that its embeddings have no meaning.

        For demos, tests and machines without a network. Equal seeds give equal weights.
        """
        warnings.warn(
            "the weights of the tiny CLIP are random: its views and texts carry no meaning; "
            "use a trained CLIP for results",
            stacklevel=2,
        )
        tokenizer = _byte_tokenizer()
        width = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
        special_tokens = {
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.eos_token_id,
        }
        config = CLIPConfig(
            text_config={
                **width,
                **special_tokens,
                "num_attention_heads": 4,
                "vocab_size": len(tokenizer),
                "max_position_embeddings": 256,
            },
            vision_config={**width, "num_attention_heads": 4, "image_size": 64, "patch_size": 16},
            projection_dim=64,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = CLIPModel(config)
        return cls(model, tokenizer, name=TINY_RANDOM)

    def encode_image(self, images: Tensor) -> Tensor:
        """Embed RGB images (n, 3, h, w) in [0, 1] as unit vectors (n, e) float32.

        Images are resized to the tower's image size, and normalised as for OpenAI's CLIP.
        Gradients reach images that require them; CLIP itself gets none.
        """
        return self._run_image_tower(images)[0]

    def encode_patches(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Embed whole images and each of their patches, in one pass of the image tower.

        A patch token is treated as the class token is: last layer norm, projection, unit norm.
        CLIP was not trained to align patches with texts, so they are aligned only in part.

        Args:
            images: as for :meth:`encode_image`, (n, 3, h, w).

        Returns:
            Unit vectors of the images (n, e), equal to those of :meth:`encode_image`, and of the
            patches (n, g, g, e): rows run along h, columns along w.

        Source: Zhou et al., ECCV 2022, arXiv 2112.01071. Differs: the last attention layer is kept.
        """
        vectors, hidden = self._run_image_tower(images)
        tower = self.frozen_model.config.vision_config
        rows = tower.image_size // tower.patch_size
        grid = rearrange(hidden[:, 1:], "n (h w) c -> n h w c", h=rows)
        with torch.autocast(images.device.type, enabled=False):
            patches = self.frozen_model.visual_projection(
                self.frozen_model.vision_model.post_layernorm(grid)
            )
            return vectors, F.normalize(patches, dim=-1)

    def _run_image_tower(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return unit vectors (n, e), and the tower's last hidden states (n, 1 + g g, c)."""
        with (
            torch.autocast(images.device.type, enabled=False),
            torch.set_grad_enabled(torch.is_grad_enabled() and images.requires_grad),
        ):
            side = self.frozen_model.config.vision_config.image_size
            images = F.interpolate(
                images.float(), size=(side, side), mode="bicubic", antialias=True
            ).clamp(0, 1)
            output = self.frozen_model.vision_model(
                pixel_values=(images - self.mean) / self.std, return_dict=True
            )
            vectors = self.frozen_model.visual_projection(output.pooler_output)
            return F.normalize(vectors, dim=-1), output.last_hidden_state

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Embed n texts as unit vectors (n, e) float32; tokens beyond max_tokens are cut off."""
        tokens = self._tokens(texts)
        with torch.autocast(self.frozen_model.device.type, enabled=False):
            features = self.frozen_model.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            )
            return F.normalize(_pooled(features), dim=-1)


def load_encoder(name: str, *, local_files_only: bool = False) -> HuggingFaceCLIP:
    """Return the CLIP of that name: ``tiny``, ``tiny-random``, a local folder, or a hub name.

    ``tiny`` comes with the package. ``examples/train_tiny_clip.py`` trained it on slices of
    simulated and some real brains with their reports; its embeddings of other images mean nothing.
    With ``local_files_only``, a hub name is looked up in the cache only.

    Raises:
        ValueError: the name is ``tiny``, and the working folder also has a CLIP of that name.
        FileNotFoundError, ValueError, OSError: as for :meth:`HuggingFaceCLIP.from_pretrained`.

    Example:
        >>> clip = load_encoder("tiny")
        >>> left, right = clip.encode_text(["a tumour on the left", "a tumour on the right"])
        >>> bool(left @ right < 0.99)
        True
    """
    if name == TINY_RANDOM:
        return HuggingFaceCLIP.tiny_random()
    if name == TINY:
        if Path(name, CONFIG).is_file():
            raise ValueError(
                f"{name!r} is both a folder here and the CLIP that comes with clipseg3d; give "
                f"./{name} for the folder, or rename it"
            )
        clip = HuggingFaceCLIP.from_pretrained(str(BUNDLED / "tiny" / "clip"))
        clip.name = TINY
        return clip
    return HuggingFaceCLIP.from_pretrained(name, local_files_only=local_files_only)


def _pooled(features: Any) -> Tensor:
    """Return pooled features: transformers 4 gives them as a tensor, 5 in an output object."""
    pooled: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return pooled


def _byte_tokenizer() -> CLIPTokenizer:
    """Return a CLIP tokenizer with one token per byte; it needs no vocabulary file."""
    from tokenizers.pre_tokenizers import ByteLevel

    symbols = sorted(ByteLevel.alphabet())
    words = [*symbols, *(f"{s}</w>" for s in symbols), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = {word: index for index, word in enumerate(words)}
        Path(folder, "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        Path(folder, "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
        return CLIPTokenizer.from_pretrained(folder)
