"""Mirrors clipseg3d/clip/open_clip.py; needs no network."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertTokenizerFast

from clipseg3d.clip import load_encoder
from clipseg3d.testing import check_clip_encoder

TEXTS = ["Oedema on the left.", "no enhancement", ""]
SIDE, E, CONTEXT = 32, 24, 12
MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
CLIP = {
    "embed_dim": E,
    "vision_cfg": {"image_size": SIDE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {
        "context_length": CONTEXT,
        "vocab_size": 49408,  # of the tokenizer that comes with open_clip
        "width": 16,
        "heads": 2,
        "layers": 2,
    },
}
BIOMEDICAL = {
    "embed_dim": E,
    "vision_cfg": {
        "timm_model_name": "test_vit",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": 160,
    },
    "text_cfg": {
        "hf_model_name": "bert",
        "hf_tokenizer_name": "bert",
        "hf_proj_type": "mlp",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "context_length": CONTEXT,
    },
}
"""Towers as BiomedCLIP has them: a vision transformer of timm, a BERT of Hugging Face."""
RESNET = {**CLIP, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}}


@pytest.fixture(scope="module")
def open_clip():
    return pytest.importorskip("open_clip")


def save(open_clip, config, folder):
    """Write a model with random weights to a folder, as open_clip does."""
    folder.mkdir()
    if "hf_model_name" in config["text_cfg"]:
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "oedema", "left", "no", "a", "##s"]
        (folder / "vocab.txt").write_text("\n".join(words))
        BertTokenizerFast.from_pretrained(folder).save_pretrained(folder)
        BertConfig(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
        ).save_pretrained(folder / "bert")
        inner = {**config["text_cfg"], "hf_model_name": str(folder / "bert")}
        kind, parts = open_clip.CustomTextCLIP, {**config, "text_cfg": inner}
        parts["text_cfg"]["hf_model_pretrained"] = False
    else:
        kind, parts = open_clip.CLIP, config
    described = {"model_cfg": config, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = kind(**parts).state_dict()
    save_file(
        {name: weight.contiguous() for name, weight in weights.items()},
        folder / "open_clip_model.safetensors",
    )
    return folder


@pytest.fixture(scope="module")
def folders(open_clip, tmp_path_factory):
    """Saved models, only to be read."""
    root = tmp_path_factory.mktemp("saved")
    configs = {"clip": CLIP, "biomedical": BIOMEDICAL, "resnet": RESNET}
    return {name: save(open_clip, config, root / name) for name, config in configs.items()}


@pytest.mark.parametrize("kind", ["clip", "biomedical"])
def test_a_folder_gives_an_encoder(folders, kind):
    encoder = load_encoder(f"open_clip:{folders[kind]}", local_files_only=True)
    assert encoder.name == f"open_clip:{folders[kind]}"
    assert (encoder.embed_dim, encoder.max_tokens) == (E, CONTEXT)
    check_clip_encoder(encoder)


@pytest.mark.parametrize("kind", ["clip", "biomedical", "resnet"])
def test_embeddings_are_those_of_open_clip(open_clip, folders, kind, monkeypatch):
    monkeypatch.chdir(folders[kind])  # where open_clip looks for the text tower
    name = f"local-dir:{folders[kind]}"
    model = open_clip.create_model(name, require_pretrained=True).eval()
    tokenizer = open_clip.get_tokenizer(name)
    encoder = load_encoder(f"open_clip:{folders[kind]}")
    height, width = encoder.image_size
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    pixels = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    close = {"rtol": 1e-4, "atol": 1e-5}
    with torch.no_grad():
        seen = model.encode_image(pixels, normalize=True)
        words = model.encode_text(tokenizer(TEXTS), normalize=True)
    torch.testing.assert_close(encoder.encode_image(images), seen, **close)
    torch.testing.assert_close(encoder.encode_text(TEXTS), words, **close)


@pytest.mark.parametrize("kind", ["clip", "biomedical"])
def test_tokens_count_start_and_end(folders, kind):
    encoder = load_encoder(f"open_clip:{folders[kind]}")
    assert [encoder.count_tokens(text) for text in ("", "left", "left left")] == [2, 3, 4]
    assert encoder.count_tokens("left " * 50) == 52


@pytest.mark.parametrize("kind", ["clip", "biomedical"])
@pytest.mark.parametrize(("row", "col"), [(0, 2), (2, 0)])
def test_patch_grid_lies_as_the_image_does(folders, monkeypatch, kind, row, col):
    """Without layers that mix patches, one patch changes where the image does."""
    encoder = load_encoder(f"open_clip:{folders[kind]}")
    tower = encoder.frozen_model.visual
    layers = tower.transformer.resblocks if kind == "clip" else tower.trunk.blocks
    for layer in layers:
        monkeypatch.setattr(layer, "forward", lambda x, *args, **kwargs: x)
    side, patch = (SIDE, 8) if kind == "clip" else (160, 16)
    images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)) / 2
    bright = images.clone()
    bright[:, :, row * patch : (row + 1) * patch, col * patch : (col + 1) * patch] += 0.5
    change = encoder.encode_patches(bright)[1] - encoder.encode_patches(images)[1]
    assert change.shape == (1, side // patch, side // patch, E)
    assert (change.norm(dim=-1) > 1e-4).nonzero().tolist() == [[0, row, col]]


def test_a_tower_without_patches_says_so(folders):
    encoder = load_encoder(f"open_clip:{folders['resnet']}")
    assert encoder.encode_image(torch.rand(1, 3, 64, 64)).shape == (1, E)
    with pytest.raises(ValueError, match=r"resnet: its image tower .* leave dense out"):
        encoder.encode_patches(torch.rand(1, 3, 64, 64))


@pytest.fixture
def spoilt(folders, tmp_path):
    """A copy to be changed; its files are the same ones."""
    for path in folders["clip"].iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


@pytest.mark.parametrize("gone", ["open_clip_model.safetensors", "open_clip_config.json"])
def test_an_incomplete_folder_is_refused(spoilt, gone):
    (spoilt / gone).unlink()
    with pytest.raises(ValueError, match=str(spoilt)) as caught:
        load_encoder(f"open_clip:{spoilt}")
    assert "\n" not in str(caught.value)


def test_a_missing_weight_is_found(spoilt):
    weights = load_file(spoilt / "open_clip_model.safetensors")
    del weights["visual.proj"]
    (spoilt / "open_clip_model.safetensors").unlink()
    save_file(weights, spoilt / "open_clip_model.safetensors")
    with pytest.raises(ValueError, match=r"not a readable model of open_clip .*visual\.proj"):
        load_encoder(f"open_clip:{spoilt}")


@pytest.mark.parametrize("name", ["{}/absent", "./absent"])
def test_a_missing_folder_is_named(open_clip, tmp_path, name):
    with pytest.raises(FileNotFoundError, match="absent: no such folder"):
        load_encoder(f"open_clip:{name.format(tmp_path)}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-32", "neither a folder nor ARCHITECTURE/TAG"),
        ("ViT-B-23/openai", "neither a folder nor ARCHITECTURE/TAG"),
        ("ViT-B-32/laion2b_s34b_b79", "no weights 'laion2b_s34b_b79'; .*laion2b_s34b_b79k"),
    ],
)
def test_unknown_names_say_what_there_is(open_clip, name, message):
    with pytest.raises(ValueError, match=message):
        load_encoder(f"open_clip:{name}")


@pytest.mark.parametrize("name", ["ViT-B-32/laion2b_s34b_b79k", "hf-hub:no-one/no-clip"])
def test_nothing_is_downloaded_if_it_must_not_be(open_clip, monkeypatch, tmp_path, name):
    for file in ("constants", "file_download", "_snapshot_download"):
        module = f"huggingface_hub.{file}"
        if hasattr(sys.modules.get(module), "HF_HUB_CACHE"):
            monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match="not in the Hugging Face cache") as caught:
        load_encoder(f"open_clip:{name}", local_files_only=True)
    assert "check the name and the network" in str(caught.value)


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImportError, match=r'pip install "clipseg3d\[open-clip\]"'):
        load_encoder("open_clip:ViT-B-32/openai")
