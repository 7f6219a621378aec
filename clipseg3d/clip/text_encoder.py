"""Encoders of texts other than CLIP: any encoder of Hugging Face, mean-pooled."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from clipseg3d.clip.frozen_encoder import (
    FrozenEncoder,
    check_complete,
    is_pooler,
    read_pretrained,
)
from clipseg3d.clip.hugging_face import OTHER, read_model_config, register_model_type

_KIND = "text encoder"


class HuggingFaceTextEncoder(FrozenEncoder):
    """A frozen text encoder of transformers, such as BERT, whose token vectors are averaged.

    Its weights are never in a ``state_dict``: checkpoints keep its name and fingerprint instead.
    It stays in evaluation mode, whatever the mode of the network around it.

    Args:
        model: encoder with a ``last_hidden_state``.
        tokenizer: of that model.
        name: folder or hub name it was loaded from.

    Source: Reimers and Gurevych, EMNLP 2019, arXiv 1908.10084, mean pooling.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str) -> None:
        super().__init__(
            model,
            tokenizer,
            name=name,
            embed_dim=int(model.config.hidden_size),
            max_tokens=_max_tokens(model, tokenizer),
        )

    @classmethod
    def from_pretrained(
        cls, name: str, *, local_files_only: bool = False
    ) -> "HuggingFaceTextEncoder":
        """Load an encoder and its tokenizer from a local folder or the Hugging Face hub.

        Args:
            name: folder written by ``save_pretrained`` (model and tokenizer), or a hub name such
                as ``sentence-transformers/all-MiniLM-L6-v2``. Code from the hub is never run.
            local_files_only: use a folder or the Hugging Face cache, and no network.

        Raises:
            FileNotFoundError: the name is a path, and there is no such folder.
            ValueError: the folder lacks weights or a tokenizer; the model has a decoder, or images.
            OSError: the hub has no such model, or it cannot be reached and no copy is cached.
        """
        config = read_model_config(name, local_files_only=local_files_only)
        if hasattr(config, "vision_config") or config.model_type.startswith(("clip", "siglip")):
            raise ValueError(
                f"{name}: model_type={config.model_type!r} is no text encoder, nor a CLIP or "
                "SigLIP with both towers; give one of these"
            )
        if config.is_encoder_decoder:
            raise ValueError(
                f"{name}: model_type={config.model_type!r} has a decoder; give an encoder, such as "
                "a BERT"
            )
        (model, report), tokenizer = read_pretrained(
            name,
            _KIND,
            lambda source: (
                AutoModel.from_pretrained(
                    source,
                    output_loading_info=True,
                    trust_remote_code=False,
                    local_files_only=local_files_only,
                ),
                AutoTokenizer.from_pretrained(
                    source, trust_remote_code=False, local_files_only=local_files_only
                ),
            ),
        )
        missing = [weight for weight in report["missing_keys"] if not is_pooler(weight)]
        check_complete(name, _KIND, missing, tokenizer, model.config)
        return cls(model, tokenizer, name=name)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Embed n texts as unit vectors (n, e) float32; tokens beyond max_tokens are cut off."""
        tokens = self._tokens(texts)
        with torch.autocast(self.frozen_model.device.type, enabled=False):
            hidden = self.frozen_model(**tokens, return_dict=True).last_hidden_state
            # a sum, since unit norm removes the factor to the mean
            return F.normalize((hidden * tokens["attention_mask"][..., None]).sum(dim=1), dim=-1)


def _max_tokens(model: Any, tokenizer: Any) -> int:
    """Return the longest text that model and tokenizer both take, in tokens.

    RoBERTa and similar models number positions from the padding index on, so that the first
    positions of their table are never used.
    """
    unused = max(
        (
            module.padding_idx + 1
            for name, module in model.named_modules()
            if name.endswith("position_embeddings")
            and isinstance(module, nn.Embedding)
            and module.padding_idx is not None
        ),
        default=0,
    )
    positions = getattr(model.config, "max_position_embeddings", None)
    limits = [tokenizer.model_max_length, *([positions - unused] if positions else [])]
    return int(min(limits))


register_model_type(OTHER, HuggingFaceTextEncoder.from_pretrained)
