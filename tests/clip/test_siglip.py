"""Mirrors clipseg3d/clip/siglip.py; needs no network."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast, SiglipConfig, SiglipModel
from transformers.modeling_outputs import BaseModelOutput

from clipseg3d.clip import HuggingFaceSigLIP, load_encoder, load_text_encoder
from clipseg3d.testing import check_clip_encoder

WORDS = ["oedema", "left", "right", "no", "in", "the", "frontal", "lobe", "enhancement", "a", "."]
TEXTS = ["oedema left", "no enhancement in the right frontal lobe .", ""]
SIDE, PATCH, E, POSITIONS = 32, 8, 24, 10
CONFIG = SiglipConfig(
    text_config={
        "vocab_size": 2 + len(WORDS),
        "hidden_size": E,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "max_position_embeddings": POSITIONS,
        "pad_token_id": 1,
        "bos_token_id": 1,
        "eos_token_id": 1,
    },
    vision_config={
        "hidden_size": E,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": SIDE,
        "patch_size": PATCH,
    },
)


def spread(model):
    """Make weights that are far from their small initial values, so that inputs matter."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn(weight.shape))
    return model


def words():
    tokens = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(["<unk>", "</s>", *WORDS])}, "<unk>")
    )
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens, unk_token="<unk>", eos_token="</s>", pad_token="</s>"
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder as save_pretrained writes it; only to be read."""
    folder = tmp_path_factory.mktemp("saved") / "siglip"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        spread(SiglipModel(CONFIG)).save_pretrained(folder)
    words().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def siglip(saved):
    return load_encoder(str(saved))


@pytest.fixture
def copy(saved, tmp_path):
    """A copy to be changed; its weights are the same file."""
    for path in saved.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def test_it_is_found_by_its_model_type_and_is_an_encoder(siglip, saved):
    assert isinstance(siglip, HuggingFaceSigLIP)
    assert siglip.name == str(saved)
    assert (siglip.embed_dim, siglip.max_tokens) == (E, POSITIONS)
    check_clip_encoder(siglip)


def test_it_reads_texts_too_where_a_text_encoder_is_named(siglip, saved):
    assert load_text_encoder(str(saved)).fingerprint() == siglip.fingerprint()


def test_texts_are_padded_as_siglip_was_trained(siglip, saved):
    """As its documentation has it: padded to the full length, and padding is read."""
    tokens = AutoTokenizer.from_pretrained(saved)(
        TEXTS, padding="max_length", max_length=POSITIONS, truncation=True, return_tensors="pt"
    )
    model = SiglipModel.from_pretrained(saved)
    with torch.no_grad():
        expected = model.get_text_features(input_ids=tokens["input_ids"]).pooler_output
    expected = expected / expected.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(siglip.encode_text(TEXTS), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        short = model.get_text_features(input_ids=tokens["input_ids"][:1, :3]).pooler_output
    assert (short / short.norm() - expected[:1]).abs().max() > 1e-2


def test_tokens_count_the_end(siglip):
    assert [siglip.count_tokens(text) for text in TEXTS] == [3, 9, 1]


def pooled(saved, pixels):
    features = SiglipModel.from_pretrained(saved).vision_model(pixel_values=pixels).pooler_output
    return (features / features.norm(dim=-1, keepdim=True)).detach()


@pytest.mark.parametrize("given", [False, True])
def test_images_are_normalised_as_the_folder_says(copy, given):
    mean, std = torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 0.5)
    if given:
        mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6])
        values = {"image_mean": mean.tolist(), "image_std": std.tolist()}
        (copy / "preprocessor_config.json").write_text(json.dumps(values))
        mean, std = mean.view(3, 1, 1), std.view(3, 1, 1)
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    expected = pooled(copy, (images - mean) / std)
    vectors = load_encoder(str(copy)).encode_image(images)
    torch.testing.assert_close(vectors, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "values", [{"image_mean": [0.5]}, {"image_std": 0.5}, {"image_std": [0.5, 0.0, 0.5]}]
)
def test_a_normalisation_that_is_none_is_refused(copy, values):
    (copy / "preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"image_mean and image_std .*repair the file"):
        load_encoder(str(copy))


@pytest.mark.parametrize(("row", "col"), [(0, 2), (2, 0), (3, 3)])
def test_patch_grid_lies_as_the_image_does(siglip, monkeypatch, row, col):
    """Without layers that mix patches, one patch changes where the image does."""
    monkeypatch.setattr(
        siglip.frozen_model.vision_model.encoder,
        "forward",
        lambda inputs_embeds, **_: BaseModelOutput(last_hidden_state=inputs_embeds),
    )
    images = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) / 2
    bright = images.clone()
    bright[:, :, row * PATCH : (row + 1) * PATCH, col * PATCH : (col + 1) * PATCH] += 0.5
    change = siglip.encode_patches(bright)[1] - siglip.encode_patches(images)[1]
    assert (change.norm(dim=-1) > 1e-4).nonzero().tolist() == [[0, row, col]]


def test_a_patch_is_pooled_as_an_image_of_such_patches(siglip, monkeypatch):
    """If all patches are equal, each of them is the image."""
    tower = siglip.frozen_model.vision_model
    encoder = tower.encoder.forward

    def same_everywhere(*args, **kwargs):
        seen = encoder(*args, **kwargs)
        seen.last_hidden_state = seen.last_hidden_state[:, 5:6].expand_as(seen.last_hidden_state)
        return seen

    monkeypatch.setattr(tower.encoder, "forward", same_everywhere)
    vectors, patches = siglip.encode_patches(torch.rand(2, 3, SIDE, SIDE))
    torch.testing.assert_close(patches, vectors[:, None, None].expand_as(patches))


def test_a_missing_tower_is_found(saved, copy):
    from safetensors.torch import load_file, save_file

    weights = load_file(saved / "model.safetensors")
    (copy / "model.safetensors").unlink()
    kept = {name: w for name, w in weights.items() if not name.startswith("text_model.head")}
    save_file(kept, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 2 weights of a SiglipModel"):
        load_encoder(str(copy))


@pytest.mark.parametrize("model_type", ["siglip2", "siglip_text_model"])
def test_other_kinds_of_siglip_are_refused(copy, model_type):
    config = json.loads((copy / "config.json").read_text())
    if model_type == "siglip_text_model":
        config = config["text_config"]
    (copy / "config.json").unlink()
    (copy / "config.json").write_text(json.dumps({**config, "model_type": model_type}))
    with pytest.raises(ValueError, match=rf"model_type='{model_type}' is no text encoder"):
        load_encoder(str(copy))


def test_without_sentencepiece_the_error_says_what_to_install(copy, monkeypatch):
    def missing(*args, **kwargs):
        raise ImportError("\nSiglipTokenizer requires the SentencePiece library. Read\nmore.\n")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", missing)
    with pytest.raises(ImportError) as caught:
        load_encoder(str(copy))
    assert str(caught.value) == (
        f"{copy}: SiglipTokenizer requires the SentencePiece library; "
        'pip install "clipseg3d[siglip]" has what SigLIP needs'
    )


def test_its_own_tokenizer_drops_punctuation_and_case(copy, tmp_path_factory):
    """The tokenizer of the published models, with a vocabulary of a few words."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = tmp_path_factory.mktemp("words") / "spiece"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS[:-1])] * 20),
        model_prefix=str(model),
        vocab_size=40,
        hard_vocab_limit=False,
        pad_id=-1,
        bos_id=-1,
        eos_id=1,
        unk_id=2,
        minloglevel=2,
    )
    for path in copy.glob("tokenizer*"):
        path.unlink()
    (copy / "spiece.model").write_bytes(model.with_suffix(".model").read_bytes())
    (copy / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "SiglipTokenizer", "model_input_names": ["input_ids"]})
    )
    config = json.loads((copy / "config.json").read_text())
    vocabulary = len(AutoTokenizer.from_pretrained(copy))
    config["text_config"]["vocab_size"] = vocabulary
    for name in ("config.json", "model.safetensors"):
        (copy / name).unlink()
    spread(SiglipModel(SiglipConfig(**config))).save_pretrained(copy)
    encoder = load_encoder(str(copy))
    check_clip_encoder(encoder)
    one, other = encoder.encode_text(["Oedema, LEFT frontal.", "oedema left frontal"])
    assert torch.equal(one, other)
