"""Cubes of voxels as channels, and back."""

from einops import rearrange
from torch import Tensor


def space_to_depth(volume: Tensor, cube: int) -> Tensor:
    """Return (b, c cube^3, x/cube, y/cube, z/cube) for (b, c, x, y, z): cubes become channels."""
    return rearrange(volume, "b c (x i) (y j) (z k) -> b (c i j k) x y z", i=cube, j=cube, k=cube)


def depth_to_space(cubes: Tensor, cube: int) -> Tensor:
    """Undo :func:`space_to_depth`."""
    return rearrange(cubes, "b (c i j k) x y z -> b c (x i) (y j) (z k)", i=cube, j=cube, k=cube)
