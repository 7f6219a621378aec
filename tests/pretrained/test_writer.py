"""Mirrors clipseg3d/pretrained/writer.py: what is saved, and that it comes back."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file

import clipseg3d
from clipseg3d.checksums import sha256_of_file
from clipseg3d.clip.hugging_face_clip import HuggingFaceCLIP
from clipseg3d.networks.build import build_clipseg3d
from clipseg3d.networks.clipseg3d import CLIPSeg3D
from clipseg3d.networks.presets import ABLATIONS
from clipseg3d.networks.unet import UNet3D
from clipseg3d.pretrained.writer import write_postprocessing

pytestmark = pytest.mark.filterwarnings("ignore")
VARIANTS = {
    "default": {},
    "dense": {"dense": True, "view_selection": "attention", "guidance": "sequential"},
    "learned colours": {"mix_rgb": True, "adapter": True, "conditional_norm": True},
    "plan": {"plan": "paper_body"},
    "nested": {"head": "nested", "grade_classifier": True, "difference_channels": True},
    "no_text": ABLATIONS["no_text"],
    "unet3d": ABLATIONS["unet3d"],
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_round_trip_gives_the_same_logits_to_the_bit(trained, tmp_path, logits, settings, changes):
    network = trained(**changes)
    assert network.save_pretrained(tmp_path / "a") is None
    again = CLIPSeg3D.from_pretrained(tmp_path / "a")
    before = logits(network)
    assert (logits(again) - before).abs().max() == 0
    assert before.std() > 0
    assert again.config == network.config
    assert again.settings == settings
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
        "format": 4,
        "weights_sha256": sha256_of_file(folder / "model.safetensors"),
        "network": json.loads(json.dumps(asdict(network.config))),
        "prediction": {
            "release": "brats2023_gli",
            "spacing_mm": 1.5,
            "roi_size": [16, 24, 20],
            "overlap": 0.25,
            "allow_missing": True,
            "postprocessing": None,
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


def test_saving_again_replaces_weights_and_config_but_not_the_card(trained, folder, logits):
    (folder / "README.md").write_text("mine")
    network = trained(space_to_depth=2)
    network.save_pretrained(folder)
    assert (folder / "README.md").read_text() == "mine"
    assert CLIPSeg3D.from_pretrained(folder).config == network.config
    assert (logits(CLIPSeg3D.from_pretrained(folder)) - logits(network)).abs().max() == 0


def test_a_network_of_parts_is_not_saved_and_harms_nothing(folder):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=r"made of parts has no config .*; build it with"):
        CLIPSeg3D(UNet3D(channels=(4, 6), num_auxiliary=0)).save_pretrained(folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


RULES = {"relative_components": {"WT": 0.1}, "enhancing_to_core": 0.5}


def test_rules_of_post_processing_are_saved_with_the_weights(trained, tmp_path):
    network = trained(semantics=False)
    network.settings = replace(network.settings, postprocessing=RULES)
    network.save_pretrained(tmp_path)
    assert CLIPSeg3D.from_pretrained(tmp_path).settings == network.settings
    card = (tmp_path / "README.md").read_text()
    assert '`{"enhancing_to_core": 0.5, "relative_components": {"WT": 0.1}}`' in card


def test_rules_are_written_to_a_folder_and_nothing_else_changes(folder, settings):
    config = json.loads((folder / "config.json").read_text())
    others = {p: p.read_bytes() for p in folder.iterdir() if p.name != "config.json"}
    write_postprocessing(folder, RULES)
    written = json.loads((folder / "config.json").read_text())
    assert written["prediction"].pop("postprocessing") == RULES
    del config["prediction"]["postprocessing"]
    assert written == config
    assert {p: p.read_bytes() for p in folder.iterdir() if p.name != "config.json"} == others
    assert CLIPSeg3D.from_pretrained(folder).settings == replace(settings, postprocessing=RULES)
    write_postprocessing(folder, {})
    assert CLIPSeg3D.from_pretrained(folder).settings == settings


def test_rules_are_written_to_a_folder_of_an_older_format(folder, change_config):
    change_config(folder, format=2)
    path = folder / "config.json"
    before = json.loads(path.read_text())
    del before["prediction"]["postprocessing"]
    path.write_text(json.dumps(before))
    assert CLIPSeg3D.from_pretrained(folder).settings.postprocessing is None
    write_postprocessing(folder, RULES)
    assert json.loads(path.read_text())["format"] == 2
    assert CLIPSeg3D.from_pretrained(folder).settings.postprocessing == RULES


def test_rules_are_written_completely_or_not_at_all(folder, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"gone: holds no config\.json"):
        write_postprocessing(tmp_path / "gone", RULES)
    assert not (tmp_path / "gone").exists()
    before = {path: path.read_bytes() for path in folder.iterdir()}

    def fill_the_disk(self, *args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fill_the_disk)
    with pytest.raises(OSError, match=r"config\.json: cannot be written \(No space"):
        write_postprocessing(folder, RULES)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_rules_are_not_written_where_settings_are_unknown(trained, tmp_path):
    network = trained(semantics=False)
    network.settings = None
    network.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"config\.json: does not say which scans"):
        write_postprocessing(tmp_path, RULES)


# the hub


class Created:
    """What the hub answers when a repository is made."""

    repo_id = "me/net"


def test_push_to_hub_uploads_the_three_files(trained, monkeypatch):
    uploaded, asked = {}, {}

    def create_repo(self, **options):
        asked["create_repo"] = options
        return Created

    def upload_folder(self, *, folder_path, **options):
        uploaded.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})
        asked["upload_folder"] = options
        return "https://example.org/commit"

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    network = trained()
    address = network.push_to_hub(
        "net", model_card_kwargs={"metrics": "WT 0.9"}, private=True, branch="dev", create_pr=True
    )
    assert address == "https://example.org/commit"
    assert set(uploaded) == {"config.json", "model.safetensors", "README.md"}
    assert b"WT 0.9" in uploaded["README.md"]
    assert json.loads(uploaded["config.json"])["prediction"]["release"] == "brats2023_gli"
    assert asked == {
        "create_repo": {"repo_id": "net", "private": True, "exist_ok": True},
        "upload_folder": {
            "repo_id": "me/net",
            "repo_type": "model",
            "commit_message": "Upload a network of clipseg3d",
            "revision": "dev",
            "create_pr": True,
        },
    }


def test_a_hub_that_cannot_be_reached_is_one_error(trained, monkeypatch):
    def fail(self, **options):
        raise RuntimeError("of a library below")

    monkeypatch.setattr(HfApi, "create_repo", fail)
    with pytest.raises(
        OSError, match=r"'me/net' was not uploaded .*\(RuntimeError\); check the net"
    ):
        trained().push_to_hub("me/net")
    with pytest.raises(ValueError, match="made of parts has no config"):
        CLIPSeg3D(UNet3D(channels=(4, 6), num_auxiliary=0)).push_to_hub("me/net")


def test_an_id_that_is_none_is_refused_before_the_network_is_used(trained):
    with pytest.raises(ValueError, match="Repo id must"):
        trained(semantics=False).push_to_hub("a name/with blanks/and slashes")


@pytest.mark.parametrize("repo_id", ["me/net", None])
def test_saving_may_push_too(trained, monkeypatch, tmp_path, repo_id):
    pushed = []

    def create_repo(self, *, repo_id, **options):
        pushed.append(repo_id)
        return Created

    def upload_folder(self, *, folder_path, **options):
        pushed.append((Path(folder_path) / "config.json").read_text())
        return "address"

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    folder = tmp_path / "mine"
    address = trained(semantics=False).save_pretrained(folder, push_to_hub=True, repo_id=repo_id)
    assert address == "address"
    assert pushed == [repo_id or "mine", (folder / "config.json").read_text()]
