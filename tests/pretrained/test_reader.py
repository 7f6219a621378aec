"""Mirrors clipseg3d/pretrained/reader.py: what is read, what is shared, what is refused."""

import copy
import hashlib
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import clipseg3d.pretrained.reader
from clipseg3d.data.cases import find_cases
from clipseg3d.data.releases import PHANTOM
from clipseg3d.inference.predictor import Predictor
from clipseg3d.networks.build import build_clipseg3d
from clipseg3d.networks.clipseg3d import CLIPSeg3D
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.networks.prediction_settings import PredictionSettings
from clipseg3d.pretrained.reader import read_networks, weight_mismatches

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = NetworkConfig(
    channels=(4, 8), num_auxiliary=0, semantic_dim=16, num_heads=2, clip="tiny-random"
)
PLAIN = replace(SMALL, semantics=False)


@pytest.fixture(scope="module")
def network():
    return build_clipseg3d(PLAIN)


# what is refused


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
    with pytest.raises(ValueError, match=r"garbage\.ckpt: not a whole checkpoint; give another"):
        read_networks([garbage])
    other = tmp_path / "other.ckpt"
    torch.save({"state_dict": {}}, other)
    with pytest.raises(ValueError, match=r"other\.ckpt: not a checkpoint of clipseg3d"):
        read_networks([other])
    with pytest.raises(ValueError, match="no weights are given"):
        read_networks([])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spacing_mm": 0.0}, r"not those of clipseg3d \(ValueError\('spacing_mm=0.0 is not above"),
        ({"spacing_mm": "wide"}, r"its hyperparameters are not those of clipseg3d \(TypeError"),
        ({"network": {**asdict(PLAIN), "depth": 7}}, "by clipseg3d of another version, not under"),
        ({"network": {**asdict(PLAIN), "channels": "wide"}}, r"Parser key \"channels\": Expected"),
        ({"network": {**asdict(PLAIN), "space_to_depth": 3}}, "no network can be built as it says"),
    ],
    ids=str,
)
def test_hyperparameters_that_cannot_be_used(tmp_path, network, save_checkpoint, changes, message):
    save_checkpoint(network, PLAIN, tmp_path / "w.ckpt", settings=changes)
    with pytest.raises(ValueError, match=message) as info:
        read_networks([tmp_path / "w.ckpt"])
    assert str(info.value).startswith(f"{tmp_path / 'w.ckpt'}: ")
    assert "\n" not in str(info.value)


def test_a_missing_hyperparameter_is_named(tmp_path, network, save_checkpoint):
    path = tmp_path / "w.ckpt"
    save_checkpoint(network, PLAIN, path, hyper_parameters={"network": asdict(PLAIN)})
    with pytest.raises(ValueError, match=r"not those of clipseg3d \(KeyError\('release'\)\); give"):
        read_networks([path])


def test_the_version_that_wrote_a_checkpoint_is_named(tmp_path, network, save_checkpoint):
    path = tmp_path / "w.ckpt"
    config = {**asdict(PLAIN), "depth": 7}
    manifest = {"versions": {"clipseg3d": "9.1"}}
    save_checkpoint(network, PLAIN, path, settings={"network": config}, manifest=manifest)
    with pytest.raises(ValueError, match=r"by clipseg3d 9.1, not .*'depth'.*install that version"):
        read_networks([path])


# architecture


@pytest.fixture
def stored(trained, tmp_path, save_checkpoint):
    """Store weights with the config of another network, as a folder and as a checkpoint."""

    def store(config):
        network = trained()
        network.save_pretrained(tmp_path / "net")
        path = tmp_path / "net" / "config.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "network": asdict(config)}))
        save_checkpoint(network, config, tmp_path / "w.ckpt")
        return tmp_path / "net", tmp_path / "w.ckpt"

    return store


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": (4, 6, 10)}, "15 of another shape, such as "),
        ({"guided": ("ET",)}, r"\d+ unknown, such as semantic_fusion\.attention\.TC\."),
        (
            {"guided": ("WT", "TC", "ET")},
            r"\d+ missing, such as semantic_fusion\.attention\.WT\.",
        ),
        (
            {"guidance": "sequential"},
            r"\d+ missing, such as semantic_fusion\.bottleneck\..*; \d+ u",
        ),
    ],
    ids=str,
)
def test_another_architecture_is_the_same_error_for_folder_and_checkpoint(
    trained, stored, changes, message
):
    folder, checkpoint = stored(replace(trained().config, **changes))
    errors = []
    for source, path in ((folder, folder / "model.safetensors"), (checkpoint, checkpoint)):
        with pytest.raises(ValueError, match=rf"another architecture .*\({message}") as info:
            read_networks([source])
        assert str(info.value).startswith(f"{path}: ")
        errors.append(str(info.value).removeprefix(f"{path}: "))
    assert errors[0] == errors[1]
    assert "\n" not in errors[0]
    with pytest.raises(ValueError, match=rf"another architecture .*\({message}"):
        CLIPSeg3D.from_pretrained(folder)


def test_one_wrong_shape_is_named(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["unet.heads.0.bias"] = torch.zeros(5)
    save_file(weights, path)
    with pytest.raises(ValueError, match=r"not the weights that config\.json belongs to"):
        CLIPSeg3D.from_pretrained(folder)
    forget_sha256(folder)
    with pytest.raises(ValueError, match=r"\(1 of another shape, such as unet\.heads\.0\.bias\)"):
        CLIPSeg3D.from_pretrained(folder)


def test_weights_that_are_not_finite_are_refused(folder, tmp_path, network, save_checkpoint):
    weights = load_file(folder / "model.safetensors")
    weights["unet.heads.0.bias"][0] = torch.nan
    save_file(weights, folder / "model.safetensors")
    forget_sha256(folder)
    with pytest.raises(ValueError, match=r"unet\.heads\.0\.bias holds values that are not finite"):
        CLIPSeg3D.from_pretrained(folder)
    damaged = copy.deepcopy(network)
    with torch.no_grad():
        next(damaged.parameters()).view(-1)[0] = torch.inf
    save_checkpoint(damaged, PLAIN, tmp_path / "inf.ckpt")
    with pytest.raises(ValueError, match=r"inf\.ckpt: .* holds values that are not finite"):
        read_networks([tmp_path / "inf.ckpt"])


def test_a_folder_of_before_networks_named_a_plan_is_read(folder):
    path = folder / "config.json"
    content = json.loads(path.read_text())
    del content["network"]["plan"]
    path.write_text(json.dumps(content))
    assert CLIPSeg3D.from_pretrained(folder).config.plan == "recommended"


@pytest.mark.parametrize(
    "change", [{"channels": [4000] * 2}, {"semantic_dim": 4000}, {"refinement": 4000}]
)
def test_widths_are_compared_before_memory_is_taken(folder, change_config, change):
    change_config(folder, network=change)
    with pytest.raises(
        ValueError, match=rf"another architecture .*{next(iter(change))} up to 4000"
    ):
        CLIPSeg3D.from_pretrained(folder)


def test_an_encoder_that_only_the_file_names_is_not_downloaded(folder, change_config, monkeypatch):
    asked = []

    def load(name, *, local_files_only):
        asked.append((name, local_files_only))
        raise OSError(f"{name}: not here")

    monkeypatch.setattr(clipseg3d.networks.build, "load_encoder", load)
    change_config(folder, network={"clip": "some/one"})
    for clip in (None, "some/one"):
        with pytest.raises(OSError, match=r"some/one: not here\); name CLIP yourself"):
            CLIPSeg3D.from_pretrained(folder, clip=clip)
    assert asked == [("some/one", True), ("some/one", False)]


@pytest.mark.parametrize(
    "change",
    [
        {"encoders": None},
        {"encoders": [1]},
        {"encoders": {"CLIP": {"name": "tiny"}}},
        {"state_dict": {1: torch.ones(1)}},
        {"state_dict": {1: torch.ones(1)}, "format": None},  # as of a file of format 1
        {"state_dict": None, "format": None},
        {"state_dict": {"network.a": "text"}},
        {"hyper_parameters": None},
    ],
)
def test_other_content_of_a_checkpoint_is_one_message(network, tmp_path, save_checkpoint, change):
    path = tmp_path / "w.ckpt"
    save_checkpoint(network, PLAIN, path, **change)
    with pytest.raises(ValueError, match=r"w\.ckpt: .*; give "):
        read_networks([path])


@pytest.mark.parametrize(
    "settings",
    [
        {"roi_size": 64},
        {"roi_size": (10**5,) * 3},
        {"spacing_mm": None},
        {"overlap": "a"},
        {"sequence_dropout": None},
        {"release": 3},
    ],
)
def test_settings_of_a_checkpoint_are_checked(network, tmp_path, save_checkpoint, settings):
    path = tmp_path / "w.ckpt"
    save_checkpoint(network, PLAIN, path, settings=settings)
    with pytest.raises(ValueError, match=r"w\.ckpt: "):
        read_networks([path])


def forget_sha256(folder):
    """Take the hash of the weights out of config.json, as if a person had made the folder."""
    path = folder / "config.json"
    content = json.loads(path.read_text())
    del content["weights_sha256"]
    path.write_text(json.dumps(content))


def test_mismatches_of_weights():
    own = {"a": torch.ones(2), "b": torch.ones(3), "c": torch.ones(1)}
    assert weight_mismatches(own, own) == []
    assert weight_mismatches({"a": torch.ones(2), "b": torch.ones(4), "d": torch.ones(1)}, own) == [
        "1 missing, such as c",
        "1 unknown, such as d",
        "1 of another shape, such as b",
    ]


# CLIP


def test_clip_may_lie_elsewhere(folder, clips, tiny_clip, trained, tmp_path, logits):
    same, _ = clips
    network = CLIPSeg3D.from_pretrained(folder, clip=str(same))
    # not to the bit: weights of a file lie at other addresses, and kernels choose by them
    torch.testing.assert_close(logits(network), logits(trained()), rtol=0, atol=1e-4)
    network.save_pretrained(tmp_path / "moved")
    content = json.loads((tmp_path / "moved" / "config.json").read_text())
    assert content["network"]["clip"] == content["encoders"]["CLIP"]["name"] == str(same)
    shared = CLIPSeg3D.from_pretrained(tmp_path / "moved", clip=tiny_clip)
    assert shared.semantic_fusion.bridge.encoder is tiny_clip
    assert shared.config.clip == "tiny-random"


@pytest.fixture(params=["folder", "checkpoint"])
def source(request, folder, trained, tmp_path, save_checkpoint):
    """The same network from either kind of source, and the file that names its CLIP."""
    if request.param == "folder":
        return folder, folder / "config.json"
    network = trained()
    save_checkpoint(network, network.config, tmp_path / "w.ckpt")
    return tmp_path / "w.ckpt", tmp_path / "w.ckpt"


def test_clip_of_other_weights_is_refused(source, clips):
    _, other = clips
    with pytest.raises(ValueError, match=r"has other weights than 'tiny-random' .*load that one"):
        read_networks([source[0]], clip=str(other))


def test_a_missing_clip_says_how_to_give_it(source, tmp_path):
    with pytest.raises(
        OSError, match=r"gone: no such folder.*name CLIP yourself.*\(clip, --clip\)"
    ):
        read_networks([source[0]], clip=str(tmp_path / "gone"))


def test_a_missing_clip_of_a_network_says_how_to_give_it(folder, tmp_path, change_config):
    change_config(folder, network={"clip": str(tmp_path / "gone")})
    with pytest.raises(
        OSError, match=r"gone: no such folder.*name CLIP yourself.*\(clip, --clip\)"
    ):
        CLIPSeg3D.from_pretrained(folder)


def test_a_config_that_names_no_clip_is_refused(folder):
    path = folder / "config.json"
    content = json.loads(path.read_text())
    content["encoders"] = {}
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="does not say which CLIP encoder"):
        CLIPSeg3D.from_pretrained(folder)


# ensembles


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
    with pytest.raises(ValueError, match=rf"b\.ckpt: trained with {shown}; they cannot form"):
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
        lambda name, **options: loaded.append(name) or load(name, **options),
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
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (a, b)
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
    phantom_folder, tmp_path, save_checkpoint, randomise
):
    trained = randomise(build_clipseg3d(SMALL))
    save_checkpoint(trained, SMALL, tmp_path / "w.ckpt", settings={"sequence_dropout": 0.1})
    (member,) = read_networks([tmp_path / "w.ckpt"])
    assert not member.network.training
    assert member.settings == member.network.settings
    assert member.settings == PredictionSettings(
        "phantom", 8.0, roi_size=(16, 20, 12), overlap=0.25, allow_missing=True
    )
    member.network.save_pretrained(tmp_path / "published")
    trained.save_pretrained(tmp_path / "silent")
    with pytest.raises(ValueError, match=r"silent/config.json: does not say which scans the netw"):
        read_networks([str(tmp_path / "silent")])
    both = Predictor.from_checkpoints([tmp_path / "w.ckpt", str(tmp_path / "published")])
    assert both.num_passes == 2
    assert both.allow_missing
    assert list(both.weights) == ["w.ckpt", "published"]
    published = Predictor.from_checkpoint(str(tmp_path / "published"), device="cpu")
    assert (published.roi_size, published.overlap) == ((16, 20, 12), 0.25)
    (case,) = find_cases(phantom_folder / "Phantom_00003", PHANTOM, spacing_mm=8.0)
    predictions = [
        Predictor.from_checkpoint(tmp_path / name, device="cpu")(case, probabilities=True)
        for name in ("w.ckpt", "published")
    ]
    np.testing.assert_array_equal(*(prediction.probabilities for prediction in predictions))
