"""Where the numbers of a network stopped being numbers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class NonFinite(NamedTuple):
    """The first output that is NaN or infinite."""

    layer: str
    """Name of the module; empty for the network as a whole."""
    samples: tuple[int, ...]
    """Places in the batch of the samples that are; empty where it cannot be told."""


def first_non_finite(
    network: nn.Module, forward: Callable[[], object], count: int
) -> NonFinite | None:
    """Run a network once more, and return which module's output went first.

    Hooks are registered for this one run only.

    Args:
        network: whose modules are looked at.
        forward: runs it.
        count: samples in the batch.

    Returns:
        None if every output is finite.
    """
    found: list[NonFinite] = []

    def hook_of(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and (faulty := [t for t in _floats(output) if not t.isfinite().all()]):
                found.append(NonFinite(name, _samples(faulty[0], count)))

        return look

    hooks = [
        module.register_forward_hook(hook_of(name)) for name, module in network.named_modules()
    ]
    try:
        with torch.no_grad():
            forward()
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def _samples(output: Tensor, count: int) -> tuple[int, ...]:
    """Return which samples of an output are not finite, if its first axis is the batch."""
    if not output.ndim or output.shape[0] != count:
        return ()
    faulty = ~output.flatten(1).isfinite().all(dim=1) if output.ndim > 1 else ~output.isfinite()
    return tuple(faulty.nonzero().flatten().tolist())


def _floats(output: Any) -> list[Tensor]:
    """Return the floating-point tensors in what a module returned."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, Sequence) and not isinstance(output, str):
        return [tensor for part in output for tensor in _floats(part)]
    return []
