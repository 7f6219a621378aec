"""Mirrors clipseg3d/cli/fit_progress.py."""

from types import SimpleNamespace

import pytest
import torch

from clipseg3d.cli import fit_progress
from clipseg3d.cli.fit_progress import FitProgress, dice_in_words

SCORES = {
    "train/loss": torch.tensor(2.0),
    "val/dice_wt": torch.tensor(0.5),
    "val/dice_rc": torch.tensor(0.25),
    "val/dice_mean": torch.tensor(0.375),
}


def test_dice_in_words():
    assert dice_in_words(SCORES) == "Dice 0.375 (WT 0.500, RC 0.250)"
    assert dice_in_words({"train/loss": 1.0}) == ""


def test_without_a_terminal_each_epoch_is_a_line_with_the_time_left(monkeypatch, capsys):
    clock = iter([0.0, 60.0, 120.0])
    monkeypatch.setattr(fit_progress.time, "monotonic", lambda: next(clock))
    trainer = SimpleNamespace(
        estimated_stepping_batches=4,
        global_step=0,
        current_epoch=0,
        max_epochs=2,
        callback_metrics={},
        sanity_checking=True,
        strategy=SimpleNamespace(root_device=torch.device("cuda:0")),
        world_size=2,
    )
    progress = FitProgress()
    progress.on_validation_end(trainer, None)
    trainer.sanity_checking = False
    progress.on_train_start(trainer, None)
    for epoch, losses in enumerate([(3.0, 1.0), (1.0, 0.5)]):
        trainer.current_epoch = epoch
        progress.on_train_epoch_start(trainer, None)
        for loss in losses:
            trainer.global_step += 1
            trainer.callback_metrics = {**SCORES, "train/loss": torch.tensor(loss)}
            progress.on_train_batch_end(trainer, None, None, None, 0)
        if epoch == 1:
            progress.on_validation_end(trainer, None)
        progress.on_train_epoch_end(trainer, None)
    progress.on_train_end(trainer, None)
    assert capsys.readouterr().err.splitlines() == [
        "2 epochs, 4 steps, on 2 x cuda",
        "Epoch 1/2: loss 2.000, 0:01:00 left",
        "Epoch 2/2: loss 0.750, Dice 0.375 (WT 0.500, RC 0.250)",
    ]


@pytest.mark.parametrize("shown", [True, False])
def test_only_the_first_rank_speaks(capsys, shown):
    progress = FitProgress()
    if not shown:
        progress.disable()
    progress.print("a", 1)
    assert capsys.readouterr().err == ("a 1\n" if shown else "")
