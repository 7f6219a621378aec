"""Embeddings of prompts and reports; each text is encoded once."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from clipseg3d.clip.encoder import TextEncoder
from clipseg3d.clip.prompts import region_prompts, split_sentences
from clipseg3d.clip.text_cache import TextCache

MAX_KEPT = 20_000
"""Embeddings in memory; in training with written reports, almost every text is new."""


class TextBank:
    """Turn reports into text tokens: one per region prompt, then one per chunk of the report.

    A chunk holds as many whole sentences as the encoder reads at once (77 tokens for OpenAI's
    CLIP), or one. A longer sentence is cut between words, a longer word between characters: nothing
    of a report is dropped.

    Args:
        encoder: CLIP, or another encoder of texts.
        regions: regions whose prompts come first, in this order.
        prompts: region -> prompt; regions that are not in it have the library's own.
        cache: file written by :meth:`save` or ``clipseg3d embed-text``. Texts in it are not
            encoded again; others are encoded when they are first used, and kept in memory.
        by_sentence: whether every sentence is a chunk of its own.

    Raises:
        FileNotFoundError: there is no such cache.
        ValueError: the cache is damaged, or of another encoder.

    Example:
        >>> from clipseg3d.clip.registry import load_encoder
        >>> bank = TextBank(load_encoder("tiny"), ["WT", "TC", "ET"])
        >>> text, mask = bank(["A lesion in the left frontal lobe.", ""])
        >>> mask.tolist()  # three prompts, then the report
        [[True, True, True, True], [True, True, True, False]]
    """

    def __init__(
        self,
        encoder: TextEncoder,
        regions: Sequence[str],
        *,
        prompts: Mapping[str, str] | None = None,
        cache: str | Path | None = None,
        by_sentence: bool = False,
    ) -> None:
        self.encoder = encoder
        self.by_sentence = by_sentence
        own = prompts or {}
        self.prompts = [region_prompts(region, own.get(region)) for region in regions]
        self._embeddings: dict[str, Tensor] = {}
        if cache is not None:
            self._embeddings = _read_cache(cache, encoder)

    def __call__(self, reports: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Embed one report per case; an empty string stands for none.

        Returns:
            Embeddings (b, n, e) on the CPU, where n counts the regions and the chunks of the
            longest report; and (b, n) bool, True for real tokens.

        Raises:
            ValueError: a report is no string; the encoder makes NaN or infinity of a text.
        """
        chunks = self._all_chunks(reports)
        self._encode([text for texts in [*self.prompts, *chunks] for text in texts])
        prompts = [
            torch.stack([self._embeddings[t] for t in texts]).mean(dim=0) for texts in self.prompts
        ]
        rows = [torch.stack([*prompts, *(self._embeddings[t] for t in texts)]) for texts in chunks]
        text = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(text.shape[1]) < lengths[:, None]
        return text, mask

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embed texts that are not about a case, such as prompts, as unit vectors (n, e).

        Of a text that is longer than the encoder reads at once, the mean of its chunks is taken.

        Raises:
            ValueError: a text is empty or no string; the encoder makes NaN or infinity of one.
        """
        chunks = self._all_chunks(texts)
        for index, (text, parts) in enumerate(zip(texts, chunks, strict=True)):
            if not parts:
                raise ValueError(f"text {index} is {text!r}; write what it should say")
        self._encode([part for parts in chunks for part in parts])
        means = [torch.stack([self._embeddings[p] for p in parts]).mean(dim=0) for parts in chunks]
        return torch.nn.functional.normalize(torch.stack(means), dim=-1)

    def chunks(self, report: str) -> list[str]:
        """Cut a report into texts that the encoder can read completely, in order.

        Raises:
            ValueError: not even one character fits in the encoder's limit.
        """
        sentences = split_sentences(report)
        if self.by_sentence:
            return [chunk for sentence in sentences for chunk in self._pack([sentence], " ")]
        return self._pack(sentences, " ")

    def save(self, path: str | Path, reports: Sequence[str]) -> int:
        """Embed prompts and reports, and write them as a file for ``cache``.

        Args:
            path: file to write; its folder is made if missing.
            reports: as for calling the bank.

        Returns:
            The number of texts in the file.

        Raises:
            ValueError: as for calling the bank.
        """
        chunks = self._all_chunks(reports)
        texts = dict.fromkeys(text for group in [*self.prompts, *chunks] for text in group)
        self._encode(list(texts))
        embeddings = {text: self._embeddings[text] for text in texts}
        TextCache(self.encoder.name, self.encoder.fingerprint(), embeddings).save(path)
        return len(embeddings)

    def _all_chunks(self, reports: Sequence[str]) -> list[list[str]]:
        """Return the chunks of each report."""
        if isinstance(reports, str):  # which is a sequence of strings too, one per character
            raise ValueError("reports is one str; give a list with one report per case")
        for index, report in enumerate(reports):
            if not isinstance(report, str):
                raise ValueError(
                    f"report {index} is a {type(report).__name__}, expected a str; "
                    "an empty string stands for no report"
                )
        return [self.chunks(report) for report in reports]

    def _encode(self, texts: Sequence[str]) -> None:
        """Encode texts that have no embedding yet.

        One at a time: in a batch, the last digits of an embedding depend on its neighbours, and a
        case must not depend on the case before it.
        """
        for text in dict.fromkeys(texts):
            if text in self._embeddings:  # the newest last
                self._embeddings[text] = self._embeddings.pop(text)
                continue
            vector = self.encoder.encode_text([text])[0].cpu()
            if not torch.isfinite(vector).all():
                raise ValueError(
                    f"encoder {self.encoder.name!r} makes NaN or infinity of the text {text!r}; "
                    "check its weights"
                )
            self._embeddings[text] = vector
        needed = set(texts)
        for text in list(self._embeddings)[: max(0, len(self._embeddings) - MAX_KEPT)]:
            if text not in needed:
                del self._embeddings[text]

    def _pack(self, parts: Sequence[str], joiner: str) -> list[str]:
        """Join neighbouring parts while they fit in one chunk; cut those that are too long."""
        pieces, chunks, start = list(parts), list[str](), 0
        while start < len(pieces):
            count = self._num_fitting(pieces, start, joiner)
            if count:
                chunks.append(joiner.join(pieces[start : start + count]))
                start += count
            else:
                pieces[start : start + 1] = self._cut(pieces[start])
        return chunks

    def _cut(self, text: str) -> list[str]:
        """Cut a text that exceeds the limit between words, or a word between characters."""
        words = text.split()
        if len(words) > 1:
            return self._pack(words, " ")
        if len(text) == 1:
            raise ValueError(
                f"{text!r} alone exceeds max_tokens={self.encoder.max_tokens} of encoder "
                f"{self.encoder.name!r}; use an encoder that reads longer texts"
            )
        return self._pack(text, "")

    def _num_fitting(self, parts: Sequence[str], start: int, joiner: str) -> int:
        """Return how many parts from ``start`` on fit in one chunk together; 0 if none does.

        A search by doubling, then bisection: few texts are tokenised, and every chunk that is
        returned is among them.
        """

        def fits(count: int) -> bool:
            text = joiner.join(parts[start : start + count])
            return self.encoder.count_tokens(text) <= self.encoder.max_tokens

        remaining = len(parts) - start
        low, high = 0, 1
        while high <= remaining and fits(high):
            low, high = high, 2 * high
        high = min(high, remaining + 1)
        while high - low > 1:
            middle = (low + high) // 2
            if fits(middle):
                low = middle
            else:
                high = middle
        return low


def _read_cache(path: str | Path, encoder: TextEncoder) -> dict[str, Tensor]:
    """Return the embeddings in a file, which this encoder must have made."""
    cache = TextCache.load(path)
    sha256 = encoder.fingerprint()
    if cache.sha256 != sha256:
        raise ValueError(
            f"{path}: made by encoder {cache.encoder!r} (SHA-256 {cache.sha256[:12]}...), not by "
            f"{encoder.name!r} ({sha256[:12]}...); make it again with 'clipseg3d embed-text "
            f"--encoder {encoder.name}'"
        )
    width = next((len(embedding) for embedding in cache.embeddings.values()), encoder.embed_dim)
    if width != encoder.embed_dim:
        raise ValueError(
            f"{path}: embeddings of {width} numbers, but those of {encoder.name!r} have "
            f"{encoder.embed_dim}; make it again with 'clipseg3d embed-text'"
        )
    return cache.embeddings
