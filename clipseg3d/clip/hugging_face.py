"""Folders and hub names of Hugging Face: ``model_type`` in config.json decides what is loaded."""

from typing import Any

from transformers import AutoConfig

from clipseg3d.clip.encoder import TextEncoder
from clipseg3d.clip.frozen_encoder import read_pretrained
from clipseg3d.clip.registry import HUGGING_FACE, Loader, register

OTHER = ""
"""Model type that stands for all that nothing else is registered for."""
_MODEL_TYPES: dict[str, Loader] = {}


def register_model_type(model_type: str, loader: Loader) -> None:
    """Let a loader, called as in the registry, have the models of a ``model_type``."""
    _MODEL_TYPES[model_type] = loader


def load_hugging_face(name: str, *, local_files_only: bool = False) -> TextEncoder:
    """Load the encoder in a folder or on the hub, whatever its model type.

    Raises:
        FileNotFoundError: the name is a path, and there is no such folder.
        ValueError: the folder lacks weights or a tokenizer, or they cannot be read.
        OSError: the hub has no such model, or it cannot be reached and no copy is cached.
    """
    model_type = read_model_config(name, local_files_only=local_files_only).model_type
    loader = _MODEL_TYPES.get(model_type, _MODEL_TYPES[OTHER])
    return loader(name, local_files_only=local_files_only)


def read_model_config(name: str, *, local_files_only: bool) -> Any:
    """Return the configuration of a model; errors are those of :func:`load_hugging_face`."""
    return read_pretrained(
        name,
        "encoder",
        lambda source: AutoConfig.from_pretrained(
            source, trust_remote_code=False, local_files_only=local_files_only
        ),
    )


register(HUGGING_FACE, load_hugging_face)
