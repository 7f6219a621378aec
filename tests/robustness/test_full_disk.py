"""A full disk is one line that names the file; nothing is half-written, and old files stay.

Files of these tests may not grow beyond some bytes, which the system reports like a full disk.
"""

import errno
import re
import resource
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from clipseg3d.atomic_write import naming_full_disk
from clipseg3d.cli.config_writer import ConfigWriter
from clipseg3d.cli.main import main
from clipseg3d.clip import HuggingFaceCLIP
from clipseg3d.data.cache import build_cache
from clipseg3d.data.cases import find_cases
from clipseg3d.data.releases import PHANTOM
from clipseg3d.networks.build import build_clipseg3d
from clipseg3d.networks.config import NetworkConfig

pytestmark = pytest.mark.filterwarnings("ignore")
NETWORK = NetworkConfig(
    channels=(4, 6), num_auxiliary=0, semantic_dim=12, num_heads=3, clip="tiny-random"
)


@contextmanager
def full_at(num_bytes):
    """Let no file of this process grow beyond some bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def weights(tmp_path, tiny_clip, randomise, save_checkpoint):
    network = randomise(build_clipseg3d(NETWORK, encoder=tiny_clip))
    save_checkpoint(network, NETWORK, tmp_path / "best.ckpt")
    return tmp_path / "best.ckpt"


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("phantom -o {out} --spacing 8", "Phantom_00000"),
        (
            "segment {patients} -o {out} --weights {weights} --overwrite --probabilities",
            "probabilities/Phantom_00000_WT.nii.gz",
        ),
        ("embed-text {patients} -o {out}/a.safetensors --encoder tiny-random", "a.safetensors"),
        ("evaluate {masks} {patients} --protocol nan -o {out}/a.csv", "a.csv"),
        ("check-data {patients} -o {out}/a.json", "a.json"),
        ("export {weights} -o {out}", "model.safetensors"),
        ("export {weights} --format bundle -o {out}/bundle", "bundle"),
    ],
)
def test_commands(weights, tiny_clip, phantom_folder, tmp_path, monkeypatch, capsys, command, name):
    out, masks = tmp_path / "out", tmp_path / "masks"
    for folder in (out, masks):
        folder.mkdir()
    (tmp_path / "patients").mkdir()
    patient = phantom_folder / "Phantom_00000"
    (tmp_path / "patients" / patient.name).symlink_to(patient)
    (masks / f"{patient.name}.nii.gz").symlink_to(patient / f"{patient.name}_seg.nii.gz")
    if "." in name:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("old")
    before = files(out)
    given = {"patients": tmp_path / "patients", "masks": masks, "weights": weights, "out": out}
    # Its tokenizer is made by way of a temporary file.
    monkeypatch.setattr(HuggingFaceCLIP, "tiny_random", lambda: tiny_clip)
    with full_at(1500 if command.startswith("segment") else 100):  # a record is smaller
        assert main(command.format(**given).split()) == 1
    errors = capsys.readouterr().err
    (line,) = [line for line in errors.splitlines() if "cannot be written" in line]
    # The labels of a random network may be so few that they fit, but not its probabilities.
    assert re.search(rf"{out}/\S+: cannot be written \(File too large\); free some space", line)
    assert before.items() <= files(out).items()
    written = {path.name for path in files(out).keys() - before.keys()}
    assert written <= {"Phantom_00000.json", "Phantom_00000.nii.gz"}  # whole ones


def test_a_cache(phantom_folder, tmp_path):
    cases = find_cases(phantom_folder, PHANTOM, spacing_mm=8.0)[:2]
    with (
        full_at(500),
        pytest.raises(OSError, match=rf"^{tmp_path}: the cache cannot be written \(File too l"),
    ):
        build_cache(cases, PHANTOM, tmp_path)
    assert [path.name for path in files(tmp_path)] == [".phantom.lock"]


def test_the_configuration_of_a_fit(tmp_path):
    parser = SimpleNamespace(dump=lambda config, skip_none: "x" * 1000)
    trainer = SimpleNamespace(log_dir=str(tmp_path), is_global_zero=True)
    (tmp_path / "config.yaml").write_text("old")
    with (
        full_at(500),
        pytest.raises(OSError, match=rf"^{tmp_path / 'config.yaml'}: cannot be written"),
    ):
        ConfigWriter(parser, None).setup(trainer, torch.nn.Module(), "fit")
    assert files(tmp_path) == {tmp_path / "config.yaml": b"old"}
    ConfigWriter(parser, None).setup(trainer, torch.nn.Module(), "fit")
    assert files(tmp_path) == {tmp_path / "config.yaml": b"x" * 1000}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOENT])
def test_what_other_libraries_write(tmp_path, code):
    message = rf"^{tmp_path}: cannot be written \(it\); free" if code != errno.ENOENT else "^.Errno"
    with pytest.raises(OSError, match=message) as caught, naming_full_disk(tmp_path):
        raise OSError(code, "it")
    assert caught.value.errno == code
    named = OSError("a file: cannot be written")
    named.errno = code
    with pytest.raises(OSError, match="a file") as caught, naming_full_disk(tmp_path):
        raise named
    assert caught.value is named
