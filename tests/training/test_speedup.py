"""Mirrors clipseg3d/training/speedup.py: all ways to save time train the same weights."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from pytorch_lightning import Trainer, seed_everything
from torch.utils.data import DataLoader

from clipseg3d.intensity import intensity_statistics
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.training.module import CLIPSeg3DModule
from clipseg3d.training.plan import TrainingPlan
from clipseg3d.training.speedup import Speedup
from clipseg3d.views import cut_views

pytestmark = pytest.mark.filterwarnings("ignore")
SIZE = (16, 24, 20)
CONFIG = NetworkConfig(
    channels=(6, 10, 14), num_auxiliary=1, semantic_dim=16, num_heads=2, clip="tiny-random"
)
# A schedule that does not depend on how many steps there are, with rates at which two steps tell.
PLAN = TrainingPlan(schedule="cosine", lr=1e-3)


def sample(seed):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(4, *SIZE, generator=generator) + 0.1
    return {
        "image": image,
        "label": (torch.rand(3, *SIZE, generator=generator) > 0.7).float(),
        "crop_box": torch.tensor([[0.0] * 3, [1.0] * 3]),
        "statistics": intensity_statistics(image[None])[0],
        "views": type(views := cut_views(image[None], selection="energy"))(*(v[0] for v in views)),
        "report": "A mass.",
        "grade": 0,
        "case_id": str(seed),
    }


SAMPLES = [sample(seed) for seed in range(4)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train two steps and return the module and the losses."""
    made = {}

    def train(config=CONFIG, *, batch_size=2, **options):
        key = (config, batch_size, *options.items())
        if key not in made:
            seed_everything(0)
            module = CLIPSeg3DModule(
                config, release="phantom", plan=PLAN, report_dropout=0.0, roi_size=SIZE
            )
            losses = []
            step = module.training_step
            module.training_step = lambda batch, batch_idx: (
                losses.append(loss := step(batch, batch_idx)) or loss
            )
            trainer = Trainer(
                accelerator="cpu",
                max_epochs=1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=tmp_path_factory.mktemp("speed"),
                **options,
            )
            trainer.fit(module, DataLoader(SAMPLES, batch_size=batch_size))
            del module.training_step
            made[key] = module, [float(loss) for loss in losses]
        return made[key]

    return train


def assert_same_training(one, other, *, loss=1e-5, weight=2e-4):
    """Adam's first step is a sign, so that rounding moves a weight by twice the rate at most."""
    (module, losses), (reference, expected) = one, other
    assert losses == pytest.approx(expected, rel=loss)
    weights = dict(reference.network.named_parameters())
    for name, value in module.network.named_parameters():
        difference = (value - weights[name]).abs()
        assert difference.mean() < weight, name


def test_channels_last_trains_the_same(trained):
    fast = trained(callbacks=Speedup(channels_last=True))
    assert_same_training(fast, trained())
    unet = fast[0].network.unet
    weight = unet.encoder[1].residual[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert not weight.is_contiguous()


@pytest.mark.slow
def test_compiled_trains_the_same(trained, monkeypatch):
    compiled = []

    with monkeypatch.context() as patch:
        compile_ = torch.compile
        # The whole way through the compiler but for making kernels, which takes a minute.
        patch.setattr(
            "clipseg3d.training.speedup.torch.compile",
            lambda f: compiled.append(f.__name__) or compile_(f, backend="aot_eager"),
        )
        fast = trained(replace(CONFIG, checkpointing=True), callbacks=Speedup(compile=True))
    assert compiled == ["encode", "decode"]
    assert_same_training(fast, trained())
    network = fast[0].network
    assert "encode" not in vars(network.unet)
    pickle.dumps(copy.deepcopy(network.unet))
    assert set(network.state_dict()) == set(trained()[0].network.state_dict())


def test_checkpointing_trains_the_same(trained):
    assert_same_training(trained(replace(CONFIG, checkpointing=True)), trained())


def test_bf16_trains_nearly_the_same(trained):
    half = trained(precision="bf16-mixed")
    assert_same_training(half, trained(), loss=0.02, weight=1e-3)
    assert half[1] != trained()[1]


def test_accumulated_batches_train_as_one(trained):
    """Without semantics, which keep running means of every batch that they see."""
    plain = replace(CONFIG, semantics=False)
    module, losses = trained(plain, batch_size=1, accumulate_grad_batches=2)
    means = [(losses[0] + losses[1]) / 2, (losses[2] + losses[3]) / 2]
    assert_same_training((module, means), trained(plain))


def test_nothing_is_done_unasked(trained):
    module, losses = trained(callbacks=Speedup())
    reference, expected = trained()
    assert losses == expected
    for one, other in zip(module.parameters(), reference.parameters(), strict=True):
        assert torch.equal(one, other)
