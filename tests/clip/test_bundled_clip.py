"""Mirrors clipseg3d/clip/bundled_clip.py: the same as transformers, to the bit."""

import csv
import pickle
from pathlib import Path

import pytest
import torch

from clipseg3d.clip.bundled_clip import BundledCLIP
from clipseg3d.clip.hugging_face_clip import HuggingFaceCLIP
from clipseg3d.weights import BUNDLED

HELD_OUT = Path(__file__).parents[2] / "examples" / "held_out" / "development_sentences.csv"
ODD = [
    *("", " \t A  B\n", "3.5 cm; don't: naïve 中文", "<|endoftext|> and on", "<|startoftext|>"),
    "a ring " * 150,
]
"""Of no words, of signs that are no words, with special tokens, and longer than can be read."""


@pytest.fixture(scope="module", params=["tiny"])
def pair(request):
    """The same CLIP, by this library and by transformers."""
    folder = BUNDLED / request.param / "clip"
    return BundledCLIP(folder), HuggingFaceCLIP.from_pretrained(str(folder))


def test_weights_and_sizes_are_equal(pair):
    ours, theirs = pair
    assert ours.fingerprint() == theirs.fingerprint()
    for name in ("embed_dim", "max_tokens", "image_size", "frozen"):
        assert getattr(ours, name) == getattr(theirs, name)


def test_texts_are_embedded_alike(pair):
    ours, theirs = pair
    with HELD_OUT.open(encoding="utf-8") as file:
        texts = [*ODD, *(row[-1] for row in csv.reader(file))][:30]
    for text in texts:
        assert ours.count_tokens(text) == theirs.count_tokens(text)
        assert torch.equal(ours.encode_text([text]), theirs.encode_text([text])), text
    torch.testing.assert_close(ours.encode_text(texts), theirs.encode_text(texts))


@pytest.mark.parametrize("number", [1, 3, 8])
def test_images_and_patches_are_embedded_alike(pair, number):
    images = torch.rand(number, 3, 50, 70, generator=torch.Generator().manual_seed(number))
    (ours, our_patches), (theirs, their_patches) = (clip.encode_patches(images) for clip in pair)
    assert torch.equal(ours, theirs)
    assert torch.equal(our_patches, their_patches)
    assert torch.equal(ours, pair[0].encode_image(images))


def test_gradients_reach_images(pair):
    gradients = []
    for clip in pair:
        images = torch.full((2, 3, 96, 96), 0.5).requires_grad_()
        clip.encode_image(images)[:, 0].sum().backward()
        gradients.append(images.grad)
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0


def test_it_survives_pickling(pair):
    copy = pickle.loads(pickle.dumps(pair[0]))
    assert torch.equal(copy.encode_text(["a ring"]), pair[0].encode_text(["a ring"]))
