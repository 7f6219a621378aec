"""Mirrors clipseg3d/training/module.py and its way into the predictor."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from clipseg3d.data.cases import find_cases
from clipseg3d.data.nifti import read_voxels
from clipseg3d.data.phantom_datamodule import PhantomDataModule
from clipseg3d.data.releases import PHANTOM
from clipseg3d.inference.predictor import Predictor
from clipseg3d.metrics.dice import dice_score
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.training.module import CLIPSeg3DModule

pytestmark = pytest.mark.filterwarnings("ignore")
SPACING_MM = 8.0
SMALL = NetworkConfig(
    channels=(4, 8), num_auxiliary=0, semantic_dim=16, num_heads=2, clip="tiny-random"
)
WINDOW = (16, 20, 12)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A module after one epoch with validation, its data, its trainer and its checkpoint."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("fit")
    data = PhantomDataModule(
        str(folder / "phantoms"),
        num_cases=5,
        spacing_mm=SPACING_MM,
        num_folds=5,
        patch_size=(16, 16, 16),
        num_workers=0,
        cache_dir=str(folder / "cache"),
    )
    module = CLIPSeg3DModule(
        SMALL, release="phantom", spacing_mm=SPACING_MM, lr=1e-2, window=WINDOW
    )
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        callbacks=[ModelCheckpoint(folder, filename="best", monitor="val/dice_mean", mode="max")],
        enable_progress_bar=False,
        default_root_dir=folder,
    )
    trainer.fit(module, data)
    return module, data, trainer, folder / "best.ckpt"


def small_module(**options):
    return CLIPSeg3DModule(SMALL, **options)


def test_validation_logs_every_region_and_their_mean(fitted):
    _, _, trainer, _ = fitted
    logged = trainer.callback_metrics
    regions = [float(logged[f"val/dice_{name}"]) for name in ("wt", "tc", "et")]
    assert float(logged["val/dice_mean"]) == pytest.approx(sum(regions) / 3)
    assert "train/loss" in logged


def test_checkpoint_is_plain_and_holds_no_clip(fitted):
    *_, path = fitted
    checkpoint = torch.load(path, weights_only=True)
    assert [name for name in checkpoint["state_dict"] if "clip" in name.lower()] == []
    assert checkpoint["hyper_parameters"]["network"] == asdict(SMALL)
    assert checkpoint["hyper_parameters"]["release"] == "phantom"
    assert checkpoint["clip"]["name"] == "tiny-random"
    assert len(checkpoint["clip"]["sha256"]) == 64


def test_checkpoint_loads_to_the_same_logits(fitted):
    _, data, _, path = fitted
    first = CLIPSeg3DModule.load_from_checkpoint(path, weights_only=True)
    second = CLIPSeg3DModule.load_from_checkpoint(path, weights_only=True)
    stored = torch.load(path, weights_only=True)["state_dict"]
    for name, weight in first.state_dict().items():
        torch.testing.assert_close(weight, stored[name], rtol=0, atol=0)
    sample = data.val_set[0]
    image, views = sample["image"][None], sample["views"][None]
    outputs = [m.eval().network(image, views=views) for m in (first, second)]
    torch.testing.assert_close(*outputs, rtol=0, atol=0)


def test_another_clip_is_refused(fitted):
    *_, path = fitted
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["clip"]["sha256"] = "0" * 64
    with pytest.raises(ValueError, match=r"SHA-256 000000000000.*load that one"):
        small_module().on_load_checkpoint(checkpoint)


def test_validation_scores_are_those_of_the_written_segmentations(fitted):
    module, data, trainer, path = fitted
    (scores,) = trainer.validate(module, data, verbose=False, ckpt_path=str(path))
    predictor = Predictor.from_checkpoint(path, device="cpu")
    names = {case.case_id for case in data.val_set.cases}
    cases = [
        case
        for case in find_cases(data.root, PHANTOM, spacing_mm=SPACING_MM)
        if case.case_id in names
    ]
    dice = []
    for case in cases:
        found = PHANTOM.to_regions(predictor(case).label)
        true = PHANTOM.to_regions(read_voxels(case.label))
        dice.append(dice_score(torch.from_numpy(found), torch.from_numpy(true)).numpy())
    expected = np.mean(dice, axis=0)
    found = [scores[f"val/dice_{name}"] for name in ("wt", "tc", "et")]
    # fp16 in the cache moves a voxel at the border now and then
    np.testing.assert_allclose(found, expected, atol=5e-3)


def test_mixed_precision_trains_and_validates(fitted, tmp_path):
    _, data, _, _ = fitted
    torch.manual_seed(0)
    module = small_module(release="phantom", spacing_mm=SPACING_MM, window=WINDOW)
    trainer = Trainer(
        max_steps=2,
        accelerator="cpu",
        precision="bf16-mixed",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, data)
    trainer.validate(module, data, verbose=False)
    assert torch.isfinite(trainer.callback_metrics["val/dice_mean"])
    assert all(torch.isfinite(weight).all() for weight in module.parameters())
    assert all(w.dtype == torch.float32 for w in module.parameters())


def test_training_lowers_the_loss():
    torch.manual_seed(0)
    module = small_module(lr=1e-2, report_dropout=0.0)
    module.log = lambda *args, **kwargs: None
    label = torch.zeros(1, 3, 8, 12, 10)
    label[:, :, 2:6, 3:8, 4:9] = 1
    batch = {
        "image": (label[:, :1] + torch.rand(1, 4, 8, 12, 10)).contiguous(),
        "label": label,
        "window": torch.tensor([[[0.0] * 3, [1.0] * 3]]),
        "statistics": torch.tensor([[[0.0, 2.0, 0.0, 1.0]] * 4]),
        "views": torch.randint(0, 255, (1, 3, 32, 32, 3), dtype=torch.uint8),
        "report": ["left frontal"],
        "case_id": ["a"],
    }
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = module.training_step(batch, 0)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_withheld_reports_leave_the_prompts(monkeypatch):
    module = small_module(report_dropout=1.0)
    seen = []
    monkeypatch.setattr(
        module.network, "embed_text", lambda reports: seen.append(reports) or (None, None)
    )
    monkeypatch.setattr(module.network, "segment", lambda *a, **k: [torch.zeros(2, 3, 4, 4, 4)])
    module.log = lambda *args, **kwargs: None
    batch = {
        "image": torch.zeros(2, 4, 4, 4, 4),
        "label": torch.zeros(2, 3, 4, 4, 4),
        "window": None,
        "statistics": None,
        "views": None,
        "report": ["one", "two"],
        "case_id": ["a", "b"],
    }
    module.training_step(batch, 0)
    assert seen == [["", ""]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "huge"}, "unknown preset 'huge': choose one of paper, recommended, tiny"),
        ({"network": "tiny", "ablation": "no_brain"}, "unknown ablation 'no_brain'"),
        ({"network": "tiny", "release": "brats1999"}, "unknown release 'brats1999'"),
    ],
)
def test_unknown_names_say_what_there_is(options, message):
    with pytest.raises(ValueError, match=message):
        CLIPSeg3DModule(**options)
