"""What all frozen encoders of Hugging Face share: loading, hashing, and staying unchanged."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from clipseg3d.text_files import read_json

_Read = TypeVar("_Read")
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_MAX_LAYERS = 1000
"""No encoder has more; building as many as a damaged config.json says would not end."""
_LONGEST_REASON = 300
_VOCABULARY_FILES = (
    *("tokenizer.json", "vocab.json", "vocab.txt"),
    *("spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
)


class FrozenEncoder(nn.Module):
    """A pretrained model that is used and never trained.

    Its weights are float32 and never in a ``state_dict``: checkpoints keep its name and
    fingerprint instead. It stays in evaluation mode, whatever the mode of the network around it.

    Args:
        model: of transformers.
        tokenizer: of that model.
        name: folder or hub name it was loaded from.
        embed_dim: number of embedding channels e.
        max_tokens: longest text it reads, in tokens, start and end included.

    Attributes:
        frozen: True: the same image or text always has the same embedding.
    """

    frozen = True

    def __init__(
        self, model: Any, tokenizer: Any, *, name: str, embed_dim: int, max_tokens: int
    ) -> None:
        super().__init__()
        self.name = name
        self.embed_dim = embed_dim
        self.max_tokens = max_tokens
        # transformers 5 keeps weights in half precision, which is slow and inexact on a CPU
        self.frozen_model = model.float().requires_grad_(False)
        self.tokenizer = tokenizer
        self._fingerprint: str | None = None
        self.register_load_state_dict_post_hook(_accept_absent_weights)  # type: ignore[no-untyped-call]
        self.train(False)

    def count_tokens(self, text: str) -> int:
        """Return the length of a text in tokens, start and end included."""
        return len(self.tokenizer(text, verbose=False)["input_ids"])

    def fingerprint(self) -> str:
        """Return the SHA-256 of the weights, as hexadecimal digits; computed once.

        Weights of a BERT pooler are left out: no embedding depends on them, and they are random
        where a file lacks them.
        """
        if self._fingerprint is None:
            digest = hashlib.sha256()
            for name, weight in sorted(self.frozen_model.state_dict().items()):
                if self._is_used(name):
                    digest.update(name.encode())
                    digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def _is_used(self, name: str) -> bool:
        """Say whether embeddings depend on the weight of that name."""
        return not is_pooler(name)

    def train(self, mode: bool = True) -> "FrozenEncoder":
        """Stay in evaluation mode: a frozen encoder must not change between epochs."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move to other devices, but stay in float32: rounding would change the fingerprint."""

        def keep_dtype(weight: Tensor) -> Tensor:
            changed = fn(weight)
            return changed if changed.dtype == weight.dtype else weight.to(changed.device)

        return super()._apply(keep_dtype, recurse)  # type: ignore[no-untyped-call]

    def state_dict(self, *args: Any, destination: Any = None, **kwargs: Any) -> Any:
        """Add nothing: checkpoints do not hold pretrained weights."""
        return {} if destination is None else destination

    def _tokens(self, texts: Sequence[str]) -> Any:
        """Return n texts as one batch of tokens; those beyond max_tokens are cut off."""
        return self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        ).to(self.frozen_model.device)


def is_pooler(name: str) -> bool:
    """Say whether a weight belongs to the pooler of a BERT, which is not used here."""
    return "pooler" in name.split(".")


def read_pretrained(name: str, kind: str, read: Callable[[str], _Read]) -> _Read:
    """Read from a local folder or the Hugging Face hub; errors name the cause and the cure.

    Args:
        name: folder or hub name.
        kind: what is read, such as ``CLIPModel``, for messages.
        read: reads it; takes the folder or hub name.

    Raises:
        FileNotFoundError: the name is a path, and there is no such folder.
        ValueError: the folder lacks weights or a tokenizer, or they cannot be read.
        ImportError: the tokenizer needs a package that is not installed.
        OSError: the hub has no such model, or it cannot be reached and no copy is cached.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        _check_folder(folder, kind)
    elif folder.is_absolute() or name.startswith((".", "~")):
        raise FileNotFoundError(f"{name}: no such folder; give a folder with a saved {kind}")
    try:
        if folder.is_dir():
            _check_layers(folder / "config.json")
        with _without_weight_bar():
            return read(str(folder) if folder.is_dir() else name)
    except ImportError as error:
        reason = str(error).strip().partition(". ")[0]
        raise ImportError(
            f'{name}: {reason}; pip install "clipseg3d[siglip]" has what SigLIP needs'
        ) from error
    except Exception as error:  # readers raise errors of any kind on damaged files
        if folder.is_dir() or not isinstance(error, OSError):
            reason = " ".join(str(error).split())
            reason = reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]} ..."
            raise ValueError(
                f"{name}: not a readable {kind} ({reason}); save or copy it again"
            ) from error
        raise OSError(
            f"{kind} {name!r} is no local folder, not in the Hugging Face cache, and could not "
            "be downloaded; check the name and the network, or save the model where there is "
            "a network and give its folder"
        ) from error


@contextmanager
def _without_weight_bar() -> Iterator[None]:
    """Show no bar while weights are read, which takes a second; those of downloads stay."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    shown, downloads = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.disable_progress_bar()  # those of downloads too
    if downloads:
        enable_progress_bars()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def check_complete(
    name: str, kind: str, missing: Sequence[str], tokenizer: Any, config: Any
) -> None:
    """Check what transformers does not: no weight is random, and the model has every token.

    Args:
        name: folder or hub name it was read from.
        kind: what was read, for messages.
        missing: weights that the files lack.
        tokenizer: as loaded.
        config: of the model.

    Raises:
        ValueError: weights or words are missing, or the tokenizer is of another model.
    """
    if missing:
        raise ValueError(
            f"{name}: lacks {len(missing)} weights of a {kind} (such as {min(missing)}); save the "
            "whole model"
        )
    vocabulary = config.get_text_config().vocab_size
    if len(tokenizer) > vocabulary:
        raise ValueError(
            f"{name}: its tokenizer has {len(tokenizer)} tokens, but the model {vocabulary}; save "
            "both again"
        )
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ValueError(
            f"{name}: its tokenizer knows no words; save the tokenizer there too with "
            "save_pretrained"
        )


def _check_folder(folder: Path, kind: str) -> None:
    """Raise a ValueError if a folder lacks a file that every saved model has."""
    names = {path.name for path in folder.iterdir()}
    if "config.json" not in names:
        raise ValueError(f"{folder}: holds no config.json; save a {kind} with save_pretrained")
    if not any(name in names or f"{name}.index.json" in names for name in _WEIGHT_FILES):
        raise ValueError(
            f"{folder}: holds no weights ({' or '.join(_WEIGHT_FILES)}); save the {kind} again "
            "with save_pretrained"
        )
    if not names.intersection(_VOCABULARY_FILES):
        raise ValueError(
            f"{folder}: holds no tokenizer (such as tokenizer.json or vocab.json); save the "
            "tokenizer there too with save_pretrained"
        )


def _check_layers(path: Path) -> None:
    """Raise a ValueError for a configuration that is no object, or says too many layers."""
    config = read_json(path)
    if not isinstance(config, dict):
        raise ValueError(f"{path.name} is no JSON object")
    for part in [config, *config.values()]:  # a CLIP has two towers
        layers = part.get("num_hidden_layers") if isinstance(part, dict) else None
        if isinstance(layers, int | float) and not 0 <= layers <= _MAX_LAYERS:
            raise ValueError(f"{path.name} says num_hidden_layers={layers!r}")


def _accept_absent_weights(module: nn.Module, incompatible: Any) -> None:
    """Let strict loading accept that checkpoints hold no frozen weights."""
    incompatible.missing_keys[:] = [
        key for key in incompatible.missing_keys if ".frozen_model." not in f".{key}"
    ]
