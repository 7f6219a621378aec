"""An interrupted fit ends like an uninterrupted one: weights, scores and order of the data."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from clipseg3d.training.checkpoint_io import AtomicCheckpointIO
from clipseg3d.training.last_checkpoints import LastCheckpoints
from clipseg3d.training.module import CLIPSeg3DModule

pytestmark = pytest.mark.filterwarnings("ignore")
SCRIPT = Path(__file__).with_name("killed_fit.py")
MODES = {
    "validation after each epoch": {},
    "validation after two": {"check_val_every_n_epoch": 2},
    "validation within epochs": {"val_check_interval": 0.5},
    "no validation": {"limit_val_batches": 0},
    "accumulated gradients": {"accumulate_grad_batches": 3, "val_check_interval": 0.5},
    "steps instead of epochs": {"max_steps": 9, "max_epochs": -1},
}


class Diary(Callback):
    """Notes what is trained on and scored, in order."""

    def __init__(self):
        self.events = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        index = (trainer.current_epoch, batch_idx)
        content = (tuple(batch["case_id"]), float(batch["image"].double().sum()))
        self.events.append(("batch", trainer.global_step, *index, *content, float(outputs["loss"])))

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            score = float(trainer.callback_metrics["val/dice_mean"])
            self.events.append(("score", trainer.global_step, score))

    def after(self, step):
        """Return what followed a step, and the validation that belongs to it."""
        rest = list(self.events)
        while rest.pop(0)[:2] != ("batch", step):
            pass
        while rest and rest[0][0] == "score":
            rest.pop(0)
        return rest


class Rates(Callback):
    """Notes the learning rate of every step."""

    def __init__(self):
        self.values = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.values.append(trainer.optimizers[0].param_groups[0]["lr"])


def callbacks(folder):
    """Return a diary, and callbacks that keep all best and all last checkpoints."""
    last = LastCheckpoints(1, dirpath=str(folder))
    last.save_top_k = -1
    best = ModelCheckpoint(folder, filename="best-{step}", save_top_k=-1)
    return [Diary(), best, last]


def assert_equal_weights(module, other):
    expected = other.state_dict()
    assert all(torch.equal(expected[name], weight) for name, weight in module.state_dict().items())


def write_format_1(source, path):
    """Write a checkpoint of today as the version with format 1 did."""
    content = torch.load(source, weights_only=True)
    del content["format"]
    values, settings = content["hyper_parameters"], content["settings"]
    values["window"] = values.pop("roi_size")
    values["network"]["fold"] = values["network"].pop("space_to_depth")
    settings["model.window"] = settings.pop("model.roi_size")
    settings["model.network.fold"] = settings.pop("model.network.space_to_depth")
    weights = {}
    for name, weight in content["state_dict"].items():
        name = name.replace("semantic_fusion.bottleneck.", "semantic_fusion.gate.")
        weights[re.sub(r"(attention\.\w+)\.position", r"\1.place", name)] = weight
    assert any("semantic_fusion.gate." in name for name in weights)
    assert any(".place_key." in name for name in weights)
    content["state_dict"] = weights
    torch.save(content, path)
    return path


def test_a_checkpoint_of_format_1_is_resumed_and_scored(small, tmp_path):
    last = LastCheckpoints(1, dirpath=str(tmp_path / "first"))
    last.save_top_k = -1
    module, trainer = small(tmp_path, max_epochs=1, callbacks=[last])
    half = write_format_1(tmp_path / "first" / "last-0000002.ckpt", tmp_path / "half.ckpt")
    full = write_format_1(tmp_path / "first" / "last-0000004.ckpt", tmp_path / "full.ckpt")
    loaded = CLIPSeg3DModule.load_from_checkpoint(full)
    for plugins, scored in (([AtomicCheckpointIO()], small.module()), ([], loaded)):
        options = {"max_epochs": 1, "limit_val_batches": 0, "plugins": plugins}
        resumed, ended = small(tmp_path, checkpoint=half, **options)
        assert ended.global_step == trainer.global_step == 4
        assert_equal_weights(resumed, module)
        scorer = small.trainer(tmp_path, plugins=plugins)
        (scores,) = scorer.validate(scored, small.data(), ckpt_path=full, verbose=False)
        assert scores == {name: trainer.callback_metrics[name].item() for name in scores}
        assert_equal_weights(scored, module)


@pytest.mark.parametrize(
    "mode",
    [
        mode if mode == "accumulated gradients" else pytest.param(mode, marks=pytest.mark.slow)
        for mode in MODES
    ],
)
def test_a_fit_is_resumed_from_every_state_bit_for_bit(small, tmp_path, mode):
    options = {"max_epochs": 2, **MODES[mode]}
    first = callbacks(tmp_path / "first")
    module, trainer = small(tmp_path, callbacks=first, **options)
    states = sorted((tmp_path / "first").glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    batches = [event for event in first[0].events if event[0] == "batch"]
    assert len(batches) == (9 if "max_steps" in options else 8)
    ends = [path for path in states if path.stem in ("last-0000004", "last-0000002")]
    for state in dict.fromkeys([states[0], *ends, states[-2]]):
        second = callbacks(tmp_path / "second")
        resumed, ended = small(tmp_path, checkpoint=state, callbacks=second, **options)
        step = int(state.stem.split("-")[1].removeprefix("step="))
        assert second[0].events == first[0].after(step), state
        assert ended.global_step == trainer.global_step
        assert_equal_weights(resumed, module)


@pytest.mark.slow
def test_killed_again_and_again(tmp_path):
    """SIGKILL at random events: a step, a validation, a checkpoint that is being written."""
    run = subprocess.run(
        [sys.executable, SCRIPT, tmp_path, "2"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    ends = json.loads((tmp_path / "ends.json").read_text())
    assert ends["left alone"] == [0], run.stderr[-3000:]
    assert ends["killed"][0] == -signal.SIGKILL
    assert ends["killed"][-1] == 0, (ends, run.stderr[-3000:])
    diaries = {
        name: (tmp_path / name / "log.jsonl").read_text() for name in ("left alone", "killed")
    }
    # What was done twice was the same twice.
    assert set(diaries["killed"].splitlines()) == set(diaries["left alone"].splitlines()), ends
    folders = [tmp_path / name / "checkpoints" for name in ("left alone", "killed")]
    for name in ("best.ckpt", *sorted(path.name for path in folders[0].glob("last-*.ckpt"))):
        one, two = (torch.load(folder / name, weights_only=True) for folder in folders)
        for key in ("state_dict", "optimizer_states", "lr_schedulers", "loops"):
            assert str(one[key]) == str(two[key]), (name, key, ends)
        expected = one["state_dict"]
        for key, value in two["state_dict"].items():
            assert torch.equal(expected[key], value), (name, key, ends)
    assert not list(folders[1].glob(".*"))


def test_equal_seeds_give_equal_fits_and_others_do_not(small, tmp_path):
    fits = []
    for seed, workers in ((3, 0), (3, 2), (4, 0)):
        diary = Diary()
        module, _ = small(
            tmp_path,
            seed=seed,
            data=small.data(num_workers=workers),
            max_epochs=1,
            limit_val_batches=0,
            callbacks=[diary],
            enable_checkpointing=False,
        )
        fits.append((diary.events, module))
    (one, first), (two, second), (other, _) = fits
    assert one == two
    assert_equal_weights(second, first)
    assert one != other


def test_a_deterministic_fit_runs(small, tmp_path):
    _, trainer = small(tmp_path, max_epochs=1, deterministic=True)
    torch.use_deterministic_algorithms(False)
    assert trainer.global_step == 4


def test_more_epochs_than_were_planned(small, tmp_path):
    last = LastCheckpoints(dirpath=str(tmp_path / "first"))
    small(tmp_path, max_epochs=1, callbacks=[last])
    (state,) = (tmp_path / "first").glob("last-*.ckpt")
    with pytest.raises(ValueError, match=r"\(trainer.max_epochs: 1 -> 2\).*resume_changed true"):
        small(tmp_path, checkpoint=state, max_epochs=2)
    plan = {"lr": 1e-3, "weight_decay": 0.3, "schedule": "cosine"}
    module = small.module(plan=plan, resume_changed=True)
    rates = Rates()
    _, trainer = small(
        tmp_path,
        checkpoint=state,
        module=module,
        max_epochs=2,
        limit_val_batches=0,
        callbacks=[rates],
        enable_checkpointing=False,
    )
    (optimizer,) = trainer.optimizers
    assert trainer.global_step == 8
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.3}
    fresh = module.plan.optimizer_for(module.network)
    scheduler = module.plan.schedule_for(fresh, 8)
    expected = []
    for _ in range(8):
        expected.append(fresh.param_groups[0]["lr"])
        fresh.step()
        scheduler.step()
    assert rates.values == pytest.approx(expected[4:])
