"""Which layer of a network is the first to return NaN or infinity."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class NonFinite(NamedTuple):
    """The first output that is NaN or infinite."""

    layer: str
    """Name of the module; empty for the whole network."""
    samples: tuple[int, ...]
    """Indices in the batch of the samples concerned; empty if they are not known."""


def first_non_finite(
    network: nn.Module, forward: Callable[[], object], count: int
) -> NonFinite | None:
    """Run a network once more, and return the first module whose output is not finite.

    Hooks are registered for this run only.

    Args:
        network: its modules are checked.
        forward: runs it.
        count: samples in the batch.

    Returns:
        None if every output is finite.
    """
    detected: list[NonFinite] = []

    def make_hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def check(module: nn.Module, inputs: Any, output: Any) -> None:
            if detected:
                return
            if faulty := [tensor for tensor in _floats(output) if not tensor.isfinite().all()]:
                detected.append(NonFinite(name, _samples(faulty[0], count)))

        return check

    hooks = [
        module.register_forward_hook(make_hook(name)) for name, module in network.named_modules()
    ]
    try:
        with torch.no_grad():
            forward()
    finally:
        for hook in hooks:
            hook.remove()
    return detected[0] if detected else None


def _samples(output: Tensor, count: int) -> tuple[int, ...]:
    """Return which samples of an output are not finite, if its first axis is the batch."""
    if not output.ndim or output.shape[0] != count:
        return ()
    faulty = ~output.flatten(1).isfinite().all(dim=1) if output.ndim > 1 else ~output.isfinite()
    return tuple(faulty.nonzero().flatten().tolist())


def _floats(output: Any) -> list[Tensor]:
    """Return the floating-point tensors in the output of a module."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, Sequence) and not isinstance(output, str):
        return [tensor for part in output for tensor in _floats(part)]
    return []
