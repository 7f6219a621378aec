"""Mirrors clipseg3d/training/module.py and its way into the predictor."""

import copy
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader

import clipseg3d.inference.predictor
from clipseg3d.batch import pack_image, unpack_image
from clipseg3d.data.cases import find_cases
from clipseg3d.data.nifti import read_voxels
from clipseg3d.data.preprocessing import preprocess
from clipseg3d.data.releases import PHANTOM
from clipseg3d.inference.predictor import Predictor
from clipseg3d.losses import cosine_loss
from clipseg3d.metrics.dice import dice_empty_is_one
from clipseg3d.networks.build import build_clipseg3d
from clipseg3d.networks.clipseg3d import Prediction
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.networks.presets import PRESETS
from clipseg3d.phantom.datamodule import PhantomDataModule
from clipseg3d.training.averaged_weights import AveragedWeights
from clipseg3d.training.module import CLIPSeg3DModule
from clipseg3d.training.plan import PLANS, TrainingPlan
from clipseg3d.views import Views

pytestmark = pytest.mark.filterwarnings("ignore")
SPACING_MM = 8.0
SMALL = NetworkConfig(
    channels=(4, 8), num_auxiliary=0, semantic_dim=16, num_heads=2, clip="tiny-random"
)
ROI_SIZE = (16, 20, 12)
FROM_THE_START = TrainingPlan()


@pytest.fixture(autouse=True)
def seed():
    """The seed that training draws from, whatever other tests have set it to."""
    seed_everything(0, verbose=False)


def phantoms(patients, cache, **options):
    """Five simulated patients, four of them to train on."""
    defaults = {
        "num_cases": 5,
        "spacing_mm": SPACING_MM,
        "num_folds": 5,
        "patch_size": (16, 16, 16),
        "num_workers": 0,
        "view_selection": SMALL.view_selection,
        "cache_dir": str(cache),
    }
    return PhantomDataModule(str(patients), **{**defaults, **options})


def quick_trainer(folder, **options):
    defaults = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
        "default_root_dir": folder,
    }
    return Trainer(**{**defaults, **options})


@pytest.fixture(scope="module")
def fitted(phantom_folder, tmp_path_factory):
    """A module after one epoch with validation, its data, its trainer and its checkpoint."""
    seed_everything(0, verbose=False)
    folder = tmp_path_factory.mktemp("fit")
    data = phantoms(phantom_folder, folder / "cache")
    module = CLIPSeg3DModule(
        SMALL,
        release="phantom",
        spacing_mm=SPACING_MM,
        plan=FROM_THE_START,
        lr=1e-2,
        roi_size=ROI_SIZE,
    )
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        callbacks=[ModelCheckpoint(folder, filename="best", monitor="val/dice_mean", mode="max")],
        enable_progress_bar=False,
        default_root_dir=folder,
    )
    trainer.fit(module, data)
    return module, data, trainer, folder / "best.ckpt"


def small_module(**options):
    return CLIPSeg3DModule(SMALL, **options)


def some_batch(count=1, *, generator=None, grade=-1):
    """A batch of noise with a box as its tumour."""
    label = torch.zeros(count, 3, 8, 12, 10)
    label[:, :, 2:6, 3:8, 4:9] = 1
    images = torch.randint(1, 255, (count, 3, 32, 32, 4), dtype=torch.uint8, generator=generator)
    return {
        "image": label[:, :1] + torch.rand(count, 4, 8, 12, 10, generator=generator),
        "label": label,
        "crop_box": torch.tensor([[[0.0] * 3, [1.0] * 3]]).expand(count, 2, 3),
        "statistics": torch.tensor([[[0.0, 2.0, 0.0, 1.0]] * 4]).expand(count, 4, 4),
        "views": Views(images, torch.tensor([0.5, 1.0, 1.0]).expand(count, 3, 3)),
        "report": ["left frontal"] * count,
        "grade": torch.full((count,), grade),
        "case_id": ["a"] * count,
    }


@pytest.fixture
def quiet(monkeypatch):
    """Let training steps run without a trainer."""
    monkeypatch.setattr(CLIPSeg3DModule, "log", lambda *args, **kwargs: None)


def test_validation_logs_every_region_and_their_mean(fitted):
    _, _, trainer, _ = fitted
    logged = trainer.callback_metrics
    regions = [float(logged[f"val/dice_{name}"]) for name in ("wt", "tc", "et")]
    assert float(logged["val/dice_mean"]) == pytest.approx(sum(regions) / 3)
    assert "train/loss" in logged


def test_checkpoint_is_plain_and_holds_no_clip(fitted):
    *_, path = fitted
    checkpoint = torch.load(path, weights_only=True)
    assert [name for name in checkpoint["state_dict"] if "clip" in name.lower()] == []
    assert checkpoint["hyper_parameters"]["network"] == asdict(SMALL)
    assert checkpoint["hyper_parameters"]["release"] == "phantom"
    assert checkpoint["hyper_parameters"]["plan"] == asdict(replace(FROM_THE_START, lr=1e-2))
    assert set(checkpoint["encoders"]) == {"CLIP"}
    assert checkpoint["encoders"]["CLIP"]["name"] == "tiny-random"
    assert len(checkpoint["encoders"]["CLIP"]["sha256"]) == 64


def test_checkpoint_loads_to_the_same_logits(fitted):
    _, data, _, path = fitted
    first = CLIPSeg3DModule.load_from_checkpoint(path, weights_only=True)
    second = CLIPSeg3DModule.load_from_checkpoint(path, weights_only=True)
    stored = torch.load(path, weights_only=True)["state_dict"]
    assert first.plan == replace(FROM_THE_START, lr=1e-2)
    assert first.config == SMALL
    for name, weight in first.state_dict().items():
        torch.testing.assert_close(weight, stored[name], rtol=0, atol=0)
    sample = data.val_set[0]
    image, views = sample["image"][None], Views(*(part[None] for part in sample["views"]))
    outputs = [m.eval().network(image, views=views) for m in (first, second)]
    torch.testing.assert_close(*outputs, rtol=0, atol=0)


def test_what_is_published_from_a_module_predicts_as_its_checkpoint(fitted, tmp_path):
    _, data, _, path = fitted
    module = CLIPSeg3DModule.load_from_checkpoint(path)
    module.network.save_pretrained(tmp_path / "published")
    first, second = (
        Predictor.from_checkpoint(source, device="cpu")
        for source in (path, str(tmp_path / "published"))
    )
    for name in ("release", "spacing_mm", "roi_size", "overlap", "allow_missing"):
        assert getattr(first, name) == getattr(second, name)
    case = find_cases(data.root, PHANTOM, spacing_mm=SPACING_MM)[0]
    np.testing.assert_array_equal(first(case).label, second(case).label)


def test_another_clip_is_refused(fitted):
    *_, path = fitted
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["encoders"]["CLIP"]["sha256"] = "0" * 64
    with pytest.raises(ValueError, match=r"SHA-256 000000000000.*load that one"):
        small_module().on_load_checkpoint(checkpoint)
    forged = path.with_name("forged.ckpt")
    torch.save(checkpoint, forged)
    for load in (CLIPSeg3DModule.load_from_checkpoint, Predictor.from_checkpoint):
        with pytest.raises(ValueError, match=r"SHA-256 000000000000.*load that one"):
            load(forged)


def test_validation_scores_are_those_of_the_written_segmentations(fitted, monkeypatch):
    def preprocess_as_cached(*args, **options):
        """The cache rounds intensities to 254 levels, which moves voxels at borders."""
        exact = preprocess(*args, **options)
        codes = pack_image(exact.image, exact.statistics)
        return replace(exact, image=unpack_image(codes, exact.statistics))

    monkeypatch.setattr(clipseg3d.inference.predictor, "preprocess", preprocess_as_cached)
    module, data, trainer, path = fitted
    (scores,) = trainer.validate(module, data, verbose=False, ckpt_path=str(path))
    predictor = Predictor.from_checkpoint(path, device="cpu")
    names = {case.case_id for case in data.val_set.cases}
    cases = [
        case
        for case in find_cases(data.root, PHANTOM, spacing_mm=SPACING_MM)
        if case.case_id in names
    ]
    dice = []
    for case in cases:
        found = PHANTOM.to_regions(predictor(case).label)
        true = PHANTOM.to_regions(read_voxels(case.label))
        dice.append(dice_empty_is_one(torch.from_numpy(found), torch.from_numpy(true)).numpy())
    expected = np.mean(dice, axis=0)
    found = [scores[f"val/dice_{name}"] for name in ("wt", "tc", "et")]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_mixed_precision_trains_and_validates(fitted, tmp_path):
    _, data, _, _ = fitted
    module = small_module(release="phantom", spacing_mm=SPACING_MM, roi_size=ROI_SIZE)
    trainer = Trainer(
        max_steps=2,
        accelerator="cpu",
        precision="bf16-mixed",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, data)
    trainer.validate(module, data, verbose=False)
    assert torch.isfinite(trainer.callback_metrics["val/dice_mean"])
    assert all(torch.isfinite(weight).all() for weight in module.parameters())
    assert all(w.dtype == torch.float32 for w in module.parameters())


def test_training_lowers_the_loss(quiet):
    module = small_module(lr=1e-2, report_dropout=0.0)
    batch = some_batch()
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for step in range(15):
        optimizer.zero_grad()
        loss = module.training_step(batch, step)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("share", "steps", "low", "high"), [(0.0, 5, 0, 0), (0.3, 60, 60, 84), (1.0, 5, 20, 20)]
)
def test_withheld_reports_leave_the_prompts(monkeypatch, quiet, share, steps, low, high):
    module = small_module(report_dropout=share)
    seen = []
    embed = module.network.embed_text
    monkeypatch.setattr(
        module.network, "embed_text", lambda reports: seen.extend(reports) or embed(reports)
    )
    batch = some_batch(4)
    monkeypatch.setattr(
        module.network,
        "segment",
        lambda *a, **k: Prediction(torch.zeros_like(batch["label"]), [], None, None),
    )
    for step in range(steps):
        module.training_step(batch, step)
    assert len(seen) == 4 * steps
    assert low <= seen.count("") <= high
    assert seen.count("left frontal") == 4 * steps - seen.count("")
    assert embed(["", ""])[1].tolist() == [[True] * 3] * 2


def test_swapped_reports_are_logged(phantom_folder, tmp_path):
    module = small_module(
        release="phantom", spacing_mm=SPACING_MM, plan=FROM_THE_START, roi_size=ROI_SIZE,
        swap_cases=1,
    )  # fmt: skip
    trainer = quick_trainer(tmp_path, limit_val_batches=1)
    logged = trainer.validate(module, phantoms(phantom_folder, tmp_path), verbose=False)[0]
    assert -1 <= logged["val/obey_text"] <= 1
    assert -1 <= logged["val/obey_image"] <= 1
    plain = small_module(release="phantom", spacing_mm=SPACING_MM, roi_size=ROI_SIZE)
    again = trainer.validate(plain, phantoms(phantom_folder, tmp_path), verbose=False)[0]
    assert "val/obey_text" not in again


def test_reports_are_swapped_only_about_enhancing_tumours():
    config = replace(SMALL, regions=("WT", "TC"), guided=("TC",))
    with pytest.raises(ValueError, match=r"swap_cases=1 .* the network has no ET; set it to 0"):
        CLIPSeg3DModule(config, swap_cases=1)


def test_sentences_presence_and_prompts_are_trained(phantom_folder, tmp_path):
    """Two steps move every new weight, with reports written from masks and twins."""
    reading = {"sentences": True, "presence": True, "guided_skips": 1, "prompt_head": True}
    config = replace(SMALL, channels=(4, 6, 8), **reading)
    module = CLIPSeg3DModule(
        config, release="phantom", spacing_mm=SPACING_MM, plan=FROM_THE_START, lr=1e-2
    )
    before = {name: weight.clone() for name, weight in module.network.named_parameters()}
    data = phantoms(phantom_folder, tmp_path, text_twins=0.5, written_reports=1.0, batch_size=2)
    quick_trainer(tmp_path, max_steps=2).fit(module, data)
    new = ("sentences.", "presence.", "skips.", "prompt_head.")
    still = [
        name
        for name, weight in module.network.named_parameters()
        if any(part in name for part in new) and torch.equal(weight, before[name])
    ]
    assert still == []


def test_validation_withholds_nothing(fitted, monkeypatch):
    module, data, trainer, _ = fitted
    monkeypatch.setitem(module.hparams, "report_dropout", 1.0)
    monkeypatch.setitem(module.hparams, "sequence_dropout", 1.0)
    seen = []
    embed = module.network.embed_text
    monkeypatch.setattr(
        module.network, "embed_text", lambda reports: seen.extend(reports) or embed(reports)
    )
    encode = module.network.encode_semantics
    views = []
    monkeypatch.setattr(
        module.network, "encode_semantics", lambda v, *rest: views.append(v) or encode(v, *rest)
    )
    trainer.validate(module, data, verbose=False)
    assert seen == [case.report for case in data.val_set.cases]
    assert "" not in seen
    assert all(v.images.amax(dim=(0, 1, 2, 3)).min() > 0 for v in views)


# sequences withheld


def test_drawn_sequences_are_non_empty_proper_subsets_equally_often():
    module = small_module(sequence_dropout=1.0)
    kept = module._draw_sequences(14_000, 4, generator=torch.Generator().manual_seed(0))
    assert kept.dtype == torch.bool
    counts = {}
    for row in kept.tolist():
        counts[tuple(row)] = counts.get(tuple(row), 0) + 1
    assert len(counts) == 14
    assert {sum(subset) for subset in counts} == {1, 2, 3}
    assert all(850 < count < 1150 for count in counts.values())


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_share_of_samples_without_some_sequences(share):
    generator = torch.Generator().manual_seed(0)
    kept = small_module(sequence_dropout=share)._draw_sequences(10_000, 4, generator=generator)
    assert float((~kept.all(dim=1)).float().mean()) == pytest.approx(share, abs=0.02)


def test_withheld_sequences_are_gone_from_image_statistics_and_views(monkeypatch, quiet):
    module = small_module(sequence_dropout=1.0)
    batch, given = some_batch(6), {}
    every = torch.arange(3.0).view(1, 3, 1, 1).expand(6, 3, 3, 3)
    images = batch["views"].images[:, None].expand(-1, 3, -1, -1, -1, -1)
    batch["reduced_views"] = Views(images, every)
    encode, segment = module.network.encode_semantics, module.network.segment

    def spy_encode(views, *rest):
        given["views"] = views.images.amax(dim=(1, 2, 3)) > 0
        given["choice"] = views.planes[:, 0, 0].tolist()
        return encode(views, *rest)

    def spy_segment(image, semantics, *, statistics, **rest):
        given["image"] = image.abs().amax(dim=(2, 3, 4)) > 0
        given["statistics"] = statistics.abs().amax(dim=2) > 0
        return segment(image, semantics, statistics=statistics, **rest)

    monkeypatch.setattr(module.network, "encode_semantics", spy_encode)
    monkeypatch.setattr(module.network, "segment", spy_segment)
    before = copy.deepcopy(batch)
    loss = module.training_step(batch, 0)
    assert loss.isfinite()
    assert torch.equal(given["image"], given["statistics"])
    assert torch.equal(given["image"], given["views"])
    for (t1, t1ce, _, flair), choice in zip(given["image"], given["choice"], strict=True):
        set_index = int(t1 & t1ce) + 2 * int(flair)
        assert choice == (set_index if set_index < 3 else 0.5)  # 0.5: the views of all sequences
    assert {int(n) for n in given["image"].sum(dim=1)} <= {1, 2, 3}
    assert len({tuple(row) for row in given["image"].tolist()}) > 1
    assert torch.equal(batch["image"], before["image"])  # the batch itself is left alone
    assert torch.equal(batch["views"].images, before["views"].images)


def test_a_case_that_lacks_sequences_keeps_one_that_it_has(monkeypatch, quiet):
    module = small_module(sequence_dropout=1.0)
    batch, given = some_batch(40), {}
    for name in ("image", "statistics"):
        batch[name][:, [0, 2, 3]] = 0  # T1ce alone was acquired
    segment = module.network.segment

    def spy_segment(image, semantics, **rest):
        given["image"] = image
        return segment(image, semantics, **rest)

    monkeypatch.setattr(module.network, "segment", spy_segment)
    module.training_step(batch, 0)
    assert torch.equal(given["image"], batch["image"])


# losses


@pytest.mark.parametrize("guided", [("TC", "ET"), ("ET",)])
def test_cosine_weight_adds_the_loss_of_the_guided_regions(quiet, guided):
    config = replace(SMALL, guided=guided)
    module = CLIPSeg3DModule(config, plan=TrainingPlan(cosine_weight=0.5, cosine_temperature=0.1))
    without = CLIPSeg3DModule(config, plan=TrainingPlan())
    without.load_state_dict(module.state_dict())
    batch = some_batch(2)
    batch["label"][:, 1, :4] = 0
    batch["label"][:, 2, :5] = 0
    module.eval(), without.eval()  # no dropout: the same maps in every call
    module.hparams["report_dropout"] = without.hparams["report_dropout"] = 0.0
    text, mask = module.network.embed_text(batch["report"])
    semantics = module.network.encode_semantics(batch["views"], text, mask)
    maps = module.network.segment(
        batch["image"], semantics, crop_box=batch["crop_box"], statistics=batch["statistics"]
    ).maps
    due = cosine_loss(maps.cosines, batch["label"][:, 3 - len(guided) :], temperature=0.1)
    extra = module.training_step(batch, 0) - without.training_step(batch, 0)
    torch.testing.assert_close(extra, 0.5 * due)
    assert due > 0.1


@pytest.mark.parametrize(("grade", "weight"), [(-1, 0.1), (1, 0.1), (1, 0.3), (0, 0.1)])
def test_grade_loss_counts_known_grades_and_always_has_a_gradient(quiet, grade, weight):
    config = replace(SMALL, grade_classifier=True)
    module = CLIPSeg3DModule(config, plan=TrainingPlan(grade_weight=weight)).eval()
    without = CLIPSeg3DModule(config, plan=TrainingPlan(grade_weight=0.0)).eval()
    without.load_state_dict(module.state_dict())
    module.hparams["report_dropout"] = without.hparams["report_dropout"] = 0.0
    batch = some_batch(2, grade=grade)
    loss = module.training_step(batch, 0)
    loss.backward()
    extra = float((loss - without.training_step(batch, 0)).detach())
    grads = [weight.grad for weight in module.network.grade_classifier.parameters()]
    assert all(grad is not None for grad in grads)
    assert any(grad.any() for grad in grads) == (grade >= 0)
    if grade < 0:
        assert extra == 0
    else:
        text, mask = module.network.embed_text(batch["report"])
        semantics = module.network.encode_semantics(batch["views"], text, mask)
        logit = module.network.segment(
            batch["image"], semantics, crop_box=batch["crop_box"], statistics=batch["statistics"]
        ).grade
        signed = logit if grade else -logit
        due = float(-torch.nn.functional.logsigmoid(signed).mean().detach())
        assert extra == pytest.approx(weight * due, rel=1e-3)


@pytest.mark.parametrize("reader", [{}, {"region_contrast": 0.5}, {"presence": True}])
def test_true_regions_are_shown_to_what_needs_them(monkeypatch, quiet, reader):
    module = CLIPSeg3DModule(replace(SMALL, **reader))
    segment, seen = module.network.segment, []

    def spy(*args, regions=None, **rest):
        seen.append(regions)
        return segment(*args, regions=regions, **rest)

    monkeypatch.setattr(module.network, "segment", spy)
    batch = some_batch()
    module.training_step(batch, 0)
    assert seen[0] is (batch["label"] if reader else None)


# semantics switched in


class Strengths(Callback):
    """Notes the strength of semantics at the end of every epoch."""

    def __init__(self):
        self.seen = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.seen.append(float(pl_module.network.semantic_strength))


def test_semantics_are_switched_in_as_the_plan_says(fitted, tmp_path):
    _, data, _, _ = fitted
    module = small_module(plan=TrainingPlan(semantic_ramp=(1, 2)))
    strengths = Strengths()
    trainer = quick_trainer(tmp_path, max_epochs=4, limit_train_batches=1, callbacks=[strengths])
    trainer.fit(module, data)
    assert strengths.seen == [0.0, 0.5, 1.0, 1.0]


def test_checkpoint_from_before_the_ramp_predicts_without_semantics(fitted, tmp_path, randomise):
    _, data, _, _ = fitted
    module = small_module(
        plan="recommended", release="phantom", spacing_mm=SPACING_MM, roi_size=ROI_SIZE
    )
    randomise(module.network.semantic_fusion, size=1.0)
    trainer = quick_trainer(tmp_path, max_epochs=1, limit_train_batches=1)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "early.ckpt")
    early = Predictor.from_checkpoint(tmp_path / "early.ckpt", device="cpu").network
    assert early.semantic_strength == 0
    batch = some_batch()
    given = {name: batch[name] for name in ("crop_box", "statistics")}
    text, mask = early.embed_text(batch["report"])
    seen = {**given, "views": batch["views"], "text": text, "text_mask": mask}
    alone = early(batch["image"], **given)
    assert torch.equal(early(batch["image"], **seen), alone)
    early.semantic_strength.fill_(1.0)
    assert not torch.equal(early(batch["image"], **seen), alone)
    again = CLIPSeg3DModule.load_from_checkpoint(tmp_path / "early.ckpt", weights_only=True)
    assert again.network.semantic_strength == 0


def test_resumed_fit_goes_on_with_the_ramp(fitted, tmp_path):
    _, data, _, _ = fitted
    plan = TrainingPlan(semantic_ramp=(1, 3))
    every = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    short = {"max_epochs": 4, "limit_train_batches": 1, "enable_checkpointing": True}
    quick_trainer(tmp_path, **short, callbacks=[every]).fit(small_module(plan=plan), data)
    strengths = Strengths()
    resumed = quick_trainer(tmp_path, **short, callbacks=[strengths])
    resumed.fit(small_module(plan=plan), data, ckpt_path=tmp_path / "epoch=1.ckpt")
    assert strengths.seen == pytest.approx([2 / 3, 1.0])
    saved = [torch.load(tmp_path / f"epoch={n}.ckpt", weights_only=True) for n in range(4)]
    found = [float(one["state_dict"]["network.semantic_strength"]) for one in saved]
    assert found == pytest.approx([0, 1 / 3, 2 / 3, 1])


class SemanticWeights(Callback):
    """Copies the trained weights of the semantic path after every epoch."""

    def __init__(self):
        self.seen = []

    def on_train_epoch_end(self, trainer, pl_module):
        named = pl_module.network.semantic_fusion.named_parameters()
        self.seen.append({name: w.detach().clone() for name, w in named if w.requires_grad})


@pytest.mark.parametrize("name", PLANS)
def test_semantics_do_not_change_until_they_are_switched_on(fitted, tmp_path, name):
    _, data, _, _ = fitted
    off = PLANS[name].semantic_ramp[0]  # epochs without semantics
    module = CLIPSeg3DModule(replace(SMALL, adapter=True), plan=name)
    start = copy.deepcopy(module.network)
    watch = SemanticWeights()
    trainer = quick_trainer(
        tmp_path,
        max_epochs=off + 3,
        limit_train_batches=1,
        gradient_clip_val=0.1,
        callbacks=[watch],
    )
    trainer.fit(module, data)
    initial = dict(start.semantic_fusion.named_parameters())
    for epoch in range(off):
        for weight, value in watch.seen[epoch].items():
            assert torch.equal(value, initial[weight]), (epoch, weight)
    moved = {w for w, value in watch.seen[-1].items() if not torch.equal(value, initial[w])}
    assert {"guidance.map_views.0.weight", "attention.ET.score.weight"} <= moved
    unet = dict(start.unet.named_parameters())
    assert any(not torch.equal(w, unet[n]) for n, w in module.network.unet.named_parameters())


def test_the_average_of_weights_that_do_nothing_stays_as_it_is(fitted, tmp_path):
    _, data, _, _ = fitted
    module = small_module(plan="paper_body")
    start = copy.deepcopy(module.state_dict())
    callbacks = [AveragedWeights(0.5)]
    quick_trainer(tmp_path, max_epochs=3, callbacks=callbacks).fit(module, data)
    after = module.state_dict()
    names = [name for name, _ in module.named_parameters() if "semantic_fusion" in name]
    assert all(torch.equal(after[name], start[name]) for name in names if name in start)


def test_cosine_loss_trains_what_it_reads_before_the_ramp(quiet):
    module = small_module(plan=TrainingPlan(cosine_weight=0.1, semantic_ramp=(1, 2)))
    module.network.semantic_strength.fill_(0.0)
    module.training_step(some_batch(), 0).backward()
    module.on_before_optimizer_step(module.configure_optimizer())
    fusion = module.network.semantic_fusion
    assert fusion.attention["ET"].key.weight.grad.any()
    assert fusion.attention["ET"].score.weight.grad is None
    assert fusion.bottleneck.scale.weight.grad is None


def test_semantics_of_some_strength_keep_gradients_of_zero(quiet):
    module = small_module()
    module.network.semantic_strength.fill_(0.5)
    module.training_step(some_batch(), 0).backward()
    module.on_before_optimizer_step(module.configure_optimizer())
    weights = [w for w in module.network.parameters() if w.requires_grad]
    assert all(weight.grad is not None for weight in weights)


def test_the_hook_passes_networks_without_semantics(quiet):
    module = small_module(ablation="no_semantic")
    module.training_step(some_batch(), 0).backward()
    module.network.semantic_strength.fill_(0.0)
    module.on_before_optimizer_step(module.configure_optimizer())
    weights = [w for w in module.network.parameters() if w.requires_grad]
    assert all(weight.grad is not None for weight in weights)


@pytest.mark.parametrize(
    ("options", "ramp", "message"),
    [
        ({"max_epochs": 3}, (3, 4), "the fit has 3: views and text are never switched on"),
        ({"max_epochs": 4}, (3, 4), "the fit has 4: .* a strength of only 0.5; give at least 5 ep"),
        ({"max_epochs": 5}, (3, 4), None),
        ({"max_epochs": 9, "max_steps": 7}, (1, 2), "epochs 1 to 2, counted from 0, .* has 2: "),
        ({"max_epochs": 3, "accumulate_grad_batches": 3}, (3, 4), "the fit has 3: "),
        ({"max_epochs": 3, "accumulate_grad_batches": 3}, (1, 2), None),
    ],
)
@pytest.mark.filterwarnings("default")
def test_a_fit_that_is_shorter_than_the_ramp_warns_once(
    fitted, tmp_path, recwarn, options, ramp, message
):
    _, data, _, _ = fitted  # four batches an epoch
    module = small_module(plan=TrainingPlan(semantic_ramp=ramp))
    quick_trainer(tmp_path, **options).fit(module, data)
    found = [str(one.message) for one in recwarn if "semantics rise" in str(one.message)]
    assert len(found) == (message is not None)
    if message:
        assert re.search(message, found[0])
    recwarn.clear()
    module = small_module(plan=TrainingPlan(semantic_ramp=ramp), ablation="no_semantic")
    quick_trainer(tmp_path, **options).fit(module, data)
    assert not [one for one in recwarn if "semantics rise" in str(one.message)]


# what data must give


@pytest.mark.parametrize(
    ("network", "data", "message"),
    [
        ({}, {"view_selection": "center"}, "view_selection='center', but the network needs 'ener"),
        ({}, {"shuffle_reports": True}, "shuffle_reports=True, but the network needs False"),
        ({"text": "shuffled"}, {}, "shuffle_reports=False, but the network needs True"),
        ({"view_selection": "attention"}, {}, "give the data module view_selection='attention'"),
    ],
)
def test_data_that_do_not_fit_are_refused(fitted, tmp_path, network, data, message):
    _, own, _, _ = fitted
    module = CLIPSeg3DModule(replace(SMALL, **network), release="phantom", spacing_mm=SPACING_MM)
    other = phantoms(own.root, own.cache_dir, **data)
    with pytest.raises(ValueError, match=message):
        quick_trainer(tmp_path, max_steps=1).fit(module, other)


def test_validation_refuses_them_too(fitted, tmp_path):
    _, own, _, _ = fitted
    module = CLIPSeg3DModule(SMALL, release="phantom", spacing_mm=SPACING_MM)
    other = phantoms(own.root, own.cache_dir, view_selection="center")
    with pytest.raises(ValueError, match="give the data module view_selection='energy'"):
        quick_trainer(tmp_path, max_steps=1).validate(module, other)


@pytest.mark.parametrize(
    ("network", "data"),
    [
        ({"text": "shuffled"}, {"shuffle_reports": True}),
        ({"view_selection": "attention"}, {"view_selection": "attention"}),
        ({"text": "none", "view_selection": "center"}, {"view_selection": "center"}),
        ({"semantics": False}, {"view_selection": "center", "shuffle_reports": True}),
    ],
)
def test_data_that_fit_are_trained_on(fitted, tmp_path, network, data):
    _, own, _, _ = fitted
    module = CLIPSeg3DModule(replace(SMALL, **network), release="phantom", spacing_mm=SPACING_MM)
    trainer = quick_trainer(tmp_path, max_steps=1)
    trainer.fit(module, phantoms(own.root, own.cache_dir, **data))
    assert trainer.global_step == 1


def test_loaders_without_a_data_module_are_trusted(fitted, tmp_path):
    _, data, _, _ = fitted
    trainer = quick_trainer(tmp_path, max_steps=1)
    trainer.fit(small_module(), DataLoader(data.train_set, batch_size=2))
    assert trainer.global_step == 1


# plans and texts


def test_plan_is_the_networks_unless_given():
    assert small_module().plan == PLANS["recommended"]
    for network in ("tiny", PRESETS["tiny"], replace(PRESETS["tiny"], cbam=False)):
        assert CLIPSeg3DModule(network).plan == PLANS["tiny"]
        assert CLIPSeg3DModule(network, ablation="no_text").plan == PLANS["tiny"]
    assert CLIPSeg3DModule("tiny", plan="paper_body").plan == PLANS["paper_body"]
    assert small_module(plan=asdict(PLANS["paper_appendix"])).plan == PLANS["paper_appendix"]
    assert small_module(plan="paper_body", lr=0.5).plan == replace(PLANS["paper_body"], lr=0.5)


def test_fit_uses_optimizer_and_schedule_of_the_plan(fitted, tmp_path):
    _, data, _, _ = fitted
    module = small_module(plan="paper_appendix")
    trainer = quick_trainer(tmp_path, max_epochs=2)
    trainer.fit(module, data)
    (optimizer,), (config,) = trainer.optimizers, trainer.lr_scheduler_configs
    assert isinstance(optimizer, torch.optim.AdamW)
    assert config.interval == "step"
    assert config.scheduler.total_steps == 8  # of two epochs of four cases
    peaks = sorted(20 * group["initial_lr"] for group in optimizer.param_groups)
    assert peaks == pytest.approx([2e-3, 3e-3])


def test_texts_are_read_from_a_file_of_embeddings(quiet, tmp_path, monkeypatch):
    batch = some_batch()
    path = str(tmp_path / "texts.safetensors")
    build_clipseg3d(SMALL).text_bank.save(path, batch["report"])
    module = small_module(text_cache=path)
    monkeypatch.setattr(module.network.text_bank.encoder, "encode_text", None)
    assert module.training_step(batch, 0).isfinite()
    assert "text_cache" not in module.hparams
    broken = str(tmp_path / "gone.safetensors")
    with pytest.raises(FileNotFoundError, match="no such file"):
        small_module(text_cache=broken)


def test_rules_for_predictions_are_hyperparameters():
    rules = {"relative_components": {"WT": 0.1}}
    module = CLIPSeg3DModule(replace(SMALL, semantics=False), postprocessing=rules)
    assert module.hparams["postprocessing"] == rules
    assert module.network.settings.postprocessing == rules
    module.on_predict_start()
    assert module._predictor.postprocessing.values() == rules
    assert small_module().network.settings.postprocessing is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "tiny", "postprocessing": {"parts": 3}}, "unknown rule 'parts'; choose from"),
        ({"network": "tiny", "postprocessing": {"holes": {"RC": 3}}}, "has no region 'RC'"),
        ({"network": "huge"}, "unknown preset 'huge': choose one of paper, .*recommended, tiny"),
        ({"network": "tiny", "ablation": "no_brain"}, "unknown ablation 'no_brain'"),
        ({"network": "tiny", "release": "brats1999"}, "unknown release 'brats1999'"),
        ({"network": "tiny", "plan": "fast"}, "unknown plan 'fast': choose one of paper_body"),
    ],
)
def test_unknown_names_say_what_there_is(options, message):
    with pytest.raises(ValueError, match=message):
        CLIPSeg3DModule(**options)
