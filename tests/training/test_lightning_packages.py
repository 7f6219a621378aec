"""Mirrors clipseg3d/lightning_bases.py: the Trainers of two packages do the same."""

import pytest
import pytorch_lightning
import torch

from clipseg3d.inference.segmentation import Segmentation

pytestmark = pytest.mark.filterwarnings("ignore")


def test_either_trainer_takes_module_and_data(small, tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")
    weights, scores = [], []
    for package in (pytorch_lightning, lightning):
        package.seed_everything(3, verbose=False)
        module, data = small.module(), small.data()
        trainer = package.Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path / package.__name__,
        )
        trainer.fit(module, data)
        path = tmp_path / f"{package.__name__}.ckpt"
        trainer.save_checkpoint(path)
        weights.append(torch.load(path, weights_only=True)["state_dict"])
        scores += trainer.validate(module, data, ckpt_path=path, verbose=False)
        (segmentation,) = trainer.predict(module, data)[0]
        assert isinstance(segmentation, Segmentation)
        loader = data.train_dataloader()
        module.trainer.fit(module, loader)  # without a data module
    assert scores[0] == scores[1]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
