"""Properties of how a part is run: number types, memory layouts, and graphs."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from clipseg3d.testing.properties import are_close, are_equal, require, tensors_of


def check_execution(
    block: nn.Module,
    inputs: Sequence[Any],
    *,
    tolerance: float,
    rounding: float,
    keeps_type: bool,
    is_graph: bool,
) -> None:
    """Check that a block gives the same however it is run.

    See :func:`clipseg3d.testing.check_block`, which this is a part of, for the properties.

    Args:
        block: in evaluation mode; not changed.
        inputs: of the block.
        tolerance: absolute and relative, for floating-point sums in another order.
        rounding: as for ``check_block``.
        keeps_type: as for ``check_block``.
        is_graph: as for ``check_block``.

    Raises:
        AssertionError: a property does not hold; the message says which.
    """
    with torch.no_grad():
        expected = tensors_of(block(*inputs))
    gradients = _gradients(block, block(*inputs))
    for dtype in (torch.float16, torch.bfloat16):
        _check_half(block, inputs, expected, dtype, rounding, keeps_type)
    _check_autocast(block, inputs, expected, rounding)
    _check_channels_last(block, inputs, expected, gradients, tolerance)
    if is_graph:
        _check_export(block, inputs, expected, tolerance)
        _check_compile(block, inputs, expected, gradients, tolerance)


def _check_half(
    block: nn.Module,
    inputs: Sequence[Any],
    expected: list[Tensor],
    dtype: torch.dtype,
    rounding: float,
    keeps_type: bool,
) -> None:
    """Require results near those in float32, of the type of weights and inputs."""
    name = "half" if dtype == torch.float16 else "bfloat16"
    with _must_run(f".{name}()"), torch.no_grad():
        half = copy.deepcopy(block).to(dtype)
        outputs = tensors_of(half(*(_cast(each, dtype) for each in inputs)))
    wanted = dtype if keeps_type else torch.float32
    for out, reference in zip(outputs, expected, strict=True):
        if reference.is_floating_point():
            given = f"is {_name(out.dtype)}, not {_name(wanted)}"
            require(out.dtype == wanted, f".{name}(): a result {given}")
    _check_rounding(f".{name}()", outputs, expected, dtype, rounding)


def _check_autocast(
    block: nn.Module, inputs: Sequence[Any], expected: list[Tensor], rounding: float
) -> None:
    """Require results near those in float32, and finite gradients."""
    block = copy.deepcopy(block)
    device = next(each.device.type for each in inputs if isinstance(each, Tensor))
    with _must_run("autocast"):
        with torch.autocast(device, torch.bfloat16):
            outputs = block(*inputs)
        gradients = _gradients(block, outputs)
    with torch.no_grad():
        _check_rounding("autocast", tensors_of(outputs), expected, torch.bfloat16, rounding)
    for name, gradient in gradients.items():
        require(bool(gradient.isfinite().all()), f"autocast: the gradient of {name} is not finite")


def _check_rounding(
    name: str, outputs: list[Tensor], expected: list[Tensor], dtype: torch.dtype, rounding: float
) -> None:
    """Require finite results, as near to others as the rounding of a type allows."""
    for out, reference in zip(outputs, expected, strict=True):
        require(bool(out.isfinite().all()), f"{name}: a result is not finite")
        error = float((out.double() - reference.double()).abs().max())
        largest = float(reference.double().abs().max())
        share = rounding * torch.finfo(dtype).eps
        require(
            error <= share * largest,
            f"{name}: a result differs from that in float32 by {error:.3g}, more than {share:.2g} "
            f"of the largest value {largest:.3g}",
        )


def _check_channels_last(
    block: nn.Module,
    inputs: Sequence[Any],
    expected: list[Tensor],
    gradients: dict[str, Tensor],
    tolerance: float,
) -> None:
    """Require the same results and gradients for volumes and weights in the other layout."""
    layout = torch.channels_last_3d
    with _must_run("channels_last_3d"):
        block = copy.deepcopy(block)
        for weight in block.parameters():
            if weight.ndim == 5:  # block.to(memory_format=layout) refuses 2D convolutions
                weight.data = weight.data.contiguous(memory_format=layout)
        outputs = block(
            *(
                each.contiguous(memory_format=layout)
                if isinstance(each, Tensor) and each.ndim == 5
                else each
                for each in inputs
            )
        )
        found = _gradients(block, outputs)
    _check_same("channels_last_3d", tensors_of(outputs), expected, found, gradients, tolerance)


def _check_export(
    block: nn.Module, inputs: Sequence[Any], expected: list[Tensor], tolerance: float
) -> None:
    """Require that an exported block gives the same results."""
    with _must_run("torch.export"), torch.no_grad():
        program = torch.export.export(copy.deepcopy(block), tuple(inputs))
        outputs = tensors_of(program.module()(*inputs))
    require(are_close(outputs, expected, tolerance), "torch.export: the results differ")


def _check_compile(
    block: nn.Module,
    inputs: Sequence[Any],
    expected: list[Tensor],
    gradients: dict[str, Tensor],
    tolerance: float,
) -> None:
    """Require one graph for a step of training and for evaluation, with the same results.

    The backends run the graph with PyTorch's own operations and need no C++ compiler.
    """
    with _must_run("torch.compile"):
        evaluated = copy.deepcopy(block)
        torch.compiler.reset()  # blocks of one class share a limit of compilations
        outputs = torch.compile(evaluated, backend="aot_eager", fullgraph=True)(*inputs)
        found = _gradients(evaluated, outputs)
    _check_same("torch.compile", tensors_of(outputs), expected, found, gradients, tolerance)
    if _training_differs(block, inputs, expected):
        with _must_run("torch.compile in training"):
            trained = copy.deepcopy(block).train()
            torch.compile(trained, backend="eager", fullgraph=True)(*inputs)
    torch.compiler.reset()


def _training_differs(block: nn.Module, inputs: Sequence[Any], expected: list[Tensor]) -> bool:
    """Say whether a block in training has other results, or changes its state."""
    trained = copy.deepcopy(block).train()
    with torch.no_grad():
        outputs = tensors_of(trained(*inputs))
    before, after = (list(each.state_dict().values()) for each in (block, trained))
    return not (are_equal(outputs, expected) and are_equal(after, before))


def _check_same(
    name: str,
    outputs: list[Tensor],
    expected: list[Tensor],
    gradients: dict[str, Tensor],
    expected_gradients: dict[str, Tensor],
    tolerance: float,
) -> None:
    """Require equal results and gradients, with a tolerance relative to the largest gradient."""
    require(are_close(outputs, expected, tolerance), f"{name}: the results differ")
    for weight, gradient in expected_gradients.items():
        error = (gradients[weight] - gradient).abs().max()
        limit = tolerance * (1 + gradient.abs().max())
        require(bool(error <= limit), f"{name}: the gradient of {weight} differs")


def _gradients(block: nn.Module, outputs: Any) -> dict[str, Tensor]:
    """Return the gradient of the sum of squared results by every weight that they depend on."""
    weights = {name: each for name, each in block.named_parameters() if each.requires_grad}
    terms = [out.float().square().sum() for out in tensors_of(outputs) if out.requires_grad]
    if not weights or not terms:
        return {}
    found = torch.autograd.grad(torch.stack(terms).sum(), list(weights.values()), allow_unused=True)
    pairs = zip(weights, found, strict=True)
    return {name: gradient for name, gradient in pairs if gradient is not None}


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Return floating-point tensors in another type, and anything else as it is."""
    is_real = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if is_real else value


@contextmanager
def _must_run(name: str) -> Iterator[None]:
    """Turn any error of a block into an AssertionError that names the property."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise AssertionError(f"{name} fails: {type(error).__name__}: {reason}") from error


def _name(dtype: torch.dtype) -> str:
    """Return the name of a type without "torch."."""
    return str(dtype).removeprefix("torch.")
