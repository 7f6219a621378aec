"""Two CPU processes (gloo, DDP) train every kind of network, and score as one process does."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("two_processes.py")
_SPEC = importlib.util.spec_from_file_location("two_processes", SCRIPT)
two_processes = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(two_processes)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What one launch of one process, and one of two, say of all networks."""
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


@pytest.mark.parametrize("name", two_processes.NETWORKS)
def test_two_processes_train_every_network(results, name):
    found = results[2][name]
    assert found["steps"] == 2
    assert found["moved"]
    assert found["alike"]
    assert found["strength"] == 0.5
    assert found["semantics_moved"] == (name not in ("no_semantic", "unet3d"))


@pytest.mark.parametrize("name", two_processes.SCORED)
def test_two_processes_score_as_one(results, name):
    one, two = results[1][name], results[2][name]
    scores = [f"val/dice_{region}" for region in ("wt", "tc", "et", "mean")]
    assert {s: two[s] for s in scores} == pytest.approx({s: one[s] for s in scores})
    assert any(one[score] not in (0.0, 1.0) for score in scores)
    assert one["steps"] == 2
