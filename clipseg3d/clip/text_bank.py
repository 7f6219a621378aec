"""Texts to embeddings, each text encoded once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from clipseg3d.clip.encoder import ClipEncoder
from clipseg3d.clip.prompts import region_prompts, split_sentences


class TextBank:
    """Turn reports into text tokens: one per region prompt, then one per sentence.

    A sentence that exceeds the encoder's window (77 tokens for OpenAI's CLIP) is cut between
    words into pieces that fit, so no sentence is dropped.

    Args:
        encoder: CLIP.
        regions: regions whose prompts come first, in this order.

    Raises:
        ValueError: a region has no prompt.
    """

    def __init__(self, encoder: ClipEncoder, regions: Sequence[str]) -> None:
        self.encoder = encoder
        self.prompts = [region_prompts(region) for region in regions]
        self._known: dict[str, Tensor] = {}

    def __call__(self, reports: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Embed one report per case; an empty string stands for none.

        Returns:
            Embeddings (b, n, e) on the CPU, n being the regions and the sentences of the longest
            report; and (b, n) bool, True for real tokens.
        """
        pieces = [self._pieces(report) for report in reports]
        self._learn([text for texts in [*self.prompts, *pieces] for text in texts])
        prompts = [
            torch.stack([self._known[t] for t in texts]).mean(dim=0) for texts in self.prompts
        ]
        rows = [torch.stack([*prompts, *(self._known[t] for t in texts)]) for texts in pieces]
        text = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(text.shape[1]) < lengths[:, None]
        return text, mask

    def _learn(self, texts: Sequence[str]) -> None:
        """Encode texts not seen before."""
        new = sorted(set(texts) - set(self._known))
        if new:
            self._known.update(zip(new, self.encoder.encode_text(new).cpu(), strict=True))

    def _pieces(self, report: str) -> list[str]:
        """Cut a report into sentences, and sentences that are too long into runs of words."""
        pieces = []
        for sentence in split_sentences(report):
            if self.encoder.count_tokens(sentence) <= self.encoder.max_tokens:
                pieces.append(sentence)
                continue
            run: list[str] = []
            for word in sentence.split():
                if run and self.encoder.count_tokens(" ".join([*run, word])) > (
                    self.encoder.max_tokens
                ):
                    pieces.append(" ".join(run))
                    run = []
                run.append(word)
            pieces.append(" ".join(run))
        return pieces
