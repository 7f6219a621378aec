"""Mirrors clipseg3d/blocks/patch_lifting.py. Sizes differ pairwise, so a swapped axis fails."""

import numpy as np
import pytest
import torch

from clipseg3d.blocks.patch_lifting import lift_patches

B, X, Y, Z = 2, 6, 4, 5


def make_patches(per_axis, grid=3, channels=2, dtype=torch.float32):
    """Random patches, on slices in random positions, in order."""
    generator = torch.Generator().manual_seed(per_axis)
    patches = torch.randn(B, 3 * per_axis, grid, grid, channels, generator=generator, dtype=dtype)
    positions = torch.rand(B, 3, per_axis, generator=generator).sort(dim=2).values.flatten(1)
    shares = torch.rand(B, 3, 1, 2, generator=generator) * 0.5 + 0.5
    shares = shares.expand(-1, -1, per_axis, -1).flatten(1, 2)
    return patches, torch.cat([positions[..., None], shares], dim=2)


def reference(patches, planes, crop_box, grid):
    """What each voxel projects to, one voxel, axis and slice at a time, in float64."""
    patches, planes = patches.double().numpy(), planes.double().numpy()
    cases, count, side, _, channels = patches.shape
    per_axis = count // 3
    out = np.zeros((cases, channels, *grid))
    for b, *voxel in np.ndindex(cases, *grid):
        corner, size = crop_box[b].double().numpy()
        position = [corner[i] + size[i] * (voxel[i] + 0.5) / grid[i] for i in range(3)]
        for axis, (along, row, column) in enumerate(((2, 0, 1), (1, 0, 2), (0, 1, 2))):
            mine = range(axis * per_axis, (axis + 1) * per_axis)
            read = []
            for v in mine:
                pixel = []
                for i, k in ((row, 1), (column, 2)):
                    in_square = 0.5 + (position[i] - 0.5) * planes[b, v, k]
                    pixel.append(min(max(in_square * side - 0.5, 0), side - 1))
                top, left = (min(int(p), side - 2) for p in pixel)
                down, right = pixel[0] - top, pixel[1] - left
                upper = (1 - right) * patches[b, v, top, left] + right * patches[
                    b, v, top, left + 1
                ]
                lower = (1 - right) * patches[b, v, top + 1, left]
                lower = lower + right * patches[b, v, top + 1, left + 1]
                read.append((1 - down) * upper + down * lower)
            slices = [planes[b, v, 0] for v in mine]
            out[(b, slice(None), *voxel)] += [
                np.interp(position[along], slices, values) / 3 for values in np.transpose(read)
            ]
    return torch.from_numpy(out)


WHOLE = torch.tensor([[0.0] * 3, [1.0] * 3]).expand(B, 2, 3)
CROP_BOX = torch.tensor([[[0.1, 0.3, -0.2], [0.5, 0.9, 0.7]], [[0.8, 0.2, 1.1], [-0.5, 0.4, -1.3]]])


@pytest.mark.parametrize("per_axis", [1, 2, 5])
@pytest.mark.parametrize("crop_box", [WHOLE, CROP_BOX], ids=["whole", "crop_box"])
def test_lifting_against_a_loop(per_axis, crop_box):
    patches, planes = make_patches(per_axis)
    features = torch.zeros(B, 7, X, Y, Z)
    lifted = lift_patches(patches, planes, features, crop_box)
    expected = reference(patches, planes, crop_box, (X, Y, Z))
    torch.testing.assert_close(lifted.double(), expected, rtol=0, atol=2e-6)


def test_constant_views_by_hand():
    # Of each axis, two slices with one value each: the map is linear between and flat beyond.
    values = [[3.0, 6.0], [30.0, 90.0], [300.0, 900.0]]
    patches = torch.tensor(values).view(1, 6, 1, 1, 1).expand(1, 6, 3, 3, 1)
    positions = [[0.3, 0.7], [0.5, 0.625], [0.25, 0.75]]  # along z, y and x
    planes = torch.ones(1, 6, 3)
    planes[0, :, 0] = torch.tensor(positions).flatten()
    lifted = lift_patches(patches, planes, torch.zeros(1, 1, X, Y, Z))[0, 0]
    along_x = [300, 300, 500, 700, 900, 900]  # centres 1/12, 3/12, 5/12, 7/12, 9/12, 11/12
    along_y = [30, 30, 90, 90]  # centres 0.125, 0.375, 0.625, 0.875
    along_z = [3, 3, 4.5, 6, 6]  # centres 0.1, 0.3, 0.5, 0.7, 0.9
    for x, y, z in np.ndindex(X, Y, Z):
        expected = (along_x[x] + along_y[y] + along_z[z]) / 3
        assert lifted[x, y, z].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("axis", "slab"),
    [
        (0, (slice(4, 6), slice(0, 2), slice(None))),  # axial: rows x, columns y
        (1, (slice(4, 6), slice(None), slice(0, 2))),  # coronal: rows x, columns z
        (2, (slice(None), slice(4, 6), slice(0, 2))),  # sagittal: rows y, columns z
    ],
)
def test_a_bright_patch_lands_at_its_position(axis, slab):
    patches = torch.zeros(1, 3, 4, 4, 1)
    patches[0, axis, 2, 0] = 3.0  # row 2, column 0 of 4
    planes = torch.tensor([0.5, 1.0, 1.0]).expand(1, 3, 3)
    # 8 voxels: each patch covers two, whose centres lie a quarter patch from the patch's centre
    lifted = lift_patches(patches, planes, torch.zeros(1, 1, 8, 8, 8))[0, 0]
    expected = torch.zeros(8, 8, 8)
    expected[slab] = 1.0
    assert torch.equal(lifted > 0.5, expected > 0)


def test_padding_of_the_square_is_not_lifted():
    # A box half as high as the square: rows 1 and 2 of 4 are all that it fills.
    patches = torch.full((1, 3, 4, 4, 1), 9.0)
    patches[:, :, 1:3] = 1.0
    planes = torch.tensor([0.5, 0.5, 1.0]).expand(1, 3, 3)
    lifted = lift_patches(patches, planes, torch.zeros(1, 1, 2, 2, 2))
    torch.testing.assert_close(lifted, torch.ones(1, 1, 2, 2, 2))


@pytest.mark.parametrize("per_axis", [1, 4])
def test_lift_of_a_crop_is_a_crop_of_the_lift(per_axis):
    patches, planes = make_patches(per_axis)
    features = torch.zeros(B, 1, X, Y, Z)
    start, stop, grid = torch.tensor([1, 0, 3]), torch.tensor([5, 2, 5]), torch.tensor([X, Y, Z])
    crop_box = torch.stack([start / grid, (stop - start) / grid]).expand(B, 2, 3)
    crop = (..., slice(1, 5), slice(0, 2), slice(3, 5))
    whole = lift_patches(patches, planes, features)
    lifted = lift_patches(patches, planes, features[crop], crop_box)
    torch.testing.assert_close(lifted, whole[crop], rtol=0, atol=2e-6)
    unaware = lift_patches(patches, planes, features[crop])
    assert (unaware - whole[crop]).abs().max() > 1e-2


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_mirrored_crop_box_mirrors_the_lift(axis):
    patches, planes = make_patches(4)
    features = torch.zeros(B, 1, X, Y, Z)
    mirrored = CROP_BOX.clone()
    mirrored[:, 0, axis] += CROP_BOX[:, 1, axis]
    mirrored[:, 1, axis] *= -1
    expected = lift_patches(patches, planes, features, CROP_BOX).flip(2 + axis)
    lifted = lift_patches(patches, planes, features, mirrored)
    torch.testing.assert_close(lifted, expected, rtol=0, atol=2e-6)


def test_a_slice_taken_twice_counts_once():
    patches, planes = make_patches(2)
    axes = torch.tensor([0, 0, 1, 2, 2, 3, 4, 4, 5])  # two of three slices of each axis are one
    features = torch.zeros(B, 1, X, Y, Z)
    lifted = lift_patches(patches[:, axes], planes[:, axes], features)
    torch.testing.assert_close(lifted, lift_patches(patches, planes, features))


def test_positions_are_exact_for_features_of_low_precision():
    patches, planes = make_patches(4)
    features = torch.zeros(B, 1, 40, 30, 20)
    lifted = lift_patches(patches, planes, features.bfloat16(), CROP_BOX)
    assert torch.equal(lifted, lift_patches(patches, planes, features, CROP_BOX))


def test_lift_keeps_the_type_and_passes_gradient():
    patches, planes = make_patches(2)
    features = torch.zeros(B, 1, X, Y, Z)
    low = lift_patches(patches.bfloat16(), planes, features.bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(
        low.float(), lift_patches(patches, planes, features), rtol=0, atol=0.05
    )
    patches.requires_grad_()
    lift_patches(patches, planes, torch.zeros(B, 1, 12, 12, 12)).square().sum().backward()
    assert patches.grad.flatten(2).any(dim=2).all()
