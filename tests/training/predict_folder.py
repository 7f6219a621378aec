"""Run by test_segmentation_writer.py: python predict_folder.py DEVICES CHECKPOINT ROOT OUTPUT."""

import sys
import warnings

from pytorch_lightning import Trainer

from clipseg3d.phantom.datamodule import PhantomDataModule
from clipseg3d.training.module import CLIPSeg3DModule
from clipseg3d.training.segmentation_writer import SegmentationWriter


def main(devices: str, checkpoint: str, root: str, output: str) -> None:
    warnings.simplefilter("ignore")
    trainer = Trainer(
        accelerator="cpu",
        devices=int(devices),
        strategy="ddp" if int(devices) > 1 else "auto",
        logger=False,
        callbacks=[SegmentationWriter(output)],
        enable_progress_bar=False,
    )
    module = CLIPSeg3DModule.load_from_checkpoint(checkpoint)
    results = trainer.predict(module, PhantomDataModule(root, spacing_mm=8.0, num_workers=0))
    names = sorted(result.case.case_id for batch in results for result in batch)
    sys.stdout.write(f"{' '.join(names)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
