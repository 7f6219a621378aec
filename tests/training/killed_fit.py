"""Run by test_resume.py: one fit left alone, and one that is killed again and again.

python killed_fit.py ROOT NUM_WORKERS

Fits run in forks, so that libraries are imported once and a SIGKILL is one.
"""

import json
import os
import random
import signal
import sys
import traceback
import warnings
from pathlib import Path

import torch

from clipseg3d import atomic_write
from clipseg3d.batch import unpack
from clipseg3d.cli.lightning_cli import run_lightning
from clipseg3d.training.module import CLIPSeg3DModule

NETWORK = {
    "channels": [4, 8],
    "num_auxiliary": 0,
    "semantic_dim": 16,
    "num_heads": 2,
    "clip": "tiny-random",
    "dropout": 0.2,
    "region_contrast": 0.5,
}


def arguments(root: Path, name: str, workers: int) -> list[str]:
    """Return a command of three epochs of six batches, with validation after each."""
    options = {
        "seed_everything": 3,
        "model.network": json.dumps(NETWORK),
        "model.plan": '{"lr": 0.01, "semantic_ramp": [1, 2]}',
        "model.sequence_dropout": 0.5,
        "model.roi_size": "[16, 16, 16]",
        "data": "clipseg3d.PhantomDataModule",
        "data.root": root / "phantoms",
        "data.cache_dir": root / "cache",
        "data.num_cases": 7,
        "data.spacing_mm": 8.0,
        "data.num_folds": 5,
        "data.patch_size": "[16, 16, 16]",
        "data.batch_size": 2,
        "data.crops_per_case": 2,
        "data.num_workers": workers,
        "trainer.max_epochs": 3,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
        "trainer.logger": "false",
        "trainer.default_root_dir": root / name,
        "last.every_n_train_steps": 2,
        "ckpt_path": "last",
    }

    return ["fit", *(f"--{key}={value}" for key, value in options.items())]


def spy(log: Path, kill_at: int) -> None:
    """Log what is trained and scored, and kill this process at one of these events."""
    events = 0

    def event() -> None:
        nonlocal events
        events += 1
        if events == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def note(*values: object) -> None:
        with log.open("a") as file:
            file.write(f"{json.dumps(values)}\n")
        event()

    step, score = CLIPSeg3DModule._loss, CLIPSeg3DModule._log_scores
    replace = os.replace

    def spy_step(self, batch, batch_idx, graded):
        loss = step(self, batch, batch_idx, graded)
        image = float(unpack(batch)["image"].double().sum())
        note("step", self.global_step, batch["case_id"], image, float(loss.detach()))
        return loss

    def spy_score(self, stage, metric):
        event()  # before the scores are logged
        score(self, stage, metric)
        if not self.trainer.sanity_checking:
            note("score", self.global_step, float(self.trainer.callback_metrics["val/dice_mean"]))

    def spy_replace(source, target):
        event()  # written, not yet renamed
        replace(source, target)
        event()

    CLIPSeg3DModule._loss, CLIPSeg3DModule._log_scores = spy_step, spy_score
    atomic_write.os.replace = spy_replace


def fit(root: Path, name: str, workers: int, kill_at: int) -> int:
    """Fit in a process of its own, and return how it ended: 0, or minus the signal."""
    child = os.fork()
    if child == 0:
        try:
            (root / name).mkdir(parents=True, exist_ok=True)
            spy(root / name / "log.jsonl", kill_at)
            torch.manual_seed(os.getpid())  # numbers drawn before the fit must not matter
            run_lightning(arguments(root, name, workers))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(root: Path, workers: int) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    ends = {"left alone": [fit(root, "left alone", workers, 0)], "killed": [], "at": []}
    while True:
        kill_at = random.randint(1, 25) if len(ends["killed"]) < 2 else 0
        ends["at"].append(kill_at)
        ends["killed"].append(fit(root, "killed", workers, kill_at))
        if ends["killed"][-1] != -signal.SIGKILL:
            break
    (root / "ends.json").write_text(json.dumps(ends))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
