"""Mirrors clipseg3d/training/non_finite.py, and how a fit ends by it."""

import pytest
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn

from clipseg3d.pretrained.checkpoint import read_checkpoint_file
from clipseg3d.training.last_checkpoints import LastCheckpoints
from clipseg3d.training.non_finite import NonFinite, first_non_finite

pytestmark = pytest.mark.filterwarnings("ignore")


class Named(nn.Module):
    """Returns what modules may return: a tuple, in a dict."""

    def forward(self, x):
        return {"text": "", "count": torch.ones(1, dtype=torch.int64), "pair": (x, x / 0)}


def test_the_first_layer_and_its_samples_are_found():
    network = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Identity(), nn.ReLU()), nn.Identity())
    network[1][0].register_forward_hook(
        lambda module, given, out: out.index_fill(0, bad, torch.nan)
    )
    bad = torch.tensor([1, 2])
    x = torch.ones(4, 2)
    assert first_non_finite(network, lambda: network(x), 4) == NonFinite("1.0", (1, 2))
    assert first_non_finite(network, lambda: network(x), 5) == NonFinite("1.0", ())
    bad = bad[:0]
    assert first_non_finite(network, lambda: network(x), 4) is None
    assert not network[0]._forward_hooks
    assert first_non_finite(Named(), lambda: Named()(x), 4) is None
    named = Named()
    assert first_non_finite(named, lambda: named(x), 4) == NonFinite("", (0, 1, 2, 3))
    with pytest.raises(KeyError):
        first_non_finite(network, lambda: {}[0], 4)
    assert not network[0]._forward_hooks


class Break(Callback):
    """Does harm to module or batch before the third step."""

    def __init__(self, harm):
        self.harm = harm

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 2:
            self.case_id = batch["case_id"]
            convolutions = [
                (name, layer)
                for name, layer in pl_module.network.named_modules()
                if isinstance(layer, nn.Conv3d)
            ]
            self.name, layer = convolutions[len(convolutions) // 2]
            self.harm(layer, batch)


def poison_image(layer, batch):
    batch["image"][1, :, 3, 4, 5] = torch.nan


def poison_output(layer, batch):
    """Make one of two samples infinite, as an overflow would."""
    first = torch.tensor([0])
    layer.register_forward_hook(lambda module, given, out: out.index_fill(0, first, torch.inf))


def poison_weight(layer, batch):
    layer.weight.data[0] = torch.nan


@pytest.mark.parametrize(
    ("harm", "samples"), [(poison_image, [1]), (poison_output, [0]), (poison_weight, [0, 1])]
)
def test_a_fit_stops_within_the_step(small, tmp_path, harm, samples):
    breaking = Break(harm)
    last = LastCheckpoints(1, dirpath=str(tmp_path))
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) in epoch 0, batch 2: ") as caught:
        small(tmp_path, callbacks=[breaking, last])
    message = str(caught.value)
    first = "the image itself" if harm is poison_image else breaking.name
    assert f"; first in {first}. The last checkpoint stands" in message
    assert message.count("crop from (") == len(samples)
    for index in samples:
        assert f"case {breaking.case_id[index]}, crop from (" in message
    newest = max(tmp_path.glob("last-*.ckpt"))
    assert newest.name == "last-0000002.ckpt"
    assert all(
        weight.isfinite().all() for weight in read_checkpoint_file(newest)["state_dict"].values()
    )


def test_weights_that_are_not_finite_are_not_saved(small, tmp_path):
    module, trainer = small(tmp_path, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "good.ckpt")
    next(module.network.parameters()).data.fill_(torch.nan)
    with pytest.raises(
        ValueError, match=r"weight network.* is not finite after step 4, so no check"
    ):
        trainer.save_checkpoint(tmp_path / "bad.ckpt")
    assert not (tmp_path / "bad.ckpt").exists()
