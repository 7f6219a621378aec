"""Mirrors clipseg3d/blocks/cbam_slabs.py; test_cbam.py compares it with the plain form."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from clipseg3d.blocks import cbam_slabs
from clipseg3d.blocks.cbam import CBAM

B, C, X, Y, Z = 2, 8, 5, 3, 4
PLANE_BYTES = B * C * Y * Z * 8  # of float64 features


@pytest.fixture
def features():
    return torch.randn(B, C, X, Y, Z, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("planes", "starts"), [(0.5, range(5)), (2, [0, 2, 4]), (9, [0])])
def test_every_slab_size_is_the_function_of_the_paper(
    features, randomise, monkeypatch, assert_same_function, plain_cbam, planes, starts
):
    monkeypatch.setitem(cbam_slabs.SLAB_BYTES, "cpu", int(planes * PLANE_BYTES))
    assert [slab.start for slab in cbam_slabs._slabs(features.double())] == list(starts)
    block = randomise(CBAM(C).double())
    assert_same_function(block, lambda given: plain_cbam(block, given), features.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
def test_types_are_kept(features, randomise, monkeypatch, dtype, autocast):
    block = randomise(CBAM(C))
    if not autocast:
        block = block.to(dtype)
    given = features.to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = block(given)
        assert torch.autograd.grad(out.sum(), given)[0].dtype == dtype
        monkeypatch.delitem(cbam_slabs.SLAB_BYTES, "cpu")
        plain = block(given)
    assert out.dtype == dtype
    assert (out.float() - plain.float()).norm() < 0.02 * plain.float().norm()


def test_fake_features_have_few_slabs():
    with FakeTensorMode():
        slabs = list(cbam_slabs._slabs(torch.empty(1, C, 4096, 4096, 4096)))
    assert len(slabs) == cbam_slabs.MAX_FAKE_SLABS
    assert (slabs[0].start, slabs[-1].stop) == (0, 4096)


def test_nothing_is_kept_if_no_gradient_is_needed(features):
    block = CBAM(C).requires_grad_(False)
    assert not block(features).requires_grad
