"""Mirrors clipseg3d/blocks/sequential_attention.py. Sizes differ pairwise."""

import numpy as np
import pytest
import torch

from clipseg3d.blocks.sequential_attention import SequentialCrossAttention

B, C, X, Y, Z, N, D, HEADS = 2, 9, 2, 4, 3, 5, 12, 6
CROP_BOX = torch.tensor([[[0.1, 0.3, -0.2], [0.5, 0.9, 0.7]], [[0.8, 0.2, 1.1], [-0.5, 0.4, -1.3]]])


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(B, C, X, Y, Z, generator=generator, dtype=torch.float64)


@pytest.fixture
def tokens():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(B, N, D, generator=generator, dtype=torch.float64)


@pytest.fixture
def mask():
    return torch.tensor([[True] * N, [True, False, True, True, False]])


def make(**options):
    torch.manual_seed(0)
    return SequentialCrossAttention(C, D, num_heads=HEADS, **options).double()


@pytest.fixture
def trained(randomise):
    return randomise(make()).eval()


def test_new_block_changes_nothing(features, tokens, mask):
    assert torch.equal(make()(features, tokens, mask), features)


@pytest.mark.parametrize("crop_box", [None, CROP_BOX], ids=["whole", "crop_box"])
def test_against_a_loop(trained, features, tokens, mask, crop_box, normalised, multihead):
    w = {name: weight.detach().numpy() for name, weight in trained.named_parameters()}
    result = trained(features, tokens, mask, crop_box)
    assert result.shape == features.shape
    voxels = list(np.ndindex(X, Y, Z))
    for b in range(B):
        z = []
        for voxel in voxels:
            position = [(index + 0.5) / n for index, n in zip(voxel, (X, Y, Z), strict=True)]
            if crop_box is not None:
                corner, size = crop_box[b].double().numpy()
                position = corner + size * position
            normed = normalised(
                features[(b, slice(None), *voxel)].numpy(), w["norm.weight"], w["norm.bias"]
            )
            there = w["position.weight"] @ (2 * np.array(position) - 1) + w["position.bias"]
            z.append(w["project.weight"] @ normed + w["project.bias"] + there)
        kept = [token.numpy() for n, token in enumerate(tokens[b]) if mask[b, n]]
        read = multihead(w, "read", kept, z, HEADS)
        normed_read = [
            normalised(t + r, w["read_norm.weight"], w["read_norm.bias"])
            for t, r in zip(kept, read, strict=True)
        ]
        for voxel, update in zip(voxels, multihead(w, "write", z, normed_read, HEADS), strict=True):
            expected = features[(b, slice(None), *voxel)].numpy()
            expected = torch.from_numpy(expected + w["out.weight"] @ update + w["out.bias"])
            got = result[(b, slice(None), *voxel)]
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


def test_masked_tokens_change_nothing(trained, features, tokens, mask):
    result = trained(features, tokens, mask)
    alone = trained(features[1:], tokens[1:, [0, 2, 3]], mask[1:, [0, 2, 3]])
    torch.testing.assert_close(result[1:], alone)
    moved = tokens.clone()
    moved[1, 1], moved[1, 4] = 100, -100
    assert torch.equal(trained(features, moved, mask), result)
    moved[1, 2] = 100
    assert not torch.equal(trained(features, moved, mask)[1], result[1])


def test_row_without_tokens_is_finite(trained, features, tokens, mask):
    features.requires_grad_()
    mask[0] = False
    result = trained(features, tokens, mask)
    assert result.isfinite().all()
    torch.testing.assert_close(result[1:], trained(features[1:], tokens[1:], mask[1:]))
    result.square().sum().backward()
    assert features.grad.isfinite().all()
    assert all(weight.grad.isfinite().all() for weight in trained.parameters())


def test_crop_box_matters(trained, features, tokens, mask):
    whole = trained(features, tokens, mask)
    difference = (trained(features, tokens, mask, CROP_BOX) - whole).flatten(1).abs().amax(dim=1)
    assert (difference > 1e-2).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_mirrored_crop_box_mirrors_the_output(trained, features, tokens, mask, axis):
    mirrored = CROP_BOX.clone()
    mirrored[:, 0, axis] += CROP_BOX[:, 1, axis]
    mirrored[:, 1, axis] *= -1
    expected = trained(features, tokens, mask, CROP_BOX).flip(2 + axis)
    result = trained(features.flip(2 + axis), tokens, mask, mirrored)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)  # the crop_box is float32


def test_tokens_and_every_voxel_count(trained, features, tokens, mask):
    result = trained(features, tokens, mask)
    assert not torch.allclose(trained(features, -tokens, mask), result, atol=1e-3)
    moved = features.clone()
    moved[0, 2, 1, 3, 0] += 3
    changed = (trained(moved, tokens, mask) - result).abs().amax(dim=1) > 1e-9
    assert changed[0].all()  # what the tokens read there reaches all voxels of the case
    assert not changed[1].any()


def test_gradient_reaches_every_weight(trained, features, tokens, mask, dead_weights):
    new = make()
    new(features, tokens, mask).square().sum().backward()
    assert not {"out.weight", "out.bias"} & set(dead_weights(new))
    trained(features, tokens, mask).pow(3).sum().backward()
    assert dead_weights(trained) == []


@pytest.mark.parametrize("part", ["read", "write"])
def test_eval_ignores_dropout(randomise, features, tokens, mask, part):
    block = randomise(make(dropout=0.5))
    getattr(block, "write" if part == "read" else "read").dropout = 0.0
    first = block(features, tokens, mask)
    assert not torch.equal(block(features, tokens, mask), first)
    block.eval()
    assert torch.equal(block(features, tokens, mask), block(features, tokens, mask))


def test_rejects_indivisible_heads():
    with pytest.raises(ValueError, match=r"dim=12 .* num_heads=5"):
        SequentialCrossAttention(C, D, num_heads=5)
