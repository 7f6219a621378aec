"""Mirrors clipseg3d/clip/encoder.py; needs no network."""

import json
import shutil

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from clipseg3d.clip.encoder import HuggingFaceCLIP, load_encoder

TEXTS = ["ring of enhancement", "Oedema measures 3.5 cm; left > right.", ""]
ANNOUNCED = pytest.warns(UserWarning, match="weights of the tiny CLIP are random")


@pytest.fixture(scope="module")
def saved(tiny_clip, tmp_path_factory):
    """A folder as save_pretrained writes it."""
    folder = tmp_path_factory.mktemp("saved") / "clip"
    tiny_clip.frozen_clip.save_pretrained(folder)
    tiny_clip.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of that folder to spoil."""
    return shutil.copytree(saved, tmp_path / "spoilt")


@pytest.fixture
def images():
    return torch.rand(2, 3, 50, 70, generator=torch.Generator().manual_seed(0))


# loading


def test_folder_gives_the_clip_that_was_saved(tiny_clip, saved, images):
    loaded = HuggingFaceCLIP.from_pretrained(str(saved))
    assert loaded.fingerprint() == tiny_clip.fingerprint()
    assert loaded.name == str(saved)
    assert loaded.embed_dim == tiny_clip.embed_dim
    assert loaded.max_tokens == tiny_clip.max_tokens
    assert [loaded.count_tokens(t) for t in TEXTS] == [tiny_clip.count_tokens(t) for t in TEXTS]
    close = {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(loaded.encode_text(TEXTS), tiny_clip.encode_text(TEXTS), **close)
    torch.testing.assert_close(loaded.encode_image(images), tiny_clip.encode_image(images), **close)
    assert not any(weight.requires_grad for weight in loaded.parameters())


def test_folder_and_tiny_are_loaded_by_name(tiny_clip, saved):
    assert load_encoder(str(saved)).fingerprint() == tiny_clip.fingerprint()
    with ANNOUNCED:
        assert load_encoder("tiny-random").fingerprint() == tiny_clip.fingerprint()


VOCABULARY = ("tokenizer.json", "vocab.json")
"""Which one is there depends on the release of transformers."""


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (("model.safetensors",), r"holds no weights \(model.safetensors or pytorch_model.bin\)"),
        (VOCABULARY, r"holds no tokenizer \(tokenizer.json or vocab.json\)"),
        (("config.json",), "holds no config.json"),
    ],
)
def test_incomplete_folder_says_what_it_lacks(folder, gone, message):
    for file in gone:
        (folder / file).unlink(missing_ok=True)
    with pytest.raises(ValueError, match=message) as caught:
        HuggingFaceCLIP.from_pretrained(str(folder))
    assert str(folder) in str(caught.value)
    assert "save_pretrained" in str(caught.value)


@pytest.mark.parametrize("tower", ["vision_model", "text_model"])
def test_folder_with_one_tower_only_is_refused(folder, tower):
    weights = load_file(folder / "model.safetensors")
    other = {name: weight for name, weight in weights.items() if not name.startswith(tower)}
    assert len(other) < len(weights)
    save_file(other, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"lacks \d+ weights.*{tower}.*both towers") as caught:
        HuggingFaceCLIP.from_pretrained(str(folder))
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_truncated_weights_are_refused(folder, share):
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="spoilt"):
        HuggingFaceCLIP.from_pretrained(str(folder))


@pytest.mark.parametrize("files", [("config.json",), VOCABULARY], ids=["config", "vocabulary"])
def test_truncated_description_is_refused(folder, files):
    for path in (folder / file for file in files):
        if path.exists():
            path.write_text(path.read_text()[:100])
    with pytest.raises(ValueError, match="spoilt"):
        HuggingFaceCLIP.from_pretrained(str(folder))


def test_weights_of_another_size_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["intermediate_size"] = 96
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="spoilt"):
        HuggingFaceCLIP.from_pretrained(str(folder))


@pytest.mark.parametrize("name", ["{}/absent", "./absent-clip", "../absent-clip", "~/absent-clip"])
def test_missing_folder_is_named(tmp_path, name):
    name = name.format(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder") as caught:
        HuggingFaceCLIP.from_pretrained(name)
    assert name in str(caught.value)


def test_folder_below_home_is_found(saved, tiny_clip, monkeypatch):
    monkeypatch.setenv("HOME", str(saved.parent))
    loaded = HuggingFaceCLIP.from_pretrained("~/clip")
    assert loaded.fingerprint() == tiny_clip.fingerprint()


def test_hub_name_without_network_tells_the_cure(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match=r"'no-one/no-clip'.*check the name") as caught:
        HuggingFaceCLIP.from_pretrained("no-one/no-clip")
    assert "give its folder" in str(caught.value)
    assert not isinstance(caught.value, FileNotFoundError)


# the tiny encoder


def test_tiny_encoder_says_that_it_knows_nothing():
    with ANNOUNCED:
        encoder = HuggingFaceCLIP.tiny_random()
    assert encoder.name == "tiny-random"


def test_equal_seeds_give_equal_weights(tiny_clip):
    with ANNOUNCED:
        same, other = HuggingFaceCLIP.tiny_random(), HuggingFaceCLIP.tiny_random(seed=1)
    assert same.fingerprint() == tiny_clip.fingerprint()
    assert other.fingerprint() != tiny_clip.fingerprint()
    torch.testing.assert_close(same.encode_text(TEXTS), tiny_clip.encode_text(TEXTS))


def test_tiny_encoder_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with ANNOUNCED:
        HuggingFaceCLIP.tiny_random()
    assert torch.equal(torch.rand(4), expected)


# encoding


def test_embeddings_have_unit_norm(tiny_clip, images):
    for vectors, count in ((tiny_clip.encode_image(images), 2), (tiny_clip.encode_text(TEXTS), 3)):
        assert vectors.shape == (count, tiny_clip.embed_dim)
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(count))
        assert not torch.allclose(vectors[0], vectors[1], atol=1e-3)


def test_padding_of_texts_changes_nothing(tiny_clip):
    alone = torch.cat([tiny_clip.encode_text([text]) for text in TEXTS])
    torch.testing.assert_close(tiny_clip.encode_text(TEXTS), alone, rtol=1e-4, atol=1e-5)


def test_tokens_count_start_and_end(tiny_clip):
    assert tiny_clip.count_tokens("") == 2
    assert tiny_clip.count_tokens("abc") == 5  # its vocabulary is bytes


def test_text_beyond_the_window_is_cut_off(tiny_clip):
    text = "ab " * tiny_clip.max_tokens
    assert tiny_clip.count_tokens(text) > tiny_clip.max_tokens
    torch.testing.assert_close(tiny_clip.encode_text([text]), tiny_clip.encode_text([text + "cd"]))


def test_images_are_normalised_as_clip_was_trained(tiny_clip):
    side = tiny_clip.frozen_clip.config.vision_config.image_size
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    pooled = tiny_clip.frozen_clip.vision_model(pixel_values=(images - mean) / std).pooler_output
    expected = tiny_clip.frozen_clip.visual_projection(pooled)
    expected = expected / expected.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(tiny_clip.encode_image(images), expected, rtol=1e-4, atol=1e-5)


def test_image_orientation_and_colour_count(tiny_clip, images):
    vectors = tiny_clip.encode_image(images)
    for changed in (images.flip(2), images.flip(3), images.flip(1)):
        assert not torch.allclose(tiny_clip.encode_image(changed), vectors, atol=1e-4)


def test_autocast_and_gradients_do_not_reach_clip(tiny_clip, images):
    images.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vectors, words = tiny_clip.encode_image(images), tiny_clip.encode_text(TEXTS)
    assert vectors.dtype == words.dtype == torch.float32
    assert not vectors.requires_grad
    torch.testing.assert_close(vectors, tiny_clip.encode_image(images))


def test_stays_in_evaluation_mode_and_out_of_checkpoints(tiny_clip):
    around = torch.nn.Sequential(torch.nn.Linear(2, 3), tiny_clip).train()
    assert around[0].training
    assert not any(module.training for module in tiny_clip.modules())
    assert sorted(around.state_dict()) == ["0.bias", "0.weight"]
    assert tiny_clip.state_dict() == {}
    around.load_state_dict(around.state_dict(), strict=True)


def test_fingerprint_depends_on_every_weight(saved, tiny_clip):
    loaded = HuggingFaceCLIP.from_pretrained(str(saved))
    last = list(loaded.frozen_clip.parameters())[-1]
    last.data.view(-1)[-1] += 1e-3
    assert loaded.fingerprint() != tiny_clip.fingerprint()
    assert len(loaded.fingerprint()) == 64
