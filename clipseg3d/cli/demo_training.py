"""The demo that trains: a tiny network on simulated patients, in a few minutes."""

from dataclasses import dataclass
from pathlib import Path

from clipseg3d.atomic_write import atomic_write

PATIENT_SEED = 12
SPACING_MM = 2.0
NUM_TRAINING_CASES = 12
NUM_EPOCHS = 5


@dataclass(frozen=True)
class TrainedDemo:
    """Files of the demo that trains, and Dice of its patient.

    Attributes:
        case: folder of the simulated patient: sequences, expert mask, report.
        segmentation: NIfTI labels.
        picture: PNG of sequences, reference and prediction.
        weights: checkpoint, trained now or in an earlier run.
        report: the patient's report.
        dice: region -> Dice of the patient, who is not among the training cases.
    """

    case: Path
    segmentation: Path
    picture: Path
    weights: Path
    report: str
    dice: dict[str, float]


def train_demo(out: Path) -> TrainedDemo:
    """Segment a simulated patient with a network that is trained on others for a few minutes.

    Args:
        out: folder for all files; a checkpoint that it holds already is used again.
    """
    import torch

    from clipseg3d.data.cases import find_cases
    from clipseg3d.data.releases import PHANTOM
    from clipseg3d.inference.predictor import Predictor
    from clipseg3d.metrics.dice import dice_empty_is_one
    from clipseg3d.phantom.simulate import simulate_phantom
    from clipseg3d.phantom.write import write_phantom
    from clipseg3d.reporting.figures import save_overlay
    from clipseg3d.vocabulary import REGIONS

    weights = out / "demo.ckpt"
    if not weights.is_file():
        _train(out, weights)
    phantom = simulate_phantom(PATIENT_SEED, spacing_mm=SPACING_MM)
    name = f"Phantom_{PATIENT_SEED:05d}"
    folder = out / name
    if not folder.is_dir():
        write_phantom(phantom, out, name)
    (case,) = find_cases(folder, PHANTOM, spacing_mm=SPACING_MM)
    segmentation = Predictor.from_checkpoint(weights)(case, progress=True)
    segmentation_path = out / f"{name}.nii.gz"
    segmentation.save(segmentation_path)

    prediction = PHANTOM.to_regions(segmentation.label)
    reference = PHANTOM.to_regions(phantom.label)
    scores = dice_empty_is_one(torch.from_numpy(prediction), torch.from_numpy(reference)).tolist()
    dice = dict(zip(REGIONS, scores, strict=True))
    picture = out / f"{name}.png"
    title = "   ".join(f"{region} {score:.2f}" for region, score in dice.items())
    save_overlay(
        picture,
        phantom.image,
        prediction=prediction,
        reference=reference,
        title=f"Simulated patient {PATIENT_SEED}: Dice {title}",
    )
    return TrainedDemo(folder, segmentation_path, picture, weights, phantom.report, dice)


def _train(out: Path, weights: Path) -> None:
    """Train the tiny preset on simulated patients and write a checkpoint."""
    from pytorch_lightning import Trainer, seed_everything

    from clipseg3d.data.releases import PHANTOM
    from clipseg3d.networks.presets import network_config
    from clipseg3d.phantom.datamodule import PhantomDataModule
    from clipseg3d.training.module import CLIPSeg3DModule

    seed_everything(0)
    data = PhantomDataModule(
        str(out / "training_cases"),
        num_cases=NUM_TRAINING_CASES,
        first_seed=100,
        spacing_mm=SPACING_MM,
        num_folds=NUM_TRAINING_CASES,
        patch_size=(64, 64, 64),
        crops_per_case=8,
        batch_size=2,
        num_workers=0,
        view_selection=network_config("tiny").view_selection,
        cache_dir=str(out / "cache"),
    )
    module = CLIPSeg3DModule(
        "tiny", release=PHANTOM.name, spacing_mm=SPACING_MM, lr=3e-3, roi_size=(64, 64, 64)
    )
    trainer = Trainer(
        max_epochs=NUM_EPOCHS,
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        limit_val_batches=0,
        gradient_clip_val=12.0,
        default_root_dir=out,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    with atomic_write(weights) as tmp:
        trainer.save_checkpoint(tmp, weights_only=True)
