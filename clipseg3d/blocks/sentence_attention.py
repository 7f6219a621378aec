"""Regions read the sentences of a report: each picks those that are about it."""

import math

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor, nn

from clipseg3d.blocks.zero_init import zero_init


class SentenceAttention(nn.Module):
    """Return for each region what the sentences of a report say about it.

    Every region has a query, every sentence a key. A key without a sentence takes the attention of
    a region that no sentence is about, so that unrelated sentences, and the length of a report,
    change nothing. New weights return zeros.

    Args:
        dim: semantic channels d.
        num_regions: regions r.

    Example:
        >>> import torch
        >>> attention = SentenceAttention(32, 3)
        >>> sentences, mask = torch.rand(2, 5, 32), torch.ones(2, 5, dtype=torch.bool)
        >>> text, evidence = attention(sentences, mask)
        >>> text.shape, evidence.shape, bool(text.any() or evidence.any())
        (torch.Size([2, 3, 32]), torch.Size([2, 3]), False)
    """

    def __init__(self, dim: int, num_regions: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(num_regions, dim))
        self.no_sentence = nn.Parameter(torch.zeros(dim))
        nn.init.normal_(self.query)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.evidence = nn.Linear(dim, num_regions, bias=False)
        zero_init(self.value)
        zero_init(self.evidence)

    def forward(self, sentences: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the text of each region (b, r, d), and evidence in log-odds (b, r).

        Args:
            sentences: (b, n, d); n may be 0.
            mask: (b, n) bool, True for real sentences.
        """
        count = len(sentences)
        keys = torch.cat([self.key(sentences), repeat(self.no_sentence, "d -> b 1 d", b=count)], 1)
        scores = einsum(self.query, keys, "r d, b n d -> b r n") / math.sqrt(keys.shape[-1])
        mask = torch.cat([mask, mask.new_ones(count, 1)], dim=1)
        scores = scores.masked_fill(~rearrange(mask, "b n -> b 1 n"), -torch.inf)
        weights = scores.softmax(dim=-1)[..., :-1]  # the key without a sentence has no value
        text = einsum(weights, self.value(sentences), "b r n, b n d -> b r d")
        evidence = einsum(weights, self.evidence(sentences), "b r n, b n r -> b r")
        return text, evidence
