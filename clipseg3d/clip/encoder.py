"""CLIP behind one protocol: any Hugging Face CLIPModel, or a tiny one with random weights."""

import hashlib
import json
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

TINY_RANDOM = "tiny-random"
"""Name of the encoder that :func:`load_encoder` builds without any file."""
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


class ClipEncoder(Protocol):
    """What the library asks of CLIP: both towers, and a name to be remembered by."""

    name: str

    @property
    def embed_dim(self) -> int:
        """Number of embedding channels e."""

    @property
    def max_tokens(self) -> int:
        """Longest text the encoder reads, in tokens, start and end included."""

    def count_tokens(self, text: str) -> int:
        """Return the length of a text in tokens, start and end included."""

    def encode_image(self, images: Tensor) -> Tensor:
        """Turn RGB images (n, 3, h, w) in [0, 1] into unit vectors (n, e)."""

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Turn n texts into unit vectors (n, e)."""

    def fingerprint(self) -> str:
        """Return a hash of the weights."""


class HuggingFaceCLIP(nn.Module):
    """A frozen CLIPModel of transformers.

    Its weights never enter a ``state_dict``: checkpoints keep its name and fingerprint instead.
    It stays in evaluation mode, whatever mode the network around it is in.

    Args:
        model: both towers.
        tokenizer: of the same CLIP.
        name: folder or hub name it was loaded from.
    """

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer, *, name: str) -> None:
        super().__init__()
        self.name = name
        self.frozen_clip = model.requires_grad_(False)
        self.tokenizer = tokenizer
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(3, 1, 1), persistent=False)
        self.register_load_state_dict_post_hook(_accept_absent_clip)  # type: ignore[no-untyped-call]
        self.train(False)

    @classmethod
    def from_pretrained(cls, name: str) -> "HuggingFaceCLIP":
        """Load a CLIPModel and its tokenizer from a local folder or the Hugging Face hub.

        Args:
            name: folder written by ``save_pretrained`` (model and tokenizer), or a hub name such
                as ``openai/clip-vit-base-patch32``, the paper's.

        Raises:
            ValueError: the folder lacks weights or a tokenizer, or they are not a complete CLIP.
            OSError: the hub has no such model, or it cannot be reached and no copy is cached.
        """
        folder = Path(name).expanduser()
        source = str(folder) if folder.is_dir() else name
        if folder.is_dir():
            _check_folder(folder)
        elif folder.is_absolute() or name.startswith((".", "~")):
            raise FileNotFoundError(f"{name}: no such folder; give a folder with a saved CLIPModel")
        try:
            model, report = CLIPModel.from_pretrained(source, output_loading_info=True)
            tokenizer = CLIPTokenizer.from_pretrained(source)
        except Exception as error:  # broken files raise whatever their readers raise
            if folder.is_dir():
                raise ValueError(
                    f"{name}: not a readable CLIPModel ({error}); save or copy it again"
                ) from error
            if not isinstance(error, OSError):
                raise
            raise OSError(
                f"CLIP {name!r} is no local folder, not in the Hugging Face cache, and could not "
                "be downloaded; check the name and the network, or save the model where there is "
                "a network and give its folder"
            ) from error
        if report["missing_keys"]:
            raise ValueError(
                f"{name}: lacks {len(report['missing_keys'])} weights of a CLIPModel "
                f"(such as {sorted(report['missing_keys'])[0]}); save both towers"
            )
        return cls(model, tokenizer, name=name)

    @classmethod
    def tiny_random(cls, *, seed: int = 0) -> "HuggingFaceCLIP":
        """Build a small CLIP whose weights are random: it knows nothing, and says so.

        For demos, tests and machines without network. Equal seeds give equal weights.
        """
        warnings.warn(
            "the weights of the tiny CLIP are random: its views and texts carry no meaning; "
            "use a trained CLIP for results",
            stacklevel=2,
        )
        tokenizer = _byte_tokenizer()
        width = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
        ends = {
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.eos_token_id,
        }
        config = CLIPConfig(
            text_config={
                **width,
                **ends,
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

    @property
    def embed_dim(self) -> int:
        """Number of embedding channels e."""
        return int(self.frozen_clip.config.projection_dim)

    @property
    def max_tokens(self) -> int:
        """Longest text the encoder reads, in tokens, start and end included."""
        return int(self.frozen_clip.config.text_config.max_position_embeddings)

    def count_tokens(self, text: str) -> int:
        """Return the length of a text in tokens, start and end included."""
        return len(self.tokenizer(text)["input_ids"])

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """Turn RGB images (n, 3, h, w) in [0, 1] into unit vectors (n, e) float32.

        Images are resized to what the tower takes and normalised as OpenAI's CLIP was.
        """
        with torch.autocast(images.device.type, enabled=False):
            side = self.frozen_clip.config.vision_config.image_size
            images = F.interpolate(
                images.float(), size=(side, side), mode="bicubic", antialias=True
            ).clamp(0, 1)
            features = self.frozen_clip.get_image_features(
                pixel_values=(images - self.mean) / self.std
            )
            return F.normalize(_tensor(features), dim=-1)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Turn n texts into unit vectors (n, e) float32; what exceeds max_tokens is cut off."""
        device = self.frozen_clip.logit_scale.device
        tokens = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        ).to(device)
        with torch.autocast(device.type, enabled=False):
            features = self.frozen_clip.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            )
            return F.normalize(_tensor(features), dim=-1)

    def fingerprint(self) -> str:
        """Return the SHA-256 of the weights, as hexadecimal digits."""
        digest = hashlib.sha256()
        for name, weight in sorted(self.frozen_clip.state_dict().items()):
            digest.update(name.encode())
            digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def train(self, mode: bool = True) -> "HuggingFaceCLIP":
        """Stay in evaluation mode: a frozen encoder must not change between epochs."""
        return super().train(False)

    def state_dict(self, *args: Any, destination: Any = None, **kwargs: Any) -> Any:
        """Return nothing of its own: CLIP lives outside checkpoints."""
        return {} if destination is None else destination


def load_encoder(name: str) -> HuggingFaceCLIP:
    """Return the CLIP of that name: ``tiny-random``, a local folder, or a hub name.

    Raises:
        ValueError, OSError: as :meth:`HuggingFaceCLIP.from_pretrained`.
    """
    if name == TINY_RANDOM:
        return HuggingFaceCLIP.tiny_random()
    return HuggingFaceCLIP.from_pretrained(name)


def _check_folder(folder: Path) -> None:
    """Raise a ValueError if a folder cannot hold a saved CLIPModel with tokenizer."""
    names = {path.name for path in folder.iterdir()}
    if "config.json" not in names:
        raise ValueError(f"{folder}: holds no config.json; save a CLIPModel with save_pretrained")
    if not any(name in names or f"{name}.index.json" in names for name in _WEIGHT_FILES):
        raise ValueError(
            f"{folder}: holds no weights ({' or '.join(_WEIGHT_FILES)}); save the CLIPModel again "
            "with save_pretrained"
        )
    if not names & {"tokenizer.json", "vocab.json"}:
        raise ValueError(
            f"{folder}: holds no tokenizer (tokenizer.json or vocab.json); save the tokenizer "
            "there too with save_pretrained"
        )


def _accept_absent_clip(module: nn.Module, incompatible: Any) -> None:
    """Let strict loading pass without CLIP's weights, which no checkpoint holds."""
    incompatible.missing_keys[:] = [
        key for key in incompatible.missing_keys if ".frozen_clip." not in f".{key}"
    ]


def _tensor(features: Any) -> Tensor:
    """Return the features: transformers 4 gives a tensor, 5 an output object around it."""
    tensor: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return tensor


def _byte_tokenizer() -> CLIPTokenizer:
    """Return a CLIP tokenizer with one token per byte; needs no vocabulary file."""
    from tokenizers.pre_tokenizers import ByteLevel

    symbols = sorted(ByteLevel.alphabet())
    words = [*symbols, *(f"{s}</w>" for s in symbols), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = {word: index for index, word in enumerate(words)}
        Path(folder, "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        Path(folder, "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
        return CLIPTokenizer.from_pretrained(folder)
