"""Mirrors clipseg3d/clip/cached_texts.py."""

import pytest
import torch

from clipseg3d.clip import CachedTexts, TextBank, TextCache, load_encoder, load_text_encoder
from clipseg3d.networks import NetworkConfig, build_clipseg3d
from clipseg3d.testing import check_text_encoder
from clipseg3d.testing.encoder_properties import TEXTS

REGIONS = ("WT", "TC", "ET")
REPORTS = [
    "A mass in the left frontal lobe. Marked oedema around it.",
    "A mass in the left frontal lobe.",
    "No. Nothing " + "else " * 90 + "is seen. " + "x" * 300,
    "",
]


@pytest.fixture
def file(tiny_clip, tmp_path):
    """The reports, embedded by the tiny CLIP."""
    path = tmp_path / "texts.safetensors"
    TextBank(tiny_clip, REGIONS).save(path, REPORTS)
    return path


def test_every_report_has_the_tokens_of_its_encoder(tiny_clip, file):
    expected, mask = TextBank(tiny_clip, REGIONS)(REPORTS)
    assert mask.sum(dim=1).tolist()[2] > 5  # sentences, words and letters were cut
    text, own_mask = TextBank(load_text_encoder(f"texts:{file}"), REGIONS)(REPORTS)
    assert torch.equal(own_mask, mask)
    assert torch.equal(text, expected)


def test_it_stands_for_the_encoder_that_made_it(tiny_clip, file):
    texts = load_text_encoder(f"texts:{file}")
    assert texts.name == f"texts:{file}"
    assert texts.fingerprint() == tiny_clip.fingerprint()
    assert texts.embed_dim == tiny_clip.embed_dim
    TextBank(texts, REGIONS, cache=file)  # a file of the same encoder


@pytest.mark.parametrize(
    "report",
    [
        "A tumour on the right.",
        "A mass in the left frontal lobe. No oedema.",
        "A mass in the left frontal lobe. Marked oedema around it. Ring.",
        "A mass in the left",
    ],
)
def test_a_report_that_is_not_in_the_file_is_named(file, report):
    bank = TextBank(load_text_encoder(f"texts:{file}"), REGIONS)
    with pytest.raises(ValueError, match=r"texts.safetensors: holds no embedding of '") as caught:
        bank([report])
    message = str(caught.value)
    assert message.endswith("'clipseg3d embed-text --encoder tiny-random'")
    assert "\n" not in message
    assert any(part in message for part in report.split("."))


def test_it_reads_no_images(file):
    with pytest.raises(ValueError, match="reads texts and no images"):
        load_encoder(f"texts:{file}")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.safetensors: no such file"):
        load_text_encoder(f"texts:{tmp_path}/none.safetensors")
    with pytest.raises(ValueError, match="names no file; give texts:FILE"):
        load_text_encoder("texts")


def test_a_file_without_texts_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(TextCache, "load", lambda path: TextCache("one", "0" * 64, {}))
    with pytest.raises(ValueError, match="holds no text"):
        CachedTexts(tmp_path / "empty.safetensors")


def test_it_has_the_properties_of_an_encoder_for_texts_that_it_holds(tiny_clip, tmp_path):
    texts = [*TEXTS, "oedema", "oedema " * 2]
    vectors = tiny_clip.encode_text(texts)
    path = tmp_path / "texts.safetensors"
    embeddings = dict(zip(texts, vectors, strict=True))
    TextCache("tiny-random", tiny_clip.fingerprint(), embeddings).save(path)
    check_text_encoder(CachedTexts(path))


def test_a_network_reads_them_beside_its_clip(tiny_clip, file):
    config = NetworkConfig(
        channels=(4, 8), num_auxiliary=0, semantic_dim=16, num_heads=2, text_encoder=f"texts:{file}"
    )
    network = build_clipseg3d(config, encoder=tiny_clip)
    identities = network.encoder_identities()
    assert identities["text"] == {"name": f"texts:{file}", "sha256": tiny_clip.fingerprint()}
    text, _ = network.embed_text([REPORTS[0]])
    assert torch.equal(text, TextBank(tiny_clip, REGIONS)([REPORTS[0]])[0])
