"""Mirrors clipseg3d/clip/hugging_face_clip.py; needs no network."""

import json
import shutil

import huggingface_hub.constants
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers.modeling_outputs import BaseModelOutputWithPooling

from clipseg3d.clip import HuggingFaceCLIP, load_encoder

TEXTS = ["ring of enhancement", "Oedema measures 3.5 cm; left > right.", ""]
ANNOUNCED = pytest.warns(UserWarning, match="weights of the tiny CLIP are random")


@pytest.fixture
def folder(clip_folder, tmp_path):
    """A copy of the saved CLIP to spoil."""
    return shutil.copytree(clip_folder, tmp_path / "spoilt")


# loading


def test_folder_gives_the_clip_that_was_saved(tiny_clip, clip_folder, images):
    loaded = HuggingFaceCLIP.from_pretrained(str(clip_folder))
    assert loaded.fingerprint() == tiny_clip.fingerprint()
    assert loaded.name == str(clip_folder)
    assert loaded.embed_dim == tiny_clip.embed_dim
    assert loaded.max_tokens == tiny_clip.max_tokens
    assert [loaded.count_tokens(t) for t in TEXTS] == [tiny_clip.count_tokens(t) for t in TEXTS]
    close = {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(loaded.encode_text(TEXTS), tiny_clip.encode_text(TEXTS), **close)
    torch.testing.assert_close(loaded.encode_image(images), tiny_clip.encode_image(images), **close)
    assert not any(weight.requires_grad for weight in loaded.parameters())


def test_folder_and_tiny_are_loaded_by_name(tiny_clip, clip_folder):
    assert load_encoder(str(clip_folder)).fingerprint() == tiny_clip.fingerprint()
    with ANNOUNCED:
        assert load_encoder("tiny-random").fingerprint() == tiny_clip.fingerprint()


VOCABULARY = ("tokenizer.json", "vocab.json")
"""Which one is there depends on the release of transformers."""


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (("model.safetensors",), r"holds no weights \(model.safetensors or pytorch_model.bin\)"),
        (VOCABULARY, r"holds no tokenizer \(such as tokenizer.json or vocab.json\)"),
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
    with pytest.raises(ValueError, match=rf"lacks \d+ weights.*{tower}.*whole model") as caught:
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


def test_folder_below_home_is_found(clip_folder, tiny_clip, monkeypatch):
    monkeypatch.setenv("HOME", str(clip_folder.parent))
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


def test_text_beyond_max_tokens_is_cut_off(tiny_clip):
    text = "ab " * tiny_clip.max_tokens
    assert tiny_clip.count_tokens(text) > tiny_clip.max_tokens
    torch.testing.assert_close(tiny_clip.encode_text([text]), tiny_clip.encode_text([text + "cd"]))


def test_images_are_normalised_as_clip_was_trained(tiny_clip):
    side = tiny_clip.frozen_model.config.vision_config.image_size
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    pooled = tiny_clip.frozen_model.vision_model(pixel_values=(images - mean) / std).pooler_output
    expected = tiny_clip.frozen_model.visual_projection(pooled)
    expected = expected / expected.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(tiny_clip.encode_image(images), expected, rtol=1e-4, atol=1e-5)


def test_images_are_resized_and_stay_between_black_and_white(tiny_clip, images):
    side = tiny_clip.frozen_model.config.vision_config.image_size
    contrast = (images > 0.5).float()
    resized = F.interpolate(contrast, size=(side, side), mode="bicubic", antialias=True)
    assert resized.min() < -0.01
    assert resized.max() > 1.01
    expected = tiny_clip.encode_image(resized.clamp(0, 1))
    torch.testing.assert_close(tiny_clip.encode_image(contrast), expected, rtol=0, atol=1e-6)


def test_image_orientation_and_colour_count(tiny_clip, images):
    vectors = tiny_clip.encode_image(images)
    for changed in (images.flip(2), images.flip(3), images.flip(1)):
        assert not torch.allclose(tiny_clip.encode_image(changed), vectors, atol=1e-4)


def test_autocast_does_not_reach_clip(tiny_clip, images):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        words, seen = tiny_clip.encode_text(TEXTS), tiny_clip.encode_patches(images)
    assert words.dtype == seen[0].dtype == seen[1].dtype == torch.float32
    torch.testing.assert_close(words, tiny_clip.encode_text(TEXTS))
    torch.testing.assert_close(seen, tiny_clip.encode_patches(images))


def test_half_precision_files_are_used_in_float32(clip_folder, tiny_clip, tmp_path, images):
    half = HuggingFaceCLIP.from_pretrained(str(clip_folder))
    half.frozen_model.half().save_pretrained(tmp_path)
    half.tokenizer.save_pretrained(tmp_path)
    loaded = HuggingFaceCLIP.from_pretrained(str(tmp_path))
    close = {"rtol": 0, "atol": 5e-3}
    torch.testing.assert_close(loaded.encode_image(images), tiny_clip.encode_image(images), **close)
    torch.testing.assert_close(loaded.encode_text(TEXTS), tiny_clip.encode_text(TEXTS), **close)


def test_gradients_reach_the_images_and_no_weight(tiny_clip, images):
    images.requires_grad_()
    vectors, patches = tiny_clip.encode_patches(images)
    for output in (tiny_clip.encode_image(images), vectors, patches):
        (gradient,) = torch.autograd.grad(output[0].sum(), images, retain_graph=True)
        assert gradient[0].any()
        assert not gradient[1].any()
        output[1].sum().backward(retain_graph=True)
    assert all(weight.grad is None for weight in tiny_clip.parameters())


def test_gradient_of_an_image_is_right(tiny_clip, images):
    side = tiny_clip.frozen_model.config.vision_config.image_size
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    image = (0.25 + 0.5 * image).requires_grad_()  # away from the limits, where clipping starts
    towards = torch.randn(image.shape, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad(tiny_clip.encode_image(image)[0, 0], image)
    with torch.no_grad():
        step = 1e-2 * towards
        rise = tiny_clip.encode_image(image + step) - tiny_clip.encode_image(image - step)
    torch.testing.assert_close((gradient * towards).sum(), rise[0, 0] / 2e-2, rtol=0.05, atol=1e-4)


def test_no_graph_is_kept_without_need(tiny_clip, images):
    assert not tiny_clip.encode_image(images).requires_grad
    images.requires_grad_()
    assert not tiny_clip.encode_text(TEXTS).requires_grad
    with torch.no_grad():
        assert not any(output.requires_grad for output in tiny_clip.encode_patches(images))


@pytest.mark.slow
def test_image_tower_can_be_exported(tiny_clip, images):
    class Tower(torch.nn.Module):
        def forward(self, images):
            return tiny_clip.encode_patches(images)

    exported = torch.export.export(Tower(), (images,), strict=False).module()
    torch.testing.assert_close(exported(images), tiny_clip.encode_patches(images))


# patches


def test_patches_come_with_the_very_image_vectors(tiny_clip, images):
    vectors, patches = tiny_clip.encode_patches(images)
    assert torch.equal(vectors, tiny_clip.encode_image(images))
    config = tiny_clip.frozen_model.config.vision_config
    side = config.image_size // config.patch_size
    assert patches.shape == (len(images), side, side, tiny_clip.embed_dim)
    torch.testing.assert_close(patches.norm(dim=-1), torch.ones(len(images), side, side))


def test_patches_take_the_way_of_the_class_token(tiny_clip, monkeypatch, images):
    """Hand the patches the class token's state: their embeddings must become its embedding."""
    tower = tiny_clip.frozen_model.vision_model
    forward = tower.forward

    def same_everywhere(*args, **kwargs):
        seen = forward(*args, **kwargs)
        seen.last_hidden_state = seen.last_hidden_state[:, :1].expand_as(seen.last_hidden_state)
        return seen

    monkeypatch.setattr(tower, "forward", same_everywhere)
    vectors, patches = tiny_clip.encode_patches(images)
    torch.testing.assert_close(patches, vectors[:, None, None].expand_as(patches))


@pytest.mark.parametrize(("row", "col"), [(0, 2), (2, 0), (1, 3), (3, 3)])
def test_patch_grid_lies_as_the_image_does(tiny_clip, row, col):
    config = tiny_clip.frozen_model.config.vision_config
    side, patch = config.image_size, config.patch_size
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) / 2
    bright = images.clone()
    bright[1, :, row * patch : (row + 1) * patch, col * patch : (col + 1) * patch] += 0.5
    change = tiny_clip.encode_patches(bright)[1] - tiny_clip.encode_patches(images)[1]
    size = change.norm(dim=-1)
    assert size[0].max() < 1e-5
    assert divmod(int(size[1].argmax()), side // patch) == (row, col)


# releases of transformers


def test_outputs_of_transformers_4_are_taken(tiny_clip, monkeypatch, images):
    """Release 4 gave features as bare tensors, and tuples where the configuration said so."""
    words, seen = tiny_clip.encode_text(TEXTS), tiny_clip.encode_patches(images)
    model = tiny_clip.frozen_model
    get_text_features, forward = model.get_text_features, model.vision_model.forward

    def bare(**kwargs):
        features = get_text_features(**kwargs)
        return features if isinstance(features, torch.Tensor) else features.pooler_output

    def only_if_asked(pixel_values, return_dict=False):
        output = forward(pixel_values=pixel_values, return_dict=True)
        return output if return_dict else output.to_tuple()

    monkeypatch.setattr(model, "get_text_features", bare)
    monkeypatch.setattr(model.vision_model, "forward", only_if_asked)
    torch.testing.assert_close(tiny_clip.encode_text(TEXTS), words)
    torch.testing.assert_close(tiny_clip.encode_patches(images), seen)
    torch.testing.assert_close(tiny_clip.encode_image(images), seen[0])


def test_outputs_of_transformers_5_are_taken(tiny_clip, monkeypatch):
    features = torch.randn(2, tiny_clip.embed_dim, generator=torch.Generator().manual_seed(0))
    output = BaseModelOutputWithPooling(pooler_output=features)
    monkeypatch.setattr(tiny_clip.frozen_model, "get_text_features", lambda **_: output)
    expected = features / features.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(tiny_clip.encode_text(TEXTS[:2]), expected)
