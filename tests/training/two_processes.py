"""Run by test_distributed.py: the same training and validation on one or two CPU processes.

python two_processes.py DEVICES ROOT RESULTS
"""

import json
import sys
import time
import warnings
from pathlib import Path

import torch
from pytorch_lightning import Trainer, seed_everything

from clipseg3d.networks.config import NetworkConfig
from clipseg3d.networks.presets import ABLATIONS
from clipseg3d.phantom.datamodule import PhantomDataModule
from clipseg3d.training.module import CLIPSeg3DModule

SMALL = {
    "channels": (4, 8),
    "num_auxiliary": 0,
    "semantic_dim": 16,
    "num_heads": 2,
    "clip": "tiny-random",
}
NETWORKS = {
    "whole": {},
    **ABLATIONS,
    "sequential": {"guidance": "sequential"},
    "film": {"guidance": "film"},
    "gain": {"attention_mode": "gain"},
    "paper": {
        "attention_mode": "paper",
        "guidance_tokens": "mean",
        "view_selection": "volume_center",
        "running_norms": False,
        "guiding_text": "all",
        "sequence_gate": False,
    },
    "dense": {"dense": True},
    "attention views": {"view_selection": "attention"},
    "conditional norm": {"conditional_norm": True},
    "grade classifier": {"grade_classifier": True},
    "nested": {"head": "nested", "channels": (4, 6, 8), "num_auxiliary": 1},
    "mixed colours, adapter": {"mix_rgb": True, "adapter": True},
    "differences": {"difference_channels": True, "region_contrast": 0.5},
    "checkpointing": {"checkpointing": True, "dropout": 0.2},
}
SCORED = ("whole", "unet3d", "attention views", "nested")
"""Networks that one process validates too, to be compared."""
RAMP = (1, 2)
"""The first of two epochs trains without semantics, the second with half of them."""


def train(name: str, devices: int, root: str) -> tuple[CLIPSeg3DModule, PhantomDataModule, dict]:
    """Train for two steps, one in each epoch."""
    seed_everything(0)
    config = NetworkConfig(**{**SMALL, **NETWORKS[name]})
    data = PhantomDataModule(
        root,
        num_cases=7,
        spacing_mm=8.0,
        num_folds=2,  # 4 to train on and 3 to validate: uneven on two processes
        patch_size=(16, 16, 16),
        num_workers=0,
        view_selection=config.view_selection,
        shuffle_reports=config.text == "shuffled",
        cache_dir=f"{root}/cache",
    )
    module = CLIPSeg3DModule(
        config,
        release="phantom",
        spacing_mm=8.0,
        plan={"lr": 1e-2, "semantic_ramp": RAMP},
        sequence_dropout=0.5,
        roi_size=(16, 16, 16),
    )
    trainer = Trainer(
        max_epochs=2,
        limit_train_batches=1,
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    data.prepare_data()
    data.setup("fit")
    # A text's last digits depend on the texts it is encoded with; here, on all processes alike.
    module.network.embed_text([case.report for case in data.train_set.cases + data.val_set.cases])
    untrained = {weight: value.clone() for weight, value in module.named_parameters()}
    trainer.fit(module, data)
    moved = [n for n, w in module.named_parameters() if not torch.equal(w.cpu(), untrained[n])]
    found = {
        "moved": bool(moved),
        "semantics_moved": any(name.startswith("network.semantic_fusion") for name in moved),
        "steps": trainer.global_step,
        "strength": float(module.network.semantic_strength),
        "alike": alike(module, devices),
    }
    return module, data, found


def alike(module: CLIPSeg3DModule, devices: int) -> bool:
    """Say whether all processes, as many as there should be, have the same weights."""
    if devices == 1:
        return True
    assert torch.distributed.get_world_size() == devices
    total = torch.stack([w.detach().double().sum() for w in module.parameters()]).sum()
    every = [torch.zeros_like(total) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(every, total)
    return all(torch.equal(one, total) for one in every)


def score(module: CLIPSeg3DModule, data: PhantomDataModule, devices: int) -> dict:
    """Validate with a known state, so that one and two processes must agree to the last digit."""
    seed_everything(1)
    fresh = CLIPSeg3DModule(module.config).network.state_dict()
    module.network.load_state_dict(
        {name: w + 0.3 * torch.randn_like(w) for name, w in fresh.items()}
    )
    module.network.semantic_strength.fill_(1.0)
    scorer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        logger=False,
        enable_progress_bar=False,
    )
    (found,) = scorer.validate(module, data, verbose=False)
    return dict(found)


def main(devices: int, root: str, results: Path) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    started, found = time.monotonic(), {}
    for name in NETWORKS if devices > 1 else SCORED:
        module, data, found[name] = train(name, devices, root)
        if name in SCORED:
            found[name] |= score(module, data, devices)
    if module.global_rank == 0:
        found["seconds"] = time.monotonic() - started
        results.write_text(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
