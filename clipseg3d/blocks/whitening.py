"""Bringing out the directions in which embeddings differ, however little they differ in them."""

import torch
import torch.distributed as dist
from einops import einsum, rearrange
from torch import Tensor, nn


class RunningWhitening(nn.Module):
    """Give every direction in which embeddings vary the same variance; stretch to length sqrt(e).

    What a network is to act on may be a small part of what embeddings vary in: of the variance of
    96 reports about simulated tumours, 1 % tells left from right (MiniLM). Directions that
    training has not seen varying are dropped, since nothing could be learned of them: one with
    variance s is scaled by ``s / (s + r)^1.5``, with r a share of the mean variance.

    Training gathers mean and covariance over the batches of all ranks, each token counting once,
    and takes a new matrix whenever their number has doubled; evaluation keeps it. A new
    whitening, and one that has seen nothing vary, only subtracts the mean.

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
            mask: (b, n) bool, False for tokens that do not count; what becomes of them means
                nothing.

        Returns:
            (b, n, e), each of length sqrt(e), or 0 where a token is the mean itself.
        """
        if self.training:
            self._update(tokens.detach(), mask)
        with torch.autocast(tokens.device.type, enabled=False):  # bf16 rounds off the small ones
            white = (tokens.float() - self.mean.float()) @ self.matrix.float()
            length = torch.linalg.vector_norm(white, dim=-1, keepdim=True)
            stretched: Tensor = white * (tokens.shape[-1] ** 0.5 / (length + 1e-4))
        return stretched.to(tokens.dtype)

    @torch.no_grad()
    def _update(self, tokens: Tensor, mask: Tensor) -> None:
        """Add the tokens that count, and take a new matrix if their number has doubled."""
        with torch.autocast(tokens.device.type, enabled=False):
            # Rounding of sums, which depends on the number of ranks, would grow a thousandfold in
            # the matrix. Apple's GPUs have no float64.
            exact = torch.float32 if tokens.device.type == "mps" else torch.float64
            flat = rearrange(tokens.to(exact) - self.mean, "b n e -> (b n) e")
            flat = flat * rearrange(mask, "b n -> (b n) 1")
            number = mask.sum().to(exact)
            parts = [number[None], flat.sum(dim=0), einsum(flat, flat, "n i, n j -> i j").flatten()]
            total = torch.cat(parts)
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(total)
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
