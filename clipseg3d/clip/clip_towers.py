"""The two towers of a CLIP, without transformers, which takes longer to load than both to run."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class CLIPTowers(nn.Module):
    """Image and text tower of a CLIP, with the names and the arithmetic of Hugging Face's.

    So weights of a ``CLIPModel`` fit, with the same hash, and embeddings are the same to the bit.

    Axes: n images or texts, t tokens or patches, c channels of a tower, e of an embedding.

    Args:
        config: content of config.json: ``text_config``, ``vision_config``, ``projection_dim``. The
            activation is ``quick_gelu``.

    Source: Radford et al., CLIP, ICML 2021, https://arxiv.org/abs/2103.00020.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        text, vision, embed_dim = (
            config[name] for name in ("text_config", "vision_config", "projection_dim")
        )
        self.text_model = _TextTower(text)
        self.vision_model = _ImageTower(vision)
        self.visual_projection = nn.Linear(vision["hidden_size"], embed_dim, bias=False)
        self.text_projection = nn.Linear(text["hidden_size"], embed_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (n, e) of normalised pixels (n, 3, h, w), and hidden states (n, t, c)."""
        pooled, hidden = self.vision_model(pixels)
        return self.visual_projection(pooled), hidden

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Return features (n, e) of tokens (n, t); what follows the first end token is not read."""
        features: Tensor = self.text_projection(self.text_model(tokens))
        return features


class _ImageTower(nn.Module):
    """A vision transformer; the class token comes first."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, patch = config["hidden_size"], config["patch_size"]
        self.grid = config["image_size"] // patch
        self.embeddings = _Patches(width, patch=patch, number=self.grid**2)
        self.pre_layrnorm = nn.LayerNorm(width, eps=config["layer_norm_eps"])  # their spelling
        self.encoder = _Layers(config)
        self.post_layernorm = nn.LayerNorm(width, eps=config["layer_norm_eps"])

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the class token (n, c) and all hidden states (n, t, c)."""
        hidden = self.pre_layrnorm(self.embeddings(pixels))
        hidden = self.encoder(hidden, is_causal=False)
        return self.post_layernorm(hidden[:, 0]), hidden


class _Patches(nn.Module):
    """The input of the image tower: the class token, then the patches, with their positions."""

    def __init__(self, width: int, *, patch: int, number: int) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding(number + 1, width)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the vectors (n, t, c) of images (n, 3, h, w)."""
        patches = rearrange(self.patch_embedding(pixels), "n c h w -> n (h w) c")
        whole = self.class_embedding.expand(len(patches), 1, -1)
        return torch.cat([whole, patches], dim=1) + self.position_embedding.weight


class _TextTower(nn.Module):
    """A causal transformer; the first end token stands for the text."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width = config["hidden_size"]
        self.end = config["eos_token_id"]
        self.embeddings = _Words(
            width, vocabulary=config["vocab_size"], longest=config["max_position_embeddings"]
        )
        self.encoder = _Layers(config)
        self.final_layer_norm = nn.LayerNorm(width, eps=config["layer_norm_eps"])

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the vector (n, c) of each text."""
        hidden = self.encoder(self.embeddings(tokens), is_causal=True)
        first_end = (tokens == self.end).int().argmax(dim=1)
        texts = torch.arange(len(tokens), device=tokens.device)
        vectors: Tensor = self.final_layer_norm(hidden)[texts, first_end]
        return vectors


class _Words(nn.Module):
    """The input of the text tower: tokens with their positions."""

    def __init__(self, width: int, *, vocabulary: int, longest: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.position_embedding = nn.Embedding(longest, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the vectors (n, t, c) of tokens (n, t)."""
        positions = self.position_embedding.weight[: tokens.shape[1]]
        vectors: Tensor = self.token_embedding(tokens) + positions
        return vectors


class _Layers(nn.Module):
    """The layers of a tower."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config["num_hidden_layers"]))

    def forward(self, hidden: Tensor, *, is_causal: bool) -> Tensor:
        """Return hidden states (n, t, c) after all layers."""
        for layer in self.layers:
            hidden = layer(hidden, is_causal=is_causal)
        return hidden


class _Layer(nn.Module):
    """Self-attention, then a perceptron, each after a norm and beside a skip connection."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, eps = config["hidden_size"], config["layer_norm_eps"]
        self.self_attn = _SelfAttention(width, num_heads=config["num_attention_heads"])
        self.layer_norm1 = nn.LayerNorm(width, eps=eps)
        self.mlp = _Perceptron(width, hidden=config["intermediate_size"])
        self.layer_norm2 = nn.LayerNorm(width, eps=eps)

    def forward(self, hidden: Tensor, *, is_causal: bool) -> Tensor:
        """Return hidden states (n, t, c)."""
        hidden = hidden + self.self_attn(self.layer_norm1(hidden), is_causal=is_causal)
        after: Tensor = hidden + self.mlp(self.layer_norm2(hidden))
        return after


class _SelfAttention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.k_proj, self.v_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.q_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, hidden: Tensor, *, is_causal: bool) -> Tensor:
        """Return what each token reads from the others, or from those before it, (n, t, c)."""
        q, k, v = (
            rearrange(layer(hidden), "n t (m k) -> n m t k", m=self.num_heads)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        read = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
        out: Tensor = self.out_proj(rearrange(read, "n m t k -> n t (m k)"))
        return out


class _Perceptron(nn.Module):
    """Two linear layers with a quick GELU between."""

    def __init__(self, width: int, *, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return channels (n, t, c)."""
        inner = self.fc1(hidden)
        out: Tensor = self.fc2(inner * torch.sigmoid(1.702 * inner))
        return out
