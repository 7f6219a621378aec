"""Twins of training samples: what changes, and what stays equal."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from clipseg3d.batch import pack_image, pack_regions, unpack_image
from clipseg3d.data.releases import BRATS_2020, BRATS_2023_GLI
from clipseg3d.data.text_twins import KINDS, TextTwins, _mirrored
from clipseg3d.intensity import intensity_statistics
from clipseg3d.texts.wording import statement_of
from clipseg3d.views import Views, cut_reduced_views, cut_views

T1, T1CE = 0, 1
ET_BITS, ALL_BITS = 0b100, 0b111
SIZE = (20, 24, 16)


def case(*, enhancing=True):
    """A brain with an enhancing ring around necrosis on the left, in oedema; T1ce is T1 plus."""
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.normal(10, 1, (4, *SIZE))).float()
    label = np.zeros(SIZE, np.uint8)
    label[11:19, 2:12, 8:15] = 2
    label[12:18, 4:10, 9:14] = 4 if enhancing else 1
    label[14:16, 6:8, 10:13] = 1
    image[T1CE] = 2 * image[T1] + 0.1 * image[T1CE]
    image[T1CE][torch.from_numpy(label == 4)] += 20
    return image, label


def sample(*, enhancing=True):
    image, label = case(enhancing=enhancing)
    statistics = intensity_statistics(image[None])[0]
    regions = torch.from_numpy(BRATS_2020.to_regions(label))
    views, reduced = (
        Views(*(part[0] for part in cut(image[None], statistics[None], selection="energy")))
        for cut in (cut_views, cut_reduced_views)
    )
    return {
        "image": pack_image(image, statistics),
        "label": pack_regions(regions),
        "crop_box": torch.tensor([[0.0] * 3, [1.0] * 3]),
        "statistics": statistics,
        "views": views,
        "reduced_views": reduced,
        "report": "what a person wrote",
        "grade": 1,
        "case_id": "case",
    }


def twin_of(kind, seed, *, enhancing=True):
    twins = TextTwins(BRATS_2020, spacing_mm=8.0, twins=1.0, kinds={kind: 1.0})
    image, label = case(enhancing=enhancing)
    torch.manual_seed(seed)
    given = sample(enhancing=enhancing)
    return given, twins(given, twins.facts(image, torch.from_numpy(label)))


def has_et(sample):
    return bool((sample["label"] & ET_BITS).any())


DENIAL = re.compile(
    r"\bn[o']|non|not|lack|absen|without|free|devoid|fail|dark|un(en|ch)|nil|neg|none|neither|gone"
    r"|vanish|resolved|disappear|bare|excluded|cannot|intact|hypo|iso|hardly|stays|remains|regress"
    r"|ruled|never|missing|effect|zero|\b0\b",
    re.IGNORECASE,
)


@pytest.mark.parametrize("kind", KINDS)
def test_the_given_sample_stays_and_seeds_give_equal_twins(kind):
    given, first = twin_of(kind, 3)
    fresh, second = twin_of(kind, 3)
    for key in ("image", "label", "statistics"):
        assert torch.equal(given[key], fresh[key])
        assert torch.equal(first[key], second[key])
    assert torch.equal(given["views"].images, fresh["views"].images)
    assert first["report"] == second["report"]


def test_withheld_t1ce_shows_nothing_and_the_report_decides():
    kept = []
    for seed in range(40):
        given, twin = twin_of("withheld", seed)
        assert not twin["image"][T1CE].any()
        assert not twin["statistics"][T1CE].any()
        assert not twin["views"].images[..., T1CE].any()
        chosen = given["reduced_views"].images[2]  # slices that FLAIR alone chooses
        for other in (0, 2, 3):
            assert torch.equal(twin["image"][other], given["image"][other])
            assert torch.equal(twin["views"].images[..., other], chosen[..., other])
        assert torch.equal(twin["label"] & 0b011, given["label"] & 0b011)
        assert twin["report"]
        kept.append(has_et(twin))
        if not kept[-1]:
            assert DENIAL.search(twin["report"]), twin["report"]
    assert 10 < sum(kept) < 30


def test_removed_enhancement_is_gone_from_image_and_label():
    reports = []
    for seed in range(30):
        given, twin = twin_of("removed", seed)
        assert not has_et(twin)
        before = unpack_image(given["image"], given["statistics"])
        after = twin["image"].float()
        et = given["label"] & ET_BITS > 0
        outside = given["label"] == 0
        assert after[T1CE][et].mean() < before[T1CE][outside].mean() + 2
        torch.testing.assert_close(
            after[T1CE][outside], before[T1CE][outside], atol=0.02, rtol=1e-3
        )
        torch.testing.assert_close(after[T1], before[T1], atol=0.02, rtol=1e-3)
        assert not twin["views"].images[..., T1CE].any()
        reports.append(twin["report"])
    assert 3 < reports.count("") < 20


def test_faded_enhancement_counts_if_the_report_says_so():
    kept = []
    for seed in range(40):
        given, twin = twin_of("faded", seed)
        before = unpack_image(given["image"], given["statistics"])
        et = given["label"] & ET_BITS > 0
        outside = given["label"] == 0
        contrast = [x[T1CE][et].mean() - x[T1CE][outside].mean() for x in (before, twin["image"])]
        assert 0.05 < contrast[1] / contrast[0] < 0.5
        kept.append(has_et(twin))
    assert 10 < sum(kept) < 30


def two_foci():
    """A large lesion on the left, and a small one on the right, in a padded and shifted sample."""
    given = sample()
    regions = given["label"].clone()
    regions[3:7, 4:9, 4:8] = 0b011
    image = unpack_image(given["image"], given["statistics"])
    image[:, 3:7, 4:9, 4:8] += 30
    pad = (0, 0, 0, 0, 2, 0)  # two planes before x
    return {
        **given,
        "image": torch.nn.functional.pad(image, pad).half(),
        "label": torch.nn.functional.pad(regions, pad),
        "crop_box": torch.tensor([[-0.1, 0, 0], [1.1, 1, 1]]),
    }


def test_faint_foci_count_if_the_report_says_so():
    twins = TextTwins(BRATS_2020, spacing_mm=8.0, twins=1.0, kinds={"focus": 1.0})
    image, label = case()
    facts = replace(twins.facts(image, torch.from_numpy(label)), foci=2)
    kept = []
    for seed in range(30):
        torch.manual_seed(seed)
        given = two_foci()
        twin = twins(given, facts)
        small = slice(5, 9), slice(4, 9), slice(4, 8)
        before, after = (s["image"].float()[(slice(None), *small)].mean() for s in (given, twin))
        healthy = twin["image"].float()[:, 14:18, 14:20, 4:8].mean()
        assert 0.1 < (after - healthy) / (before - healthy) < 0.6
        large = twin["label"][13:21, 2:12, 8:15]
        assert torch.equal(large, given["label"][13:21, 2:12, 8:15])
        kept.append(bool(twin["label"][small].any()))
        if kept[-1]:
            assert twin["label"][small].all()
    assert 7 < sum(kept) < 23


@pytest.mark.parametrize(("low", "size"), [(-0.5, 1.2), (0.1, 1.2), (0.4, -1.2)])
def test_foci_stay_where_a_part_of_the_brain_is_shown(low, size):
    twins = TextTwins(BRATS_2020, spacing_mm=8.0, twins=1.0, kinds={"focus": 1.0})
    image, label = case()
    facts = replace(twins.facts(image, torch.from_numpy(label)), foci=2)
    for seed in range(10):
        torch.manual_seed(seed)
        given = {**two_foci(), "crop_box": torch.tensor([[low, 0, 0], [size, 1, 1]])}
        twin = twins(given, facts)
        assert torch.equal(twin["image"], given["image"])
        assert torch.equal(twin["label"], given["label"])


def test_the_mirror_is_the_middle_of_the_brain_box():
    image = torch.arange(10.0).view(1, 10, 1, 1)  # the box
    assert _mirrored(image, 0.0, 1.0).flatten().tolist() == list(range(9, -1, -1))
    padded = torch.nn.functional.pad(image + 1, (0, 0, 0, 0, 3, 1))
    mirrored = _mirrored(padded, -0.3, 1.4)
    assert mirrored.flatten()[3:13].tolist() == list(range(10, 0, -1))
    turned = _mirrored(padded.flip(1), 1.1, -1.4)  # the same sample, mirrored by augmentation
    assert torch.equal(turned.flip(1), mirrored)


def test_wrong_reports_leave_image_and_label_alone():
    for enhancing in (True, False):
        for seed in range(20):
            given, twin = twin_of("wrong", seed, enhancing=enhancing)
            for key in ("image", "label", "statistics"):
                assert torch.equal(given[key], twin[key])
            assert twin["report"] != given["report"]
            if enhancing:
                assert DENIAL.search(twin["report"]), twin["report"]


def test_written_reports_are_true_and_vary():
    twins = TextTwins(BRATS_2020, spacing_mm=8.0, written=1.0)
    image, label = case()
    facts = twins.facts(image, torch.from_numpy(label))
    assert statement_of(facts).side == "left"
    assert facts.enhancement == "rim"
    reports = set()
    for seed in range(40):
        torch.manual_seed(seed)
        given = sample()
        changed = twins(given, facts)
        reports.add(changed["report"])
        assert torch.equal(changed["image"], given["image"])
        assert torch.equal(changed["label"], given["label"])
    assert len(reports) > 35


def test_facts_follow_the_labels_of_the_release():
    image, label = case()
    newer = np.where(label == 4, 3, label).astype(np.uint8)
    older, other = (
        TextTwins(release, spacing_mm=2.0, written=1.0).facts(image, torch.from_numpy(values))
        for release, values in ((BRATS_2020, label), (BRATS_2023_GLI, newer))
    )
    assert older == other
    assert older.et_ml == pytest.approx((label == 4).sum() * 0.008)
    empty = TextTwins(BRATS_2020, written=1.0).facts(image, torch.zeros(SIZE, dtype=torch.uint8))
    assert empty is None


def test_facts_of_a_sample_follow_what_was_grafted_into_it():
    twins = TextTwins(BRATS_2020, spacing_mm=8.0, written=1.0)
    image, label = case()
    assert twins.facts_of(sample()) == twins.facts(image, torch.from_numpy(label))
    grafted = sample()
    grafted["label"] = grafted["label"].clone()
    grafted["label"][2:8, 3:9, 3:9] = ALL_BITS
    assert twins.facts_of(grafted).foci == 2
    grafted["label"] = grafted["label"] & 1
    assert twins.facts_of(grafted) is None


def test_shares_are_kept():
    twins = TextTwins(BRATS_2020, spacing_mm=8.0, twins=0.3, written=0.5)
    image, label = case()
    facts = twins.facts(image, torch.from_numpy(label))
    torch.manual_seed(0)
    given = sample()
    unchanged = sum(twins(given, facts)["report"] == given["report"] for _ in range(200))
    assert 0.25 < unchanged / 200 < 0.45


def test_releases_without_enhancement_are_refused():
    plain = BRATS_2020.select(regions=("WT", "TC"))
    with pytest.raises(ValueError, match="has no ET; set both to 0"):
        TextTwins(plain, written=0.5)
    with pytest.raises(ValueError, match="has no t1; set both to 0"):
        TextTwins(BRATS_2020.select(sequences=("t1ce", "flair")), twins=0.5)
    with pytest.raises(ValueError, match="text_twins"):
        TextTwins(BRATS_2020, twins=1.5)


@pytest.mark.parametrize("kind", ["faded", "removed"])
def test_enhancement_that_cannot_be_faded_keeps_its_label(kind):
    """Without T1, T1ce without contrast agent cannot be told: nothing may say that it is gone."""
    twins = TextTwins(BRATS_2020, spacing_mm=8.0, twins=1.0, kinds={kind: 1.0})
    image, label = case()
    facts = twins.facts(image, torch.from_numpy(label))
    for seed in range(10):
        torch.manual_seed(seed)
        given = sample()
        given["image"][T1] = 0
        twin = twins(given, facts)
        assert torch.equal(twin["image"], given["image"])
        assert torch.equal(twin["label"], given["label"])
        assert twin["report"] == given["report"]
