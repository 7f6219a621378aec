"""Two CPU processes (gloo, DDP) train, and score as one process does, with every ablation."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from clipseg3d.networks.config import ABLATIONS

SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    found = {}
    for devices in (1, 2):
        path = folder / f"{devices}.json"
        run = subprocess.run(
            [sys.executable, SCRIPT, str(devices), folder / "phantoms", path],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert run.returncode == 0, run.stderr[-3000:]
        found[devices] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize("ablation", [None, *ABLATIONS])
@pytest.mark.parametrize("devices", [1, 2])
def test_two_steps_change_the_weights(results, devices, ablation):
    found = results[devices][str(ablation)]
    assert found["steps"] == 2
    assert found["moved"]


@pytest.mark.parametrize("ablation", [None, *ABLATIONS])
def test_two_processes_score_as_one(results, ablation):
    one, two = results[1][str(ablation)], results[2][str(ablation)]
    names = [f"val/dice_{name}" for name in ("wt", "tc", "et", "mean")]
    assert {name: two[name] for name in names} == pytest.approx({name: one[name] for name in names})
    assert any(one[name] not in (0.0, 1.0) for name in names)
