"""Mirrors clipseg3d/blocks/bridge.py. Sizes differ pairwise, so a swapped axis fails."""

import pytest
import torch

from clipseg3d.blocks.bridge import SemanticBridge
from clipseg3d.volume import cut_views

B, V, H, W = 2, 3, 40, 28


@pytest.fixture
def views():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (B, V, H, W, 3), generator=generator, dtype=torch.uint8)


@pytest.fixture
def volume():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(B, 4, 7, 9, 8, generator=generator) + 0.1


def test_tokens_are_those_of_the_single_views(tiny_clip, views):
    tokens, valid = SemanticBridge(tiny_clip).embed(views)
    assert tokens.shape == (B, V, tiny_clip.embed_dim)
    assert valid.tolist() == [True, True]
    for b in range(B):
        for v in range(V):
            image = torch.stack([views[b, v, :, :, rgb] / 255 for rgb in range(3)])
            alone = tiny_clip.encode_image(image[None])[0]
            torch.testing.assert_close(tokens[b, v], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(tokens[0, 0], tokens[0, 1], atol=1e-4)


def test_paper_summary_is_the_mean_of_the_views(tiny_clip, views):
    tokens, _ = SemanticBridge(tiny_clip).embed(views)
    single = [tiny_clip.encode_image(view.permute(0, 3, 1, 2) / 255) for view in views.unbind(1)]
    torch.testing.assert_close(tokens.mean(dim=1), sum(single) / 3, rtol=1e-4, atol=1e-5)


def test_tokens_have_unit_norm(tiny_clip, views):
    tokens, _ = SemanticBridge(tiny_clip).embed(views)
    torch.testing.assert_close(tokens.norm(dim=-1), torch.ones(B, V))


def test_a_case_is_invalid_if_all_its_views_are_black(tiny_clip, views):
    views[0] = 0
    views[1, :2] = 0
    tokens, valid = SemanticBridge(tiny_clip).embed(views)
    assert valid.tolist() == [False, True]
    assert tokens.isfinite().all()


def test_volume_is_cut_and_embedded(tiny_clip, volume):
    bridge = SemanticBridge(tiny_clip)
    tokens, valid = bridge(volume)
    expected, _ = bridge.embed(cut_views(volume))
    assert torch.equal(tokens, expected)
    assert valid.tolist() == [True, True]
    _, valid = bridge(volume * torch.tensor([1.0, 0.0]).view(B, 1, 1, 1, 1))
    assert valid.tolist() == [True, False]


@pytest.mark.parametrize(
    "change",
    [
        lambda views: views.float(),
        lambda views: views[0],
        lambda views: views.permute(0, 1, 4, 2, 3),
        lambda views: views[..., :1],
    ],
    ids=["float", "without batch", "channels first", "one colour"],
)
def test_rejects_what_cut_views_does_not_give(tiny_clip, views, change):
    with pytest.raises(ValueError, match=r"expected uint8 \(b, v, h, w, 3\).*cut_views"):
        SemanticBridge(tiny_clip).embed(change(views))
