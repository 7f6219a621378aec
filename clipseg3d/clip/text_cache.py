"""Text embeddings in a file, so that no machine has to encode the texts again."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from clipseg3d.atomic_write import atomic_write
from clipseg3d.checksums import sha256_of_tensors

_FORMAT = "clipseg3d-texts-1"


@dataclass(frozen=True)
class TextCache:
    """Embeddings of texts by one encoder.

    The file is a safetensors file: ``embeddings`` (n, e) float32, and as metadata the format, the
    encoder's name and fingerprint, the texts as a JSON list, and a check sum of texts and
    embeddings, which older files lack.

    Attributes:
        encoder: name of the encoder.
        sha256: its fingerprint.
        embeddings: text -> embedding (e,) float32.
    """

    encoder: str
    sha256: str
    embeddings: dict[str, Tensor]

    @classmethod
    def load(cls, path: str | Path) -> "TextCache":
        """Read a file that :meth:`save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, of another kind or format, or holds NaN or infinity.
        """
        path = Path(path)
        cure = "make it again with 'clipseg3d embed-text'"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; {cure}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                file_format = metadata.get("format", "no format")
                if file_format != _FORMAT:
                    raise ValueError(f"{file_format!r}, expected {_FORMAT!r}")
                embeddings = file.get_tensor("embeddings")
            texts = json.loads(metadata["texts"])
            encoder, sha256 = metadata["encoder"], metadata["sha256"]
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise ValueError("texts are not a list of texts")
            if len(set(texts)) < len(texts):
                raise ValueError("a text occurs twice")
            if not embeddings.is_floating_point():
                raise ValueError(f"embeddings are {embeddings.dtype}, not floating point")
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise ValueError(f"{path}: not a file of text embeddings ({error}); {cure}") from error
        if embeddings.ndim != 2 or embeddings.shape[0] != len(texts):
            raise ValueError(
                f"{path}: embeddings of shape {tuple(embeddings.shape)} for {len(texts)} texts; "
                f"{cure}"
            )
        not_finite = (~torch.isfinite(embeddings).all(dim=1)).nonzero().flatten().tolist()
        if not_finite:
            raise ValueError(
                f"{path}: the embedding of {texts[not_finite[0]]!r} holds NaN or infinity; {cure}"
            )
        embeddings = embeddings.float()
        if metadata.get("checksum", "") not in ("", _checksum(texts, embeddings)):
            raise ValueError(f"{path}: damaged (its check sum is wrong); {cure}")
        return cls(encoder, sha256, dict(zip(texts, embeddings, strict=True)))

    def save(self, path: str | Path) -> None:
        """Write the file; its folder is made if missing. Readers never see an incomplete file."""
        path = Path(path)
        texts = list(self.embeddings)
        embeddings = torch.stack(list(self.embeddings.values())).float()
        content = save(
            {"embeddings": embeddings},
            metadata={
                "format": _FORMAT,
                "encoder": self.encoder,
                "sha256": self.sha256,
                "texts": json.dumps(texts),
                "checksum": _checksum(texts, embeddings),
            },
        )
        with atomic_write(path) as tmp:
            tmp.write_bytes(content)


def _checksum(texts: list[str], embeddings: Tensor) -> str:
    """Return the check sum of texts and embeddings."""
    return sha256_of_tensors({json.dumps(texts): embeddings})
