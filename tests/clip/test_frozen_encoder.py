"""Mirrors clipseg3d/clip/frozen_encoder.py; what it reads is tested with its two kinds."""

import hashlib

import pytest
import torch

from clipseg3d.clip.hugging_face_clip import HuggingFaceCLIP


def test_stays_in_evaluation_mode_and_out_of_checkpoints(tiny_clip):
    around = torch.nn.Sequential(torch.nn.Linear(2, 3), tiny_clip).train()
    assert around[0].training
    assert not any(module.training for module in tiny_clip.modules())
    assert sorted(around.state_dict()) == ["0.bias", "0.weight"]
    assert tiny_clip.state_dict() == {}
    around.load_state_dict(around.state_dict(), strict=True)


def test_fingerprint_depends_on_every_weight(clip_folder, tiny_clip):
    loaded = HuggingFaceCLIP.from_pretrained(str(clip_folder))
    last = list(loaded.frozen_model.parameters())[-1]
    last.data.view(-1)[-1] += 1e-3
    assert loaded.fingerprint() != tiny_clip.fingerprint()
    assert len(loaded.fingerprint()) == 64


def test_fingerprint_is_computed_once(clip_folder, monkeypatch):
    loaded = HuggingFaceCLIP.from_pretrained(str(clip_folder))
    first = loaded.fingerprint()
    monkeypatch.setattr(loaded.frozen_model, "state_dict", lambda: pytest.fail("hashed again"))
    assert loaded.fingerprint() == first


def test_fingerprint_is_that_of_earlier_releases(tiny_clip):
    digest = hashlib.sha256()
    for name, weight in sorted(tiny_clip.frozen_model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.numpy().tobytes())
    assert tiny_clip.fingerprint() == digest.hexdigest()


@pytest.mark.filterwarnings("ignore:the weights of the tiny CLIP are random")
def test_a_network_in_half_precision_keeps_its_clip_in_float32(tiny_clip, images):
    clip = HuggingFaceCLIP.tiny_random()
    around = torch.nn.Sequential(torch.nn.Linear(2, 3), clip).half()
    assert around[0].weight.dtype == torch.float16
    assert clip.fingerprint() == tiny_clip.fingerprint()
    assert torch.equal(clip.encode_image(images), tiny_clip.encode_image(images))
