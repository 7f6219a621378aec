"""Text caches with values of other types are refused (case text_cache_values.py)."""

import json

import pytest
import torch
from safetensors.torch import save_file

from clipseg3d.clip.text_bank import TextBank
from clipseg3d.clip.text_cache import TextCache

TEXTS = ["one", "two"]


def write(path, embeddings, texts):
    metadata = {
        "format": "clipseg3d-texts-1",
        "encoder": "tiny-random",
        "sha256": "0f" * 32,
        "texts": json.dumps(texts),
    }
    save_file({"embeddings": embeddings}, path, metadata=metadata)
    return path


@pytest.mark.parametrize(
    ("embeddings", "texts", "reason"),
    [
        (torch.ones(2, 5).int(), TEXTS, r"embeddings are torch.int32, not floating point"),
        (torch.ones(2, 5).bool(), TEXTS, r"embeddings are torch.bool"),
        (torch.ones(2, 5), 5, "texts are not a list of texts"),
        (torch.ones(2, 5), "ab", "texts are not a list of texts"),
        (torch.ones(2, 5), {"one": 1, "two": 2}, "texts are not a list of texts"),
        (torch.ones(2, 5), [[text] for text in TEXTS], "texts are not a list of texts"),
        (torch.ones(2, 5), ["one", "one"], "a text occurs twice"),
    ],
)
def test_values_of_other_types_are_refused(tmp_path, embeddings, texts, reason):
    path = write(tmp_path / "t.safetensors", embeddings, texts)
    expected = rf"t.safetensors: not a file of text embeddings \({reason}.*; make it again with"
    with pytest.raises(ValueError, match=expected):
        TextCache.load(path)


def test_embeddings_of_another_width_are_refused(tmp_path, tiny_clip):
    path = tmp_path / "t.safetensors"
    width = tiny_clip.embed_dim
    vectors = dict(zip(TEXTS, torch.rand(2, width), strict=True))
    TextCache(tiny_clip.name, tiny_clip.fingerprint(), vectors).save(path)
    assert len(TextBank(tiny_clip, ["WT"], cache=path)._embeddings) == 2
    short = {text: vector[:7] for text, vector in vectors.items()}
    TextCache(tiny_clip.name, tiny_clip.fingerprint(), short).save(path)
    with pytest.raises(ValueError, match=rf"embeddings of 7 numbers, but those of .* have {width}"):
        TextBank(tiny_clip, ["WT"], cache=path)
