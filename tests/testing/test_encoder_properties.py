"""Mirrors clipseg3d/testing/encoder_properties.py: our encoders pass, and bad ones do not."""

import pytest
import torch

from clipseg3d.clip import load_encoder
from clipseg3d.testing import check_clip_encoder, check_text_encoder

pytestmark = pytest.mark.filterwarnings("ignore:the weights of the tiny CLIP are random")


@pytest.mark.parametrize("name", ["tiny", "tiny-random"])
def test_our_encoders_have_the_properties(name):
    check_clip_encoder(load_encoder(name))


class Wrapped:
    """An encoder with one fault."""

    def __init__(self, encoder, fault):
        self.encoder, self.fault = encoder, fault

    def __getattr__(self, name):
        return getattr(self.encoder, name)

    def encode_text(self, texts):
        vectors = self.encoder.encode_text(texts)
        if self.fault == "length":
            return 2 * vectors
        if self.fault == "constant":
            return vectors[:1].expand(len(texts), -1)
        if self.fault == "mixes":
            return torch.nn.functional.normalize(vectors - 0.5 * vectors.mean(dim=0), dim=1)
        return vectors

    def encode_image(self, images):
        vectors = self.encoder.encode_image(images)
        return vectors.detach() if self.fault == "gradient" else vectors

    def fingerprint(self):
        return "none" if self.fault == "fingerprint" else self.encoder.fingerprint()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("length", "not of length 1"),
        ("constant", "same vector"),
        ("mixes", "depends on the texts beside it"),
        ("fingerprint", "64 hexadecimal digits"),
    ],
)
def test_a_fault_of_texts_is_found(tiny_clip, fault, message):
    with pytest.raises(AssertionError, match=message):
        check_text_encoder(Wrapped(tiny_clip, fault))


def test_a_fault_of_images_is_found(tiny_clip):
    with pytest.raises((AssertionError, RuntimeError), match=r"gradient|does not require grad"):
        check_clip_encoder(Wrapped(tiny_clip, "gradient"))
