"""How examples/train_tiny.py changes crops and scores, and which options it refuses."""

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from clipseg3d import CLIPSeg3D, PhantomDataModule, UNet3D
from clipseg3d.views import Views

SIZE = (12, 15, 9)


@pytest.fixture(scope="module")
def example():
    return runpy.run_path(str(Path(__file__).parents[1] / "examples" / "train_tiny.py"))


def positions(crop_box, size):
    """Return the position (3, x, y, z) of every voxel of a crop, as a share of the brain box."""
    axes = [(torch.arange(n) + 0.5) / n for n in size]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return crop_box[0][:, None, None, None] + torch.einsum("ak,axyz->kxyz", crop_box[1:], grid)


@pytest.mark.parametrize("seed", range(10))
def test_the_crop_box_moves_with_the_content(example, seed):
    torch.manual_seed(seed)
    crop_box = torch.tensor(  # y is mirrored, x and z are turned
        [[0.2, 0.9, 0.1], [0.5, 0.0, 0.1], [0.0, -0.6, 0.0], [-0.2, 0.0, 0.4]]
    )
    image = torch.cat([torch.rand(1, *SIZE) + 1, positions(crop_box, SIZE)])
    label = (image[0] * 100).byte()
    moved = example["translate"]({"image": image, "label": label, "crop_box": crop_box})
    inside = moved["image"][0] != 0
    assert inside.float().mean() > 0.25
    assert not moved["label"][~inside].any()
    assert torch.equal(moved["label"][inside], (moved["image"][0] * 100).byte()[inside])
    actual = positions(moved["crop_box"], SIZE)
    torch.testing.assert_close(actual[:, inside], moved["image"][1:, inside], rtol=0, atol=1e-5)


def packed(size, *, value, lesion):
    """A packed whole case of one intensity, with a lesion of 255; the crop box covers it."""
    image = torch.full((1, *size), value, dtype=torch.uint8)
    label = torch.zeros(size, dtype=torch.uint8)
    label[lesion] = 7
    image[0][lesion] = 255
    return {
        "image": image,
        "label": label,
        "crop_box": torch.tensor([[0.0] * 3, [1.0] * 3]),
        "statistics": torch.tensor([[1.0, 255.0, 100.0, 10.0]]),  # codes are intensities
        "case_id": "case",
    }


@pytest.mark.parametrize("seed", range(6))
def test_a_grafted_lesion_keeps_its_position(example, seed):
    torch.manual_seed(seed)
    middle = slice(18, 22)  # along x the lesion is its own mirror image
    donor = packed((40, 36, 30), value=25, lesion=(middle, slice(20, 24), slice(10, 14)))
    donor["statistics"] = torch.tensor(
        [[2.0, 510.0, 100.0, 10.0]]
    )  # intensities are twice the codes
    crop = packed((24, 20, 20), value=100, lesion=(slice(0, 1),) * 3)
    crop["image"][..., 9:] = 0
    crop["crop_box"] = torch.tensor([[0.25, 0.5, 0.2], [0.6, 0.6, 0.8]])  # from voxel 10, 18, 6
    before = {name: value.clone() for name, value in crop.items() if torch.is_tensor(value)}
    grafted = example["graft_lesions"](crop, [donor], 0)
    lesion = (slice(8, 12), slice(2, 6), slice(4, 8))
    assert (grafted["label"][lesion] == 7).all()
    assert (grafted["image"][0][lesion] > 255).all()  # edges are blended
    assert (grafted["label"] == 7).sum() == 4**3 + 1  # and its own, far away, stays
    background = crop["image"] == 0
    assert not grafted["image"][background].any()
    assert grafted["image"][0, -1, -1, 0] == 100
    assert all(torch.equal(crop[name], value) for name, value in before.items())
    ring = grafted["image"][0, 7, 3, 5]
    assert 50 <= ring < 100  # what was around the lesion comes with it, blended at its edge


def test_grafted_tissue_replaces_the_label_too(example):
    torch.manual_seed(0)
    donor = packed((24, 24, 24), value=50, lesion=(slice(10, 14),) * 3)
    crop = packed((24, 24, 24), value=100, lesion=(slice(9, 15),) * 3)
    grafted = example["graft_lesions"](crop, [donor], 0)
    labelled = grafted["label"] == 7
    assert labelled[10:14, 10:14, 10:14].all()
    assert labelled.sum() < 6**3


@pytest.mark.parametrize("seed", range(6))
def test_bright_tissue_is_near_the_brain_and_not_in_the_tumour(example, seed):
    torch.manual_seed(seed)
    size = (48, 56, 40)
    image = torch.zeros(4, *size)
    image[:, 10:38, 12:44, 9:31] = 0.5
    label = torch.zeros(size, dtype=torch.uint8)
    label[16:24, 36:44, 14:22] = 7  # as far as the edge of the brain
    statistics = torch.tensor([-3.0, 5.0, 0.0, 1.0]).repeat(4, 1)
    sample = {"image": image, "label": label, "statistics": statistics}
    before = {name: value.clone() for name, value in sample.items()}
    after = example["add_bright_tissue"](sample)
    changed = (after["image"].float() != image).any(dim=0)
    assert changed.any()
    assert not changed[label > 0].any()
    assert torch.equal(after["label"], label)
    far = torch.ones(size, dtype=torch.bool)
    far[2:46, 4:52, 1:39] = False  # more than 8 voxels outside
    assert not changed[far].any()
    assert after["image"].min() >= -3
    assert after["image"].max() <= 5
    assert all(torch.equal(sample[name], value) for name, value in before.items())


def test_only_t1ce_is_bright(example):
    image = torch.ones(4, 32, 32, 32)
    image[:, 24:] = 0
    sample = {
        "image": image,
        "label": torch.zeros(32, 32, 32, dtype=torch.uint8),
        "statistics": torch.tensor([-9.0, 9.0, 0.0, 1.0]).repeat(4, 1),
    }
    torch.manual_seed(0)
    gains = [example["add_bright_tissue"](sample)["image"].float() - image for _ in range(20)]
    means = torch.stack([gain[:, (gain != 0).any(dim=0)].mean(dim=1) for gain in gains]).nanmean(0)
    assert means[1] > 1
    assert (means[[0, 2, 3]] < 0).all()


def test_bias_fields_are_smooth_and_scale_from_the_darkest_voxel(example):
    torch.manual_seed(0)
    size = (64, 48, 56)
    image = torch.rand(4, *size) + 1.5
    image[:, 50:] = 0
    image[0, 7, 7, 7] = 1
    statistics = torch.tensor([1.0, 3.0, 2.0, 0.5]).repeat(4, 1)
    sample = {"image": image, "statistics": statistics}
    fields = []
    for _ in range(10):
        after = example["add_bias_field"](sample)["image"].float()
        assert not after[:, 50:].any()
        assert after[0, 7, 7, 7] == 1
        fields.extend((after[:, :50] - 1) / (image[:, :50] - 1).clamp(min=1e-6))
    same = [bool((field[image[0, :50] > 1] - 1).abs().max() < 0.01) for field in fields]
    assert 12 < sum(same) < 28  # half of 40
    logs = torch.stack([f for f, s in zip(fields, same, strict=True) if not s])[:, 10:].log()
    assert 0.05 < logs.std() < 0.15
    assert logs.diff(dim=1).abs().max() < 0.03


def test_one_sequence_of_a_sample_is_kept(example):
    torch.manual_seed(0)
    sample = {
        "image": torch.rand(4, *SIZE).half() + 1,
        "label": torch.ones(SIZE, dtype=torch.uint8),
        "statistics": torch.rand(4, 4) + 1,
        "views": Views(torch.ones(3, 6, 6, 4, dtype=torch.uint8), torch.zeros(3, 3)),
        "reduced_views": Views(torch.ones(3, 3, 6, 6, 4, dtype=torch.uint8), torch.ones(3, 3, 3)),
    }
    after = example["keep_sequence"](sample, "t1ce")
    others = [0, 2, 3]
    assert torch.equal(after["image"][1], sample["image"][1])
    assert torch.equal(after["statistics"][1], sample["statistics"][1])
    assert after["views"].images.shape == sample["views"].images.shape
    assert (after["views"].images[..., 1] == 1).all()
    assert (after["views"].planes == 1).all()  # slices that T1ce alone chooses
    assert not after["image"][others].any()
    assert not after["statistics"][others].any()
    assert not after["views"].images[..., others].any()
    assert sample["image"].all()  # the sample itself is left alone


@pytest.mark.parametrize(
    ("steps", "fault"), [(("0", "0"), "leaves all fits out"), (("3", "-1"), "has -1")]
)
def test_steps_without_a_fit_and_negative_steps_are_refused(
    example, tmp_path, monkeypatch, capsys, steps, fault
):
    options = ["--data", "data", "--reports", "reports.json", "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["train_tiny.py", *options, "--steps", *steps])
    with pytest.raises(SystemExit):
        example["main"]()
    assert f"--steps {fault}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("refinement", [0, 8])
def test_calibration_shifts_only_whole_tumour(example, refinement):
    unet = UNet3D(channels=(4, 8), num_auxiliary=0, space_to_depth=2, refinement=refinement).eval()
    image = torch.rand(1, 4, 8, 12, 16)
    before = unet(image)
    example["calibrate"](SimpleNamespace(unet=unet))
    shift = torch.tensor([example["WT_SHIFT"], 0.0, 0.0])[:, None, None, None]
    torch.testing.assert_close(unet(image), before + shift)
    example["calibrate"](SimpleNamespace(unet=unet), -example["WT_SHIFT"])
    torch.testing.assert_close(unet(image), before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_fit_of_reading_goes_on_where_it_was_interrupted(example, phantom_folder, tmp_path):
    """Of simulated patients at 8 mm, from published weights."""
    data = PhantomDataModule(
        str(phantom_folder),
        num_cases=5,
        spacing_mm=8.0,
        patch_size=(40, 48, 40),
        num_workers=0,
        num_folds=5,
        text_twins=0.5,
        written_reports=1.0,
        cache_dir=str(tmp_path / "cache"),
    )
    start = CLIPSeg3D.from_pretrained("tiny").float()
    options = {"steps": 2, "precision": "32-true", "output": tmp_path, "start": start}
    settings = example["STAGES"]["reading"]
    network = example["fit"]("reading", settings, data, **options)
    again = example["fit"]("reading", settings, data, **options)
    moved = 0
    for (name, weight), other in zip(network.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(weight, other), name
        before = dict(start.named_parameters()).get(name)
        moved += before is not None and not torch.equal(before, weight)
    assert moved > 100
    assert network.prompt_head is not None
    before = {name: weight.clone() for name, weight in network.named_parameters()}
    example["teach_prompts"](network, steps=3)
    example["teach_evidence"](network, texts=20)
    example["teach_presence"](network, data, samples=8, steps=4)
    changed = {n for n, w in network.named_parameters() if not torch.equal(w, before[n])}
    text, presence = "semantic_fusion.sentences.evidence.weight", "semantic_fusion.presence."
    assert {text, f"{presence}weight", f"{presence}bias", f"{presence}maps.0.weight"} <= changed
    assert all(n == text or n.startswith(("prompt_head.", presence)) for n in changed)


def test_presence_without_evidence_is_the_prevalence(example):
    """Of these samples a half has the second region, and nothing shows which."""
    block = example["RegionPresence"]([4], 2)
    levels, evidence = [torch.ones(1, 4, 4, 4, 4).half()], torch.zeros(1, 2)
    samples = []
    for number in range(20):
        shares = torch.ones(1, 2, 4, 4, 4).half()
        shares[:, 1] *= number % 2
        samples.append(example["PresenceSample"](levels, evidence, shares))
    scale = example["weigh_presence"](block, samples)
    told = block([levels[0].float()], evidence).log_odds.sigmoid()
    assert told[0, 1].item() == pytest.approx(example["_PREVALENCE"], abs=0.01)
    assert told[0, 0].item() > 0.95
    torch.testing.assert_close(scale, torch.ones(2))
