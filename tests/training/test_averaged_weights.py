"""Mirrors clipseg3d/training/averaged_weights.py: what is validated, saved and resumed."""

import pytest
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint

from clipseg3d.pretrained.reader import read_networks
from clipseg3d.training.averaged_weights import AveragedWeights
from clipseg3d.training.last_checkpoints import LastCheckpoints
from clipseg3d.training.module import CLIPSeg3DModule

pytestmark = pytest.mark.filterwarnings("ignore")
DECAY = 0.8


class ByHand(Callback):
    """Averages the weights after every step, and notes what is validated."""

    def on_train_start(self, trainer, pl_module):
        self.average = {name: w.detach().clone() for name, w in pl_module.named_parameters()}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        for name, weight in pl_module.named_parameters():
            if trainer.global_step == 1:  # the average begins with the first step's weights
                self.average[name] = weight.detach().clone()
            else:
                steps = trainer.global_step - 1
                kept = min(DECAY, steps / (9 + steps))
                self.average[name].lerp_(weight.detach(), 1 - kept)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.validated = {name: w.detach().clone() for name, w in pl_module.named_parameters()}


def test_the_average_is_validated_and_kept(small, tmp_path):
    by_hand = ByHand()
    best = ModelCheckpoint(tmp_path, filename="best", monitor="val/dice_mean", mode="max")
    module, trainer = small(
        tmp_path, max_epochs=1, callbacks=[by_hand, AveragedWeights(DECAY), best]
    )
    content = torch.load(tmp_path / "best.ckpt", weights_only=True)
    (read,) = read_networks([tmp_path / "best.ckpt"])
    loaded = CLIPSeg3DModule.load_from_checkpoint(tmp_path / "best.ckpt")
    for name, expected in by_hand.average.items():
        torch.testing.assert_close(by_hand.validated[name], expected)
        if name in content["state_dict"]:
            torch.testing.assert_close(content["state_dict"][name], expected)
            torch.testing.assert_close(loaded.state_dict()[name], expected)
            torch.testing.assert_close(
                read.network.state_dict()[name.removeprefix("network.")], expected
            )
    moved = [
        name
        for name, weight in content["current_model_state"].items()
        if not torch.equal(weight, content["state_dict"][name])
    ]
    assert moved
    assert "network.semantic_strength" not in moved
    score = float(trainer.callback_metrics["val/dice_mean"])
    trainer.validate(module, small.data(), ckpt_path=tmp_path / "best.ckpt", verbose=False)
    assert float(trainer.callback_metrics["val/dice_mean"]) == score


def test_a_fit_is_resumed_bit_for_bit(small, tmp_path):
    def fit(folder, checkpoint=None):
        last = LastCheckpoints(1, dirpath=str(tmp_path / folder))
        last.save_top_k = -1
        module, _ = small(
            tmp_path, checkpoint=checkpoint, max_epochs=1, callbacks=[AveragedWeights(DECAY), last]
        )
        end = torch.load(tmp_path / folder / "last-0000004.ckpt", weights_only=True)
        return module.state_dict(), end["current_model_state"]

    uninterrupted = fit("first")
    resumed = fit("second", tmp_path / "first" / "last-0000002.ckpt")
    for expected, weights in zip(uninterrupted, resumed, strict=True):
        assert all(torch.equal(weight, weights[name]) for name, weight in expected.items())


def test_a_finished_fit_given_again_has_the_average(small, tmp_path):
    def fit(checkpoint=None):
        last = LastCheckpoints(1, dirpath=str(tmp_path))
        callbacks = [AveragedWeights(DECAY), last]
        return small(tmp_path, checkpoint=checkpoint, max_epochs=1, callbacks=callbacks)[0]

    expected = fit().state_dict()
    again = fit(tmp_path / "last-0000004.ckpt").state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in expected.items())


def test_nothing_of_the_first_steps_is_left_after_a_short_fit():
    average, steps = [torch.ones(1)], torch.ones(())
    for _ in range(400):
        AveragedWeights(0.998)._kwargs["multi_avg_fn"](average, [torch.zeros(1)], steps)
        steps += 1
    assert average[0] < 1e-9
    short = [torch.zeros(1)]
    for count in range(2000, 4000):  # later it is an average over 1 / (1 - decay) steps
        AveragedWeights(0.99)._kwargs["multi_avg_fn"](
            short, [torch.tensor([float(count)])], torch.tensor(float(count))
        )
    assert 3999 - short[0] == pytest.approx(99, abs=1)


def test_early_stopping(small, tmp_path):
    stop = EarlyStopping("val/dice_mean", mode="max", min_delta=2.0, patience=1)
    _, trainer = small(tmp_path, max_epochs=5, callbacks=[stop])
    assert trainer.current_epoch == 2


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_shares_that_cannot_be(decay):
    with pytest.raises(ValueError, match=rf"decay={decay} is not in \[0, 1\)"):
        AveragedWeights(decay)
