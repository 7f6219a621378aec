"""A user's script passes the strictest checks of types, and the parts of it that are quick run."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tests" / "typed_user_script.py"


@pytest.mark.slow
def test_mypy_accepts_it(tmp_path):
    """The package is checked by mypy itself; here, what others see of it."""
    options = ["--strict", "--config-file=", "--follow-imports=silent", f"--cache-dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(SCRIPT)],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the weights of the tiny CLIP are random")
def test_it_runs():
    spec = importlib.util.spec_from_file_location("typed_user_script", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    logits = script.guided_logits(torch.rand(1, 4, 16, 24, 20), "Left frontal lesion.")
    assert logits.shape == (1, 3, 16, 24, 20)
    script.check_own_block()
