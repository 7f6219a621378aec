"""Running normalisation of embeddings: bring out how they differ, not what all of them share."""

import torch
import torch.distributed as dist
from einops import einsum, rearrange, reduce
from torch import Tensor, nn


class RunningCentering(nn.Module):
    """Subtract the running mean of embeddings and stretch what is left to length sqrt(e).

    Embeddings of similar texts or images lie close together: those of 96 reports about simulated
    tumours have a mean cosine of 0.87 (MiniLM). A network that is to act on the difference between
    "left" and "right" sees almost none of it. Training updates the mean, by a plain average at first
    and by ``momentum`` later, over the batches of all ranks; evaluation keeps it. A new block
    subtracts nothing.

    Args:
        dim: embedding channels e.
        momentum: share of the newest batch in the mean, once 1 / momentum batches are counted.

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
            mask: (b, n) bool, False for tokens that do not count; their result has no meaning.

        Returns:
            (b, n, e), each of length sqrt(e), or 0 where a token equals the mean.
        """
        if self.training:
            self._update(tokens.detach(), mask)
        return _stretch(tokens - self.mean)

    @torch.no_grad()
    def _update(self, tokens: Tensor, mask: Tensor) -> None:
        """Move the mean towards that of the batch, if any token counts."""
        counted = tokens * rearrange(mask, "b n -> b n 1")
        count = mask.sum()[None].to(tokens.dtype)
        total = _sum_over_ranks(torch.cat([reduce(counted, "b n e -> e", "sum"), count]))
        count = total[-1]
        any_counted = (count > 0).to(tokens.dtype)
        self.batches += any_counted
        share = any_counted / self.batches.clamp(min=1, max=1 / self.momentum)
        self.mean += share * (total[:-1] / count.clamp(min=1) - self.mean)


class RunningWhitening(nn.Module):
    """Give every direction in which embeddings vary the same variance; stretch to length sqrt(e).

    What a network is to act on may be a small part of the variance of embeddings: of 96 reports
    about simulated tumours, 1 % of it tells left from right (MiniLM). Directions that did not vary
    in training are dropped, since nothing could be learned from them: a direction of variance s is
    scaled by ``s / (s + r)^1.5``, with r a share of the mean variance.

    Training gathers mean and covariance over the batches of all ranks, each token counting once,
    and computes a new matrix whenever their number has doubled; evaluation keeps it. A new block,
    and one that has met no variance, only subtracts the mean.

    Args:
        dim: embedding channels e.
        floor: r as a share of the mean variance, above 0.

    Source: Su et al., Whitening sentence representations, 2021,
    https://arxiv.org/abs/2103.15316. Differs: gathered while training, and a floor.
    """

    def __init__(self, dim: int, *, floor: float = 0.1) -> None:
        super().__init__()
        self.floor = floor
        self.mean: Tensor
        self.covariance: Tensor
        self.matrix: Tensor
        self.count: Tensor
        self.used: Tensor
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("covariance", torch.zeros(dim, dim))
        self.register_buffer("matrix", torch.eye(dim))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("used", torch.zeros(()))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return whitened tokens.

        Args:
            tokens: (b, n, e).
            mask: (b, n) bool, False for tokens that do not count; their result has no meaning.

        Returns:
            (b, n, e), each of length sqrt(e), or 0 where a token equals the mean.
        """
        if self.training:
            self._update(tokens.detach(), mask)
        with torch.autocast(tokens.device.type, enabled=False):  # bf16 loses small differences
            white = (tokens.float() - self.mean.float()) @ self.matrix.float()
            return _stretch(white).to(tokens.dtype)

    @torch.no_grad()
    def _update(self, tokens: Tensor, mask: Tensor) -> None:
        """Add the tokens that count, and compute a new matrix if their number has doubled."""
        with torch.autocast(tokens.device.type, enabled=False):
            # The rounding of sums depends on the number of ranks; in the matrix it would grow a
            # thousand times. Apple's GPUs have no float64.
            exact = torch.float32 if tokens.device.type == "mps" else torch.float64
            flat = rearrange(tokens.to(exact) - self.mean, "b n e -> (b n) e")
            flat = flat * rearrange(mask, "b n -> (b n) 1")
            number = mask.sum().to(exact)
            parts = [number[None], flat.sum(dim=0), einsum(flat, flat, "n i, n j -> i j").flatten()]
            total = _sum_over_ranks(torch.cat(parts))
            dim = len(self.mean)
            number, shift, square = total[0], total[1 : dim + 1], total[dim + 1 :].view(dim, dim)
            count = self.count + number
            safe = count.clamp(min=1)
            # Deviations from the old mean, turned into those from the new one.
            moved = self.count / safe * self.covariance + square / safe
            self.covariance.copy_(moved - torch.outer(shift, shift) / safe**2)
            self.mean += shift / safe
            self.count.copy_(count)
            if count >= 2 * self.used:
                self.used.copy_(count)
                self.matrix.copy_(self._whitening())

    def _whitening(self) -> Tensor:
        """Return the matrix (e, e) that whitens."""
        variances, axes = torch.linalg.eigh(self.covariance.float())
        # Rounding leaves some 1e-7 of the mean's square, of either sign.
        variances = variances.clamp(min=0)
        if variances.mean() <= 1e-6 * self.mean.square().mean():
            return torch.eye(len(variances), device=variances.device)
        scale = variances * (variances + self.floor * variances.mean()) ** -1.5
        matrix: Tensor = einsum(axes, scale, axes, "i k, k, j k -> i j")
        return matrix


def _stretch(vectors: Tensor) -> Tensor:
    """Return vectors (b, n, e) of length sqrt(e); 0 stays 0."""
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    stretched: Tensor = vectors * (vectors.shape[-1] ** 0.5 / (length + 1e-4))
    return stretched


def _sum_over_ranks(total: Tensor) -> Tensor:
    """Return the sum of a tensor over all ranks; it may be changed in place."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
    return total
