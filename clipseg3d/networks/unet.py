"""The 3D U-Net with attention: the backbone of CLIPSeg3D, and without it a baseline."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clipseg3d.blocks.attention_gate import AttentionGate
from clipseg3d.blocks.nested_regions import NestedRegions
from clipseg3d.blocks.pointwise_conv import PointwiseConv3d
from clipseg3d.blocks.residual_block import ResidualBlock
from clipseg3d.blocks.space_to_depth import depth_to_space, space_to_depth
from clipseg3d.blocks.voxel_refinement import VoxelRefinement


class UNet3D(nn.Module):
    """Residual 3D U-Net with CBAM, attention-gated skips and deep supervision, each optional.

    Level 0 is the stem's grid; each further level halves it. The last level is the bottleneck. An
    input of any size is padded with zeros to multiples of ``self.multiple``, and its logits are
    cropped back; along at least one axis it must be longer than that. With every option off this
    is a plain residual 3D U-Net.

    Args:
        in_channels: channels of the image, extra ones included.
        out_channels: channels of the logits; with the nested head, from the outermost region to
            the innermost.
        channels: feature channels per level, two levels or more.
        space_to_depth: edge n of the cubes of voxels that the stem turns into n^3 channels, and the
            head back into voxels, so that no convolution runs at full resolution; 1 for none.
        refinement: hidden channels of a light head that reads the voxels of each cube again; see
            :class:`~clipseg3d.blocks.voxel_refinement.VoxelRefinement`. 0 builds none.
        cbam: channel and spatial attention in every block.
        attention_skips: attention gates on skip connections.
        num_auxiliary: decoder levels below level 0 that have heads for deep supervision.
        dropout: share of channels dropped in every block, in training only.
        extra_channels: how many of the last channels of the image start with weights of zero, so
            that a new network computes what it would without them.
        head: ``"sigmoid"`` for independent regions, ``"nested"`` for
            :class:`~clipseg3d.blocks.nested_regions.NestedRegions`, at every level.
        head_norm: instance normalisation of the decoder features of level 0, before the head.
        checkpointing: recompute every block in the backward pass instead of keeping its
            activations: the same training in less memory and more time.

    Attributes:
        channels: as given; ``channels[0]`` is the width of decoder level 0, ``channels[-1]`` that
            of the bottleneck.
        multiple: the input is padded to multiples of this.

    Raises:
        ValueError: fewer than two levels, ``space_to_depth`` is not 1, 2, 4 or 8, a
            ``refinement`` without it, more ``num_auxiliary`` than decoder levels below level 0,
            ``extra_channels`` leave no other channel, or the head is unknown.

    Source: arXiv 2507.09966, feature-level fusion, with 32-64-128-256-512 channels; the
    space-to-depth stem is ours.

    Example:
        >>> import torch
        >>> unet = UNet3D(channels=(8, 16, 32), num_auxiliary=1)
        >>> unet(torch.rand(1, 4, 40, 48, 36)).shape
        torch.Size([1, 3, 40, 48, 36])
    """

    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 3,
        *,
        channels: Sequence[int] = (32, 64, 128, 256, 512),
        space_to_depth: int = 1,
        refinement: int = 0,
        cbam: bool = True,
        attention_skips: bool = True,
        num_auxiliary: int = 2,
        dropout: float = 0.0,
        extra_channels: int = 0,
        head: Literal["sigmoid", "nested"] = "sigmoid",
        head_norm: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if len(channels) < 2:
            raise ValueError(f"channels={tuple(channels)} has fewer than two levels; give more")
        if space_to_depth not in (1, 2, 4, 8):
            raise ValueError(
                f"space_to_depth={space_to_depth} is not 1, 2, 4 or 8; give one of them"
            )
        if refinement and space_to_depth == 1:
            raise ValueError(
                f"refinement={refinement} reads the voxels of space_to_depth cubes, and "
                "space_to_depth=1 makes none; set space_to_depth=2, or leave refinement at 0"
            )
        if not 0 <= num_auxiliary <= len(channels) - 2:
            raise ValueError(
                f"num_auxiliary={num_auxiliary} is not in 0..{len(channels) - 2}, since "
                f"channels={tuple(channels)} have so many decoder levels below level 0"
            )
        if not 0 <= extra_channels < in_channels:
            raise ValueError(
                f"extra_channels={extra_channels} is not in 0..{in_channels - 1}; "
                f"in_channels={in_channels} counts them"
            )
        if head not in ("sigmoid", "nested"):
            raise ValueError(f"head={head!r}: choose 'sigmoid' or 'nested'")
        self.channels = tuple(channels)
        self.space_to_depth = space_to_depth
        self.checkpointing = checkpointing
        self.multiple = space_to_depth * 2 ** (len(channels) - 1)
        widths = [in_channels * space_to_depth**3, *channels]
        self.encoder = nn.ModuleList(
            ResidualBlock(
                widths[level], width, stride=1 if level == 0 else 2, cbam=cbam, dropout=dropout
            )
            for level, width in enumerate(channels)
        )
        # Decoder parts are numbered as levels are: index 0 has the finest grid.
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(below, width, 2, stride=2) for width, below in pairwise(channels)
        )
        self.gates = nn.ModuleList(
            AttentionGate(width, width) if attention_skips else PlainSkip()
            for width in channels[:-1]
        )
        self.decoder = nn.ModuleList(
            ResidualBlock(2 * width, width, cbam=cbam, dropout=dropout) for width in channels[:-1]
        )
        heads = [
            PointwiseConv3d(width, out_channels * (space_to_depth**3 if level == 0 else 1))
            for level, width in enumerate(channels[: 1 + num_auxiliary])
        ]
        self.heads = nn.ModuleList(heads)
        self.head_norm = nn.InstanceNorm3d(channels[0], affine=True) if head_norm else nn.Identity()
        self.nest = NestedRegions() if head == "nested" else nn.Identity()
        extra = extra_channels * space_to_depth**3
        if extra:  # a shortcut without weights could not start at zero
            self.encoder[0].shortcut = PointwiseConv3d(widths[0], channels[0], bias=False)
        self.apply(_initialise)
        _equalise_cubes(heads[0], space_to_depth**3)
        if extra:
            _zero_last_inputs(self.encoder[0], extra)
        self.refine: VoxelRefinement | None = None
        if refinement:  # initialised last: all other weights start as they would without it
            self.refine = VoxelRefinement(
                in_channels, out_channels, hidden=refinement, cube=space_to_depth
            )
            self.refine.apply(_initialise)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (b, out_channels, x, y, z) for an image (b, in_channels, x, y, z)."""
        features = self.head_input(self.decode(self.encode(image)))
        return self.finish_logits(self.head_logits(features), image)

    def encode(self, image: Tensor) -> list[Tensor]:
        """Pad the image and return the features of every level, the bottleneck last.

        Raises:
            ValueError: the bottleneck would be a single voxel, which has no variance to normalise.
        """
        if max(image.shape[2:]) <= self.multiple:
            raise ValueError(
                f"an image of {tuple(image.shape[2:])} voxels is one voxel at the bottleneck; "
                f"give more than {self.multiple} voxels along an axis, or a network of fewer levels"
            )
        features = space_to_depth(self._pad(image), self.space_to_depth)
        levels = []
        for block in self.encoder:
            features = self._run(block, features)
            levels.append(features)
        return levels

    def decode(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Return the decoder features of every level, level 0 first, from :meth:`encode`'s."""
        features = levels[-1]
        decoded = []
        for level in reversed(range(len(self.decoder))):
            features = self.up[level](features)
            joined = torch.cat([features, self.gates[level](levels[level], features)], dim=1)
            del features  # the next block needs the most memory of all
            features = self._run(self.decoder[level], joined)
            decoded.append(features)
        return decoded[::-1]

    def head_input(self, decoded: Sequence[Tensor]) -> Tensor:
        """Return the input of the head, (b, channels[0], x, y, z) on the stem's grid."""
        features: Tensor = self.head_norm(decoded[0])
        return features

    def head_logits(self, features: Tensor) -> Tensor:
        """Return raw logits for :meth:`head_input`, on the padded grid of the image.

        Terms are added to the logits at this stage, before :meth:`finish_logits`.
        """
        return depth_to_space(self.heads[0](features), self.space_to_depth)

    def finish_logits(self, raw: Tensor, image: Tensor) -> Tensor:
        """Refine raw logits, crop them to the image's grid, and nest their regions."""
        if self.refine is not None:
            raw = self.refine(raw, self._pad(image))
        logits: Tensor = self.nest(crop_like(raw, image))
        return logits

    def _pad(self, image: Tensor) -> Tensor:
        """Append zeros up to multiples of ``self.multiple``."""
        return F.pad(
            image, [p for size in reversed(image.shape[2:]) for p in (0, -size % self.multiple)]
        )

    def auxiliary_logits(self, decoded: Sequence[Tensor]) -> list[Tensor]:
        """Return logits for deep supervision on the padded grids of the lower levels."""
        return [
            self.nest(head(features))
            for head, features in zip(list(self.heads)[1:], list(decoded)[1:], strict=False)
        ]

    def _run(self, block: nn.Module, features: Tensor) -> Tensor:
        """Run an encoder or decoder block, with checkpointing if it is on and in training."""
        out: Tensor = (
            checkpoint(block, features, use_reentrant=False)
            if self.checkpointing and self.training
            else block(features)
        )
        return out


class PlainSkip(nn.Module):
    """A skip connection without a gate; takes what :class:`AttentionGate` takes."""

    def forward(self, skip: Tensor, gate: Tensor) -> Tensor:
        """Return the skip as it is."""
        return skip


def crop_like(volume: Tensor, image: Tensor) -> Tensor:
    """Cut off the padding after the image's last voxels."""
    x, y, z = image.shape[2:]
    return volume[..., :x, :y, :z]


@torch.no_grad()
def _equalise_cubes(head: nn.Conv3d, cube: int) -> None:
    """Give all voxels of a cube the same initial weights, against checkerboard artefacts.

    Source: Aitken et al., ICNR, 2017, https://arxiv.org/abs/1707.02937.
    """
    first = head.weight[::cube]
    head.weight.copy_(repeat(first, "r c x y z -> (r cube) c x y z", cube=cube))


def _initialise(module: nn.Module) -> None:
    """Apply the paper's Kaiming initialisation; weights that are zero stay so."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d) and module.weight.any():
        nn.init.kaiming_normal_(module.weight, a=0.01, nonlinearity="leaky_relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@torch.no_grad()
def _zero_last_inputs(block: nn.Module, columns: int) -> None:
    """Let the first block start as it would without its last input channels."""
    shortcut = block.get_parameter("shortcut.weight")
    if shortcut.shape[1] - columns == shortcut.shape[0]:
        nn.init.dirac_(shortcut)  # without these channels, the shortcut would be an identity
    for weight in (block.get_parameter("residual.0.weight"), shortcut):
        weight[:, -columns:] = 0
