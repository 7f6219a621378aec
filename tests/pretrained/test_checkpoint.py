"""Mirrors clipseg3d/pretrained/checkpoint.py: damaged files, foreign files, code in files."""

from pathlib import Path

import pytest
import torch

from clipseg3d.inference.predictor import Predictor
from clipseg3d.networks.build import build_clipseg3d
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.pretrained.checkpoint import read_checkpoint_file
from clipseg3d.pretrained.reader import read_networks
from clipseg3d.training.checkpoint_io import AtomicCheckpointIO
from clipseg3d.training.module import CLIPSeg3DModule

pytestmark = pytest.mark.filterwarnings("ignore")
PLAIN = NetworkConfig(channels=(4, 8), num_auxiliary=0, semantics=False)
DAMAGED = "not a whole checkpoint; give another one, or copy it again"


@pytest.fixture
def path(tmp_path, save_checkpoint):
    """A checkpoint of a small network."""
    save_checkpoint(build_clipseg3d(PLAIN), PLAIN, tmp_path / "w.ckpt")
    return tmp_path / "w.ckpt"


def flip(path, index, bits=0x01):
    """Change bits of one byte of a file."""
    content = bytearray(path.read_bytes())
    content[index] ^= bits
    path.write_bytes(content)


def flip_weight(path):
    """Change one bit of a weight, with which the archive still opens."""
    weight = torch.load(path, weights_only=True)["state_dict"]["network.unet.up.0.weight"]
    flip(path, path.read_bytes().index(weight.numpy().tobytes()))
    changed = torch.load(path, weights_only=True)["state_dict"]["network.unet.up.0.weight"]
    assert not torch.equal(changed, weight)  # torch does not notice it


READERS = {
    "predicting": lambda path: read_networks([path]),
    "segment --weights": lambda path: Predictor.from_checkpoint(path, device="cpu"),
    "an ensemble": lambda path: Predictor.from_checkpoints([path, path], device="cpu"),
    "going on with a fit": lambda path: AtomicCheckpointIO().load_checkpoint(path),
    "loading the module": CLIPSeg3DModule.load_from_checkpoint,
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_one_wrong_bit_is_the_same_error_for_all_who_read(path, read):
    flip_weight(path)
    with pytest.raises(ValueError, match="not a whole") as info:
        read(path)
    assert str(info.value) == f"{path}: {DAMAGED}"


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


def outcome(path):
    """Return the content of a checkpoint, or the error that it ends in."""
    try:
        return read_checkpoint_file(path)
    except ValueError as error:
        return str(error)


def test_any_damaged_byte_is_an_error_or_harmless(tmp_path):
    """Also in the directory of the archive, which has no check sum."""
    path = tmp_path / "w.ckpt"
    content = {
        "format": 4,
        "state_dict": {"network.a": torch.arange(6.0), "network.b": torch.ones(3)},
        "hyper_parameters": {"network": {"channels": (4, 6)}, "spacing_mm": 1.0},
    }
    torch.save(content, path)
    intact = path.read_bytes()
    directory = intact.index(b"PK\x01\x02")
    errors = 0
    for index in [*range(0, directory, 7), *range(directory, len(intact), 2)]:
        path.write_bytes(intact)
        flip(path, index, 0x10 if index % 4 else 0xFF)
        result = outcome(path)
        if isinstance(result, str):
            assert result == f"{path}: {DAMAGED}"
            errors += 1
        else:
            assert same(result, content), f"byte {index}"
    assert errors > 100


@pytest.mark.parametrize("length", [0, 100, -1])
def test_truncated_files_are_refused(path, length):
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=DAMAGED):
        read_checkpoint_file(path)


def test_no_code_is_run_unless_it_is_asked_for(tmp_path):
    path = tmp_path / "w.ckpt"
    torch.save({"format": 4, "state_dict": {}, "code": Path}, path)
    with pytest.raises(ValueError, match=DAMAGED):
        read_checkpoint_file(path)
    assert read_checkpoint_file(path, weights_only=False)["code"] is Path


def test_tensors_go_where_they_are_sent(path):
    state = read_checkpoint_file(path, "meta")["state_dict"]
    assert {weight.device.type for weight in state.values()} == {"meta"}
    state = read_checkpoint_file(path)["state_dict"]
    assert {weight.device.type for weight in state.values()} == {"cpu"}


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt: no such file; give a checkpoint"):
        read_checkpoint_file(tmp_path / "none.ckpt")
    for name, content in (("list", [1, 2]), ("other", {"weights": torch.ones(2)})):
        torch.save(content, tmp_path / name)
        with pytest.raises(ValueError, match=f"{name}: not a checkpoint; give a file written by"):
            read_checkpoint_file(tmp_path / name)
