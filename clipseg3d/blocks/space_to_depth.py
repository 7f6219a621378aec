"""Rearranging cubes of voxels into channels, and back."""

from einops import rearrange
from torch import Tensor


def space_to_depth(volume: Tensor, cube: int) -> Tensor:
    """Turn (b, c, x, y, z) into (b, c cube^3, x/cube, y/cube, z/cube); cube is the edge length."""
    return rearrange(volume, "b c (x i) (y j) (z k) -> b (c i j k) x y z", i=cube, j=cube, k=cube)


def depth_to_space(cubes: Tensor, cube: int) -> Tensor:
    """Turn (b, c cube^3, x, y, z) into (b, c, x cube, y cube, z cube)."""
    return rearrange(cubes, "b (c i j k) x y z -> b c (x i) (y j) (z k)", i=cube, j=cube, k=cube)
