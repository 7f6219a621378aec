"""Properties that every block has."""

import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from clipseg3d.testing.execution_properties import check_execution
from clipseg3d.testing.properties import are_close, are_equal, randomise, require, tensors_of


def check_block(
    make: Callable[[], nn.Module],
    *inputs: Any,
    starts_as_identity: bool = False,
    keeps_type: bool = True,
    is_graph: bool = True,
    tolerance: float = 1e-4,
    rounding: float = 8.0,
) -> None:
    """Check a block that turns features of a batch into others.

    - Equal calls in evaluation give equal, finite results, so dropout is off.
    - The cases of a batch do not influence one another.
    - A backward pass reaches every trainable weight.
    - A new block with the same weights (``state_dict``, written and read) gives the same result.
    - Inputs are not changed.
    - After ``.half()`` and ``.bfloat16()``, inputs of that type give finite results of that type,
      near those in float32.
    - Autocast to bfloat16 gives results near those in float32, and finite gradients.
    - Volumes and weights in ``channels_last_3d`` give the same results and gradients.
    - ``torch.export`` gives the same results.
    - ``torch.compile`` needs one graph only (``fullgraph=True``), also in training if the results
      or the state differ there; results and gradients are the same. This needs no C++ compiler. It
      makes torch forget what else it has compiled in the process, which costs only time.

    Args:
        make: builds the block; called several times.
        inputs: of the block; the first axis of each tensor is the batch, of two cases or more.
        starts_as_identity: whether a new block must return its first input unchanged.
        keeps_type: False for a block whose results are float32, also in half precision.
        is_graph: False for a block that cannot be one graph for ``torch.export`` and
            ``torch.compile``; neither is tried.
        tolerance: absolute and relative, for floating-point sums in another order.
        rounding: largest error in half precision and under autocast, as a share of the largest
            absolute value, in steps of the type (``torch.finfo(...).eps``); deep blocks need more.

    Raises:
        AssertionError: a property does not hold; the message says which.

    Example:
        >>> from clipseg3d.blocks import SemanticGate
        >>> features, summary = torch.rand(2, 16, 4, 5, 6), torch.rand(2, 8)
        >>> check_block(lambda: SemanticGate(16, 8), features, summary, starts_as_identity=True)
    """
    batch = next(len(each) for each in inputs if isinstance(each, Tensor))
    require(batch > 1, "give inputs of two cases or more, so that mixing them would show")
    before = [each.clone() if isinstance(each, Tensor) else each for each in inputs]
    block = make().eval()
    if starts_as_identity:
        with torch.no_grad():
            (first, *_) = tensors_of(block(*inputs))
        require(torch.equal(first, inputs[0]), "a new block changes its first input")
    randomise(block)
    with torch.no_grad():
        outputs = tensors_of(block(*inputs))
        again = tensors_of(block(*inputs))
    require(bool(outputs), "the block returns no tensor")
    require(all(bool(out.isfinite().all()) for out in outputs), "a result is not finite")
    require(
        are_equal(outputs, again), "equal calls in evaluation give other results; is dropout on?"
    )
    require(
        are_equal(_only_tensors(inputs), _only_tensors(before)), "an input was changed in place"
    )
    with torch.no_grad():
        for case in range(batch):
            alone = tensors_of(block(*(_case(each, case) for each in inputs)))
            together = [out[case : case + 1] for out in outputs]
            close = are_close(alone, together, tolerance)
            require(close, f"the result of case {case} depends on the other cases of the batch")
    _check_gradients(block, inputs)
    _check_state(block, make, inputs, outputs)
    check_execution(
        block,
        inputs,
        tolerance=tolerance,
        rounding=rounding,
        keeps_type=keeps_type,
        is_graph=is_graph,
    )


def _check_gradients(block: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Require that a backward pass reaches every trainable weight."""
    block.zero_grad()
    terms = [out.float().square().sum() for out in tensors_of(block(*inputs)) if out.requires_grad]
    trained = [name for name, weight in block.named_parameters() if weight.requires_grad]
    if not trained:
        return
    require(bool(terms), "no result depends on the weights")
    torch.autograd.backward(torch.stack(terms).sum())
    unreached = [
        name
        for name, weight in block.named_parameters()
        if weight.requires_grad and (weight.grad is None or not bool(weight.grad.any()))
    ]
    require(not unreached, f"no gradient reaches {', '.join(unreached)}")


def _check_state(
    block: nn.Module, make: Callable[[], nn.Module], inputs: tuple[Any, ...], outputs: list[Tensor]
) -> None:
    """Require that the state is all that the results depend on."""
    file = io.BytesIO()
    torch.save(block.state_dict(), file)
    file.seek(0)
    copy = make().eval()
    copy.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        copied = tensors_of(copy(*inputs))
    require(are_equal(outputs, copied), "a new block with the same state_dict gives other results")


def _case(value: Any, index: int) -> Any:
    """Return one case of a batch."""
    return value[index : index + 1] if isinstance(value, Tensor) else value


def _only_tensors(values: Any) -> list[Tensor]:
    """Return the tensors among some inputs."""
    return [value for value in values if isinstance(value, Tensor)]
