"""Mirrors clipseg3d/inference/predictor.py: geometry, labels, reports, checkpoints, bad input."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

import clipseg3d.inference.predictor
from clipseg3d.blocks.region_presence import Presence
from clipseg3d.blocks.semantic_attention import voxel_positions
from clipseg3d.checksums import sha256_of_file
from clipseg3d.clip.hugging_face_clip import HuggingFaceCLIP
from clipseg3d.data.cases import DataError, find_cases
from clipseg3d.data.preprocessing import preprocess
from clipseg3d.data.releases import BRATS_2020, BRATS_2024_GLI, PHANTOM
from clipseg3d.inference.named_lesion import WHOLE
from clipseg3d.inference.postprocessing import PostProcessing
from clipseg3d.inference.predictor import Predictor
from clipseg3d.inference.prompting import PromptWarning
from clipseg3d.inference.sliding_window import segment_volume
from clipseg3d.networks.build import build_clipseg3d
from clipseg3d.networks.clipseg3d import Prediction
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.networks.prediction_settings import PredictionSettings
from clipseg3d.views import Views
from clipseg3d.vocabulary import SEQUENCES
from clipseg3d.weights import BUNDLED

pytestmark = pytest.mark.filterwarnings("ignore")
SPACING_MM = 8.0


class BrightFlair(nn.Module):
    """Stands for a perfect network: each region is a band of the z-scored FLAIR."""

    offset = 0.0

    config = settings = semantic_fusion = text_bank = None
    view_selection = "center"

    def encoder_identities(self):
        return {}

    def embed_text(self, reports):
        self.reports = reports
        return None, None

    def encode_semantics(self, views, text, mask, *, trust=1.0):
        self.views = views
        return None

    def segment(self, image, semantics, *, crop_box=None, statistics=None):
        flair = image[:, 3:]
        logits = torch.cat([flair - 0.5, flair - 1.0, flair - 1.5], dim=1) + self.offset
        return Prediction(logits, [], None, None)


def case_in(folder):
    (case,) = find_cases(folder, PHANTOM, spacing_mm=SPACING_MM, require_label=False)
    return case


def predictor(*networks, **options):
    return Predictor(
        networks or BrightFlair(),
        release=PHANTOM,
        spacing_mm=SPACING_MM,
        roi_size=(16, 16, 16),
        **options,
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


def test_the_expert_mask_is_not_read(folder):
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


def test_many_windows_or_one_give_the_same_for_a_voxelwise_network(folder):
    small = predictor(device="cpu")(case_in(folder)).label
    large = Predictor(
        BrightFlair(), release=PHANTOM, spacing_mm=SPACING_MM, roi_size=(48, 48, 48), device="cpu"
    )(case_in(folder)).label
    np.testing.assert_array_equal(small, large)


def test_report_changes_a_network_whose_semantic_path_is_open(folder):
    torch.manual_seed(0)
    network = build_clipseg3d(SMALL)
    for parameter in network.semantic_fusion.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    run = Predictor(
        network, release=PHANTOM, spacing_mm=SPACING_MM, roi_size=(32, 32, 32), device="cpu"
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
    expected = preprocess(case, PHANTOM, view_selection=selection).views
    assert isinstance(run.network.views, Views)
    assert len(expected.planes) == count
    for result, wanted in zip(run.network.views, expected, strict=True):
        assert torch.equal(result, wanted[None])


SMALL = NetworkConfig(
    channels=(4, 8), num_auxiliary=0, semantic_dim=16, num_heads=2, clip="tiny-random"
)
VARIANTS = {
    "attention views": {"view_selection": "attention", "dense": True},
    "nested": {"head": "nested", "conditional_norm": True, "grade_classifier": True},
    "paper": {
        "attention_mode": "paper",
        "guidance_tokens": "mean",
        "view_selection": "volume_center",
        "running_norms": False,
        "guiding_text": "all",
        "sequence_gate": False,
    },
    "no text": {"text": "none"},
    "baseline": {"semantics": False, "pixel_fusion": False},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_checkpoint_gives_the_network_back_whatever_it_is(
    folder, tmp_path, randomise, save_checkpoint, variant
):
    torch.manual_seed(0)
    config = replace(SMALL, **VARIANTS[variant])
    network = randomise(build_clipseg3d(config))
    save_checkpoint(network, config, tmp_path / "w.ckpt")
    loaded = Predictor.from_checkpoint(tmp_path / "w.ckpt", device="cpu")
    if config.semantics:  # without, nothing looks at views
        assert loaded.network.view_selection == config.view_selection
    assert (loaded.roi_size, loaded.overlap, loaded.spacing_mm) == ((16, 20, 12), 0.25, SPACING_MM)
    direct = Predictor(
        network,
        release=PHANTOM,
        spacing_mm=SPACING_MM,
        roi_size=(16, 20, 12),
        overlap=0.25,
        device="cpu",
    )
    case = case_in(folder)
    label = loaded(case).label
    np.testing.assert_array_equal(label, direct(case).label)
    assert label.any()


def test_clip_may_lie_elsewhere_but_must_be_the_same(tmp_path, save_checkpoint):
    torch.manual_seed(0)
    network = build_clipseg3d(SMALL)
    for seed in (0, 1):
        clip = HuggingFaceCLIP.tiny_random(seed=seed)
        clip.frozen_model.save_pretrained(tmp_path / f"clip{seed}")
        clip.tokenizer.save_pretrained(tmp_path / f"clip{seed}")
    save_checkpoint(network, replace(SMALL, clip="nowhere/at-all"), tmp_path / "w.ckpt")
    result = Predictor.from_checkpoint(tmp_path / "w.ckpt", clip=str(tmp_path / "clip0"))
    assert result.network.encoder_identities()["CLIP"]["name"] == str(tmp_path / "clip0")
    with pytest.raises(ValueError, match=r"clip1' has other weights than 'tiny-random'"):
        Predictor.from_checkpoint(tmp_path / "w.ckpt", clip=str(tmp_path / "clip1"))


def test_sequences_have_one_order():
    assert SEQUENCES == ("t1", "t1ce", "t2", "flair")


class OnTheLeft(BrightFlair):
    """Finds tumour wherever the patient's left is, and knows it by the crop box alone."""

    def segment(self, image, semantics, *, crop_box=None, statistics=None):
        left = voxel_positions(image, crop_box)[:, :1].expand(-1, 3, -1, -1, -1)
        return Prediction(left + 0.0, [], None, None)


@pytest.mark.parametrize("network", [BrightFlair, OnTheLeft])
def test_mirroring_changes_nothing_for_a_network_that_follows_it(folder, network):
    case = case_in(folder)
    plain = predictor(network(), device="cpu")(case, probabilities=True)
    mirrored = predictor(network(), device="cpu", tta=True)(case, probabilities=True)
    np.testing.assert_allclose(mirrored.probabilities, plain.probabilities, atol=1e-5)
    decided = np.abs(plain.probabilities - 0.5).min(axis=0) > 1e-4
    np.testing.assert_array_equal(mirrored.label[decided], plain.label[decided])
    assert plain.label.any()


def test_mirroring_averages_eight_passes_of_a_real_network(folder, randomise):
    torch.manual_seed(0)
    network = randomise(build_clipseg3d(SMALL))
    run = Predictor(
        network,
        release=PHANTOM,
        spacing_mm=SPACING_MM,
        roi_size=(32, 32, 32),
        device="cpu",
        tta=True,
    )
    assert run.num_passes == 8
    assert len(set(run.mirrorings)) == 8
    case = case_in(folder)
    result = run(case, probabilities=True, uncertainty=True)
    each = []
    for mirrored in run.mirrorings:
        run.mirrorings = (mirrored,)
        each.append(run(case, probabilities=True).probabilities)
    np.testing.assert_allclose(result.probabilities, np.mean(each, axis=0), atol=1e-5)
    variance = result.uncertainty["ensemble variance"]
    np.testing.assert_allclose(variance, np.var(each, axis=0).max(axis=0), atol=1e-5)
    assert variance.max() > 1e-4


def test_semantics_are_encoded_once_per_case_and_network(folder):
    networks = [BrightFlair(), BrightFlair()]
    calls = []
    for number, network in enumerate(networks):
        network.encode_semantics = lambda *text, number=number, trust: calls.append(number)
    predictor(*networks, device="cpu", tta=True)(case_in(folder))
    assert calls == [0, 1]


def test_an_ensemble_averages_probabilities_not_logits(folder):
    networks = [BrightFlair(), BrightFlair()]
    networks[1].offset = 3.0
    case = case_in(folder)
    alone = [predictor(n, device="cpu")(case, probabilities=True).probabilities for n in networks]
    result = predictor(*networks, device="cpu")(case, probabilities=True, uncertainty=True)
    inside = alone[0].any(axis=0)
    np.testing.assert_allclose(result.probabilities, (alone[0] + alone[1]) / 2, atol=1e-6)
    np.testing.assert_allclose(
        result.uncertainty["ensemble variance"],
        ((alone[0] - alone[1]) ** 2 / 4).max(axis=0),
        atol=1e-6,
    )
    p = result.probabilities[:, inside].astype(float)
    bits = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    np.testing.assert_allclose(result.uncertainty["entropy"][inside], bits.max(axis=0), atol=1e-5)
    assert not result.uncertainty["entropy"][~inside].any()
    np.testing.assert_array_equal(PHANTOM.to_labels(result.probabilities > 0.5), result.label)


def test_what_is_not_asked_for_is_not_returned(folder):
    result = predictor(device="cpu")(case_in(folder))
    assert (result.probabilities, result.uncertainty, result.evidence) == (None, {}, None)
    assert set(predictor(device="cpu")(case_in(folder), uncertainty=True).uncertainty) == {
        "entropy"
    }


@pytest.mark.parametrize("selection", ["attention", "volume_center"])
def test_members_may_ask_for_other_views(folder, selection):
    networks = [BrightFlair(), BrightFlair()]
    networks[1].view_selection = selection
    case = case_in(folder)
    predictor(*networks, device="cpu")(case)
    expected = preprocess(case, PHANTOM, view_selection=selection).views
    assert networks[0].views.images.shape[1] == 3
    torch.testing.assert_close(networks[1].views.planes, expected.planes[None])
    levels = (networks[1].views.images.int() - expected.images[None].int()).abs()
    assert levels.max() <= 1  # of rounding


def test_no_network_is_refused():
    with pytest.raises(ValueError, match="no network is given"):
        Predictor([], release=PHANTOM)


@pytest.mark.parametrize("allow_missing", [True, False])
def test_a_case_may_lack_sequences_if_the_weights_allow_it(folder, allow_missing):
    case = case_in(folder)
    lacking = replace(case, sequences={name: case.sequences[name] for name in ("t1", "flair")})
    run = predictor(device="cpu", allow_missing=allow_missing)
    if allow_missing:
        label = run(lacking).label
        assert not run.network.views.images[..., [1, 2]].any()
        np.testing.assert_array_equal(label, run(case).label)
    else:
        with pytest.raises(
            DataError, match=r"Phantom_00003: has no t1ce, t2, but these weights need all of t1, "
        ):
            run(lacking)


@pytest.mark.parametrize("spacing_mm", [SPACING_MM, 6.0])
def test_a_case_may_be_read_before_it_is_segmented(folder, recwarn, spacing_mm):
    run = predictor(device="cpu")
    run.spacing_mm = spacing_mm  # with another one than its own, the case is resampled
    case = case_in(folder)
    at_once = run(case, probabilities=True)
    told = [str(warning.message) for warning in recwarn]
    recwarn.clear()
    later = run(run.read(case), probabilities=True, warn=False)
    np.testing.assert_array_equal(later.label, at_once.label)
    np.testing.assert_array_equal(later.probabilities, at_once.probabilities)
    assert later.label.any()
    assert (later.case, later.notes, later.grid_of) == (case, at_once.notes, at_once.grid_of)
    assert set(later.notes) <= set(told)
    assert not recwarn.list
    assert len(later.notes) == (spacing_mm != SPACING_MM)


@pytest.mark.parametrize(
    ("kept", "warned"),
    [(("t1", "t2"), True), (("t1", "flair"), False), (("t1ce", "t2"), False)],
)
def test_a_case_without_t1ce_and_flair_is_segmented_with_a_warning(folder, recwarn, kept, warned):
    case = case_in(folder)
    lacking = replace(case, sequences={name: case.sequences[name] for name in kept})
    predictor(device="cpu", allow_missing=True)(lacking)
    shown = [each for each in recwarn if "do not rely on" in str(each.message)]
    assert len(shown) == warned
    for each in shown:
        assert str(each.message).startswith("Phantom_00003: has neither t1ce nor flair")
        assert each.filename == __file__  # the caller's line, not that of a decorator


def test_post_processing_cleans_the_label_and_not_the_probabilities(folder):
    rules = PostProcessing(enhancing_to_core=10**6)
    case = case_in(folder)
    plain = predictor(device="cpu")(case, probabilities=True)
    result = predictor(device="cpu", postprocessing=rules)(case, probabilities=True)
    assert (plain.label == 4).any()
    np.testing.assert_array_equal(result.label, np.where(plain.label == 4, 1, plain.label))
    np.testing.assert_array_equal(result.probabilities, plain.probabilities)


def with_rules(**rules):
    """Return a network as if saved with rules of post-processing."""
    network = BrightFlair()
    network.settings = PredictionSettings("phantom", SPACING_MM, postprocessing=rules or None)
    return network


def test_rules_of_the_weights_are_applied_unless_they_are_switched_off(folder):
    case = case_in(folder)
    plain = predictor(device="cpu")(case).label
    own = predictor(with_rules(enhancing_to_core=10**6), device="cpu")
    off = predictor(with_rules(enhancing_to_core=10**6), device="cpu", postprocessing=None)
    given = PostProcessing(small_components={"WT": 10**6})
    other = predictor(with_rules(enhancing_to_core=10**6), device="cpu", postprocessing=given)
    np.testing.assert_array_equal(own(case).label, np.where(plain == 4, 1, plain))
    np.testing.assert_array_equal(off(case).label, plain)
    assert not other(case).label.any()
    named = [run.provenance()["post-processing"] for run in (own, off, other)]
    assert named == [
        "ET under 1e+06 ml in all counted as core",
        "none",
        "components of WT under 1e+06 ml removed",
    ]


def test_what_a_case_is_made_with_depends_on_the_rules_and_not_on_who_gives_them():
    def made_with(*networks, **options):
        return predictor(*networks, device="cpu", **options).fingerprint()["postprocessing"]

    own = made_with(with_rules(relative_components={"WT": 0.1}))
    assert own == {"relative_components": {"WT": 0.1}}
    rules = PostProcessing(relative_components={"WT": 0.1, "TC": 0})
    assert made_with(postprocessing=rules) == own
    assert made_with(with_rules(relative_components={"WT": 0.1 + 1e-9})) != own
    for none in (with_rules(), with_rules(relative_components={"WT": 0})):
        assert made_with(none) is None
    assert made_with(postprocessing=PostProcessing()) is None


def test_an_ensemble_has_one_set_of_rules():
    same = [with_rules(holes={"WT": 1}), with_rules(holes={"WT": 1.0, "TC": 0})]
    assert predictor(*same, device="cpu").postprocessing.values() == {"holes": {"WT": 1.0}}
    assert predictor(with_rules(), BrightFlair(), device="cpu").postprocessing is None
    for other, words in (
        (with_rules(), "none"),
        (with_rules(holes={"WT": 2}), "holes of WT under 2 ml filled"),
    ):
        with pytest.raises(
            ValueError,
            match=r"come with different rules .*\(holes of WT under 1 ml filled; and "
            rf"{words}\); .* --postprocessing FILE\), or none",
        ):
            predictor(same[0], other, device="cpu")
        assert predictor(same[0], other, device="cpu", postprocessing=None).num_passes == 2
        given = predictor(same[0], other, device="cpu", postprocessing=PostProcessing())
        assert given.postprocessing == PostProcessing()


def test_rules_that_cannot_be_applied_are_refused():
    with pytest.raises(ValueError, match="holes: phantom has no region 'RC', but WT, TC, ET"):
        predictor(device="cpu", postprocessing=PostProcessing(holes={"RC": 1}))
    with pytest.raises(ValueError, match="postprocessing='none': give rules of post-processing"):
        predictor(device="cpu", postprocessing="none")


@pytest.mark.parametrize("kind", ["checkpoint", "folder"])
def test_rules_travel_with_weights(tmp_path, save_checkpoint, kind):
    rules = {"relative_components": {"WT": 0.1}, "enhancing_to_core": 0.5}
    torch.manual_seed(0)
    config = replace(SMALL, semantics=False)
    network = build_clipseg3d(config)
    source = tmp_path / "w.ckpt"
    save_checkpoint(network, config, source, settings={"postprocessing": rules})
    if kind == "folder":
        Predictor.from_checkpoint(source).network.save_pretrained(tmp_path / "w")
        source = tmp_path / "w"
    assert Predictor.from_pretrained(source).postprocessing == PostProcessing(**rules)
    assert Predictor.from_checkpoint(source, postprocessing=None).postprocessing is None
    own = PostProcessing()
    assert Predictor.from_checkpoints([source], postprocessing=own).postprocessing is own


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"small_parts": {}}, "unknown rule 'small_parts'"),
        ({"holes": {"RC": 1}}, "no region 'RC'"),
        ({"holes": {"WT": "all"}}, "'all' is not a volume in ml"),
        ("strict", "hyperparameters|postprocessing"),
    ],
)
def test_damaged_rules_of_weights_are_named_with_their_file(
    tmp_path, save_checkpoint, rules, message
):
    config = replace(SMALL, semantics=False)
    path = tmp_path / "w.ckpt"
    save_checkpoint(build_clipseg3d(config), config, path, settings={"postprocessing": rules})
    with pytest.raises(ValueError, match=message) as error:
        Predictor.from_checkpoint(path)
    assert str(error.value).startswith(f"{path}: ")
    if isinstance(rules, dict):
        Predictor.from_checkpoint(path, postprocessing=None)  # they are not needed


def test_progress_comes_in_shares_of_the_case(folder):
    shares = []
    predictor(BrightFlair(), BrightFlair(), device="cpu", tta=True)(
        case_in(folder), progress=shares.append
    )
    assert len(shares) > 16
    assert sum(shares) == pytest.approx(1)


class Forgetful(torch.OutOfMemoryError):
    """What a full accelerator says."""


def test_a_full_accelerator_is_helped_by_stitching_on_the_cpu(folder, monkeypatch):
    case = case_in(folder)
    expected = predictor(device="cpu")(case).label
    calls = []

    def stitch(network, image, semantics, statistics, *, device, **options):
        calls.append((image.device.type, device.type))
        if image.device.type == "meta":
            raise Forgetful("CUDA out of memory")
        return segment_volume(network, image, semantics, torch.zeros(1, 4, 4), **options)

    monkeypatch.setattr(clipseg3d.inference.predictor, "segment_volume", stitch)
    run = predictor(device="cpu")
    run.device = torch.device("meta")  # stands for an accelerator
    for _ in range(2):  # it is not tried again
        np.testing.assert_array_equal(run(case).label, expected)
    assert calls == [("meta", "meta"), ("cpu", "meta"), ("cpu", "meta")]


@pytest.mark.parametrize(
    "error",
    [
        Forgetful("CUDA out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB, other allocations: 1 MB)"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate "
            "memory: you tried to allocate 5 bytes."
        ),
    ],
)
def test_too_little_memory_for_a_window_says_what_to_do(folder, monkeypatch, error):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(clipseg3d.inference.predictor, "segment_volume", fail)
    with pytest.raises(ValueError, match=r"cpu has too little .* 16x16x16 voxels; free some$"):
        predictor(device="cpu")(case_in(folder))


def test_another_runtime_error_is_no_lack_of_memory(folder, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(clipseg3d.inference.predictor, "segment_volume", fail)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        predictor(device="cpu")(case_in(folder))


def test_an_explanation_holds_what_a_case_page_shows(folder, randomise):
    (folder / "Phantom_00003_flair_text.txt").write_text("A tumour in the left temporal lobe.")
    torch.manual_seed(0)
    network = randomise(build_clipseg3d(SMALL))
    run = Predictor(
        network,
        release=PHANTOM,
        spacing_mm=SPACING_MM,
        roi_size=(16, 24, 16),
        device="cpu",
        weights={"w.ckpt": "0" * 64},
    )
    case = case_in(folder)
    result = run(case, explain=True)
    evidence, ready = result.evidence, preprocess(case, PHANTOM)
    shape = ready.image.shape[1:]
    assert list(evidence.images) == list(SEQUENCES)
    np.testing.assert_array_equal(evidence.images["t2"], ready.image[2])
    assert evidence.text == "A tumour in the left temporal lobe."
    for maps in (evidence.attention, evidence.similarity):
        assert list(maps) == ["TC", "ET"]
        assert {values.shape for values in maps.values()} == {shape}
        assert len({values.tobytes() for values in maps.values()}) == 2
    assert all(np.abs(values).max() <= 1 for values in evidence.similarity.values())
    assert [name for name, _ in evidence.views] == ["axial", "coronal", "sagittal"]
    assert {view.shape for _, view in evidence.views} == {(224, 224, 3)}
    expected = {
        "weights w.ckpt": f"SHA-256 {'0' * 64}",
        "ROI size": "16x24x16",
        "release": "phantom",
    }
    assert expected.items() <= evidence.provenance.items()
    assert {"CLIP encoder", "torch", "clipseg3d", "overlap", "post-processing"} <= set(
        evidence.provenance
    )
    np.testing.assert_array_equal(result.label, run(case).label)


def test_attention_maps_are_those_of_the_network(folder, randomise):
    torch.manual_seed(0)
    network = randomise(build_clipseg3d(SMALL))
    case = case_in(folder)
    ready = preprocess(case, PHANTOM, view_selection=network.view_selection)
    roi_size = tuple(side + -side % 2 for side in ready.image.shape[1:])
    run = Predictor(
        network, release=PHANTOM, spacing_mm=SPACING_MM, roi_size=roi_size, device="cpu"
    )
    result = run(case, explain=True).evidence
    semantics = network.encode_semantics(
        Views(*(part[None] for part in ready.views)), *network.embed_text([case.report])
    )
    padding = [n for side in reversed(ready.image.shape[1:]) for n in (0, side % 2)]
    size = torch.tensor(ready.image.shape[1:])
    crop_box = torch.stack([torch.zeros(3), torch.tensor(roi_size) / size])
    with torch.no_grad():
        maps = network.segment(
            torch.nn.functional.pad(ready.image[None], padding),
            semantics,
            crop_box=crop_box[None],
            statistics=ready.statistics[None],
        ).maps
    core = torch.nn.functional.interpolate(maps.scores, size=roi_size, mode="trilinear")[0, 0]
    x, y, z = ready.image.shape[1:]
    np.testing.assert_allclose(result.attention["TC"], core[:x, :y, :z], atol=1e-4)


def test_a_network_that_reads_nothing_reports_no_text(folder, randomise):
    config = replace(SMALL, text="none", view_selection="attention")
    network = randomise(build_clipseg3d(config))
    run = Predictor(
        network, release=PHANTOM, spacing_mm=SPACING_MM, roi_size=(32, 32, 32), device="cpu"
    )
    evidence = run(case_in(folder), text="Never read.", explain=True).evidence
    assert evidence.text == ""
    assert len(evidence.views) == 24
    assert evidence.views[8][0] == "coronal 1"
    plain = build_clipseg3d(replace(SMALL, semantics=False))
    run = Predictor(
        plain, release=PHANTOM, spacing_mm=SPACING_MM, roi_size=(32, 32, 32), device="cpu"
    )
    evidence = run(case_in(folder), explain=True).evidence
    assert (evidence.views, evidence.attention, evidence.similarity) == ([], {}, {})


def test_provenance_names_every_encoder_once():
    networks = [BrightFlair() for _ in range(3)]
    for network, name in zip(networks, "aba", strict=True):
        identity = {"CLIP": {"name": name, "sha256": name * 3}}
        network.encoder_identities = lambda identity=identity: identity
    result = predictor(*networks, device="cpu", tta=True).provenance()
    assert result["CLIP encoder"] == "a (SHA-256 aaa), b (SHA-256 bbb)"
    assert (result["networks"], result["mirrorings"]) == ("3", "8")


def test_weights_are_named_without_the_folder_they_lie_in(tmp_path, save_checkpoint):
    network = build_clipseg3d(SMALL)
    for fold in "ab":
        (tmp_path / fold).mkdir()
        save_checkpoint(network, SMALL, tmp_path / fold / "best.ckpt")
    paths = [tmp_path / fold / "best.ckpt" for fold in "ab"]
    weights = Predictor.from_checkpoints(paths, device="cpu").weights
    assert weights == {
        "best.ckpt": sha256_of_file(paths[0]),
        "best.ckpt (2)": sha256_of_file(paths[1]),
    }
    bundled = Predictor.from_pretrained("tiny", device="cpu").weights
    assert bundled == {"tiny": sha256_of_file(BUNDLED / "tiny" / "model.safetensors")}


def test_evidence_of_equation_6_has_no_similarity(folder):
    """It reads the text through the summary of the case alone, so there is no map of cosines."""
    network = build_clipseg3d(replace(SMALL, attention_mode="paper"))
    run = predictor(network, device="cpu")
    evidence = run(case_in(folder), explain=True).evidence
    assert set(evidence.attention) == {"TC", "ET"}
    assert evidence.similarity == {}


PROMPTED = replace(SMALL, prompt_head=True)
ANSWERS = {
    "the whole tumour": ((1, 0, 0), 6, "all"),
    "the enhancing rim": ((0, 0, 1), 6, "all"),
    "oedema": ((1, -1, 0), 6, "all"),
    "the largest lesion": ((1, 0, 0), 6, "largest"),
    "haemorrhage": ((0.9, 0, 0), -4, "all"),
    "the tumour that is not a tumour": ((0.2, -0.5, 0), 0, "all"),
}


class Prompted(BrightFlair):
    """BrightFlair with a prompt head, whose answers are known."""

    presence = None

    def __init__(self, teach_prompts, answers=ANSWERS):
        super().__init__()
        trained = teach_prompts(build_clipseg3d(PROMPTED), answers)
        self.prompt_head, self.text_encoder = trained.prompt_head, trained.text_encoder
        self.trained, self.times_read = [trained], 0

    def read_prompts(self, prompts):
        self.times_read += 1
        return self.trained[0].read_prompts(prompts)

    def segment(self, image, semantics, *, crop_box=None, statistics=None):
        prediction = super().segment(image, semantics)
        return prediction._replace(presence=self.presence and self.presence(image))


@pytest.fixture(scope="module")
def prompted(teach_prompts):
    """Make networks with prompt heads."""
    return lambda *answers: Prompted(teach_prompts, *answers)


def test_prompts_are_answered_on_the_final_regions(folder, prompted):
    case = case_in(folder)
    rules = PostProcessing(small_components={"WT": 3 * 0.512})  # voxels of 0.512 ml
    run = predictor(prompted(), device="cpu", postprocessing=rules)
    result = run(case, prompts=[*ANSWERS])
    assert [answer.text for answer in result.prompts] == [*ANSWERS]
    whole, rim, oedema, largest, blood, contradiction = result.prompts
    np.testing.assert_array_equal(whole.mask, result.label > 0)
    np.testing.assert_array_equal(rim.mask, result.label == 4)
    np.testing.assert_array_equal(oedema.mask, result.label == 2)
    assert (predictor(prompted(), device="cpu")(case).label > 0).sum() > whole.mask.sum()
    parts, count = ndimage.label(whole.mask, np.ones((3, 3, 3)))
    assert count > 1
    biggest = 1 + np.bincount(parts.ravel())[1:].argmax()
    np.testing.assert_array_equal(largest.mask, parts == biggest)
    assert whole.volume_ml == pytest.approx((result.label > 0).sum() * 0.512)
    score = float(torch.tensor([6.0, 4.0]).sigmoid().prod()) * 0.98  # presence and place
    assert whole.presence == pytest.approx(score, rel=1e-4)
    for absent in (blood, contradiction):
        assert not absent.found
        assert not absent.mask.any()
    np.testing.assert_array_equal(result.label, run(case).label)  # prompts change nothing else
    assert run(case).prompts == ()


def test_a_lesion_that_the_report_does_not_mean_is_left_out(folder, prompted, monkeypatch):
    """How it is found is tested beside it; prompts see it all the same."""
    case, asked = case_in(folder), []
    run = predictor(prompted(), device="cpu", postprocessing=None)
    before = run(case).label

    def find(readings, lesions, *, side, crop_box, trust):
        asked.append((readings, side, crop_box.tolist(), trust))
        left = lesions.copy()
        left[: left.shape[0] // 2] = False
        return [left]

    monkeypatch.setattr(
        clipseg3d.inference.predictor, "read_report", lambda networks, report: report
    )
    monkeypatch.setattr(clipseg3d.inference.predictor, "find_unnamed", find)
    said = "A mass on the right."
    with pytest.warns(UserWarning, match="left out"):
        result = run(case, text=said, trust=0.5, prompts=[*ANSWERS])
    assert asked == [(said, "right", [[0.0] * 3, [1.0] * 3], 0.5)]
    removed = (before > 0) & (result.label == 0)
    assert removed.any()
    np.testing.assert_array_equal(result.label[~removed], before[~removed])
    assert np.argwhere(removed)[:, 0].min() > np.argwhere(result.label)[:, 0].max()
    (note,) = (note for note in result.notes if "left out" in note)
    assert (
        f"another lesion of like size on the left ({removed.sum() * 0.512:.1f} ml) is left" in note
    )
    assert "the report places the tumour on the right, where" in note
    np.testing.assert_array_equal(result.prompts[0].mask, before > 0)


@pytest.mark.parametrize(("release", "cavity_counts"), [(BRATS_2024_GLI, False), (None, True)])
def test_a_resection_cavity_is_no_lesion(monkeypatch, release, cavity_counts):
    run = predictor(device="cpu")
    run.release = release or BRATS_2024_GLI.select(regions=("ET", "RC"))
    regions = np.zeros((len(run.release.regions), 4, 4, 4), bool)
    regions[list(run.release.regions).index("RC"), :2] = True
    monkeypatch.setattr(clipseg3d.inference.predictor, "read_report", lambda *_: [])
    monkeypatch.setattr(
        clipseg3d.inference.predictor, "find_unnamed", lambda _, lesions, **options: [lesions]
    )
    (lesions,) = run._find_unnamed("On the right.", 1.0, regions, WHOLE)
    assert lesions.any() == cavity_counts
    for report, trust in (("", 1.0), ("a", 0.0)):
        assert run._find_unnamed(report, trust, regions, WHOLE) == []


@pytest.mark.parametrize("axes", ["LPS", "RAS", "PIR"])
def test_masks_lie_on_the_scans_own_grid(folder, tmp_path, prompted, axes):
    turned = tmp_path / axes / "Phantom_00003"
    turned.mkdir(parents=True)
    wanted = nib.orientations.axcodes2ornt(axes)
    for path in case_in(folder).sequences.values():
        image = nib.load(path)
        change = nib.orientations.ornt_transform(nib.io_orientation(image.affine), wanted)
        nib.save(image.as_reoriented(change), turned / path.name)
    result = predictor(prompted(), device="cpu")(case_in(turned), prompts=["the enhancing rim"])
    result.save(tmp_path / "label.nii.gz")
    result.save_prompts(tmp_path / "masks")
    label, mask = (
        nib.load(tmp_path / "label.nii.gz"),
        nib.load(tmp_path / "masks" / "the-enhancing-rim.nii.gz"),
    )
    assert mask.get_data_dtype() == np.uint8
    assert nib.aff2axcodes(mask.affine) == tuple(axes)
    np.testing.assert_array_equal(mask.affine, label.affine)
    np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(label.dataobj) == 4)


def test_the_same_prompts_are_read_once_for_all_cases(folder, prompted):
    network = prompted()
    run = predictor(network, device="cpu")
    for _ in range(3):
        run(case_in(folder), prompts=["oedema", "the enhancing rim"])
    assert network.times_read == 1
    (answer,) = run(case_in(folder), prompts=["oedema", " oedema "]).prompts
    assert (network.times_read, answer.text) == (2, "oedema")


def test_many_prompts_are_answered(folder, prompted):
    prompts = [f"the enhancing rim number {n}" for n in range(70)]
    result = predictor(prompted(), device="cpu")(case_in(folder), prompts=prompts)
    assert [answer.text for answer in result.prompts] == prompts
    box = np.prod(result.prompts[0].box_mask.shape)
    assert max(answer.part.nbytes for answer in result.prompts) < box < result.label.nbytes


def test_a_prompt_in_an_unknown_language_is_answered_with_a_warning(folder, prompted):
    class Words(nn.Module):
        max_tokens = 9

        def count_tokens(self, text):
            return 2 + len(text) // (1 if "ö" in text.lower() else 5)

    network = prompted()
    network.text_encoder = Words()
    run = predictor(network, device="cpu")
    with pytest.warns(PromptWarning, match=r"prompt 'perifokales Ödem': .* not understood") as seen:
        result = run(case_in(folder), prompts=["perifokales Ödem", "oedema"])
    german, english = result.prompts
    assert german.note == str(seen[0].message)
    assert english.note == ""
    assert german.mask.shape == result.label.shape


@pytest.mark.parametrize(
    ("prompts", "message"), [([""], "prompt '' is empty"), ("rim", "give a list of prompts")]
)
def test_bad_prompts_are_refused_before_anything_is_read(folder, prompted, prompts, message):
    network = prompted()
    with pytest.raises(ValueError, match=message):
        predictor(network, device="cpu")(folder / "nowhere", prompts=prompts)
    assert network.times_read == 0


def test_weights_without_a_prompt_head_say_so(folder):
    run = Predictor(build_clipseg3d(SMALL), release=PHANTOM, spacing_mm=SPACING_MM, device="cpu")
    with pytest.raises(ValueError, match=r"these weights answer no prompts; take some that were"):
        run(case_in(folder), prompts=["the enhancing rim"])


def test_presence_is_the_largest_over_windows_and_the_mean_over_passes(folder, prompted):
    networks = [prompted(), prompted(), BrightFlair()]
    seen = []
    for number, network in enumerate(networks[:2]):

        def presence(image, number=number):
            seen.append((number, image.mean() + image.new_tensor([[2.0, 1.0, 0.0]])))
            return Presence(seen[-1][1], image[:, :3])

        network.presence = presence
    result = predictor(*networks, device="cpu", tta=True)(case_in(folder))
    windows = len(seen) // 16  # of two networks and eight mirrorings
    assert windows > 1
    passes = torch.cat([log_odds for _, log_odds in seen]).reshape(16, windows, 3)
    expected = passes.amax(dim=1).sigmoid().mean(dim=0)
    assert list(result.presence) == ["WT", "TC", "ET"]
    np.testing.assert_allclose(list(result.presence.values()), expected, rtol=1e-5)
    assert predictor(device="cpu")(case_in(folder)).presence == {}


def test_presence_comes_from_the_network(folder, randomise):
    torch.manual_seed(0)
    network = randomise(build_clipseg3d(replace(SMALL, presence=True)))
    run = Predictor(
        network, release=PHANTOM, spacing_mm=SPACING_MM, roi_size=(32, 32, 32), device="cpu"
    )
    presence = run(case_in(folder), text="No enhancement.").presence
    assert list(presence) == ["WT", "TC", "ET"]
    assert all(0 <= share <= 1 for share in presence.values())


def test_trust_lies_between_the_report_and_none(folder, randomise):
    torch.manual_seed(0)
    network = randomise(build_clipseg3d(SMALL))
    run = Predictor(
        network, release=PHANTOM, spacing_mm=SPACING_MM, roi_size=(32, 32, 32), device="cpu"
    )
    report = {"text": "A tumour in the left temporal lobe.", "probabilities": True}

    def result(**options):
        return run(case_in(folder), **{**report, **options}).probabilities

    np.testing.assert_allclose(result(trust=0), result(text=""), atol=1e-5)
    np.testing.assert_array_equal(result(trust=1), result())
    half, none, full = result(trust=0.5), result(trust=0), result()
    assert np.abs(full - none).max() > 1e-3
    assert 0 < np.abs(half - none).mean() < np.abs(full - none).mean()
    for wrong in (-0.1, 1.1, float("nan"), "1"):
        with pytest.raises(ValueError, match=r"trust=.* is not in \[0, 1\]"):
            run(case_in(folder), trust=wrong)
    page = run(case_in(folder), trust=0.5, explain=True)
    assert page.evidence.provenance["trust in the report"] == "0.5"


@pytest.mark.filterwarnings("ignore::clipseg3d.inference.segmentation.ScanWarning")
def test_a_report_in_words_that_no_encoder_knows_is_noticed(folder):
    network = build_clipseg3d(replace(SMALL, clip="tiny"))
    run = Predictor(
        network, release=PHANTOM, spacing_mm=SPACING_MM, roi_size=(32, 32, 32), device="cpu"
    )
    for report, is_noticed in (
        ("La lésion prend le contraste. Œdème modéré du lobe temporal gauche.", True),
        ("The lesion enhances. Moderate oedema of the left temporal lobe.", False),
        ("", False),
    ):
        notes = run(case_in(folder), text=report).notes
        assert any("words of the report are unknown" in note for note in notes) == is_noticed
