"""Text-first sequential cross-attention between tokens and voxels."""

from einops import parse_shape, rearrange
from torch import Tensor, nn

from clipseg3d.blocks.positions import voxel_positions
from clipseg3d.blocks.zero_init import zero_init


class SequentialCrossAttention(nn.Module):
    """Tokens read the voxels, then the voxels read the result; a new block changes nothing.

    Let t be the tokens and z the voxels, projected and with their position in the brain added. With
    ``r = LayerNorm(t + MHA(t, z, z))``, the block adds ``W MHA(z, r, r)`` to the features; W starts
    at zero.

    Args:
        channels: voxel channels c.
        dim: token channels d, also those of the attention.
        num_heads: attention heads; must divide ``dim``.
        dropout: dropout rate of attention weights, in training only.

    Raises:
        ValueError: ``dim`` is not divisible by ``num_heads``.

    Source: TextBraTS (Shi et al., MICCAI 2025, https://arxiv.org/abs/2506.16784), sequential
    cross-attention with text as the first query. Differs: the result is added to the features
    through a zero-initialised layer; voxels get their position, since reports name positions.
    """

    def __init__(
        self, channels: int, dim: int, *, num_heads: int = 8, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim={dim} is not divisible by num_heads={num_heads}")
        self.norm = nn.LayerNorm(channels)
        self.project = nn.Linear(channels, dim)
        self.position = nn.Linear(3, dim)
        self.read = nn.MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True)
        self.read_norm = nn.LayerNorm(dim)
        self.write = nn.MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True)
        self.out = nn.Linear(dim, channels)
        zero_init(self.out)

    def forward(
        self, features: Tensor, tokens: Tensor, token_mask: Tensor, crop_box: Tensor | None = None
    ) -> Tensor:
        """Return the updated features, (b, c, x, y, z).

        Args:
            features: (b, c, x, y, z) on a coarse grid: attention compares all voxels with all
                tokens.
            tokens: (b, n, d).
            token_mask: (b, n) bool, True for real tokens. The result of a case without any has no
                meaning.
            crop_box: (b, 2, 3) or (b, 4, 3) position of ``features`` in the brain box; None for
                all of it.
        """
        size = parse_shape(features, "_ _ x y z")
        positions = voxel_positions(features, crop_box)
        positions = rearrange(positions, "b three x y z -> b (x y z) three")
        voxels = self.norm(rearrange(features, "b c x y z -> b (x y z) c"))
        voxels = self.project(voxels) + self.position(positions)
        read, _ = self.read(tokens, voxels, voxels, need_weights=False)
        read = self.read_norm(tokens + read)
        has_no_token = ~token_mask.any(dim=1, keepdim=True)  # without any key: NaN
        written, _ = self.write(
            voxels,
            read,
            read,
            key_padding_mask=~(token_mask | has_no_token),
            need_weights=False,
        )
        update: Tensor = self.out(written)
        return features + rearrange(update, "b (x y z) c -> b c x y z", **size)
