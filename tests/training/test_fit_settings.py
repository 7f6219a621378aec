"""Mirrors clipseg3d/training/fit_settings.py, and what a resumed fit refuses."""

from dataclasses import replace

import pytest
import torch

from clipseg3d.training.averaged_weights import AveragedWeights
from clipseg3d.training.fit_settings import changed_settings

pytestmark = pytest.mark.filterwarnings("ignore")


def test_changes_are_listed_by_name():
    before, now = {"a": 1, "b": [2], "gone": 3}, {"a": 1, "b": [4], "new": None, "here": 5}
    assert changed_settings(before, now) == ["b: [2] -> [4]", "gone: 3 -> None", "here: None -> 5"]
    assert changed_settings(before, before) == []


@pytest.fixture(scope="module")
def saved(small, tmp_path_factory):
    """The checkpoint of a fit of one epoch."""
    folder = tmp_path_factory.mktemp("saved")
    _, trainer = small(folder, max_epochs=1)
    trainer.save_checkpoint(folder / "one.ckpt")
    return folder / "one.ckpt"


@pytest.mark.parametrize(
    ("model", "data", "trainer", "message"),
    [
        ({}, {}, {"seed": 4}, "seed: 3 -> 4"),
        ({"sequence_dropout": 0.25}, {}, {}, "model.sequence_dropout: 0.5 -> 0.25"),
        ({"release": "brats2020"}, {}, {}, "model.release: phantom -> brats2020"),
        ({}, {"patch_size": (8, 16, 16)}, {}, r"data.patch_size: \[16, 16, 16\] -> \[8, 16, 16\]"),
        ({}, {"fold": 1}, {}, r"data.fold: 0 -> 1; data.split: \w+ -> \w+"),
        ({}, {}, {"gradient_clip_val": 1.0}, "trainer.gradient_clip_val: None -> 1.0"),
        ({}, {}, {"callbacks": [AveragedWeights()]}, r"averaged_weights: \[\] -> \[0.999\]"),
    ],
)
def test_changed_settings_are_refused_and_listed(
    small, saved, tmp_path, model, data, trainer, message
):
    cure = "give those of the fit that it is of, or --model.resume_changed true"
    with pytest.raises(ValueError, match=rf"other settings \(.*{message}.*{cure}"):
        small(
            tmp_path,
            checkpoint=saved,
            module=small.module(**model),
            data=small.data(**data),
            **{"max_epochs": 1, **trainer},
        )


def test_what_changes_no_sample_may_change(small, saved, tmp_path):
    _, trainer = small(tmp_path, checkpoint=saved, data=small.data(num_workers=1), max_epochs=1)
    assert trainer.global_step == 4


def test_rules_for_predictions_may_change(small, saved, tmp_path):
    module = small.module(postprocessing={"enhancing_to_core": 0.5})
    _, trainer = small(tmp_path, checkpoint=saved, module=module, max_epochs=1)
    assert trainer.global_step == 4


def test_a_checkpoint_of_before_networks_named_a_plan_goes_on(small, saved, tmp_path):
    content = torch.load(saved, weights_only=True)
    content["settings"].pop("model.network.plan", None)
    del content["hyper_parameters"]["network"]["plan"]
    torch.save(content, tmp_path / "old.ckpt")
    _, trainer = small(tmp_path, checkpoint=tmp_path / "old.ckpt", max_epochs=1)
    assert trainer.global_step == 4
    loaded = small.module().load_from_checkpoint(tmp_path / "old.ckpt")
    assert loaded.plan == small.module().plan


def test_changed_settings_can_be_accepted(small, saved, tmp_path):
    module = small.module(sequence_dropout=0.25, resume_changed=True)
    _, trainer = small(tmp_path, checkpoint=saved, module=module, max_epochs=2)
    assert trainer.global_step == 8


def test_another_architecture_is_always_refused(small, saved, tmp_path):
    module = small.module(replace(small.network, channels=(4, 12)), resume_changed=True)
    with pytest.raises(ValueError, match=r"of another architecture \(.*of another shape, such as"):
        small(tmp_path, checkpoint=saved, module=module, max_epochs=1)


def test_cases_with_labels_of_other_regions_are_not_scored(small, saved, tmp_path):
    content = torch.load(saved, weights_only=True)
    content["hyper_parameters"]["release"] = "brats2023_gli"
    torch.save(content, tmp_path / "other.ckpt")
    trainer = small.trainer(tmp_path)
    with pytest.raises(ValueError, match="trained on brats2023_gli, whose labels mean other reg"):
        trainer.validate(small.module(), small.data(), ckpt_path=tmp_path / "other.ckpt")
    content["hyper_parameters"]["release"] = "brats2020"  # of the same labels
    torch.save(content, tmp_path / "same.ckpt")
    trainer.validate(small.module(), small.data(), ckpt_path=tmp_path / "same.ckpt", verbose=False)
