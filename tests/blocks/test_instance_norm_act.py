"""Mirrors clipseg3d/blocks/instance_norm_act.py. Sizes differ pairwise, so a swapped axis fails."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clipseg3d.blocks.instance_norm_act import InstanceNormAct

B, C, X, Y, Z = 2, 8, 5, 3, 4


@pytest.fixture
def features():
    return torch.randn(B, C, X, Y, Z, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_the_result_is_that_of_both_layers(
    features, training, layout, randomise, assert_same_function
):
    block = randomise(InstanceNormAct(C, slope=0.2).double()).train(training)
    assert_same_function(
        block,
        lambda given: F.leaky_relu(nn.InstanceNorm3d.forward(block, given), 0.2),
        features.double().to(memory_format=layout),
    )


def test_slope_is_one_hundredth_by_default(features):
    norm = nn.InstanceNorm3d(C, affine=True)
    torch.testing.assert_close(InstanceNormAct(C)(features), F.leaky_relu(norm(features), 0.01))


def test_input_is_left_alone(features):
    before = features.clone()
    InstanceNormAct(C)(features)
    assert torch.equal(features, before)


def test_no_gradient_is_copied(features):
    """Autograd copies the gradient of a view that is changed in place."""
    names = []
    node = InstanceNormAct(C)(features.requires_grad_()).grad_fn
    while node is not None:
        names.append(node.name())
        node = node.next_functions[0][0] if node.next_functions else None
    assert not any("CopySlices" in name for name in names)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "norm", [InstanceNormAct, lambda channels: nn.InstanceNorm3d(channels, affine=True)]
)
def test_norms_count_in_float32_under_autocast(features, randomise, norm, dtype):
    """Squares of these features are beyond float16, and bfloat16 has two digits for them."""
    given = (500 + 3 * features).to(dtype)
    norm = randomise(norm(C))
    with torch.autocast("cpu", dtype=dtype):
        result = norm(given)
    expected = norm(given.float())
    torch.testing.assert_close(result.float(), expected, rtol=torch.finfo(dtype).eps, atol=1e-5)
