"""The adapter that tunes frozen CLIP embeddings to the task."""

from torch import Tensor, nn

from clipseg3d.blocks.zero_init import zero_init


class ResidualAdapter(nn.Module):
    """Add the output of a small network to each embedding; a new adapter adds nothing.

    ``tokens + W_2 dropout(GELU(W_1 LayerNorm(tokens)))`` with W_2 zero-initialised.

    Args:
        dim: embedding channels e.
        hidden: channels between the two layers.
        dropout: dropout rate of the hidden layer, in training only.

    Source: Gao et al., CLIP-Adapter, IJCV 2024, equations 4-6, https://arxiv.org/abs/2110.04544;
    dropout 0.1 from arXiv 2507.09966. Differs: zero-initialised instead of added with a fixed
    ratio; LayerNorm, since unit-norm embeddings have small entries; GELU.
    """

    def __init__(self, dim: int, *, hidden: int = 64, dropout: float = 0.1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, dim),
        )
        zero_init(self.layers[-1])

    def forward(self, tokens: Tensor) -> Tensor:
        """Return adapted embeddings (..., e), not unit-norm, for embeddings of that shape."""
        adapted: Tensor = tokens + self.layers(tokens)
        return adapted
