"""The trained CLIPs that come with the package, read without transformers."""

from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from clipseg3d.clip.clip_towers import CLIPTowers
from clipseg3d.clip.frozen_clip import OPENAI_MEAN, OPENAI_STD, FrozenCLIP
from clipseg3d.text_files import read_json


class BundledCLIP(FrozenCLIP):
    """A frozen CLIP from a folder of this package, in the format of Hugging Face.

    It is the same as ``HuggingFaceCLIP.from_pretrained(folder)``: weights, hash and embeddings, to
    the bit. Folders of others are left to that class, which checks them.

    Args:
        folder: with config.json, model.safetensors and tokenizer.json.
    """

    tokenizer: Tokenizer

    def __init__(self, folder: Path) -> None:
        config = read_json(folder / "config.json")
        towers = CLIPTowers(config)
        towers.load_state_dict(load_file(folder / "model.safetensors"))
        side = config["vision_config"]["image_size"]
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_truncation()  # the file holds what the last call before saving asked for
        tokenizer.no_padding()
        super().__init__(
            towers,
            tokenizer,
            name=str(folder),
            embed_dim=config["projection_dim"],
            max_tokens=config["text_config"]["max_position_embeddings"],
            image_size=(side, side),
            mean=OPENAI_MEAN,
            std=OPENAI_STD,
        )

    def count_tokens(self, text: str) -> int:
        """Return the length of a text in tokens, start and end included."""
        return len(self.tokenizer.encode(text).ids)

    def _image_features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (n, e), and last hidden states (n, 1 + g g, c)."""
        features: tuple[Tensor, Tensor] = self.frozen_model.encode_image(pixels)
        return features

    def _patch_features(self, hidden: Tensor) -> Tensor:
        """Return features (n, g, g, e): patches are treated as the class token is."""
        tower = self.frozen_model.vision_model
        grid = rearrange(hidden[:, 1:], "n (h w) c -> n h w c", h=tower.grid)
        features: Tensor = self.frozen_model.visual_projection(tower.post_layernorm(grid))
        return features

    def _text_features(self, texts: Sequence[str]) -> Tensor:
        """Return features (n, e)."""
        end, most = self.frozen_model.text_model.end, self.max_tokens
        rows = [self.tokenizer.encode(text).ids for text in texts]
        rows = [row if len(row) <= most else [*row[: most - 1], end] for row in rows]
        longest = max(map(len, rows))
        tokens = torch.tensor([[*row, *[end] * (longest - len(row))] for row in rows])
        features: Tensor = self.frozen_model.encode_text(tokens.to(self.mean.device))
        return features
