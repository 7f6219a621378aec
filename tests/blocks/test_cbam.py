"""Mirrors clipseg3d/blocks/cbam.py. Sizes differ pairwise, so a swapped axis fails."""

import math

import numpy as np
import pytest
import torch

from clipseg3d.blocks import cbam_slabs
from clipseg3d.blocks.cbam import CBAM

B, C, X, Y, Z = 2, 8, 5, 3, 4


@pytest.fixture
def features():
    return torch.randn(B, C, X, Y, Z, generator=torch.Generator().manual_seed(0))


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def is_slabbed(out):
    return "SlabbedCBAM" in out.grad_fn.name()


def test_new_cbam_is_identity(features):
    assert torch.equal(CBAM(C)(features), features)


def test_equations(features, randomise):
    block = randomise(CBAM(C, reduction=2).double())
    w = {name: weight.detach().numpy() for name, weight in block.named_parameters()}
    expected = np.zeros((B, C, X, Y, Z))
    for b in range(B):
        given = features[b].double().numpy()
        score = np.zeros(C)
        for pooled in (given.mean(axis=(1, 2, 3)), given.max(axis=(1, 2, 3))):
            hidden = np.maximum(w["channel.0.weight"] @ pooled + w["channel.0.bias"], 0)
            score += w["channel.2.weight"] @ hidden + w["channel.2.bias"]
        weighted = np.stack([given[c] * 2 * sigmoid(score[c]) for c in range(C)])
        pooled = np.stack([weighted.mean(axis=0), weighted.max(axis=0)])
        maps = np.pad(pooled, [(0, 0), (1, 1), (1, 1), (1, 1)])
        for x, y, z in np.ndindex(X, Y, Z):
            cube = maps[:, x : x + 3, y : y + 3, z : z + 3]
            value = (cube * w["spatial.weight"].reshape(cube.shape)).sum() + w["spatial.bias"].sum()
            expected[b, :, x, y, z] = weighted[:, x, y, z] * 2 * sigmoid(value)
    torch.testing.assert_close(
        block(features.double()), torch.from_numpy(expected), rtol=0, atol=1e-10
    )


def test_hidden_layer_has_at_least_four_channels():
    assert CBAM(64).channel[0].out_features == 8
    assert CBAM(64, reduction=4).channel[0].out_features == 16
    assert CBAM(16).channel[0].out_features == 4


def test_first_backward_reaches_the_last_layers(features, dead_weights):
    torch.manual_seed(0)  # some hidden units are active with this seed
    block = CBAM(C)
    block(features).square().sum().backward()
    # The layer before a layer of zeros gets no gradient yet.
    assert dead_weights(block) == ["channel.0.weight", "channel.0.bias"]


def test_plain_form_and_slabs_give_equal_outputs_and_gradients(
    features, randomise, gradients, monkeypatch
):
    block = randomise(CBAM(C).double())
    monkeypatch.setitem(cbam_slabs.SLAB_BYTES, "cpu", 2 * B * C * Y * Z * 8)  # slabs of two planes
    slabs, slab_gradients = gradients(block, block, features.double())
    monkeypatch.delitem(cbam_slabs.SLAB_BYTES, "cpu")
    plain, plain_gradients = gradients(block, block, features.double())
    assert (is_slabbed(slabs), is_slabbed(plain)) == (True, False)
    torch.testing.assert_close(slabs, plain, rtol=0, atol=1e-12)
    assert len(slab_gradients) == len(plain_gradients) == 7
    for mine, reference in zip(slab_gradients, plain_gradients, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", ["slabs", "device without slabs", "compiling"])
def test_every_form_is_the_function_of_the_paper(
    features, randomise, monkeypatch, assert_same_function, plain_cbam, form
):
    block = randomise(CBAM(C).double())
    if form == "device without slabs":
        monkeypatch.delitem(cbam_slabs.SLAB_BYTES, "cpu")
    if form == "compiling":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert is_slabbed(block(features.double())) == (form == "slabs")
    assert_same_function(block, lambda given: plain_cbam(block, given), features.double())


def test_only_cpu_and_cuda_have_slabs():
    assert set(cbam_slabs.SLAB_BYTES) == {"cpu", "cuda"}
    out = CBAM(C).to("meta")(torch.empty(B, C, X, Y, Z, device="meta"))
    assert out.shape == (B, C, X, Y, Z)
    assert not is_slabbed(out)
