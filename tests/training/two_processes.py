"""Run by test_distributed.py: the same training and validation on one or two CPU processes.

python two_processes.py DEVICES ROOT RESULTS
"""

import json
import sys
import warnings
from pathlib import Path

import torch
from pytorch_lightning import Trainer, seed_everything

from clipseg3d.data.phantom_datamodule import PhantomDataModule
from clipseg3d.networks.config import ABLATIONS, NetworkConfig
from clipseg3d.training.module import CLIPSeg3DModule

SMALL = {
    "channels": (4, 8),
    "num_auxiliary": 0,
    "semantic_dim": 16,
    "num_heads": 2,
    "clip": "tiny-random",
}


def main(devices: int, root: str, results: Path) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    scores = {}
    for ablation in [None, *ABLATIONS]:
        seed_everything(0)
        data = PhantomDataModule(
            root,
            num_cases=7,
            spacing_mm=8.0,
            num_folds=2,  # 4 to train on and 3 to validate: uneven on two processes
            patch_size=(16, 16, 16),
            num_workers=0,
            cache_dir=f"{root}/cache",
        )
        config = NetworkConfig(**{**SMALL, **ABLATIONS.get(ablation, {})})
        module = CLIPSeg3DModule(
            config, release="phantom", spacing_mm=8.0, lr=1e-2, window=(16, 16, 16)
        )
        trainer = Trainer(
            max_steps=2,
            accelerator="cpu",
            devices=devices,
            strategy="ddp" if devices > 1 else "auto",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        untrained = {name: w.clone() for name, w in module.state_dict().items()}
        trainer.fit(module, data)
        moved = any(not torch.equal(w.cpu(), untrained[n]) for n, w in module.state_dict().items())
        # Known weights, so that one and two processes must agree to the last digit.
        torch.manual_seed(1)
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.data = torch.randn_like(parameter) / 4
        scorer = Trainer(
            accelerator="cpu",
            devices=devices,
            strategy="ddp" if devices > 1 else "auto",
            logger=False,
            enable_progress_bar=False,
        )
        (found,) = scorer.validate(module, data, verbose=False)
        scores[str(ablation)] = {"moved": moved, "steps": trainer.global_step, **found}
    if trainer.is_global_zero:
        results.write_text(json.dumps(scores))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
