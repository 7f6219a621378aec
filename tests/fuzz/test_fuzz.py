"""No input ends in a traceback, a hang, an abort, a vague error or a wrong result in silence."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NAMES = (
    *("scans", "cases to check", "masks to score", "masks as references", "masks to submit"),
    *("masks to tune with", "reports given as files", "reports beside scans", "reports to embed"),
    *("reports in a table", "splits", "rules of post-processing", "configurations of fit"),
    *("checkpoints", "weights of folders", "config.json of folders", "CLIP folders"),
    *("caches of text", "caches of cases", "names of cases", "names given on the command line"),
    *("places to write", "numbers on the command line", "numbers of fit"),
)
GOOD = {"right", "refused"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """Return a function that runs the inputs of a door in one process for all doors."""
    folder = tmp_path_factory.mktemp("fuzz")
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", HERE / "limited.py", folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(folder / "errors").open("w"),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
    )

    def run(name):
        process.stdin.write(f"{name}\n")
        process.stdin.flush()
        line = process.stdout.readline()
        assert line, (folder / "errors").read_text()[-3000:]
        return json.loads(line)

    yield run
    process.stdin.close()
    process.wait(60)


@pytest.mark.parametrize("name", NAMES)
def test_every_input_works_or_is_refused_in_one_line(ask, name, record_property):
    answer = ask(name)
    record_property("counts", answer["counts"])
    print(f"{name}: {answer['counts']}")  # noqa: T201
    assert not answer["bad"], "\n".join(answer["bad"])
    assert "right" in answer["counts"]  # the undamaged one works


def test_every_door_is_asked(monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    import doors

    assert set(NAMES) == set(doors.DOORS)
    assert sum(door.count for door in doors.DOORS.values()) >= 1500
