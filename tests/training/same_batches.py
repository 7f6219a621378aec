"""Run by test_distributed.py: the same global batches on one, two or three CPU processes.

python same_batches.py DEVICES ROOT RESULTS
"""

import sys
import warnings
from pathlib import Path

import torch
from pytorch_lightning import Callback, Trainer, seed_everything

from clipseg3d.data import cache
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.phantom.datamodule import PhantomDataModule
from clipseg3d.training.module import CLIPSeg3DModule

GLOBAL_BATCH = 6
CONFIG = NetworkConfig(
    channels=(4, 8),
    num_auxiliary=0,
    semantic_dim=16,
    num_heads=2,
    clip="tiny-random",
    grade_classifier=True,
)


class Descent(CLIPSeg3DModule):
    """Plain gradient descent: Adam makes a full step of what is rounding in a gradient of 0.

    Some cases have no grade, so that ranks have different numbers of those that have one.
    """

    def training_step(self, batch, batch_idx):
        grade = [int(name[-1]) % 3 - 1 for name in batch["case_id"]]
        return super().training_step({**batch, "grade": torch.tensor(grade)}, batch_idx)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.plan.lr, momentum=0.9)


class Losses(Callback):
    """Keep the loss of every step, averaged over processes."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        loss = outputs["loss"].detach().clone()
        self.steps.append(float(trainer.strategy.reduce(loss, reduce_op="mean")))


def count_whole_cases(encoder) -> list[int]:
    """Return a list that grows by one for every case that CLIP is shown in all its colours."""
    seen, encode = [], encoder.encode_image

    def counted(images):
        whole = bool(images.flatten(2).any(dim=2).all())
        seen.extend([1] * whole)
        return encode(images)

    encoder.encode_image = counted
    return seen


def count_preprocessed() -> list[str]:
    """Return a list that grows by the name of every case that is preprocessed."""
    names, preprocess = [], cache.preprocess

    def counted(case, *args, **options):
        names.append(case.case_id)
        return preprocess(case, *args, **options)

    cache.preprocess = counted
    return names


def main(devices: int, root: str, results: Path) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    seed_everything(0)
    preprocessed = count_preprocessed()
    data = PhantomDataModule(
        root,
        num_cases=7,
        spacing_mm=8.0,
        num_folds=2,  # 3 to train on and 4 to validate: uneven on three processes
        patch_size=(16, 16, 16),
        crops_per_case=3,
        batch_size=GLOBAL_BATCH // devices,
        num_workers=0,
        view_selection=CONFIG.view_selection,
        cache_dir=f"{root}/cache{devices}",
    )
    module = Descent(
        CONFIG,
        release="phantom",
        spacing_mm=8.0,
        plan={"lr": 0.02},  # no ramp: semantics count from the first step
        sequence_dropout=0.5,
        report_dropout=0.5,
        roi_size=(16, 16, 16),
    )
    for part in module.modules():  # each process draws dropout for its own part of a batch
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
        elif isinstance(part, torch.nn.MultiheadAttention):
            part.dropout = 0.0
    whole = count_whole_cases(module.network.semantic_fusion.bridge.encoder)
    losses = Losses()
    trainer = Trainer(
        max_epochs=4,
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        logger=False,
        callbacks=[losses],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data.prepare_data()
    data.setup("fit")
    # A text's last digits depend on the texts it is encoded with; here, on all processes alike.
    module.network.embed_text([case.report for case in data.train_set.cases + data.val_set.cases])
    started = {name: weight.clone() for name, weight in module.network.state_dict().items()}
    trainer.fit(module, data)
    work = torch.tensor([len(preprocessed), len(whole)])
    if devices > 1:
        torch.distributed.all_reduce(work)
    if module.global_rank == 0:
        found = {
            "preprocessed": int(work[0]),
            "shown": int(work[1]),
            "started": started,
            "weights": module.network.state_dict(),
            "losses": losses.steps,
            "cases": list(module.scores.case_ids),
            "scores": torch.from_numpy(module.scores.values),
        }
        torch.save(found, results)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
