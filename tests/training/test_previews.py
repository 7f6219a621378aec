"""Mirrors clipseg3d/training/previews.py."""

from pathlib import Path

import pytest
from matplotlib.image import imread, imsave
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from clipseg3d.training.previews import Previews

pytestmark = pytest.mark.filterwarnings("ignore")


class Recorder:
    """Stands for what writes to TensorBoard."""

    def __init__(self):
        self.images = []

    def add_image(self, tag, picture, step, *, dataformats):
        self.images.append((tag, picture.shape, step, dataformats))

    def __getattr__(self, name):
        return lambda *args, **options: None


class Board(TensorBoardLogger):
    """TensorBoard's logger, without TensorBoard."""

    def __init__(self, folder):
        super().__init__(folder)
        self.recorder = Recorder()

    @property
    def experiment(self):
        return self.recorder

    def log_hyperparams(self, *args, **options):
        pass


class Wandb(WandbLogger):
    """W&B's logger, without W&B."""

    def __init__(self):
        self.images = []

    def log_image(self, key, images, step=None, **options):
        self.images.append((key, images))


def draw(path, image, *, prediction, reference, title, sequences, regions):
    """Write a slice of T1 instead of a figure."""
    assert (sequences, regions) == (["t1", "t1ce", "t2", "flair"], ["WT", "TC", "ET"])
    assert image.shape[1:] == prediction.shape[1:] == reference.shape[1:]
    assert title == f"{path.stem.rsplit('_', 1)[0]}, step {int(path.stem[-6:])}"
    path.parent.mkdir(exist_ok=True)
    imsave(path, image[0, :, :, image.shape[-1] // 2])


@pytest.fixture(scope="module")
def shown(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shown")
    csv, board = CSVLogger(folder), Board(folder / "board")
    with pytest.MonkeyPatch.context() as patch:  # drawing takes a second each
        patch.setattr("clipseg3d.training.previews.save_overlay", draw)
        small(
            folder,
            data=small.data(num_cases=6, num_folds=2),
            max_epochs=2,
            limit_train_batches=1,
            num_sanity_val_steps=1,
            logger=[csv, board],
            callbacks=[Previews()],
        )
    return csv, board


def test_the_first_cases_are_drawn_after_every_validation(shown):
    csv, _ = shown
    previews = sorted(Path(csv.log_dir, "previews").iterdir())
    names = [path.name for path in previews]
    cases = sorted({name.rsplit("_", 1)[0] for name in names})
    assert len(cases) == 2
    assert names == [f"{case}_{step:06d}.png" for case in cases for step in (1, 2)]


def test_tensorboard_shows_them(shown):
    csv, board = shown
    assert [(tag, step) for tag, _, step, _ in board.recorder.images] == [
        (f"val/{path.name.rsplit('_', 1)[0]}", step)
        for step in (1, 2)
        for path in sorted(Path(csv.log_dir, "previews").glob("*_000001.png"))
    ]
    _, shape, _, layout = board.recorder.images[0]
    assert layout == "HWC"
    assert len(shape) == 3
    assert shape[2] in (3, 4)


def test_wandb_gets_the_files(small, tmp_path):
    logger = Wandb()
    callback = Previews(num_cases=1)
    module, data = small.module(), small.data()
    trainer = small.trainer(tmp_path, callbacks=[callback], enable_checkpointing=False)
    trainer.loggers = []
    callback.on_validation_start(trainer, module)
    trainer.loggers = [logger]
    data.prepare_data()
    data.setup("validate")
    (batch,) = list(data.val_dataloader())
    batch = module.on_after_batch_transfer(batch, 0)
    outputs = {"prediction": batch["label"] > 0}
    callback.on_validation_batch_end(trainer, module, outputs, batch, 0)
    callback.on_validation_batch_end(trainer, module, outputs, batch, 1)  # one too many
    (path,) = (tmp_path / "previews").iterdir()
    assert imread(path)[..., :3].std() > 0.05  # not blank
    assert logger.images == [(f"val/{batch['case_id'][0]}", [str(path)])]


def test_no_case_is_refused():
    with pytest.raises(ValueError, match="num_cases=0 shows nothing"):
        Previews(0)
