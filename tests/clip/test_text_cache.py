"""Mirrors clipseg3d/clip/text_cache.py."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from clipseg3d.clip.text_cache import TextCache

TEXTS = ["left lesion", 'quoted "text", 左额叶', "🧠\n", "\ud83e"]
E = 5


@pytest.fixture
def cache():
    vectors = torch.randn(len(TEXTS), E, generator=torch.Generator().manual_seed(0))
    return TextCache("some/encoder", "0f" * 32, dict(zip(TEXTS, vectors, strict=True)))


@pytest.fixture
def path(cache, tmp_path):
    cache.save(tmp_path / "texts.safetensors")
    return tmp_path / "texts.safetensors"


def write(path, *, embeddings=None, **changes):
    """Write a file as the library would, save for some changes."""
    metadata = {
        "format": "clipseg3d-texts-1",
        "encoder": "some/encoder",
        "sha256": "0f" * 32,
        "texts": json.dumps(["one", "two"]),
    } | changes
    embeddings = torch.ones(2, E) if embeddings is None else embeddings
    save_file({"embeddings": embeddings}, path, metadata={k: v for k, v in metadata.items() if v})


def test_round_trip(cache, path):
    loaded = TextCache.load(str(path))
    assert (loaded.encoder, loaded.sha256) == (cache.encoder, cache.sha256)
    assert list(loaded.embeddings) == TEXTS
    for text in TEXTS:
        assert torch.equal(loaded.embeddings[text], cache.embeddings[text])


def test_file_can_be_read_without_this_library(path):
    with safe_open(path, framework="pt") as file:
        assert file.get_tensor("embeddings").shape == (len(TEXTS), E)
        assert file.get_tensor("embeddings").dtype == torch.float32
        assert json.loads(file.metadata()["texts"]) == TEXTS


def test_folder_is_made_and_nothing_else_is_left(cache, tmp_path):
    path = tmp_path / "a" / "b" / "texts.safetensors"
    cache.save(path)
    cache.save(path)
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file(cache, path, monkeypatch):
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space left"):
        cache.save(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone: no such file.*clipseg3d embed-text"):
        TextCache.load(tmp_path / "gone")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_truncated_file_is_refused(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"texts.safetensors: not a file of text embeddings"):
        TextCache.load(path)


@pytest.mark.parametrize("content", [b"hello", b"\x80\x04" * 500, b'{"a": [1]}'])
def test_foreign_file_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"texts.safetensors: not a file.*clipseg3d embed-text"):
        TextCache.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": None}, "'no format', expected 'clipseg3d-texts-1'"),
        ({"format": "clipseg3d-texts-2"}, "'clipseg3d-texts-2', expected 'clipseg3d-texts-1'"),
        ({"encoder": None}, "not a file of text embeddings"),
        ({"sha256": None}, "not a file of text embeddings"),
        ({"texts": None}, "not a file of text embeddings"),
        ({"texts": "[1, "}, "not a file of text embeddings"),
        ({"texts": '["one"]'}, r"embeddings of shape \(2, 5\) for 1 texts"),
        ({"embeddings": torch.ones(2)}, r"embeddings of shape \(2,\) for 2 texts"),
        ({"embeddings": torch.ones(3, E)}, r"embeddings of shape \(3, 5\) for 2 texts"),
        (
            {"embeddings": torch.tensor([[1.0, 1], [1, torch.nan]])},
            "the embedding of 'two' holds NaN",
        ),
        (
            {"embeddings": torch.tensor([[1, torch.inf], [1.0, 1]])},
            "the embedding of 'one' holds NaN",
        ),
    ],
)
def test_inconsistent_file_is_refused(path, changes, message):
    write(path, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        TextCache.load(path)
    assert str(path) in str(caught.value)
    assert "clipseg3d embed-text" in str(caught.value)


def test_a_plain_safetensors_file_is_refused(path):
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="not a file of text embeddings"):
        TextCache.load(path)


def test_a_changed_number_is_noticed(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged \\(its check sum is wrong\\); make it again"):
        TextCache.load(path)
