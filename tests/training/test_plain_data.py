"""Data sets of images and labels alone: what else a network reads is made from the images."""

import torch
from pytorch_lightning import Trainer
from torch.utils.data import DataLoader

from clipseg3d.batch import complete
from clipseg3d.intensity import intensity_statistics
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.training.module import CLIPSeg3DModule
from clipseg3d.views import cut_views

NAMES = ("dwi", "adc")
RELEASE = {
    "name": "own",
    "sequences": {name: f"{{case}}_{name}" for name in NAMES},
    "regions": {"lesion": (1,)},
}
NETWORK = NetworkConfig(
    sequences=NAMES,
    regions=("lesion",),
    channels=(4, 8),
    num_auxiliary=0,
    semantic_dim=16,
    num_heads=2,
    clip="tiny-random",
)


def samples(count):
    """Bright blobs; labels of any type, images not normalised."""
    torch.manual_seed(0)
    items = []
    for index in range(count):
        label = torch.zeros(1, 24, 20, 16, dtype=torch.uint8)
        label[:, 6 : 14 + index % 3, 5:13, 4:10] = 1
        image = 100 + 20 * torch.rand(2, 24, 20, 16) + 80 * label
        items.append({"image": image, "label": label})
    return items


def test_a_plain_data_set_trains_and_is_scored(tmp_path):
    module = CLIPSeg3DModule(NETWORK, release=RELEASE, roi_size=(24, 24, 16), plan={"lr": 1e-2})
    trainer = Trainer(
        max_epochs=6,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    data = samples(8)
    trainer.fit(module, DataLoader(data, batch_size=2), DataLoader(data[:3]))
    assert module.scores is not None
    assert len(module.scores.case_ids) == 3
    assert trainer.callback_metrics["val/dice_lesion"] > 0.5


def test_what_is_missing_is_made_from_the_image_and_what_is_there_is_kept():
    image = torch.rand(2, 2, 12, 10, 8) + 1
    batch = {"image": image, "label": torch.zeros(2, 1, 12, 10, 8), "report": ["a", "b"]}
    whole = complete(batch, sequences=NAMES, view_selection="energy", name="x")
    assert torch.equal(whole["statistics"], intensity_statistics(image))
    expected = cut_views(image, selection="energy", sequences=NAMES)
    assert torch.equal(whole["views"].images, expected.images)
    assert whole["report"] == ["a", "b"]
    assert whole["case_id"] == ["x, sample 0", "x, sample 1"]
    assert whole["grade"].tolist() == [-1, -1]
    assert complete(whole, sequences=NAMES, view_selection="energy", name="y") is whole
