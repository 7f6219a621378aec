"""Mirrors clipseg3d/pretrained/folder.py: where folders are found, and what they may hold."""

import errno
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors.torch import load_file

import clipseg3d
import clipseg3d.pretrained.folder
import clipseg3d.weights
from clipseg3d.networks.clipseg3d import CLIPSeg3D

pytestmark = pytest.mark.filterwarnings("ignore")
HUB = "huggingface_hub.snapshot_download"


# where weights come from


@pytest.fixture
def bring(monkeypatch):
    """Let the package bring the weights of another folder."""

    def bundle(folder):
        for module in (clipseg3d.weights, clipseg3d.pretrained.folder):
            monkeypatch.setattr(module, "BUNDLED", folder)

    return bundle


@pytest.fixture
def bundled(folder, tmp_path, monkeypatch, bring):
    """A package that brings weights called ``small``."""
    shutil.copytree(folder, tmp_path / "weights" / "small")
    (tmp_path / "weights" / "unfinished").mkdir()
    bring(tmp_path / "weights")
    monkeypatch.chdir(tmp_path)


def test_a_name_finds_weights_of_the_package(bundled, trained, logits):
    assert (logits(CLIPSeg3D.from_pretrained("small")) - logits(trained())).abs().max() == 0


def test_an_unknown_name_lists_those_there_are(bundled, tmp_path, bring):
    with pytest.raises(ValueError, match=r"called 'smal': choose from .* \(small\), or give a fo"):
        CLIPSeg3D.from_pretrained("smal")
    bring(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"clipseg3d \(none\), or give a folder"):
        CLIPSeg3D.from_pretrained("small")


def test_a_name_that_is_also_a_folder_here_is_refused(bundled, trained, tmp_path):
    Path("small").mkdir()
    assert CLIPSeg3D.from_pretrained("small").config.semantics  # an empty folder is none
    trained(semantics=False).save_pretrained("small")
    with pytest.raises(ValueError, match=r"'small' is both a folder here and .*; give \./small"):
        CLIPSeg3D.from_pretrained("small")
    for source in ("./small", Path("small"), tmp_path / "small"):
        assert not CLIPSeg3D.from_pretrained(source).config.semantics


def test_a_folder_with_a_slash_is_no_hub_id(folder, tmp_path, monkeypatch, settings):
    monkeypatch.chdir(tmp_path.parent)
    monkeypatch.setattr(HUB, None)
    name = f"{tmp_path.name}/net"
    assert CLIPSeg3D.from_pretrained(name).settings == settings


def test_a_hub_id_is_downloaded_as_one_snapshot(folder, trained, monkeypatch, tmp_path, logits):
    asked = {}

    def snapshot_download(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(folder)

    monkeypatch.setattr(HUB, snapshot_download)
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


def test_local_files_only_holds_for_clip_too(
    folder, tiny_clip, monkeypatch, tmp_path, change_config
):
    asked = []

    def clip_model(name, **options):
        asked.append((name, options["local_files_only"]))
        return tiny_clip.frozen_model, {"missing_keys": []}

    def tokenizer(name, **options):
        asked.append((name, options["local_files_only"]))
        return tiny_clip.tokenizer

    def config(name, **options):
        asked.append((name, options["local_files_only"]))
        return tiny_clip.frozen_model.config

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", config)
    monkeypatch.setattr(transformers.CLIPModel, "from_pretrained", clip_model)
    monkeypatch.setattr(transformers.CLIPTokenizer, "from_pretrained", tokenizer)
    monkeypatch.setattr(HUB, lambda repo_id, **options: str(folder))
    change_config(folder, network={"clip": "someone/clip"})
    monkeypatch.chdir(tmp_path)
    CLIPSeg3D.from_pretrained("me/net", clip="someone/clip", local_files_only=True)
    assert asked == [("someone/clip", True)] * 3
    CLIPSeg3D.from_pretrained("me/net", clip="someone/clip")
    assert asked[3:] == [("someone/clip", False)] * 3


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

    monkeypatch.setattr(HUB, fail)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match=rf"\({type(error).__name__}\); check the name") as info:
        CLIPSeg3D.from_pretrained("me/net")
    assert info.value.__cause__ is error


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


# config.json


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": {"wings": 2}, "clipseg3d": "9.1"}, "by clipseg3d 9.1, not under.*'wings'"),
        ({"future": 1, "clipseg3d": "9.1"}, "by clipseg3d 9.1, not under.*unknown key future"),
        ({"prediction": {"tta": True}}, "not understood by .*'tta'.*install that version"),
        ({"network": {"channels": "wide"}}, r"Parser key \"channels\": Expected"),
        ({"network": {"space_to_depth": 2.5}}, r"\"space_to_depth\".* Got value: 2\.5"),
        ({"network": {"head": "round"}}, r"Parser key \"head\": "),
        ({"network": {"fold": 2}}, "not understood by .*'fold'"),  # a name of format 1
        (
            {"network": {"space_to_depth": 3}},
            r"no network can be built as it says \(space_to_depth=3 is not 1, 2",
        ),
        (
            {"network": {"text": "none", "pixel_fusion": False, "difference_channels": True}},
            "parts",
        ),
        ({"network": []}, "not understood .*network is not an object"),
        ({"network": {"channels": None}}, "not understood .*channels is null"),
        ({"network": None}, "not understood .*missing key network"),
        ({"encoders": None}, "not understood .*missing key encoders"),
        ({"encoders": None, "format": None}, "describes no network of clipseg3d"),
        ({"clipseg3d": None}, "describes no network of clipseg3d"),
        ({"encoders": {"CLIP": "abc"}}, "encoders need a name and a sha256 each"),
        ({"encoders": {"CLIP": {"name": "x"}}}, "encoders need a name and a sha256 each"),
        ({"prediction": 3}, "prediction is neither an object nor null"),
        ({"prediction": {"roi_size": [16, 24]}}, "roi_size"),
        ({"prediction": {"roi_size": [16, 24, 0]}}, "three sizes in voxels, each from 1 to 1024"),
        ({"prediction": {"spacing_mm": 0}}, r"spacing_mm=0.* is not above 0"),
        ({"prediction": {"overlap": 1.0}}, r"overlap=1.0 is not in \[0, 1\)"),
    ],
    ids=str,
)
def test_a_config_that_this_version_cannot_use(folder, changes, message, change_config):
    change_config(folder, **changes)
    with pytest.raises(ValueError, match=message) as info:
        CLIPSeg3D.from_pretrained(folder)
    assert str(info.value).startswith(f"{folder / 'config.json'}: ")
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"model_type": "bert"}'])
def test_a_config_of_something_else(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json: (not valid JSON|describes no network)"):
        CLIPSeg3D.from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"^{folder}: holds no {name}; "):
        CLIPSeg3D.from_pretrained(folder)


# model.safetensors


@pytest.mark.parametrize("length", [0, 5, 300, -1])
def test_truncated_weights(folder, length):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"tensors: not a readable safetensors .*; copy or down"):
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


# writing


@pytest.fixture
def full_disk(monkeypatch):
    """Let no file of one ending be written."""

    def fill(suffix):
        write_bytes, write_text = Path.write_bytes, Path.write_text

        def fail(write, part):
            def attempt(path, content, **options):
                if path.suffix != suffix:
                    return write(path, content, **options)
                write(path, content[:part], **options)
                raise OSError(errno.ENOSPC, "No space left on device")

            return attempt

        monkeypatch.setattr(Path, "write_bytes", fail(write_bytes, 10))
        monkeypatch.setattr(Path, "write_text", fail(write_text, 10))

    return fill


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_full_disk_leaves_what_was_there(trained, folder, full_disk, suffix):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    full_disk(suffix)
    with pytest.raises(OSError, match=r"model.safetensors: cannot be written \(No space left"):
        trained(space_to_depth=2).save_pretrained(folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_kill_between_config_and_weights_is_told(trained, folder, monkeypatch):
    replace = os.replace

    def die(source, target):
        if target.name == "model.safetensors":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            trained(space_to_depth=2).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"not the weights that config\.json belongs to"):
        CLIPSeg3D.from_pretrained(folder)
    trained(space_to_depth=2).save_pretrained(folder)
    assert CLIPSeg3D.from_pretrained(folder).config.space_to_depth == 2
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
    }


def test_folders_written_at_once_are_of_one_network(trained, tmp_path):
    networks = [trained(), trained(space_to_depth=2)]

    def write(network):
        for _ in range(10):
            network.save_pretrained(tmp_path / "net")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, networks))
    CLIPSeg3D.from_pretrained(tmp_path / "net")  # compares the hash of the weights
    assert not list((tmp_path / "net").glob(".*"))
