"""Mirrors clipseg3d/training/checkpoint_io.py: damaged files, full disks."""

import errno
import json
import os
import resource

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger

from clipseg3d.training.checkpoint_io import AtomicCheckpointIO, find_last

CONTENT = {"state_dict": {"weight": torch.arange(5000.0)}, "manifest": {"seed": 3}}


@pytest.fixture
def files():
    return AtomicCheckpointIO()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    """Change one bit of the weights, which the archive still opens with."""
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(40.0, 44.0).numpy().tobytes())] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def code(path):
    """A pickle that would run something."""
    torch.save({"state_dict": {}, "x": Trainer}, path)


def other(path):
    torch.save([1, 2], path)


DAMAGE = [cut, flip, empty, zero, code, other]


def test_a_checkpoint_and_its_manifest_come_back(files, tmp_path):
    path = tmp_path / "new" / "best.ckpt"
    files.save_checkpoint(CONTENT, path)
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "best.ckpt",
        "best.manifest.json",
    ]
    content = files.load_checkpoint(path)
    assert torch.equal(content["state_dict"]["weight"], CONTENT["state_dict"]["weight"])
    assert json.loads((path.parent / "best.manifest.json").read_text()) == content["manifest"]
    files.remove_checkpoint(path)
    assert list(path.parent.iterdir()) == []


def test_a_full_disk_leaves_the_checkpoint_before(files, tmp_path):
    path = tmp_path / "best.ckpt"
    files.save_checkpoint(CONTENT, path)
    before = path.read_bytes()
    bigger = {**CONTENT, "more": torch.ones(10**6)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, limits[1]))
    try:
        with pytest.raises(OSError, match=r"best.ckpt: cannot be written .*free some sp") as caught:
            files.save_checkpoint(bigger, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert path.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_no_checkpoint_is_without_its_manifest(files, tmp_path, monkeypatch):
    renamed = []
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", lambda _, target: renamed.append(target.name))
        files.save_checkpoint(CONTENT, tmp_path / "last-1.ckpt")
    assert renamed == ["last-1.manifest.json", "last-1.ckpt"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_reported_and_no_code_runs(files, tmp_path, damage):
    path = tmp_path / "best.ckpt"
    files.save_checkpoint(CONTENT, path)
    damage(path)
    with pytest.raises(ValueError, match=r"best.ckpt: not a .*give"):
        files.load_checkpoint(path)


def test_a_missing_file_is_reported(files, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone.ckpt: no such file; give a checkpoint"):
        files.load_checkpoint(tmp_path / "gone.ckpt")


def trainer(folder, **options):
    return Trainer(accelerator="cpu", default_root_dir=folder, **options)


def spoil(damage, path):
    """Damage a file and leave its time as it was."""
    times = path.stat()
    damage(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def write_lasts(files, folder):
    """Write three checkpoints, each newer than the one before."""
    paths = [folder / f"last-{step}.ckpt" for step in (8, 9, 10)]
    for second, path in enumerate(paths):
        files.save_checkpoint(CONTENT, path)
        os.utime(path, (second, second))
    return paths


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_newest_intact_one_is_found_and_damaged_ones_are_reported(files, tmp_path, damage):
    paths = write_lasts(files, tmp_path)
    one = trainer(tmp_path, callbacks=[ModelCheckpoint(tmp_path)], logger=False)
    assert find_last(one, {}) == paths[2]
    spoil(damage, paths[2])
    with pytest.warns(match="last-10.ckpt: damaged; going on from the checkpoint before it"):
        assert find_last(one, {}) == paths[1]
    spoil(damage, paths[1])
    spoil(damage, paths[0])
    with (
        pytest.warns(match="going on from the checkpoint before it"),
        pytest.raises(
            ValueError, match=r"last-10.ckpt: damaged, and so is .* leave --ckpt_path out to"
        ),
    ):
        find_last(one, {})


@pytest.mark.parametrize("logged", [True, False])
def test_it_is_looked_for_where_checkpoints_go(files, tmp_path, logged):
    logger = CSVLogger(tmp_path, name="runs") if logged else False
    one = trainer(tmp_path, logger=logger)
    assert find_last(one, {}) is None
    folder = tmp_path / "runs" / "version_3" / "checkpoints" if logged else tmp_path / "checkpoints"
    assert find_last(one, {}) != write_lasts(files, folder)[0]
    assert find_last(one, {}).parent == folder


def test_the_newest_run_with_equal_settings_is_taken_and_others_are_named(files, tmp_path):
    one = trainer(tmp_path, logger=CSVLogger(tmp_path, name="runs"))
    paths = [tmp_path / f"runs/version_{n}/checkpoints/last-4.ckpt" for n in range(3)]
    for second, (path, rate) in enumerate(zip(paths, (1, 2, 3), strict=True)):
        settings = {"lr": rate, "data.content": "of any data"}
        files.save_checkpoint({**CONTENT, "settings": settings}, path)
        os.utime(path, (second, second))
    with pytest.warns(match=r"version_2.checkpoints.last-4.ckpt: passed over, .* lr: 3 -> 2"):
        assert find_last(one, {"lr": 2}) == paths[1]
    assert find_last(one, {"lr": 3}) == paths[2]
    assert find_last(one, {"lr": 9}) == paths[2]  # which the module refuses
