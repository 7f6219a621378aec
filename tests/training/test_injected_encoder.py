"""An encoder that is given as an object, from training to prediction."""

import re
from dataclasses import replace

import pytest
import torch

from clipseg3d import CLIPSeg3D
from clipseg3d.clip import load_encoder, register
from clipseg3d.inference.predictor import Predictor
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.pretrained.reader import load_pretrained, read_networks
from clipseg3d.training.module import CLIPSeg3DModule

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = NetworkConfig(channels=(4, 8), num_auxiliary=0, semantic_dim=16, num_heads=2)
LIGHTNING = {"pytorch-lightning_version": "2.6.0"}
"""What Lightning adds to checkpoints, and looks for in them."""


class MyEncoder:
    """An encoder of somebody else: no module, no base class."""

    frozen = True

    def __init__(self, name="my encoder"):
        self.clip = load_encoder("tiny")
        self.name = name
        self.embed_dim = self.clip.embed_dim
        self.max_tokens = self.clip.max_tokens

    def count_tokens(self, text):
        return self.clip.count_tokens(text)

    def encode_text(self, texts):
        return -self.clip.encode_text(texts)

    def encode_image(self, images):
        return -self.clip.encode_image(images)

    def encode_patches(self, images):
        vectors, patches = self.clip.encode_patches(images)
        return -vectors, -patches

    def fingerprint(self):
        return self.clip.fingerprint()[::-1]


@pytest.fixture(scope="module")
def encoder():
    return MyEncoder()


@pytest.fixture
def module(encoder, randomise):
    torch.manual_seed(0)
    options = {"release": "phantom", "spacing_mm": 8.0, "roi_size": (16, 20, 12)}
    return randomise(CLIPSeg3DModule(SMALL, encoder=encoder, **options)).eval()


@pytest.fixture(params=["checkpoint", "folder"])
def saved(module, save_checkpoint, tmp_path, request):
    """The trained network on disk."""
    if request.param == "folder":
        module.network.save_pretrained(tmp_path / "net")
        return tmp_path / "net"
    path = tmp_path / "w.ckpt"
    save_checkpoint(module.network, module.config, path)
    return path


def test_what_is_saved_names_the_encoder_and_holds_nothing_of_it(module, encoder):
    assert module.network.semantic_fusion.bridge.encoder is encoder
    assert module.network.text_bank.encoder is encoder
    assert "encoder" not in module.hparams
    assert module.hparams["network"]["clip"] == "my encoder"
    assert module.config == module.network.config == replace(SMALL, clip="my encoder")
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    expected = {"CLIP": {"name": "my encoder", "sha256": encoder.fingerprint()}}
    assert checkpoint["encoders"] == expected


def test_a_network_without_semantics_takes_none_from_it(encoder):
    module = CLIPSeg3DModule(SMALL, ablation="unet3d", encoder=encoder)
    assert module.network.encoder_identities() == {}


def test_a_checkpoint_takes_it_again(module, encoder, save_checkpoint, tmp_path):
    path = tmp_path / "w.ckpt"
    save_checkpoint(module.network, module.config, path, **LIGHTNING)
    again = CLIPSeg3DModule.load_from_checkpoint(path, encoder=encoder)
    assert again.network.semantic_fusion.bridge.encoder is encoder
    saved, read = module.state_dict(), again.state_dict()
    assert saved.keys() == read.keys()
    assert all(torch.equal(saved[name], read[name]) for name in saved)


def test_readers_take_it(saved, encoder):
    (trained,) = read_networks([saved], clip=encoder)
    networks = [trained.network]
    if saved.is_dir():
        loaders = (load_pretrained, CLIPSeg3D.from_pretrained)
        networks += [load(saved, clip=encoder) for load in loaders]
    for network in networks:
        assert network.semantic_fusion.bridge.encoder is encoder
        assert network.config.clip == "my encoder"


def test_a_predictor_takes_it(saved, encoder):
    predictor = Predictor.from_checkpoint(saved, clip=encoder, device="cpu")
    assert predictor.network.semantic_fusion.bridge.encoder is encoder
    name = f"my encoder (SHA-256 {encoder.fingerprint()})"
    assert predictor.provenance()["CLIP encoder"] == name


@pytest.mark.parametrize("name", ["my encoder", "mine:v2", "MyEncoder", "some/encoder"])
@pytest.mark.parametrize(
    ("load", "cure"),
    [
        (CLIPSeg3DModule.load_from_checkpoint, r"encoder=\.\.\."),
        (Predictor.from_checkpoint, r"\(clip, --clip\)"),
    ],
)
def test_without_it_one_line_says_how_to_give_it(
    module, save_checkpoint, tmp_path, monkeypatch, name, load, cure
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    encoders = {"CLIP": {"name": name, "sha256": "0" * 64}}
    path = tmp_path / "w.ckpt"
    config = replace(module.config, clip=name)
    save_checkpoint(module.network, config, path, encoders=encoders, **LIGHTNING)
    with pytest.raises(OSError, match=rf"trained with CLIP encoder '{name}'.*{cure}") as caught:
        load(path)
    assert re.fullmatch(r"[^\n]*", str(caught.value))


def test_a_registered_name_is_enough(module, save_checkpoint, tmp_path, monkeypatch):
    from clipseg3d.clip import registry

    monkeypatch.setattr(registry, "_LOADERS", dict(registry._LOADERS))
    register("mine", lambda rest, **_: MyEncoder())
    path = tmp_path / "w.ckpt"
    save_checkpoint(module.network, replace(module.config, clip="mine:v2"), path)
    assert Predictor.from_checkpoint(path, device="cpu").network.config.clip == "mine:v2"


def test_another_encoder_is_refused(saved):
    with pytest.raises(ValueError, match=r"'tiny' has other weights than 'my encoder'"):
        read_networks([saved], clip=load_encoder("tiny"))
