"""CLIP of Hugging Face, from files or with random weights."""

import json
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from clipseg3d.clip.frozen_clip import OPENAI_MEAN, OPENAI_STD, FrozenCLIP, pooled
from clipseg3d.clip.frozen_encoder import check_complete, read_pretrained
from clipseg3d.clip.hugging_face import register_model_type
from clipseg3d.clip.tiny import TINY_RANDOM


class HuggingFaceCLIP(FrozenCLIP):
    """A frozen CLIPModel of transformers.

    Its weights are never in a ``state_dict``: checkpoints keep its name and fingerprint instead.
    It stays in evaluation mode, whatever the mode of the network around it.

    Args:
        model: with both towers.
        tokenizer: of the same CLIP.
        name: folder or hub name it was loaded from.
    """

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer, *, name: str) -> None:
        side = int(model.config.vision_config.image_size)
        super().__init__(
            model,
            tokenizer,
            name=name,
            embed_dim=int(model.config.projection_dim),
            max_tokens=int(model.config.text_config.max_position_embeddings),
            image_size=(side, side),
            mean=OPENAI_MEAN,
            std=OPENAI_STD,
        )

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

    def _image_features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (n, e), and last hidden states (n, 1 + g g, c)."""
        output = self.frozen_model.vision_model(pixel_values=pixels, return_dict=True)
        return self.frozen_model.visual_projection(output.pooler_output), output.last_hidden_state

    def _patch_features(self, hidden: Tensor) -> Tensor:
        """Return features (n, g, g, e): patches are treated as the class token is."""
        tower = self.frozen_model.config.vision_config
        grid = rearrange(
            hidden[:, 1:], "n (h w) c -> n h w c", h=tower.image_size // tower.patch_size
        )
        features: Tensor = self.frozen_model.visual_projection(
            self.frozen_model.vision_model.post_layernorm(grid)
        )
        return features

    def _text_features(self, texts: Sequence[str]) -> Tensor:
        """Return features (n, e)."""
        tokens = self._tokens(texts)
        return pooled(
            self.frozen_model.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            )
        )


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


register_model_type("clip", HuggingFaceCLIP.from_pretrained)
