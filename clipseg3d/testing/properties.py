"""What the property tests share."""

from typing import Any

import torch
from torch import Tensor, nn


def require(holds: bool, message: str) -> None:
    """Raise an AssertionError unless a property holds."""
    if not holds:
        raise AssertionError(message)


def randomise(module: nn.Module, *, size: float = 0.3, seed: int = 0) -> None:
    """Add noise to every trainable weight, so that what starts at zero takes part."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.requires_grad:
                noise = torch.randn(weight.shape, generator=generator)
                weight.add_(noise.to(weight), alpha=size)


def tensors_of(output: Any) -> list[Tensor]:
    """Return the tensors that a block returns, alone or in tuples."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, tuple | list):
        return [tensor for part in output for tensor in tensors_of(part)]
    return []


def are_equal(some: list[Tensor], others: list[Tensor]) -> bool:
    """Say whether tensors are equal to the last bit."""
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def are_close(some: list[Tensor], others: list[Tensor], tolerance: float) -> bool:
    """Say whether tensors have the same shapes and types, and nearly the same values."""
    return all(
        one.shape == other.shape
        and one.dtype == other.dtype
        and torch.allclose(one, other, rtol=tolerance, atol=tolerance)
        for one, other in zip(some, others, strict=True)
    )
