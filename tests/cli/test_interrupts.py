"""A fit that is interrupted says how it goes on, and does not end as if it were complete."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

OPTIONS = (
    *("--data.root", "patients", "--data.num_cases", "4", "--data.num_folds", "2"),
    *("--data.spacing_mm", "8", "--data.patch_size", "[64,32,32]"),
    *("--model.roi_size", "[64,32,32]", "--trainer.max_epochs", "400"),
)


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interrupted_fit_says_how_it_goes_on(tmp_path, sent, code):
    command = [str(Path(sys.executable).with_name("clipseg3d")), "fit", "--config", "phantom_tiny"]
    fit = subprocess.Popen(
        [*command, *OPTIONS],
        cwd=tmp_path,
        env={**os.environ, "CLIPSEG3D_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert fit.stderr is not None
    said = []
    for line in fit.stderr:
        said.append(line.rstrip("\n"))
        if line.startswith("Epoch 2/"):
            fit.send_signal(getattr(signal, sent))
    assert fit.wait() == code
    last = max((tmp_path / "lightning_logs").rglob("last-*.ckpt")).relative_to(tmp_path)
    start, _, rest = said[-1].partition("; ")
    assert start.startswith("clipseg3d: interrupted in epoch ")
    assert rest == f"the same command with --ckpt_path last goes on from {last}"
