"""Mirrors clipseg3d/hub.py, and the way of CLIPSeg3D out to folders and the hub and back."""

import errno
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

import clipseg3d
from clipseg3d import hub
from clipseg3d.clip.encoder import HuggingFaceCLIP
from clipseg3d.networks.clipseg3d import CLIPSeg3D
from clipseg3d.networks.build import build_clipseg3d
from clipseg3d.networks.config import ABLATIONS, NetworkConfig
from clipseg3d.networks.prediction_settings import PredictionSettings
from clipseg3d.networks.unet import UNet3D
from clipseg3d.views import cut_views

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = NetworkConfig(
    channels=(4, 6, 8), num_auxiliary=1, semantic_dim=12, num_heads=3, clip="tiny-random"
)
SETTINGS = PredictionSettings(
    release="brats2023_gli", spacing_mm=1.5, roi_size=(16, 24, 20), overlap=0.25, allow_missing=True
)
VARIANTS = {
    "default": {},
    "dense": {"dense": True, "view_selection": "attention", "guidance": "sequential"},
    "learned colours": {"mix_rgb": True, "adapter": True, "conditional_norm": True},
    "nested": {"head": "nested", "grade_classifier": True, "difference_channels": True},
    "no_text": ABLATIONS["no_text"],
    "unet3d": ABLATIONS["unet3d"],
}
REPORT = "Large oedema. Ring of enhancement on the left."


@pytest.fixture
def trained(tiny_clip, randomise):
    """Build a network as if trained, semantics included."""

    def build(**changes):
        torch.manual_seed(0)
        network = randomise(build_clipseg3d(replace(SMALL, **changes), encoder=tiny_clip)).eval()
        network.semantic_strength.fill_(0.75)
        network.settings = SETTINGS
        return network

    return build


@pytest.fixture
def folder(trained, tmp_path):
    """What save_pretrained writes."""
    trained().save_pretrained(tmp_path / "net")
    return tmp_path / "net"


@torch.no_grad()
def logits(network, report=REPORT):
    generator = torch.Generator().manual_seed(3)
    volume = 100 * torch.rand(1, 4, 20, 24, 16, generator=generator) + 5
    text, mask = network.embed_text([report])
    views = cut_views(volume, selection=network.view_selection, size=48)
    return network(volume, views=views, text=text, text_mask=mask)


def changed(folder, **changes):
    """Change config.json: ``network={"fold": 3}`` sets a value, None for a key removes it."""
    path = folder / "config.json"
    content = json.loads(path.read_text())
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(content.get(key), dict):
            content[key].update(value)
        elif value is None:
            del content[key]
        else:
            content[key] = value
    path.write_text(json.dumps(content))


# the round trip


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_round_trip_gives_the_same_logits_to_the_bit(trained, tmp_path, changes):
    network = trained(**changes)
    assert network.save_pretrained(tmp_path / "a") is None
    again = CLIPSeg3D.from_pretrained(tmp_path / "a")
    before = logits(network)
    assert (logits(again) - before).abs().max() == 0
    assert before.std() > 0
    assert again.config == network.config
    assert again.settings == SETTINGS
    assert again.semantic_strength == 0.75
    assert not again.training
    again.save_pretrained(str(tmp_path / "b"))
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()


def test_files_hold_plain_values_and_no_clip(trained, folder):
    network = trained()
    config = json.loads((folder / "config.json").read_text())
    assert config == {
        "clipseg3d": clipseg3d.__version__,
        "network": json.loads(json.dumps(asdict(network.config))),
        "prediction": {
            "release": "brats2023_gli",
            "spacing_mm": 1.5,
            "roi_size": [16, 24, 20],
            "overlap": 0.25,
            "allow_missing": True,
        },
        "encoders": {
            "CLIP": {
                "name": "tiny-random",
                "sha256": network.semantic_fusion.bridge.encoder.fingerprint(),
            }
        },
    }
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == network.state_dict().keys()
    assert not [name for name in weights if "frozen" in name or "encoder.text" in name]
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_settings_may_be_unknown(trained, tmp_path):
    network = trained()
    network.settings = None
    network.save_pretrained(tmp_path)
    assert CLIPSeg3D.from_pretrained(tmp_path).settings is None
    assert "Not stated." in (tmp_path / "README.md").read_text()


def test_half_precision_is_kept_in_the_file_and_read_as_float32(trained, tmp_path):
    network = trained()
    halved = build_clipseg3d(network.config, encoder=HuggingFaceCLIP.tiny_random())
    halved.load_state_dict(network.state_dict())
    halved.half().save_pretrained(tmp_path)
    file = load_file(tmp_path / "model.safetensors")
    assert {weight.dtype for weight in file.values()} == {torch.float16}
    again = CLIPSeg3D.from_pretrained(tmp_path)  # CLIP, which stays in float32, is recognised
    for name, weight in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight.half().float())
    assert again.encoder_identities() == network.encoder_identities()


def test_saving_again_replaces_weights_and_config_but_not_the_card(trained, folder):
    (folder / "README.md").write_text("mine")
    network = trained(fold=2)
    network.save_pretrained(folder)
    assert (folder / "README.md").read_text() == "mine"
    assert CLIPSeg3D.from_pretrained(folder).config == network.config
    assert (logits(CLIPSeg3D.from_pretrained(folder)) - logits(network)).abs().max() == 0


def test_a_network_of_parts_is_not_saved_and_harms_nothing(folder):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=r"made of parts has no config .*; build it with"):
        CLIPSeg3D(UNet3D(channels=(4, 6), num_auxiliary=0)).save_pretrained(folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("full_at", ["model.safetensors", "config.json"])
def test_a_full_disk_leaves_no_half_written_pair(trained, folder, monkeypatch, full_at):
    write = Path.write_bytes
    calls = []

    def fail(path, content):
        calls.append(path)
        if len(calls) == 1 + (full_at == "config.json"):
            write(path, content[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match=rf"{full_at}: cannot be written \(No space left"):
        trained(fold=2).save_pretrained(folder)
    monkeypatch.undo()
    assert {path.name for path in folder.iterdir()} == {"README.md", "model.safetensors"}
    load_file(folder / "model.safetensors")
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        CLIPSeg3D.from_pretrained(folder)


# the model card


def test_card_states_what_is_known_and_leaves_the_rest_to_the_author(trained, folder):
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n")
    assert "library_name: clipseg3d" in card
    head, body = card[4:].split("---\n", 1)
    assert "license" not in head  # the author's to choose
    for fact in (
        "(WT, TC, ET) in MRI (t1, t1ce, t2, flair)",
        f"`clipseg3d` {clipseg3d.__version__}",
        "label convention: brats2023_gli",
        "voxel size: 1.5 mm",
        "16 x 24 x 20 voxels, overlap 0.25",
        "cases that lack sequences: yes",
        trained().semantic_fusion.bridge.encoder.fingerprint(),
        "To be filled in by the author: Dice and HD95 per region",
        "Not a medical device",
    ):
        assert fact in body
    own = trained().state_dict()
    count = sum(w.numel() for name, w in trained().named_parameters() if name in own)
    assert f"with {count:,} parameters" in body
    assert "{{" not in card
    assert "{%" not in card


def test_card_takes_texts_of_the_author(trained, tmp_path):
    texts = {"name": "Mine", "metrics": "WT 0.9", "data": "BraTS", "limits": "Adults."}
    trained().save_pretrained(tmp_path, model_card_kwargs=texts)
    card = (tmp_path / "README.md").read_text()
    assert "# Mine\n" in card
    assert "WT 0.9" in card
    assert "Adults. Not a medical device." in card
    assert "To be filled in" not in card


# where weights come from


@pytest.fixture
def bundled(folder, tmp_path, monkeypatch):
    """A package that brings weights called ``small``."""
    shutil.copytree(folder, tmp_path / "weights" / "small")
    (tmp_path / "weights" / "unfinished").mkdir()
    monkeypatch.setattr(hub, "BUNDLED", tmp_path / "weights")
    monkeypatch.chdir(tmp_path)


def test_a_name_finds_weights_of_the_package(bundled, trained):
    assert (logits(CLIPSeg3D.from_pretrained("small")) - logits(trained())).abs().max() == 0


def test_an_unknown_name_lists_those_there_are(bundled, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"called 'smal': choose from .* \(small\), or give a fo"):
        CLIPSeg3D.from_pretrained("smal")
    monkeypatch.setattr(hub, "BUNDLED", tmp_path / "gone")
    with pytest.raises(ValueError, match=r"clipseg3d \(none\), or give a folder"):
        CLIPSeg3D.from_pretrained("small")


def test_a_name_that_is_also_a_folder_here_is_refused(bundled, trained, tmp_path):
    Path("small").mkdir()
    assert CLIPSeg3D.from_pretrained("small").config.fold == 1  # an empty folder is none
    trained(fold=2).save_pretrained("small")
    with pytest.raises(ValueError, match=r"'small' is both a folder here and .*; give \./small"):
        CLIPSeg3D.from_pretrained("small")
    for source in ("./small", Path("small"), tmp_path / "small"):
        assert CLIPSeg3D.from_pretrained(source).config.fold == 2


def test_a_folder_with_a_slash_is_no_hub_id(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    monkeypatch.setattr(hub, "snapshot_download", None)
    name = f"{tmp_path.name}/net"
    assert CLIPSeg3D.from_pretrained(name).settings == SETTINGS


def test_a_hub_id_is_downloaded_as_one_snapshot(folder, trained, monkeypatch, tmp_path):
    asked = {}

    def snapshot_download(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    network = CLIPSeg3D.from_pretrained(
        "me/net", revision="v1", token="t", cache_dir="c", force_download=True
    )
    assert (logits(network) - logits(trained())).abs().max() == 0
    assert asked.pop("library_name") == "clipseg3d"
    assert asked.pop("library_version") == clipseg3d.__version__
    assert asked == {
        "repo_id": "me/net",
        "revision": "v1",
        "token": "t",
        "cache_dir": "c",
        "force_download": True,
        "local_files_only": False,
        "allow_patterns": ["config.json", "model.safetensors"],
    }


def test_only_local_files_are_used_if_told_so_for_clip_too(
    folder, tiny_clip, monkeypatch, tmp_path
):
    asked = []

    def clip_model(name, **options):
        asked.append((name, options["local_files_only"]))
        return tiny_clip.frozen_model, {"missing_keys": []}

    def tokenizer(name, **options):
        asked.append((name, options["local_files_only"]))
        return tiny_clip.tokenizer

    monkeypatch.setattr(transformers.CLIPModel, "from_pretrained", clip_model)
    monkeypatch.setattr(transformers.CLIPTokenizer, "from_pretrained", tokenizer)
    monkeypatch.setattr(hub, "snapshot_download", lambda repo_id, **options: str(folder))
    changed(folder, network={"clip": "someone/clip"})
    monkeypatch.chdir(tmp_path)
    CLIPSeg3D.from_pretrained("me/net", local_files_only=True)
    assert asked == [("someone/clip", True)] * 2
    CLIPSeg3D.from_pretrained("me/net")
    assert asked[2:] == [("someone/clip", False)] * 2


def test_a_hub_id_that_is_not_cached_ends_in_one_error_without_network(tmp_path):
    with pytest.raises(
        OSError, match="'no-one/no-net' is no local folder, not in the Hugg"
    ) as info:
        CLIPSeg3D.from_pretrained("no-one/no-net", cache_dir=tmp_path, local_files_only=True)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("no network"),
        ConnectionError("refused"),
        TimeoutError("slow"),
        HFValidationError("a name with a blank"),
        RuntimeError("of a library below"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_the_hub_raises_becomes_one_error(error, monkeypatch, tmp_path):
    def fail(repo_id, **options):
        raise error

    monkeypatch.setattr(hub, "snapshot_download", fail)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match=rf"\({type(error).__name__}\); check the name") as info:
        CLIPSeg3D.from_pretrained("me/net")
    assert info.value.__cause__ is error


def test_push_to_hub_uploads_the_three_files(trained, monkeypatch):
    seen = {}

    class Created:
        repo_id = "me/net"

    def upload_folder(self, *, repo_id, folder_path, **options):
        seen.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})
        seen["repo_id"] = repo_id
        return "https://example.org/commit"

    monkeypatch.setattr(HfApi, "create_repo", lambda self, **options: Created)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    network = trained()
    address = network.push_to_hub("me/net", model_card_kwargs={"metrics": "WT 0.9"})
    assert address == "https://example.org/commit"
    assert seen["repo_id"] == "me/net"
    assert set(seen) == {"repo_id", "config.json", "model.safetensors", "README.md"}
    assert b"WT 0.9" in seen["README.md"]
    assert json.loads(seen["config.json"])["prediction"]["release"] == "brats2023_gli"


def test_a_hub_that_cannot_be_reached_is_one_error_when_pushing_too(trained, monkeypatch):
    def fail(self, **options):
        raise RuntimeError("of a library below")

    monkeypatch.setattr(HfApi, "create_repo", fail)
    with pytest.raises(
        OSError, match=r"'me/net' was not uploaded .*\(RuntimeError\); check the net"
    ):
        trained().push_to_hub("me/net")
    with pytest.raises(ValueError, match="made of parts has no config"):
        CLIPSeg3D(UNet3D(channels=(4, 6), num_auxiliary=0)).push_to_hub("me/net")


def test_saving_may_push_too(trained, monkeypatch, tmp_path):
    pushed = []

    class Created:
        repo_id = "me/net"

    def upload_folder(self, *, folder_path, **options):
        pushed.append((Path(folder_path) / "config.json").read_text())
        return "address"

    monkeypatch.setattr(HfApi, "create_repo", lambda self, **options: Created)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    assert trained().save_pretrained(tmp_path, push_to_hub=True, repo_id="me/net") == "address"
    assert pushed == [(tmp_path / "config.json").read_text()]


# CLIP


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Folders of two CLIPs of other weights."""
    folders = []
    for seed in (0, 1):
        clip = HuggingFaceCLIP.tiny_random(seed=seed)
        folders.append(tmp_path_factory.mktemp(f"clip{seed}"))
        clip.frozen_model.save_pretrained(folders[-1])
        clip.tokenizer.save_pretrained(folders[-1])
    return folders


def test_clip_may_lie_elsewhere(folder, clips, tiny_clip, trained, tmp_path):
    same, _ = clips
    network = CLIPSeg3D.from_pretrained(folder, clip=str(same))
    assert (logits(network) - logits(trained())).abs().max() == 0
    network.save_pretrained(tmp_path / "moved")
    content = json.loads((tmp_path / "moved" / "config.json").read_text())
    assert content["network"]["clip"] == content["encoders"]["CLIP"]["name"] == str(same)
    shared = CLIPSeg3D.from_pretrained(tmp_path / "moved", clip=tiny_clip)
    assert shared.semantic_fusion.bridge.encoder is tiny_clip
    assert shared.config.clip == "tiny-random"


def test_clip_of_other_weights_is_refused(folder, clips):
    _, other = clips
    with pytest.raises(ValueError, match=r"has other weights than 'tiny-random' .*load that one"):
        CLIPSeg3D.from_pretrained(folder, clip=str(other))


def test_a_missing_clip_says_how_to_give_it(folder, tmp_path):
    changed(folder, network={"clip": str(tmp_path / "gone")})
    with pytest.raises(OSError, match=r"gone: no such folder.*say where CLIP is \(clip, --clip\)"):
        CLIPSeg3D.from_pretrained(folder)


# bad input


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("gone/", OSError, "'gone/' is no local folder"),
        ("./gone", FileNotFoundError, r"^\./gone: no such folder; check the path$"),
        ("~/gone", FileNotFoundError, "^~/gone: no such folder"),
        (Path("a/b"), FileNotFoundError, "^a/b: no such folder"),
        ("a.ckpt", ValueError, "^a.ckpt: a file, expected a folder .*'clipseg3d export' makes one"),
    ],
    ids=str,
)
def test_a_source_that_is_nothing(source, kind, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.ckpt").write_bytes(b"weights")
    with pytest.raises(kind, match=message):
        CLIPSeg3D.from_pretrained(source, local_files_only=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": {"wings": 2}, "clipseg3d": "9.1"}, "by clipseg3d 9.1, not under.*'wings'"),
        ({"future": 1, "clipseg3d": "9.1"}, "by clipseg3d 9.1, not under.*unknown key future"),
        ({"prediction": {"tta": True}}, "not understood by .*'tta'.*install that version"),
        ({"network": {"channels": "wide"}}, r"Parser key \"channels\": Expected"),
        ({"network": {"fold": 2.5}}, r"\"fold\".* Got value: 2\.5"),
        ({"network": {"head": "round"}}, r"Parser key \"head\": "),
        ({"network": {"fold": 3}}, r"no network can be built as it says \(fold=3 is not 1, 2"),
        (
            {"network": {"text": "none", "pixel_fusion": False, "difference_channels": True}},
            "parts",
        ),
        ({"network": []}, "not understood"),
        ({"network": None}, "describes no network of clipseg3d"),
        ({"encoders": None}, "describes no network of clipseg3d"),
        ({"encoders": {"CLIP": "abc"}}, "encoders need a name and a sha256 each"),
        ({"encoders": {"CLIP": {"name": "x"}}}, "encoders need a name and a sha256 each"),
        ({"prediction": {"roi_size": [16, 24]}}, "roi_size"),
        ({"prediction": {"roi_size": [16, 24, 0]}}, "three sizes in voxels, each above 0"),
        ({"prediction": {"spacing_mm": 0}}, r"spacing_mm=0.* is not above 0"),
        ({"prediction": {"overlap": 1.0}}, r"overlap=1.0 is not in \[0, 1\)"),
    ],
    ids=str,
)
def test_a_config_that_this_version_cannot_use(folder, changes, message):
    changed(folder, **changes)
    with pytest.raises(ValueError, match=message) as info:
        CLIPSeg3D.from_pretrained(folder)
    assert str(info.value).startswith(f"{folder / 'config.json'}: ")
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"model_type": "bert"}'])
def test_a_config_of_something_else(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json: (not valid JSON|describes no network)"):
        CLIPSeg3D.from_pretrained(folder)


def test_a_config_that_names_no_clip_is_refused(folder):
    path = folder / "config.json"
    content = json.loads(path.read_text())
    content["encoders"] = {}
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="does not say which CLIP encoder"):
        CLIPSeg3D.from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"^{folder}: holds no {name}; "):
        CLIPSeg3D.from_pretrained(folder)


@pytest.mark.parametrize("length", [0, 5, 300, -1])
def test_truncated_weights(folder, length):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"tensors: not a readable safetensors .*; copy or down"):
        CLIPSeg3D.from_pretrained(folder)


def test_weights_of_another_architecture(folder):
    changed(folder, network={"channels": [4, 6, 10]})
    with pytest.raises(ValueError, match=r"another architecture .*\(15 of another shape, such as"):
        CLIPSeg3D.from_pretrained(folder)
    changed(folder, network={"channels": [4, 6, 8], "guided": ["ET"]})
    with pytest.raises(ValueError, match=r"\d+ unknown, such as semantic_fusion.attention.TC"):
        CLIPSeg3D.from_pretrained(folder)
    changed(folder, network={"guided": ["WT", "TC", "ET"]})
    with pytest.raises(ValueError, match=r"\d+ missing, such as semantic_fusion.attention.WT"):
        CLIPSeg3D.from_pretrained(folder)


def test_one_wrong_shape_is_named(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["unet.heads.0.bias"] = torch.zeros(5)
    save_file(weights, path)
    with pytest.raises(ValueError, match=r"\(1 of another shape, such as unet\.heads\.0\.bias\)"):
        CLIPSeg3D.from_pretrained(folder)


def test_pickle_is_never_read(folder, monkeypatch):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")

    def refuse(*args, **kwargs):
        raise AssertionError("a pickle was read")

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors"):
        CLIPSeg3D.from_pretrained(folder)
