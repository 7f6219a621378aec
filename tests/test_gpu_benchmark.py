"""Mirrors examples/benchmarks/gpu.py: it is ready for a GPU; here it runs on a CPU."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
FOLDER = Path(__file__).parents[1] / "examples" / "benchmarks"


def test_every_part_runs_at_tiny_sizes():
    command = [sys.executable, FOLDER / "gpu.py", "--rehearse", "--device", "cpu", "--repeats", "1"]
    command += ["--variants", "fp32", "bf16", "bf16 channels_last_3d"]  # compilers take minutes
    command += ["--networks", "recommended", "DynUNet", "--budget", "3000"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["failed"], result["skipped"]) == ([], []), result["parts"]
    parts = result["parts"]
    assert len([name for name in parts if name.startswith("steps/")]) == 2 * 3
    assert result["ratio"] == pytest.approx(
        parts["steps/recommended/bf16"]["ms"] / parts["steps/DynUNet/bf16"]["ms"]
    )
    predicted = [parts[f"memory/{size}"]["predicted_gb"] for size in (8, 12, 16)]
    assert 0 < predicted[0] < predicted[1] < predicted[2]
    assert 0 <= parts["loader"]["share_waiting"] <= 1
    assert parts["ddp"]["backend"] == "gloo"


def test_a_part_that_fails_and_the_end_of_time_are_reported(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    run = importlib.import_module("gpu").run

    def fail():
        raise RuntimeError("out of memory")

    results = run({"a": fail, "b": lambda: {"ms": 1.0}}, budget=60)
    assert results["a"]["error"] == "RuntimeError: out of memory"
    assert results["b"]["ms"] == 1.0
    assert list(run({"a": fail}, budget=-1)["a"]) == ["skipped"]
