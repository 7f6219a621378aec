"""SIGKILL at seeded moments: no file is half-written, and the next run ends as if undisturbed.

Commands run in forks of this process, each in a process group of its own. Half of the kills come
from outside, after some time; half from within, while a file is written, synchronised or renamed.
"""

import json
import os
import random
import runpy
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from clipseg3d.atomic_write import HIDDEN
from clipseg3d.cli.main import main
from clipseg3d.data.cache import build_cache
from clipseg3d.data.cases import find_cases
from clipseg3d.data.releases import PHANTOM
from clipseg3d.networks.build import build_clipseg3d
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.pretrained.checkpoint import read_checkpoint_file

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
FIT = runpy.run_path(str(Path(__file__).parents[1] / "training" / "killed_fit.py"))
NETWORK = NetworkConfig(
    channels=(4, 6), num_auxiliary=0, semantic_dim=12, num_heads=3, clip="tiny-random"
)
KILLED = -signal.SIGKILL
SHARE = 1 if os.environ.get("CLIPSEG3D_FUZZ") == "all" else 3
"""Every third kill is tried, unless all 48 are asked for."""


class End(NamedTuple):
    """How a run ended: its exit code or minus the signal, seconds, and events in it."""

    code: int
    seconds: float
    events: int


def count_events(log: Path, kill_at: int) -> None:
    """Count the steps of writing in this process, and kill its group at one of them."""
    events, write, dots = 0, Path.write_bytes, log.open("ab", buffering=0)

    def event() -> None:
        nonlocal events
        events += 1
        dots.write(b".")
        if events == kill_at:
            os.killpg(0, signal.SIGKILL)

    def spy(name):
        function = getattr(os, name)

        def call(*arguments):
            event()
            function(*arguments)
            event()

        return call

    def write_by_halves(path, content):
        write(path, memoryview(content)[: len(content) // 2])
        event()
        return write(path, content)

    Path.write_bytes = write_by_halves
    os.fsync, os.replace = spy("fsync"), spy("replace")


def run(command: Callable[[], object], log: Path, *, seconds: float = 0, kill_at: int = 0) -> End:
    """Run a command in a fork, and kill it after some time or at an event, if given."""
    log.write_bytes(b"")
    start, child = time.monotonic(), os.fork()
    if child == 0:
        code = 1
        try:
            os.setsid()
            sys.stdout = sys.stderr = log.with_suffix(".err").open("w")
            torch.set_num_threads(1)  # threads do not survive a fork
            count_events(log, kill_at)
            code = int(command() or 0)
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)
    if seconds:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)  # not yet waited for, so no other process has its number
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return End(code, time.monotonic() - start, log.stat().st_size)


def contents(folder: Path, read=Path.read_bytes) -> dict[str, object]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): read(path) for path in files}


def kill_again_and_again(
    command, folder: Path, *, kills: int, seed: int, check=None, read=Path.read_bytes, old=()
) -> None:
    """Kill a command at moments spread over it, and after most kills let it finish.

    Args:
        command: writes to ``folder``; returns an exit code, or None.
        folder: new for every fresh start.
        kills: how many.
        seed: of the moments.
        check: fails if a file is not whole, given all after a kill, and those of the undisturbed
            run; None lets each be as there, or as before.
        read: what is compared of a file after a run that finished.
        old: files that are there before every fresh start, name -> content.
    """

    def start_anew() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        for name, content in dict(old).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    def finish() -> None:
        assert run(command, log).code == 0, log.with_suffix(".err").read_text()
        assert contents(folder, read) == compared

    rng, log, done, tries = random.Random(seed), folder.with_suffix(".log"), 0, 0
    start_anew()
    alone = run(command, log)
    assert alone.code == 0, log.with_suffix(".err").read_text()
    expected, compared = contents(folder), contents(folder, read)
    assert not [name for name in expected if HIDDEN in name]
    start_anew()
    kills = -(-kills // SHARE)
    while done < kills:
        tries += 1
        assert tries < 4 * kills
        share = (done + rng.random()) / kills
        if tries % 2:
            end = run(command, log, seconds=max(0.01, share * alone.seconds))
        else:
            step = max(1, 2 * alone.events // kills)
            end = run(command, log, kill_at=1 + (tries // 2 - 1) * step % alone.events)
        assert end.code in (KILLED, 0), log.with_suffix(".err").read_text()
        if end.code == 0:  # what was left to do took less
            assert contents(folder, read) == compared
            start_anew()
            continue
        done += 1
        visible = {name: text for name, text in contents(folder).items() if HIDDEN not in name}
        for name, content in visible.items():
            if check is not None:
                check(name, content, expected, visible)
            else:
                assert content in (expected.get(name), dict(old).get(name)), name
        assert visible.keys() >= dict(old).keys()
        if rng.random() < 0.6:
            finish()
            start_anew()
    finish()


@pytest.fixture
def weights(tmp_path, tiny_clip, randomise, save_checkpoint):
    network = randomise(build_clipseg3d(NETWORK, encoder=tiny_clip))
    save_checkpoint(network, NETWORK, tmp_path / "best.ckpt")
    return tmp_path / "best.ckpt"


def command(*arguments):
    return lambda: main([*map(str, arguments)])


def test_segment(weights, phantom_folder, tmp_path):
    def check(name, content, expected, files):
        if name.startswith("records/"):  # it says first whose files are about to be written
            record, final = json.loads(content), json.loads(expected[name])
            assert record["made_with"] == final["made_with"]
            assert record["files"].keys() == final["files"].keys()
            for file, digest in record["files"].items():
                assert digest in (None, final["files"][file])
        else:
            assert content == expected[name], name

    out = tmp_path / "out"
    segment = command("segment", phantom_folder, "-o", out, "--weights", weights, "--html")
    kill_again_and_again(segment, out, kills=12, seed=0, check=check)


def test_fit(phantom_folder, tmp_path):
    """Killed and resumed with ``--ckpt_path last``: equal to the last bit."""

    def check(name, content, expected, files):
        if name.endswith(".ckpt"):
            read_checkpoint_file(tmp_path / "fit" / name)
            assert name.replace(".ckpt", ".manifest.json") in files
        elif name.endswith(".json"):
            json.loads(content)
        else:
            assert content == expected[name], name

    def read(path):
        if path.suffix != ".ckpt":
            return None
        state = read_checkpoint_file(path)
        weights = {name: weight.numpy().tobytes() for name, weight in state["state_dict"].items()}
        loops = state["loops"]["fit_loop"]
        progress = [(name, loops[name]) for name in loops if ".val_loop." not in name]
        return weights, progress, str(state["optimizer_states"]), state["lr_schedulers"]

    (tmp_path / "phantoms").symlink_to(phantom_folder)
    changes = ("--data.num_cases=6", "--data.num_folds=3", "--trainer.max_epochs=2")
    fit = command(*FIT["arguments"](tmp_path, "fit", 0), *changes)
    kill_again_and_again(fit, tmp_path / "fit", kills=10, seed=1, check=check, read=read)


def test_case_cache(phantom_folder, tmp_path):
    def build():
        build_cache(find_cases(phantom_folder, PHANTOM, spacing_mm=8.0), PHANTOM, tmp_path / "out")

    kill_again_and_again(build, tmp_path / "out", kills=8, seed=2)


def test_text_cache(phantom_folder, tmp_path):
    path = tmp_path / "out" / "texts.safetensors"
    embed = command("embed-text", phantom_folder, "-o", path, "--encoder", "tiny-random")
    kill_again_and_again(embed, path.parent, kills=6, seed=3, old={path.name: b"old"})


def once(function):
    """Return a function that computes its result at the first call only."""
    results = []

    def call(*arguments, **options):
        if not results:
            results.append(function(*arguments, **options))
        return results[0]

    return call


OLD = {
    "torch": {"net.pt2": b"old"},
    "onnx": {"net.onnx": b"old"},
    "pretrained": {"net/config.json": b"{}", "net/model.safetensors": b"old", "net/README.md": b""},
    "bundle": {},  # one that exists is refused
}


@pytest.mark.parametrize("kind", OLD)
def test_export(weights, tmp_path, monkeypatch, kind):
    path = tmp_path / "out" / min(OLD[kind], default="net").split("/")[0]
    # Tracing takes most of the time and writes nothing, so it is done once, before all forks.
    monkeypatch.setattr(torch.export, "export", once(torch.export.export))
    monkeypatch.setattr(torch.onnx, "export", once(torch.onnx.export))
    export = command("export", weights, "-o", path, "--format", kind)
    assert export() == 0

    def export_anew():
        return 0 if kind == "bundle" and path.exists() else export()

    kill_again_and_again(export_anew, path.parent, kills=4, seed=4, old=OLD[kind])
