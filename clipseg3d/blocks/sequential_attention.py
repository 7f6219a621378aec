"""Text-first sequential cross-attention between tokens and voxels."""

from einops import parse_shape, rearrange
from torch import Tensor, nn

from clipseg3d.blocks.positions import voxel_positions
from clipseg3d.blocks.zero_init import zero_init


class SequentialCrossAttention(nn.Module):
    """Tokens read the voxels, then the voxels read the result; a new block changes nothing.

    With t the tokens and z the voxels, projected and with their position in the brain added:
    ``r = MHA(t, z, z)``, ``z' = z + W MHA(z, r, r)``, W starting at zero.

    Args:
        channels: voxel channels c.
        dim: token channels d, also those of the attention.
        num_heads: attention heads; must divide ``dim``.
        dropout: share of attention weights dropped, in training only.

    Raises:
        ValueError: ``dim`` is not divisible by ``num_heads``.

    Source: TextBraTS (Shi et al., MICCAI 2025, https://arxiv.org/abs/2506.16784), sequential
    cross-attention with text as the first query. Differs: residual with a zero-initialised last
    layer, which its code lacks; voxels know their position, since reports name places.
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
        self, features: Tensor, tokens: Tensor, mask: Tensor, crop_box: Tensor | None = None
    ) -> Tensor:
        """Return the updated features, (b, c, x, y, z).

        Args:
            features: (b, c, x, y, z), of few voxels: attention weighs each against each token.
            tokens: (b, n, d).
            mask: (b, n) bool, True for real tokens. The result of a case without any has no
                meaning.
            crop_box: (b, 2, 3) where ``features`` lie in the brain box; None covers it.
        """
        size = parse_shape(features, "_ _ x y z")
        positions = voxel_positions(features, crop_box)
        positions = rearrange(positions, "b three x y z -> b (x y z) three")
        voxels = self.norm(rearrange(features, "b c x y z -> b (x y z) c"))
        voxels = self.project(voxels) + self.position(positions)
        read, _ = self.read(tokens, voxels, voxels, need_weights=False)
        no_token = ~mask.any(dim=1, keepdim=True)  # a softmax over no key at all would be NaN
        written, _ = self.write(
            voxels,
            *[self.read_norm(tokens + read)] * 2,
            key_padding_mask=~(mask | no_token),
            need_weights=False,
        )
        update: Tensor = self.out(written)
        return features + rearrange(update, "b (x y z) c -> b c x y z", **size)
