"""Running normalisation of embeddings: remove what all of them share, keep how they differ."""

import torch
import torch.distributed as dist
from einops import einsum, rearrange, reduce
from torch import Tensor, nn


class RunningCentering(nn.Module):
    """Subtract the running mean of embeddings and scale the result to length sqrt(e).

    Embeddings of similar texts or images lie close together: those of 96 reports about simulated
    tumours have a mean cosine of 0.87 (MiniLM). The difference between "left" and "right" is a very
    small part of such an embedding. In training, the mean is updated from the batches of all ranks:
    first as a plain average, later with ``momentum``. Evaluation does not change it. A new block
    subtracts nothing.

    Args:
        dim: embedding channels e.
        momentum: weight of the newest batch in the mean, after the first 1 / momentum batches.

    Source: Mu and Viswanath, All-but-the-top, ICLR 2018, https://arxiv.org/abs/1702.01417; the
    first step of their method.
    """

    def __init__(self, dim: int, *, momentum: float = 0.01) -> None:
        super().__init__()
        self.momentum = momentum
        self.mean: Tensor
        self.batches: Tensor
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Return centred tokens.

        Args:
            tokens: (b, n, e).
            token_mask: (b, n) bool, False for tokens to ignore; their result has no meaning.

        Returns:
            (b, n, e), each of length sqrt(e), or 0 where a token equals the mean.
        """
        if self.training:
            self._update(tokens.detach(), token_mask)
        return _rescale(tokens - self.mean)

    @torch.no_grad()
    def _update(self, tokens: Tensor, token_mask: Tensor) -> None:
        """Move the mean towards that of the batch, unless the mask is False everywhere."""
        kept = tokens * rearrange(token_mask, "b n -> b n 1")
        count = token_mask.sum()[None].to(tokens.dtype)
        total = _sum_over_ranks(torch.cat([reduce(kept, "b n e -> e", "sum"), count]))
        count = total[-1]
        has_tokens = (count > 0).to(tokens.dtype)
        self.batches += has_tokens
        weight = has_tokens / self.batches.clamp(min=1, max=1 / self.momentum)
        self.mean += weight * (total[:-1] / count.clamp(min=1) - self.mean)


class RunningWhitening(nn.Module):
    """Give all directions in which embeddings vary the same variance; scale to length sqrt(e).

    Important differences may be a small part of the variance of embeddings: in 96 reports about
    simulated tumours, 1 % of it separates left from right (MiniLM). Directions that did not vary in
    training are removed, since nothing could be learned from them: a direction of variance s is
    multiplied by ``s / (s + r)^1.5``, where r is ``floor`` times the mean variance.

    Training collects mean and covariance over the batches of all ranks; every token has the same
    weight. It computes a new matrix whenever the number of tokens has doubled. Evaluation changes
    nothing. A block only subtracts the mean while it is new or has only met equal tokens.

    Args:
        dim: embedding channels e.
        floor: r as a share of the mean variance, above 0.

    Source: Su et al., Whitening sentence representations, 2021,
    https://arxiv.org/abs/2103.15316. Differs: statistics are collected in training; the floor r.
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

    def forward(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Return whitened tokens.

        Args:
            tokens: (b, n, e).
            token_mask: (b, n) bool, False for tokens to ignore; their result has no meaning.

        Returns:
            (b, n, e), each of length sqrt(e), or 0 where a token equals the mean.
        """
        if self.training:
            self._update(tokens.detach(), token_mask)
        with torch.autocast(tokens.device.type, enabled=False):  # bf16 loses small differences
            whitened = (tokens.float() - self.mean.float()) @ self.matrix.float()
            return _rescale(whitened).to(tokens.dtype)

    @torch.no_grad()
    def _update(self, tokens: Tensor, token_mask: Tensor) -> None:
        """Add tokens to the statistics; compute a new matrix if their number has doubled."""
        with torch.autocast(tokens.device.type, enabled=False):
            # float64: the rounding of sums depends on the number of ranks, and the matrix would
            # magnify it a thousand times. Apple's GPUs have no float64.
            exact = torch.float32 if tokens.device.type == "mps" else torch.float64
            flat = rearrange(tokens.to(exact) - self.mean, "b n e -> (b n) e")
            flat = flat * rearrange(token_mask, "b n -> (b n) 1")
            added = token_mask.sum().to(exact)
            parts = [added[None], flat.sum(dim=0), einsum(flat, flat, "n i, n j -> i j").flatten()]
            total = _sum_over_ranks(torch.cat(parts))
            dim = len(self.mean)
            added, shift, square = total[0], total[1 : dim + 1], total[dim + 1 :].view(dim, dim)
            count = self.count + added
            divisor = count.clamp(min=1)
            # Squared deviations from the old mean become those from the new mean.
            around_old = self.count / divisor * self.covariance + square / divisor
            self.covariance.copy_(around_old - torch.outer(shift, shift) / divisor**2)
            self.mean += shift / divisor
            self.count.copy_(count)
            is_due = count >= 2 * self.used
            self.used.copy_(torch.where(is_due, count, self.used))
            state = (self.covariance.float(), self.mean.float(), self.matrix.float())
            if torch.compiler.is_compiling():  # a branch of Python would break the graph
                self.matrix.copy_(torch.cond(is_due, self._new_matrix, _same_matrix, state))
            elif is_due:
                self.matrix.copy_(self._new_matrix(*state))

    def _new_matrix(self, covariance: Tensor, mean: Tensor, matrix: Tensor) -> Tensor:
        """Return the matrix (e, e) for a covariance, in place of the former matrix."""
        # Rounding leaves about 1e-7 of the squared mean, of either sign; eigh may give NaN for it.
        is_constant = covariance.diagonal().mean() <= 1e-6 * mean.square().mean()
        identity = torch.eye(len(covariance), device=covariance.device)
        variances, axes = torch.linalg.eigh(torch.where(is_constant, identity, covariance))
        variances = variances.clamp(min=0)
        scale = variances * (variances + self.floor * variances.mean()) ** -1.5
        whitening = einsum(axes, scale, axes, "i k, k, j k -> i j")
        return torch.where(is_constant, identity, whitening)


def _same_matrix(covariance: Tensor, mean: Tensor, matrix: Tensor) -> Tensor:
    """Return the former matrix; branches of torch.cond return no tensor that they were given."""
    return matrix.clone()


def _rescale(vectors: Tensor) -> Tensor:
    """Return vectors (b, n, e) scaled to length sqrt(e); 0 stays 0."""
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    rescaled: Tensor = vectors * (vectors.shape[-1] ** 0.5 / (length + 1e-4))
    return rescaled


def _sum_over_ranks(total: Tensor) -> Tensor:
    """Return the sum of a tensor over all ranks; may change the tensor in place."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
    return total
