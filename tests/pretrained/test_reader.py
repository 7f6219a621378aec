"""Mirrors clipseg3d/inference/checkpoint.py: what is read, what is shared, what is refused."""

import hashlib
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

import clipseg3d.pretrained.reader
from clipseg3d.data.cases import find_cases
from clipseg3d.data.releases import PHANTOM
from clipseg3d.pretrained.reader import read_networks
from clipseg3d.inference.predictor import Predictor
from clipseg3d.networks.build import build_clipseg3d
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.networks.prediction_settings import PredictionSettings

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = NetworkConfig(
    channels=(4, 8), num_auxiliary=0, semantic_dim=16, num_heads=2, clip="tiny-random"
)
PLAIN = replace(SMALL, semantics=False)


@pytest.fixture(scope="module")
def network():
    return build_clipseg3d(PLAIN)


def test_checkpoint_of_before_encoders_were_named_is_refused(tmp_path, network, save_checkpoint):
    save_checkpoint(network, PLAIN, tmp_path / "w.ckpt")
    checkpoint = torch.load(tmp_path / "w.ckpt", weights_only=True)
    del checkpoint["encoders"]
    torch.save(checkpoint, tmp_path / "w.ckpt")
    with pytest.raises(ValueError, match=r"w\.ckpt: not a checkpoint of clipseg3d"):
        read_networks([tmp_path / "w.ckpt"])


def test_errors_name_file_and_cure(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt: no such file"):
        read_networks([tmp_path / "none.ckpt"])
    garbage = tmp_path / "garbage.ckpt"
    garbage.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"garbage\.ckpt: not a readable checkpoint"):
        read_networks([garbage])
    other = tmp_path / "other.ckpt"
    torch.save({"state_dict": {}}, other)
    with pytest.raises(ValueError, match=r"other\.ckpt: not a checkpoint of clipseg3d"):
        read_networks([other])
    with pytest.raises(ValueError, match="no weights are given"):
        read_networks([])


def test_weights_of_another_architecture_are_refused(tmp_path, network, save_checkpoint):
    path = tmp_path / "w.ckpt"
    save_checkpoint(network, replace(PLAIN, channels=(4, 12)), path)
    with pytest.raises(ValueError, match=r"w\.ckpt: its weights are of another arch.*size mism"):
        read_networks([path])
    save_checkpoint(network, replace(PLAIN, channels=(4, 8, 16)), path)
    with pytest.raises(ValueError, match=r"w\.ckpt: its weights are of another arch.*Missing key"):
        read_networks([path])
    settings = {"network": {**asdict(PLAIN), "depth": 7}}
    save_checkpoint(network, PLAIN, path, settings=settings)
    with pytest.raises(ValueError, match=r"w\.ckpt: describes no network .*'depth'.*version"):
        read_networks([path])


@pytest.mark.parametrize(
    ("part", "names", "shown"),
    [
        ("sequences", ("t1", "t2", "flair"), "t1, t2, flair, not t1, t1ce, t2, flair"),
        ("sequences", ("t1ce", "t1", "t2", "flair"), "t1ce, t1, t2, flair, not"),
        ("regions", ("WT", "ET"), "WT, ET, not WT, TC, ET"),
    ],
)
def test_weights_for_other_sequences_or_regions_are_refused(
    tmp_path, network, save_checkpoint, part, names, shown
):
    path = tmp_path / "w.ckpt"
    save_checkpoint(network, PLAIN, path, settings={"network": {**asdict(PLAIN), part: names}})
    with pytest.raises(ValueError, match=rf"w\.ckpt: trained with the {part} {shown}"):
        read_networks([path])


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("release", "brats2020", "release='brats2020', but .*a.ckpt with release='phantom'"),
        ("spacing_mm", 1.0, r"spacing_mm=1\.0, but .*a\.ckpt with spacing_mm=8\.0"),
    ],
)
def test_members_must_have_been_trained_for_the_same(
    tmp_path, network, save_checkpoint, name, value, shown
):
    save_checkpoint(network, PLAIN, tmp_path / "a.ckpt")
    save_checkpoint(network, PLAIN, tmp_path / "b.ckpt", settings={name: value})
    with pytest.raises(ValueError, match=rf"b\.ckpt: trained with {shown}; use them apart"):
        Predictor.from_checkpoints([tmp_path / "a.ckpt", tmp_path / "b.ckpt"])


def test_members_share_one_clip(tmp_path, save_checkpoint, monkeypatch):
    other = replace(SMALL, channels=(4, 12))
    for name, config in (("a", SMALL), ("b", other), ("c", PLAIN)):
        save_checkpoint(build_clipseg3d(config), config, tmp_path / f"{name}.ckpt")
    loaded = []
    load = clipseg3d.pretrained.reader.load_encoder
    monkeypatch.setattr(
        clipseg3d.pretrained.reader,
        "load_encoder",
        lambda name: loaded.append(name) or load(name),
    )
    members = read_networks([tmp_path / f"{name}.ckpt" for name in "abc"])
    assert loaded == ["tiny-random"]
    assert [member.network.unet.channels for member in members] == [(4, 8), (4, 12), (4, 8)]
    a, b, c = (member.network.encoder_identities() for member in members)
    assert a == b
    assert c == {}


def test_what_a_predictor_takes_from_its_files(tmp_path, network, save_checkpoint):
    for name, dropout in (("a", 0.2), ("b", 0.3), ("c", 0.0)):
        settings = {"sequence_dropout": dropout}
        save_checkpoint(network, PLAIN, tmp_path / f"{name}.ckpt", settings=settings)
    a, b, c = (tmp_path / f"{name}.ckpt" for name in "abc")
    both = Predictor.from_checkpoints([a, b], device="cpu", tta=True)
    assert both.allow_missing
    assert both.num_passes == 16
    assert (both.roi_size, both.overlap, both.spacing_mm) == ((16, 20, 12), 0.25, 8.0)
    assert both.weights == {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in (a, b)
    }
    assert not Predictor.from_checkpoints([a, c], device="cpu").allow_missing
    assert Predictor.from_checkpoint(a, device="cpu").allow_missing
    assert not Predictor.from_checkpoint(c, device="cpu").allow_missing


def test_a_checkpoint_of_before_sequence_dropout_needs_all_sequences(
    tmp_path, network, save_checkpoint
):
    save_checkpoint(network, PLAIN, tmp_path / "a.ckpt")
    assert not Predictor.from_checkpoint(tmp_path / "a.ckpt", device="cpu").allow_missing


def test_published_weights_predict_as_the_checkpoint_does(
    folder, tmp_path, save_checkpoint, randomise
):
    trained = randomise(build_clipseg3d(SMALL))
    save_checkpoint(trained, SMALL, tmp_path / "w.ckpt", settings={"sequence_dropout": 0.1})
    (member,) = read_networks([tmp_path / "w.ckpt"])
    assert member.settings == PredictionSettings(
        "phantom", 8.0, roi_size=(16, 20, 12), overlap=0.25, allow_missing=True
    )
    member.network.save_pretrained(tmp_path / "published")
    trained.save_pretrained(tmp_path / "silent")
    with pytest.raises(ValueError, match=r"silent: does not say which scans the network is for"):
        read_networks([str(tmp_path / "silent")])
    both = Predictor.from_checkpoints([tmp_path / "w.ckpt", str(tmp_path / "published")])
    assert both.num_passes == 2
    assert both.allow_missing
    assert list(both.weights) == [
        str(tmp_path / "w.ckpt"),
        str(tmp_path / "published" / "model.safetensors"),
    ]
    published = Predictor.from_checkpoint(str(tmp_path / "published"), device="cpu")
    assert (published.roi_size, published.overlap) == ((16, 20, 12), 0.25)
    (case,) = find_cases(folder, PHANTOM, spacing_mm=8.0)
    found = [
        Predictor.from_checkpoint(tmp_path / name, device="cpu")(case, probabilities=True)
        for name in ("w.ckpt", "published")
    ]
    np.testing.assert_array_equal(found[0].probabilities, found[1].probabilities)
