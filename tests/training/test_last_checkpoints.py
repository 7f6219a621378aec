"""Mirrors clipseg3d/training/last_checkpoints.py: at which steps a state is saved."""

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch.utils.data import DataLoader

from clipseg3d.training.last_checkpoints import LastCheckpoints

pytestmark = pytest.mark.filterwarnings("ignore")


class Line(LightningModule):
    """One weight, trained on batches of numbers."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/score", self.layer(batch).mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Interrupted(TorchCheckpointIO):
    """Is interrupted while it writes the state of step 2."""

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        if checkpoint["global_step"] == 2:
            raise KeyboardInterrupt
        super().save_checkpoint(checkpoint, path, storage_options)


class Saved(Callback):
    """Notes, for every state that is saved, step and batches of the epoch, and scores so far."""

    def __init__(self):
        self.states = []
        self.scores = 0

    def on_validation_end(self, trainer, pl_module):
        self.scores += not trainer.sanity_checking

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        batches = trainer.fit_loop.batch_idx + 1
        self.states.append((trainer.global_step, batches, self.scores))


def fit(folder, every=1, *, checkpoint=None, **options):
    """Fit two epochs of six batches; return what was saved."""
    saved = Saved()
    last = LastCheckpoints(every, dirpath=str(folder))
    last.save_top_k = -1
    trainer = Trainer(
        **{"max_epochs": 2, **options},
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[saved, last],
        default_root_dir=folder,
    )
    numbers = DataLoader(torch.arange(6.0)[:, None])
    trainer.fit(Line(), numbers, numbers, ckpt_path=checkpoint)
    files = sorted(path.name for path in folder.glob("*.ckpt"))
    assert files == [f"last-{step:07d}.ckpt" for step in sorted({s for s, _, _ in saved.states})]
    return saved.states


@pytest.mark.parametrize(
    ("every", "options", "states"),
    [
        # (step, batch of the epoch, validations before it)
        (0, {}, [(6, 6, 1), (12, 6, 2)]),
        (2, {}, [(2, 2, 0), (4, 4, 0), (6, 6, 1), (8, 2, 1), (10, 4, 1), (12, 6, 2)]),
        (100, {"limit_val_batches": 0}, [(6, 6, 0), (12, 6, 0)]),
        (100, {"check_val_every_n_epoch": 2}, [(6, 6, 0), (12, 6, 1)]),
        (
            2,
            {"max_epochs": 1, "val_check_interval": 0.5},
            [(2, 2, 0), (3, 3, 1), (4, 4, 1), (6, 6, 2)],
        ),
        (
            1,
            {"max_epochs": 1, "val_check_interval": 4, "check_val_every_n_epoch": None},
            [(1, 1, 0), (2, 2, 0), (3, 3, 0), (4, 4, 1), (5, 5, 1), (6, 6, 1)],
        ),
        # gradients of 4 batches: steps are taken after batches 4 and 6
        (
            1,
            {"max_epochs": 1, "accumulate_grad_batches": 4, "val_check_interval": 0.5},
            [(1, 4, 1), (2, 6, 2)],
        ),
        (1, {"max_epochs": -1, "max_steps": 3}, [(1, 1, 0), (2, 2, 0), (3, 3, 0)]),
    ],
)
def test_states_are_saved_where_a_fit_can_be_resumed(tmp_path, every, options, states):
    assert fit(tmp_path, every, **options) == states


def test_a_resumed_fit_saves_nothing_while_it_accumulates(tmp_path):
    (tmp_path / "first").mkdir()
    options = {"max_epochs": 1, "accumulate_grad_batches": 2}
    assert fit(tmp_path / "first", **options) == [(1, 2, 0), (2, 4, 0), (3, 6, 1)]
    checkpoint = tmp_path / "first" / "last-0000001.ckpt"
    assert fit(tmp_path / "second", checkpoint=checkpoint, **options) == [(2, 4, 0), (3, 6, 1)]


def test_the_two_newest_are_kept(tmp_path):
    last = LastCheckpoints(1, dirpath=str(tmp_path))
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, callbacks=[last], enable_progress_bar=False
    )
    trainer.fit(Line(), DataLoader(torch.arange(6.0)[:, None]))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "last-0000005.ckpt",
        "last-0000006.ckpt",
    ]


def test_a_state_whose_writing_was_interrupted_is_not_the_newest(tmp_path):
    last = LastCheckpoints(1, dirpath=str(tmp_path))
    assert last.newest_path is None
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        callbacks=[last],
        plugins=[Interrupted()],
        enable_progress_bar=False,
    )
    with pytest.raises(SystemExit):
        trainer.fit(Line(), DataLoader(torch.arange(6.0)[:, None]))
    assert last.best_model_path.endswith("last-0000002.ckpt")
    assert last.newest_path == tmp_path / "last-0000001.ckpt"


def test_a_negative_interval_is_refused():
    with pytest.raises(ValueError, match="every_n_train_steps=-1 is negative"):
        LastCheckpoints(-1)
