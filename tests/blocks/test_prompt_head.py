"""Prompts become mixtures of regions, with a place."""

import pytest
import torch

from clipseg3d.blocks import PromptHead, PromptReading

E, R = 8, 3
GRID = (4, 6, 5)


def reading(*, weights, place=(20.0,) + (0.0,) * 9, presence=20.0):
    return PromptReading(
        torch.tensor([[weights]]),
        torch.tensor([[place]]),
        torch.tensor([[presence]]),
        torch.zeros(1, 1, 3),
        torch.zeros(1, 1),
    )


def nested():
    """Three nested regions, in {0, 1}."""
    torch.manual_seed(0)
    wt = (torch.rand(1, *GRID) < 0.7).float()
    tc = wt * (torch.rand(1, *GRID) < 0.6)
    et = tc * (torch.rand(1, *GRID) < 0.5)
    return torch.stack([wt, tc, et], dim=1)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((1.0, 0.0, 0.0), lambda wt, tc, et: wt),
        ((1.0, -1.0, 0.0), lambda wt, tc, et: wt - tc),
        ((0.0, 1.0, -1.0), lambda wt, tc, et: tc - et),
        ((0.6, 1.0, 1.0), lambda wt, tc, et: (0.6 * wt + tc + et).clamp(max=1)),
        ((-1.0, 0.0, 0.0), lambda wt, tc, et: 0 * wt),
    ],
)
def test_regions_are_mixed(weights, expected):
    regions = nested()
    answer = PromptHead(E, R)(reading(weights=weights), regions)
    torch.testing.assert_close(answer, expected(*regions.split(1, dim=1)))


def test_place_is_a_quadratic_function_of_the_position():
    regions = torch.ones(1, R, *GRID)
    left = (0.0, 1000.0) + (0.0,) * 8  # x counts towards patient left
    answer = PromptHead(E, R)(reading(weights=(1.0, 0.0, 0.0), place=left), regions)
    assert answer[0, 0, :2].max() < 1e-6
    assert answer[0, 0, 2:].min() > 1 - 1e-6
    middle = (100.0, 0.0, 0.0, 0.0, 0.0, -900.0, 0.0, 0.0, 0.0, 0.0)  # |y| < 1/3
    answer = PromptHead(E, R)(reading(weights=(1.0, 0.0, 0.0), place=middle), regions)
    assert answer[0, 0].amax(dim=(0, 2)).gt(0.5).tolist() == [
        False,
        False,
        True,
        True,
        False,
        False,
    ]


def test_the_place_follows_the_crop():
    regions = torch.ones(1, R, *GRID)
    left = (0.0, 1000.0) + (0.0,) * 8
    crop_box = torch.tensor([[[1.0, 0, 0], [-1.0, 1, 1]]])  # mirrored along x
    answer = PromptHead(E, R)(reading(weights=(1.0, 0.0, 0.0), place=left), regions, crop_box)
    assert answer[0, 0, 2:].max() < 1e-6


def test_absent_things_are_nowhere():
    answer = PromptHead(E, R)(reading(weights=(1.0, 1.0, 1.0), presence=-9.0), nested())
    assert answer.max() < 1e-3


def test_reading_is_linear_and_one_reading_serves_all_cases():
    head = PromptHead(E, R)
    prompts = torch.nn.functional.normalize(torch.randn(1, 5, E), dim=-1)
    read = head.read(prompts)
    shapes = [(1, 5, 3), (1, 5, 10), (1, 5), (1, 5, 3), (1, 5)]
    assert [tuple(part.shape) for part in read] == shapes
    by_hand = torch.tanh(prompts * E**0.5 @ head.weights.weight.T + head.weights.bias)
    torch.testing.assert_close(read.weights, by_hand)
    regions = torch.cat([nested(), 1 - nested()])
    both = head(PromptReading(*(part.expand(2, *part.shape[1:]) for part in read)), regions)
    for index in range(2):
        torch.testing.assert_close(both[index], head(read, regions[index : index + 1])[0])


def test_points_have_the_place_of_their_voxels():
    torch.manual_seed(0)
    place = torch.randn(1, 2, 10)
    read = reading(weights=(1.0, 0.0, 0.0))._replace(place=place)
    grid = torch.zeros(1, R, *GRID)
    voxels = [(0, 0, 0), (3, 5, 4), (1, 4, 2)]
    points = torch.tensor(
        [[2 * (i + 0.5) / n - 1 for i, n in zip(v, GRID, strict=True)] for v in voxels]
    )
    expected = torch.stack(
        [PromptHead(E, R).locate(read, grid)[(0, slice(None), *v)] for v in voxels], dim=1
    )
    torch.testing.assert_close(PromptHead.locate_points(read, points[None])[0], expected)


def test_a_new_head_takes_every_place_and_all_to_be_there():
    read = PromptHead(E, R).read(torch.nn.functional.normalize(torch.randn(1, 5, E), dim=-1))
    assert read.place[..., 0].eq(4).all()
    assert not read.place[..., 1:].any()
    assert read.presence.gt(0).all()
    assert not read.several.any()
