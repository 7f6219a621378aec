"""Texts that were embedded in advance, without the encoder that embedded them."""

from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from clipseg3d.clip.registry import register
from clipseg3d.clip.text_cache import TextCache

_PREFIX = "texts"


class CachedTexts:
    """The texts of a file of :class:`clipseg3d.clip.TextCache`, as a text encoder.

    Its fingerprint is that of the encoder which made the file, so that either can stand in for the
    other. It has no images: a network takes it as ``text_encoder``, beside a CLIP.

    Reports are cut into chunks as they are in the file. There is no tokenizer in it, so that texts
    are counted as 1 if the file has them, or a longer one which begins with them, and as 2 if not.

    Args:
        path: file written by :meth:`clipseg3d.clip.TextBank.save` or ``clipseg3d embed-text``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds no text.
    """

    max_tokens = 1

    def __init__(self, path: str | Path) -> None:
        cache = TextCache.load(path)
        if not cache.embeddings:
            raise ValueError(f"{path}: holds no text; make it again with 'clipseg3d embed-text'")
        self.name = f"{_PREFIX}:{path}"
        self.embed_dim = len(next(iter(cache.embeddings.values())))
        self._path, self._cache = path, cache
        self._sorted = sorted(cache.embeddings)
        self._lengths = sorted({len(text) for text in cache.embeddings if text})

    def count_tokens(self, text: str) -> int:
        """Return 1 if the file has a text that begins like this, 2 if this begins like one of it.

        Raises:
            ValueError: neither.
        """
        index = bisect_left(self._sorted, text)
        if index < len(self._sorted) and self._sorted[index].startswith(text):
            return 1
        if any(text[:length] in self._cache.embeddings for length in self._lengths):
            return 2
        raise self._unknown(text)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of n texts (n, e).

        Raises:
            ValueError: the file does not have one of them.
        """
        for text in texts:
            if text not in self._cache.embeddings:
                raise self._unknown(text)
        return torch.stack([self._cache.embeddings[text] for text in texts])

    def fingerprint(self) -> str:
        """Return that of the encoder which made the file."""
        return self._cache.sha256

    def _unknown(self, text: str) -> ValueError:
        """Return the error for a text that the file does not have."""
        return ValueError(
            f"{self._path}: holds no embedding of {text!r}; embed all texts again with "
            f"'clipseg3d embed-text --encoder {self._cache.encoder}'"
        )


def load_cached_texts(path: str, *, local_files_only: bool = False) -> CachedTexts:
    """Open a file of embedded texts.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no file is named, or it is damaged.
    """
    if not path:
        raise ValueError(f"encoder {_PREFIX!r} names no file; give {_PREFIX}:FILE")
    return CachedTexts(path)


register(_PREFIX, load_cached_texts)
