"""Attention pooling: several embeddings become one."""

import torch
from torch import Tensor, nn

from clipseg3d.blocks.zero_init import zero_init


class GatedAttentionPooling(nn.Module):
    """Average tokens with learned weights; a new pooling is the plain mean.

    The result is ``sum a h`` with ``a = softmax(w (tanh(V h) * sigmoid(U h)))``.

    Args:
        dim: token channels e.
        hidden: channels of V h and U h.

    Source: Ilse et al., Attention-based deep multiple instance learning, ICML 2018, equation 9,
    https://arxiv.org/abs/1802.04712. Differs: w starts at zero.
    """

    def __init__(self, dim: int, *, hidden: int = 128) -> None:
        super().__init__()
        self.content = nn.Linear(dim, hidden)
        self.gate = nn.Linear(dim, hidden)
        self.score = nn.Linear(hidden, 1, bias=False)
        zero_init(self.score)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (..., e) for tokens (..., k, e)."""
        hidden = torch.tanh(self.content(tokens)) * torch.sigmoid(self.gate(tokens))
        weights = torch.softmax(self.score(hidden), dim=-2)
        return (weights * tokens).sum(dim=-2)
