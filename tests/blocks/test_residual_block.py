"""Mirrors clipseg3d/blocks/feature_fusion.py. Sizes differ pairwise, so a swapped axis fails."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from clipseg3d.blocks import slabs
from clipseg3d.blocks.instance_norm_act import InstanceNormAct
from clipseg3d.blocks.attention_gate import AttentionGate
from clipseg3d.blocks.cbam import CBAM
from clipseg3d.blocks.residual_block import ResidualBlock

B, C, X, Y, Z, GATE = 2, 8, 5, 3, 4, 6


@pytest.fixture
def features():
    return torch.randn(B, C, X, Y, Z, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def asking():
    return torch.randn(B, GATE, X, Y, Z, generator=torch.Generator().manual_seed(1))


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def numpy_weights(module):
    return {name: weight.detach().numpy() for name, weight in module.named_parameters()}


# channel and spatial attention


def test_new_cbam_is_identity(features):
    assert torch.equal(CBAM(C)(features), features)


def test_cbam_equations(features, randomise):
    block = randomise(CBAM(C, reduction=2).double())
    w = numpy_weights(block)
    expected = np.zeros((B, C, X, Y, Z))
    for b in range(B):
        given = features[b].double().numpy()
        score = np.zeros(C)
        for pooled in (given.mean(axis=(1, 2, 3)), given.max(axis=(1, 2, 3))):
            hidden = np.maximum(w["channel.0.weight"] @ pooled + w["channel.0.bias"], 0)
            score += w["channel.2.weight"] @ hidden + w["channel.2.bias"]
        weighed = np.stack([given[c] * 2 * sigmoid(score[c]) for c in range(C)])
        pooled = np.stack([weighed.mean(axis=0), weighed.max(axis=0)])
        maps = np.pad(pooled, [(0, 0), (1, 1), (1, 1), (1, 1)])
        for x, y, z in np.ndindex(X, Y, Z):
            cube = maps[:, x : x + 3, y : y + 3, z : z + 3]
            value = (cube * w["spatial.weight"].reshape(cube.shape)).sum() + w["spatial.bias"].sum()
            expected[b, :, x, y, z] = weighed[:, x, y, z] * 2 * sigmoid(value)
    torch.testing.assert_close(
        block(features.double()), torch.from_numpy(expected), rtol=0, atol=1e-10
    )


def test_first_backward_opens_cbam(features, dead_weights):
    torch.manual_seed(0)  # by chance, no unit of the hidden layer is awake
    block = CBAM(C)
    block(features).square().sum().backward()
    # The first layer waits for the one behind it, which starts at zero.
    assert dead_weights(block) == ["channel.0.weight", "channel.0.bias"]


# what is written otherwise than one would, for speed: the same function


def gradients(function, module, features):
    """Return output and gradients of the input and of every weight; the loss has no symmetry."""
    given = features.clone().requires_grad_()
    out = function(given)
    generator = torch.Generator().manual_seed(3)
    towards = torch.randn(out.shape, generator=generator, dtype=out.dtype)
    return out, torch.autograd.grad((out * towards).sum(), [given, *module.parameters()])


def assert_same_function(module, plain, features):
    fast, slow = gradients(module, module, features), gradients(plain, module, features)
    torch.testing.assert_close(fast[0], slow[0], rtol=0, atol=1e-12)
    for mine, reference in zip(fast[1], slow[1], strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-12)


def plain_cbam(block, features):
    peak = features.amax(dim=(2, 3, 4))
    weight = 2 * torch.sigmoid(block.channel(features.mean(dim=(2, 3, 4))) + block.channel(peak))
    features = features * weight[:, :, None, None, None]
    pooled = torch.stack([features.mean(dim=1), features.amax(dim=1)], dim=1)
    weight, bias = block.spatial.weight, block.spatial.bias
    score = F.conv3d(pooled, weight.transpose(0, 1), bias.sum()[None], padding=1)
    return features * (2 * torch.sigmoid(score))


def plain_block(block, stride, features):
    first, norm, _, second, last = block.residual
    hidden = F.instance_norm(
        F.conv3d(features, first.weight, stride=stride, padding=1),
        weight=norm.weight,
        bias=norm.bias,
    )
    hidden = F.conv3d(F.leaky_relu(hidden, 0.01), second.weight, padding=1)
    hidden = F.instance_norm(hidden, weight=last.weight, bias=last.bias)
    if isinstance(block.attention, CBAM):
        hidden = plain_cbam(block.attention, hidden)
    shortcut = features
    if isinstance(block.shortcut, nn.Conv3d):
        shortcut = F.conv3d(features, block.shortcut.weight, stride=stride)
    return F.leaky_relu(hidden + shortcut, 0.01)


@pytest.mark.parametrize("way", ["one slab", "slabs of two planes", "no slabs"])
def test_cbam_is_what_one_would_write(features, randomise, monkeypatch, way):
    block = randomise(CBAM(C).double())
    if way == "slabs of two planes":  # the last of the five is alone
        monkeypatch.setitem(slabs.SLAB_BYTES, "cpu", 2 * B * C * Y * Z * 8)
        assert [part.stop - part.start for part in slabs._slabs(features.double())] == [2, 2, 2]
    if way == "no slabs":  # as it is compiled
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert_same_function(block, lambda given: plain_cbam(block, given), features.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
def test_cbam_in_slabs_keeps_types(features, randomise, monkeypatch, dtype, autocast):
    block = randomise(CBAM(C))
    given = features.to(dtype).requires_grad_()
    outs = []
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        if not autocast:
            block = block.to(dtype)
        for compiling in (False, True):
            monkeypatch.setattr(
                torch.compiler, "is_compiling", lambda compiling=compiling: compiling
            )
            outs.append(block(given))
    assert outs[0].dtype == dtype
    assert torch.autograd.grad(outs[0].sum(), given)[0].dtype == dtype
    error = (outs[0].float() - outs[1].float()).norm() / outs[1].float().norm()
    assert error < 0.02


def test_features_without_content_have_few_slabs():
    with FakeTensorMode():
        parts = list(slabs._slabs(torch.empty(1, C, 4096, 4096, 4096)))
    assert len(parts) == slabs.MOST_FAKE_SLABS
    assert (parts[0].start, parts[-1].stop) == (0, 4096)


def test_cbam_in_slabs_forgets_what_nothing_asks_for(features):
    block = CBAM(C).requires_grad_(False)
    assert not block(features).requires_grad


@pytest.mark.parametrize("cbam", [True, False])
@pytest.mark.parametrize(("out_channels", "stride"), [(C, 1), (10, 1), (10, 2), (C, 2)])
def test_block_is_what_one_would_write(features, out_channels, stride, cbam, randomise):
    block = randomise(ResidualBlock(C, out_channels, stride=stride, cbam=cbam).double())
    assert_same_function(block, lambda given: plain_block(block, stride, given), features.double())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_activated_norm_is_one_after_the_other(features, training, layout, randomise):
    block = randomise(InstanceNormAct(C, slope=0.2).double()).train(training)
    assert_same_function(
        block,
        lambda given: F.leaky_relu(nn.InstanceNorm3d.forward(block, given), 0.2),
        features.double().to(memory_format=layout),
    )


def test_activated_norm_copies_no_gradient(features):
    """Behind a view, what is changed in place has its gradient copied."""
    names = []
    node = InstanceNormAct(C)(features.requires_grad_()).grad_fn
    while node is not None:
        names.append(node.name())
        node = node.next_functions[0][0] if node.next_functions else None
    assert not any("CopySlices" in name for name in names)


# residual block


@pytest.mark.parametrize(("out_channels", "stride"), [(C, 1), (10, 1), (10, 2)])
def test_new_cbam_leaves_the_block_as_it_is(features, out_channels, stride):
    plain = ResidualBlock(C, out_channels, stride=stride, cbam=False)
    with_cbam = ResidualBlock(C, out_channels, stride=stride, cbam=True)
    with_cbam.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(with_cbam(features), plain(features))
    torch.nn.init.ones_(with_cbam.attention.spatial.bias)
    assert not torch.allclose(with_cbam(features), plain(features))


def test_residual_is_normalised_and_added_to_the_shortcut(features):
    block = ResidualBlock(C, C, cbam=False)
    torch.nn.init.zeros_(block.residual[-1].weight)  # no residual: what remains is the shortcut
    expected = torch.where(features > 0, features, 0.01 * features)
    torch.testing.assert_close(block(features), expected)


def test_input_is_left_alone(features):
    before = features.clone()
    ResidualBlock(C, C)(features)
    assert torch.equal(features, before)


@pytest.mark.parametrize(("in_channels", "out_channels", "stride"), [(C, C, 1), (C, 10, 2)])
def test_gradient_reaches_every_weight_of_a_block(
    features, in_channels, out_channels, stride, randomise, dead_weights
):
    block = randomise(ResidualBlock(in_channels, out_channels, stride=stride))
    block(features).square().sum().backward()
    assert dead_weights(block) == []


@pytest.mark.parametrize("size", [(8, 6, 4), (7, 5, 3), (2, 9, 1)])
def test_stride_halves_the_grid(size):
    features = torch.randn(1, 3, *size)
    assert ResidualBlock(3, 5)(features).shape == (1, 5, *size)
    halved = tuple(-(-n // 2) for n in size)
    assert ResidualBlock(3, 5, stride=2)(features).shape == (1, 5, *halved)


def test_cases_do_not_mix(features, randomise):
    block = randomise(ResidualBlock(C, 10, stride=2))
    together = block(features)
    for b in range(B):
        torch.testing.assert_close(together[b], block(features[b : b + 1])[0])


def test_dropout_is_for_training_only(features):
    torch.manual_seed(0)
    block = ResidualBlock(C, C, dropout=0.5)
    assert not torch.equal(block(features), block(features))
    block.eval()
    assert torch.equal(block(features), block(features))


# attention gate


def test_new_gate_passes_the_skip(features, asking):
    assert torch.equal(AttentionGate(C, GATE)(features, asking), features)


def test_attention_gate_equations(features, asking, randomise):
    block = randomise(AttentionGate(C, GATE).double())
    w = {name: weight.squeeze() for name, weight in numpy_weights(block).items()}
    w["from_skip.weight"], w["from_gate.weight"] = (
        w[name].reshape(C // 4, -1) for name in ("from_skip.weight", "from_gate.weight")
    )
    skip, gate = features.double().numpy(), asking.double().numpy()
    expected = np.zeros_like(skip)
    for b, x, y, z in np.ndindex(B, X, Y, Z):
        s, g = skip[b, :, x, y, z], gate[b, :, x, y, z]
        asked = w["from_skip.weight"] @ s + w["from_gate.weight"] @ g + w["from_gate.bias"]
        score = float(w["score.weight"] @ np.maximum(asked, 0) + w["score.bias"])
        expected[b, :, x, y, z] = s * 2 * sigmoid(score)
    result = block(features.double(), asking.double())
    torch.testing.assert_close(result, torch.from_numpy(expected), rtol=0, atol=1e-10)


def test_only_the_voxel_that_the_decoder_asks_for_changes(features, asking, randomise):
    block = randomise(AttentionGate(C, GATE))
    moved = asking.clone()
    moved[1, :, 4, 0, 2] += 3
    changed = (block(features, moved) - block(features, asking)).abs().amax(dim=1) > 1e-6
    assert changed.nonzero().tolist() == [[1, 4, 0, 2]]


def test_gradient_of_the_gate(features, asking, randomise, dead_weights):
    block = AttentionGate(C, GATE)
    block(features, asking).square().sum().backward()
    assert dead_weights(block) == ["from_skip.weight", "from_gate.weight", "from_gate.bias"]
    randomise(block)(features, asking).square().sum().backward()
    assert dead_weights(block) == []


# mixed precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", [InstanceNormAct(C), nn.InstanceNorm3d(C, affine=True)], ids=repr)
def test_norms_count_in_float32_under_autocast(features, randomise, norm, dtype):
    """Squares of these features are beyond float16, and bfloat16 has two digits for them."""
    given = (500 + 3 * features).to(dtype)
    norm = randomise(norm)
    with torch.autocast("cpu", dtype=dtype):
        found = norm(given)
    due = norm(given.float())
    torch.testing.assert_close(found.float(), due, rtol=torch.finfo(dtype).eps, atol=1e-5)
