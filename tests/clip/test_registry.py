"""Mirrors clipseg3d/clip/registry.py; needs no network."""

import importlib
import sys

import pytest

import clipseg3d.clip
from clipseg3d.clip import load_encoder, load_text_encoder, register, registry


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """Forget what a test registers."""
    load_encoder("tiny")
    monkeypatch.setattr(registry, "_LOADERS", dict(registry._LOADERS))


class Texts:
    """A text encoder that remembers how it was loaded."""

    name = "as built"

    def __init__(self, rest, *, local_files_only):
        self.loaded = (rest, local_files_only)


class Clip(Texts):
    def encode_image(self, images):
        return images


@pytest.mark.parametrize(
    ("name", "rest"), [("mine", ""), ("mine:", ""), ("mine:a/b", "a/b"), ("mine:a:b", "a:b")]
)
@pytest.mark.parametrize("local_files_only", [False, True])
def test_a_loader_gets_what_follows_its_prefix(name, rest, local_files_only):
    register("mine", Clip)
    for load in (load_encoder, load_text_encoder):
        encoder = load(name, local_files_only=local_files_only)
        assert encoder.loaded == (rest, local_files_only)
        assert encoder.name == name


def test_what_a_module_registers_again_counts():
    register("mine", Clip)
    register("mine", lambda rest, **_: Clip("second", local_files_only=True))
    assert load_encoder("mine").loaded[0] == "second"


@pytest.mark.parametrize("prefix", ["tiny", "hf", "texts", "open_clip"])
def test_prefixes_of_the_library_are_taken(prefix):
    with pytest.raises(ValueError, match=rf"prefix '{prefix}' is that of clipseg3d.clip"):
        register(prefix, Clip)


@pytest.mark.parametrize("prefix", ["", "a:b", "a/b"])
def test_a_prefix_is_a_plain_word(prefix):
    with pytest.raises(ValueError, match="plain word"):
        register(prefix, Clip)


def test_an_encoder_of_texts_is_no_clip():
    register("mine", Texts)
    assert load_text_encoder("mine:x").name == "mine:x"
    with pytest.raises(ValueError, match=r"mine:x: reads texts and no images; .*text_encoder"):
        load_encoder("mine:x")


def test_an_unknown_prefix_says_what_there_is():
    register("mine", Clip)
    with pytest.raises(OSError, match=r"'nonsense:x'.*mine.*open_clip.*tiny.*register"):
        load_encoder("nonsense:x")


def test_a_folder_may_hold_a_colon(tiny_clip, clip_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my:clip").symlink_to(clip_folder)
    assert load_encoder("my:clip").fingerprint() == tiny_clip.fingerprint()


def test_a_folder_with_the_name_of_a_prefix_is_ambiguous(clip_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hf").symlink_to(clip_folder)
    with pytest.raises(ValueError, match=r"both a folder here and an encoder .* give ./hf"):
        load_encoder("hf")
    assert load_encoder("./hf").name == "./hf"


def test_a_prefix_may_stand_before_a_folder(tiny_clip, clip_folder):
    encoder = load_encoder(f"hf:{clip_folder}")
    assert encoder.fingerprint() == tiny_clip.fingerprint()
    assert encoder.name == f"hf:{clip_folder}"


@pytest.mark.parametrize("name", ["tiny:3", "tiny-random:3"])
def test_there_is_one_tiny_clip_only(name):
    with pytest.raises(ValueError, match="there is one only"):
        load_encoder(name)


def test_a_family_is_one_file(tmp_path, monkeypatch):
    """A file in the folder is found; no other file has to name it."""
    (tmp_path / "new_family.py").write_text(
        "from clipseg3d.clip.registry import register\n"
        "class New:\n"
        "    def __init__(self, rest, *, local_files_only): self.rest = rest\n"
        "    def encode_image(self, images): return images\n"
        "register('new', New)\n"
    )
    monkeypatch.setattr(clipseg3d.clip, "__path__", [*clipseg3d.clip.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    try:
        assert load_encoder("new:x").rest == "x"
    finally:
        sys.modules.pop("clipseg3d.clip.new_family", None)
        vars(clipseg3d.clip).pop("new_family", None)
