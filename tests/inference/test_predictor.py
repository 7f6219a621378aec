"""Mirrors clipseg3d/inference/predictor.py: geometry, labels, reports, checkpoints, bad input."""

from dataclasses import asdict, replace

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from clipseg3d.clip.encoder import HuggingFaceCLIP
from clipseg3d.data.cases import DataError, find_cases
from clipseg3d.data.phantom import simulate_phantom, write_phantom
from clipseg3d.data.preprocess import preprocess
from clipseg3d.data.releases import BRATS_2020, PHANTOM, SEQUENCES
from clipseg3d.inference.predictor import Predictor
from clipseg3d.networks.clipseg3d import Prediction, build_clipseg3d
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.volume import Views

pytestmark = pytest.mark.filterwarnings("ignore")
SPACING_MM = 8.0


class BrightFlair(nn.Module):
    """Stands for a perfect network: each region is a band of the z-scored FLAIR."""

    text_bank = None
    view_selection = "center"

    def embed_text(self, reports):
        self.reports = reports
        return None, None

    def encode_semantics(self, views, text, mask):
        self.views = views
        return None

    def segment(self, image, semantics, *, window=None, statistics=None):
        flair = image[:, 3:]
        logits = torch.cat([flair - 0.5, flair - 1.0, flair - 1.5], dim=1)
        return Prediction(logits, [], None, None)


@pytest.fixture
def folder(tmp_path):
    write_phantom(simulate_phantom(3, spacing_mm=SPACING_MM), tmp_path, "Phantom_00003")
    return tmp_path / "Phantom_00003"


def case_in(folder):
    (case,) = find_cases(folder, PHANTOM, spacing_mm=SPACING_MM, require_label=False)
    return case


def predictor(**options):
    return Predictor(
        BrightFlair(), release=PHANTOM, spacing_mm=SPACING_MM, window=(16, 16, 16), **options
    )


def expected_labels(path):
    voxels = np.asanyarray(nib.load(path).dataobj).astype(np.float64)
    inside = voxels[voxels != 0]
    low, high = np.percentile(inside, [0.5, 99.5], method="nearest")
    clipped = inside.clip(low, high)
    z = (voxels.clip(low, high) - clipped.mean()) / clipped.std() * (voxels != 0)
    return np.select([z > 1.5, z > 1.0, z > 0.5], [4, 1, 2], 0)


def test_labels_lie_where_the_signal_is_and_header_is_the_scans(folder, tmp_path):
    case = case_in(folder)
    path = tmp_path / "out" / "label.nii.gz"
    predictor(device="cpu")(case).save(path)
    written, scan = nib.load(path), nib.load(case.sequences["flair"])
    labels = np.asanyarray(written.dataobj)
    agree = labels == expected_labels(case.sequences["flair"])
    assert agree.mean() > 0.999
    assert set(np.unique(labels)) == {0, 1, 2, 4}
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(written.affine, scan.affine)
    for field in ("qform_code", "sform_code", "pixdim", "xyzt_units"):
        np.testing.assert_array_equal(written.header[field], scan.header[field])


def test_a_scan_in_another_orientation_gives_the_same_anatomy(folder, tmp_path):
    turned = tmp_path / "turned" / "Phantom_00003"
    turned.mkdir(parents=True)
    for path in case_in(folder).sequences.values():
        image = nib.load(path)
        ras = nib.as_closest_canonical(image)
        swapped = ras.as_reoriented(np.array([[1, 1], [2, -1], [0, 1]]))
        assert nib.aff2axcodes(swapped.affine) != nib.aff2axcodes(image.affine)
        nib.save(swapped, turned / path.name)
    run = predictor(device="cpu")
    run(case_in(folder)).save(tmp_path / "a.nii.gz")
    run(case_in(turned)).save(tmp_path / "b.nii.gz")
    a, b = (nib.as_closest_canonical(nib.load(tmp_path / f"{name}.nii.gz")) for name in "ab")
    np.testing.assert_allclose(a.affine, b.affine, atol=1e-4)
    np.testing.assert_array_equal(a.get_fdata(), b.get_fdata())


def test_the_expert_mask_is_not_looked_at(folder):
    run = predictor(device="cpu")
    (with_mask,) = find_cases(folder, PHANTOM, spacing_mm=SPACING_MM)
    first = run(with_mask).label
    with_mask.label.write_bytes(b"broken")
    np.testing.assert_array_equal(run(with_mask).label, first)


@pytest.mark.parametrize(("text", "used"), [(None, "own"), ("other", "other"), ("", "")])
def test_the_report_is_the_cases_own_unless_given(folder, text, used):
    (folder / "Phantom_00003_flair_text.txt").write_text("own")
    run = predictor(device="cpu")
    run(case_in(folder), text=text)
    assert run.network.reports == [used]


def test_another_voxel_size_is_refused(folder):
    run = Predictor(BrightFlair(), release=PHANTOM, spacing_mm=1.0, device="cpu")
    with pytest.raises(DataError, match=r"Phantom_00003_t1\.nii\.gz: voxels of 8x8x8 mm, .*1 mm"):
        run(case_in(folder))


def test_a_truncated_sequence_is_named(folder):
    case = case_in(folder)
    broken = case.sequences["t2"]
    broken.write_bytes(broken.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"Phantom_00003_t2\.nii\.gz: not a readable NIfTI file"):
        predictor(device="cpu")(case)


def test_labels_follow_the_release(folder):
    assert BRATS_2020.labels_out == PHANTOM.labels_out
    label = predictor(device="cpu")(case_in(folder)).label
    np.testing.assert_array_equal(PHANTOM.to_labels(PHANTOM.to_regions(label)), label)


def test_two_windows_or_one_give_the_same_for_a_voxelwise_network(folder):
    small = predictor(device="cpu")(case_in(folder)).label
    large = Predictor(
        BrightFlair(), release=PHANTOM, spacing_mm=SPACING_MM, window=(48, 48, 48), device="cpu"
    )(case_in(folder)).label
    np.testing.assert_array_equal(small, large)


def test_report_changes_a_network_whose_semantic_path_is_open(folder):
    torch.manual_seed(0)
    network = build_clipseg3d(SMALL)
    for parameter in network.semantic_fusion.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    run = Predictor(
        network, release=PHANTOM, spacing_mm=SPACING_MM, window=(32, 32, 32), device="cpu"
    )
    left = run(case_in(folder), text="A tumour in the left temporal lobe.").label
    right = run(case_in(folder), text="Nothing to be seen anywhere.").label
    assert (left != right).any()


@pytest.mark.parametrize(("selection", "count"), [("center", 3), ("energy", 3), ("attention", 24)])
def test_views_are_those_selected(folder, selection, count):
    run = predictor(device="cpu")
    run.network.view_selection = selection
    case = case_in(folder)
    run(case)
    due = preprocess(case, PHANTOM, view_selection=selection).views
    assert isinstance(run.network.views, Views)
    assert len(due.planes) == count
    for found, wanted in zip(run.network.views, due, strict=True):
        assert torch.equal(found, wanted[None])


SMALL = NetworkConfig(
    channels=(4, 8), num_auxiliary=0, semantic_dim=16, num_heads=2, clip="tiny-random"
)
VARIANTS = {
    "attention views": {"view_selection": "attention", "dense": True},
    "nested": {"head": "nested", "conditional_norm": True, "grade_classifier": True},
    "paper": {"attention_mode": "paper", "view_selection": "center", "guidance_tokens": "mean"},
    "no text": {"text": "none"},
    "baseline": {"semantics": False, "pixel_fusion": False},
}


def checkpoint_of(network, config, path, **changes):
    """Write a checkpoint as training does."""
    settings = {
        "network": asdict(config),
        "release": "phantom",
        "spacing_mm": SPACING_MM,
        "window": (16, 20, 12),
        "overlap": 0.25,
    }
    torch.save(
        {
            "hyper_parameters": settings,
            "state_dict": {f"network.{name}": w for name, w in network.state_dict().items()},
            "encoders": network.encoder_identities(),
            **changes,
        },
        path,
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_checkpoint_gives_the_network_back_whatever_it_is(folder, tmp_path, randomise, variant):
    torch.manual_seed(0)
    config = replace(SMALL, **VARIANTS[variant])
    network = randomise(build_clipseg3d(config))
    checkpoint_of(network, config, tmp_path / "w.ckpt")
    loaded = Predictor.from_checkpoint(tmp_path / "w.ckpt", device="cpu")
    if config.semantics:  # without, nothing looks at views
        assert loaded.network.view_selection == config.view_selection
    assert (loaded.window, loaded.overlap, loaded.spacing_mm) == ((16, 20, 12), 0.25, SPACING_MM)
    direct = Predictor(
        network,
        release=PHANTOM,
        spacing_mm=SPACING_MM,
        window=(16, 20, 12),
        overlap=0.25,
        device="cpu",
    )
    case = case_in(folder)
    label = loaded(case).label
    np.testing.assert_array_equal(label, direct(case).label)
    assert label.any()


def test_clip_may_lie_elsewhere_but_must_be_the_same(folder, tmp_path, randomise):
    torch.manual_seed(0)
    network = build_clipseg3d(SMALL)
    for seed in (0, 1):
        clip = HuggingFaceCLIP.tiny_random(seed=seed)
        clip.frozen_model.save_pretrained(tmp_path / f"clip{seed}")
        clip.tokenizer.save_pretrained(tmp_path / f"clip{seed}")
    checkpoint_of(network, replace(SMALL, clip="nowhere/at-all"), tmp_path / "w.ckpt")
    found = Predictor.from_checkpoint(tmp_path / "w.ckpt", clip=str(tmp_path / "clip0"))
    assert found.network.encoder_identities()["CLIP"]["name"] == str(tmp_path / "clip0")
    with pytest.raises(ValueError, match=r"clip1' has other weights than 'tiny-random'"):
        Predictor.from_checkpoint(tmp_path / "w.ckpt", clip=str(tmp_path / "clip1"))


def test_checkpoint_of_before_encoders_were_named_is_refused(tmp_path):
    network = build_clipseg3d(SMALL)
    checkpoint_of(network, SMALL, tmp_path / "w.ckpt")
    checkpoint = torch.load(tmp_path / "w.ckpt", weights_only=True)
    checkpoint["clip"] = checkpoint.pop("encoders")["CLIP"]
    torch.save(checkpoint, tmp_path / "w.ckpt")
    with pytest.raises(ValueError, match=r"w\.ckpt: not a checkpoint of clipseg3d"):
        Predictor.from_checkpoint(tmp_path / "w.ckpt")


def test_checkpoint_errors_name_file_and_cure(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt: no such file"):
        Predictor.from_checkpoint(tmp_path / "none.ckpt")
    garbage = tmp_path / "garbage.ckpt"
    garbage.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"garbage\.ckpt: not a readable checkpoint"):
        Predictor.from_checkpoint(garbage)
    other = tmp_path / "other.ckpt"
    torch.save({"state_dict": {}}, other)
    with pytest.raises(ValueError, match=r"other\.ckpt: not a checkpoint of clipseg3d"):
        Predictor.from_checkpoint(other)


def test_sequences_have_one_order():
    assert SEQUENCES == ("t1", "t1ce", "t2", "flair")
