"""Bringing out how embeddings differ, rather than what all of them share."""

import torch
import torch.distributed as dist
from einops import rearrange, reduce
from torch import Tensor, nn


class RunningCentre(nn.Module):
    """Subtract the running mean of embeddings and stretch what is left to length sqrt(e).

    Embeddings of like things lie in a narrow cone: those of 96 reports about simulated tumours
    have a mean cosine of 0.87 (MiniLM). A network that is to act on the difference between "left"
    and "right" sees next to none of it. Training updates the mean, by a plain average at first and
    by ``momentum`` later, over the batches of all ranks; evaluation keeps it. A new centre
    subtracts nothing.

    Args:
        dim: embedding channels e.
        momentum: share of the newest batch in the mean, once 1 / momentum batches are seen.

    Source: Mu and Viswanath, All-but-the-top, ICLR 2018, https://arxiv.org/abs/1702.01417, of
    which this is the first step.
    """

    def __init__(self, dim: int, *, momentum: float = 0.01) -> None:
        super().__init__()
        self.momentum = momentum
        self.mean: Tensor
        self.batches: Tensor
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return centred tokens.

        Args:
            tokens: (b, n, e).
            mask: (b, n) bool, False for tokens that do not count; what becomes of them means
                nothing.

        Returns:
            (b, n, e), each of length sqrt(e), or 0 where a token is the mean itself.
        """
        if self.training:
            self._update(tokens.detach(), mask)
        centred = tokens - self.mean
        length = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
        stretched: Tensor = centred * (tokens.shape[-1] ** 0.5 / (length + 1e-4))
        return stretched

    @torch.no_grad()
    def _update(self, tokens: Tensor, mask: Tensor) -> None:
        """Move the mean towards that of the batch, if any token counts."""
        counted = tokens * rearrange(mask, "b n -> b n 1")
        total = torch.cat([reduce(counted, "b n e -> e", "sum"), mask.sum()[None].to(tokens.dtype)])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(total)
        count = total[-1]
        seen = (count > 0).to(tokens.dtype)
        self.batches += seen
        share = seen / self.batches.clamp(min=1, max=1 / self.momentum)
        self.mean += share * (total[:-1] / count.clamp(min=1) - self.mean)
