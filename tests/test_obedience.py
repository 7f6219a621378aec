"""The suite that asks whether text is obeyed: its keyword parser, reports, images and scores."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clipseg3d.data.releases import BRATS_2020, BRATS_2023_GLI
from clipseg3d.texts import measure_facts

SIZE = (64, 30, 26)


def load_example(name):
    examples = str(Path(__file__).parents[1] / "examples")
    sys.path.insert(0, examples)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(examples)


obedience = load_example("obedience")
parser = load_example("keyword_parser")
probes = load_example("probe_tower")
prompts = load_example("prompt_scores")


@pytest.fixture
def brain():
    mask = np.zeros(SIZE, bool)
    mask[2:-2, 1:-1, 1:-1] = True
    return mask


@pytest.fixture
def label(brain):
    """A lesion on the left, high x in LPS: oedema around enhancing tumour around core."""
    label = np.zeros(SIZE, np.uint8)
    label[38:58, 4:24, 4:22] = 2
    label[40:56, 6:22, 6:20] = 4
    label[45:51, 11:17, 10:16] = 1
    return label


@pytest.fixture
def patient(brain, label):
    rng = np.random.default_rng(0)
    t1 = np.where(brain, rng.uniform(100, 200, SIZE), 0).astype(np.float32)
    t1ce = np.where(brain, 2 * t1 + 5, 0).astype(np.float32)
    t1ce[label == 4] += 300
    images = {"t1": t1, "t1ce": t1ce, "t2": 3 * t1, "flair": np.where(label > 0, 900, t1)}
    facts = measure_facts(label, brain, spacing_mm=1.0)
    return obedience.Patient("one", images, label, np.diag([-1.0, -1, 1, 1]), facts)


# The keyword parser


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ("No contrast enhancement is seen.", {"enhancing": False}),
        ("Neither necrosis nor contrast enhancement.", {"enhancing": False, "necrosis": False}),
        ("Most does not enhance; small parts take up contrast.", {"enhancing": True}),
        ("Necrosis is seen as an area that does not take up contrast.", {"necrosis": True}),
        ("Abnormal ring enhancement around necrosis. No midline shift.", {"necrosis": True}),
        ("No midline shift. A thin enhancing rim.", {"enhancing": True}),
        ("A lesion in the left lobe.", {"side": "left"}),
        ("A left lesion that compresses the right ventricle.", {}),
        ("There are two separate foci of mixed signal.", {"foci": 2}),
        ("A single lesion is seen.", {"foci": 1}),
        ("Edema is limited.", {"oedema": "limited"}),
        ("No oedema is observed.", {"oedema": "none"}),
        ("Marked oedema.", {"oedema": "extensive"}),
        ("The weather is fine.", {}),
    ],
)
def test_keywords_are_read_in_their_clause(report, expected):
    assert parser.read(report) == parser.Reading(**expected)


def test_every_report_of_a_phantom_is_read_right():
    rng = np.random.default_rng(3)
    for _ in range(150):
        sample = probes.draw_sample(rng)
        for fact in probes.FACTS:
            assert probes.parse(sample.report, fact) == sample.values[fact], sample.report


def edit(label, report, brain):
    return parser.edit(label, report, brain, spacing_mm=1.0)


def test_the_parser_adds_and_removes_enhancement(label, brain):
    plain = edit(label, "No enhancement.", brain)
    assert not (plain == 4).any()
    np.testing.assert_array_equal(plain > 0, label > 0)
    ringed = edit(plain, "A thick enhancing rim.", brain)
    assert ringed[40, 10, 10] == 4
    assert ringed[48, 14, 13] == 1
    np.testing.assert_array_equal(edit(label, "The enhancing rim.", brain), label)


def test_the_parser_chooses_lesions_but_never_none(label, brain):
    both = label.copy()
    both[4:10, 6:12, 6:12] = 4
    left = edit(both, "A lesion in the left lobe.", brain)
    np.testing.assert_array_equal(left, label)
    right = edit(both, "A lesion in the right lobe.", brain)
    np.testing.assert_array_equal(right, np.where(label > 0, 0, both))
    np.testing.assert_array_equal(edit(both, "A single lesion.", brain), label)
    np.testing.assert_array_equal(edit(label, "A lesion on the right.", brain), label)


def test_the_parser_resizes_oedema(brain):
    big = np.ones((80, 60, 60), bool)
    label = np.zeros(big.shape, np.uint8)
    label[20:60, 10:50, 10:50] = 2
    label[30:50, 20:40, 20:40] = 1
    limited = edit(label, "Limited oedema.", big)
    assert (limited == 2).sum() == 20_000
    assert limited[29, 30, 30] == 2  # what is nearest to the core stays
    assert limited[20, 10, 10] == 0
    extensive = edit(label, "Extensive oedema.", big)
    assert (extensive == 2).sum() == 60_000
    assert ((extensive == 1) == (label == 1)).all()
    np.testing.assert_array_equal(edit(label, "Moderate oedema.", big), label)
    assert not (edit(label, "No oedema.", big) == 2).any()


# Reports


@pytest.mark.parametrize(
    ("fact", "attribute"),
    [("enhancement", "enhancing"), ("side", "side"), ("oedema", "oedema"), ("foci", "foci")],
)
def test_contradicting_reports_tell_the_opposite_of_one_fact(patient, fact, attribute):
    for seed in range(20):
        own, opposite = (
            parser.read(obedience.write_report(facts, seed))
            for facts in (patient.facts, obedience.contradict(patient.facts, fact))
        )
        assert getattr(own, attribute) != getattr(opposite, attribute)
        for other in {"enhancing", "side", "oedema"} - {attribute}:
            assert getattr(own, other) == getattr(opposite, other)


def test_contradicting_twice_is_true_again_and_unknown_facts_are_refused(patient):
    for fact in ("side", "foci"):
        twice = obedience.contradict(obedience.contradict(patient.facts, fact), fact)
        assert twice == patient.facts
    with pytest.raises(ValueError, match="'grade' is unknown"):
        obedience.contradict(patient.facts, "grade")


def test_a_word_can_be_asked_for(patient):
    assert "single" in obedience.write_report(patient.facts, 0, word="single")
    with pytest.raises(ValueError, match="no wording"):
        obedience.write_report(patient.facts, 0, word="kidney")


def test_dealt_reports_are_of_another_patient_and_stay(patient):
    known = {f"p{i}": replace(patient.facts, side="left") for i in range(2)}
    known["p1"] = replace(patient.facts, side="right")
    assert "right" in obedience.deal(known, "p0")
    assert "left" in obedience.deal(known, "p1")
    assert obedience.deal({**known, "p2": patient.facts}, "p0") == obedience.deal(known, "p0")
    assert obedience.deal({"p0": patient.facts}, "p0") == ""


# Images


def test_dose_takes_contrast_agent_away(patient, label, brain):
    images = patient.images
    none, half, full = (obedience.dose(images, label == 4, brain, a) for a in (0, 0.5, 1))
    difference = (none["t1ce"] - (2 * images["t1"] + 5))[brain]
    assert abs(difference.mean()) < 0.1
    assert 0.01 < difference.std() / none["t1ce"][brain].std() < 0.05  # no exact copy of T1
    np.testing.assert_allclose(full["t1ce"], images["t1ce"], rtol=1e-4)
    np.testing.assert_allclose(2 * half["t1ce"], none["t1ce"] + full["t1ce"], rtol=1e-4)
    assert (full["t1ce"] - none["t1ce"])[label == 4].mean() == pytest.approx(300, rel=1e-2)
    assert not none["t1ce"][~brain].any()
    assert none["flair"] is images["flair"]


def test_a_second_lesion_is_the_mirror_image(patient, label, brain):
    second = patient.second_lesion
    np.testing.assert_array_equal(second, label[::-1])
    images = obedience.graft(patient, second > 0, 1.0)
    inside = label[::-1] == 1  # away from the soft edge
    np.testing.assert_allclose(images["t1ce"][inside], patient.images["t1ce"][::-1][inside])
    np.testing.assert_array_equal(images["t1ce"][44:], patient.images["t1ce"][44:])
    small = obedience.satellite(second, 1.0)
    assert 0 < (small > 0).sum() < (second > 0).sum()
    assert (small[small > 0] == second[small > 0]).all()
    central = replace(patient, label=np.roll(label, -16, axis=0))
    assert central.second_lesion is None


def test_sequences_are_withheld_only_where_weights_allow_it(patient):
    asked = obedience.plan(patient, "Another report.", missing=True)
    assert "t1ce" not in asked["no t1ce"][0]()
    assert "flair" not in asked["no flair"][0]()
    assert asked["all"][1]["dealt"] == "Another report."
    assert not {"no t1ce", "no flair"} & set(obedience.plan(patient, "", missing=False))


@pytest.mark.parametrize(
    ("tests", "images"),
    [
        ("1", {"dose 0"}),
        ("2", {"no t1ce"}),
        ("3", {"dose 0", "dose 0.5", "all"}),
        ("4", {"all"}),
        ("5", {"two lesions"}),
        ("6", {"satellite"}),
        ("7", {"all", "no flair"}),
    ],
)
def test_each_test_can_be_asked_alone(patient, tests, images):
    asked = obedience.plan(patient, "Another report.", missing=True, tests=tests)
    assert set(asked) == images
    texts = {(i, name): t for i, (_, ts) in asked.items() for name, t in ts.items()}
    scores = obedience.Scorer(patient, texts, dict.fromkeys(texts, patient.label))()
    assert {obedience.MEASURES[measure].test for measure, _, _ in scores} == {tests}


# Asking


def test_answers_are_kept_and_a_label_of_another_release_is_translated(patient, tmp_path):
    calls = []

    def predictor(images, affine, *, text):
        calls.append(text)
        found = np.where(patient.label == 4, 3, patient.label).astype(np.uint8)
        return SimpleNamespace(label=found, release=BRATS_2023_GLI)

    asked = {"all": (lambda: patient.images, {"own": "a", "same": "a", "none": ""})}
    for _ in range(2):
        answers = obedience.answer(predictor, patient, asked, tmp_path)
        assert calls == ["a", ""]
        np.testing.assert_array_equal(answers["all", "same"], patient.label)


def test_what_comes_before_text_is_computed_once_per_image():
    calls = []

    def encode(image):
        calls.append(image.clone())
        return [image, 2 * image]

    remembered = obedience._Remembered(encode)
    image = torch.rand(3)
    remembered(image).pop()  # callers may change the list
    assert len(remembered(image.clone())) == 2
    assert len(calls) == 1
    image[0] += 1
    torch.testing.assert_close(remembered(image)[0], image)
    assert len(calls) == 2


# Scores


def answers_of(patient, network):
    """Ask a made-up network: a function of image, name of the text and text."""
    asked = obedience.plan(patient, "The weather is fine.", missing=True)
    texts = {(i, name): t for i, (_, ts) in asked.items() for name, t in ts.items()}
    return texts, {key: network(*key, text) for key, text in texts.items()}


def scores_of(patient, network):
    scorer = obedience.Scorer(patient, *answers_of(patient, network))
    return {(measure, control): value for measure, control, value in scorer()}


@pytest.fixture
def obedient(patient):
    """A network that obeys where the image does not tell, and only there."""
    first, second = patient.label, patient.second_lesion

    def network(image, name, text):
        told = parser.read(text)
        if image == "two lesions":
            return second if told.side == "right" else first
        if image == "satellite":
            return np.where(told.foci == 2, np.maximum(first, second), first)
        if image in ("dose 0", "no t1ce") and told.enhancing is False:
            return obedience.solid(first)
        if image == "dose 0.5" and told.enhancing is False:
            return np.where(np.arange(SIZE[0])[:, None, None] < 48, first, obedience.solid(first))
        if image == "no flair" and told.oedema == "limited":
            return np.where(first == 2, 0, first)
        return first

    return network


def test_an_obedient_network_meets_the_targets(patient, obedient):
    scores = scores_of(patient, obedient)
    expected = {
        "empty": 1,
        "withheld": 1,
        "gone at dose 0": 1,
        "gone at dose 1": 0,
        "monotone": 1,
        "loss": 0,
        "named": 1,
        "other": 0,
        "side follows": 1,
        "satellite": 1,
        "oedema, no FLAIR": obedience.RATIO_CAP,
        "oedema": 1,
    }
    assert {name: scores[name, "own"] for name in expected} == pytest.approx(expected)
    assert scores["withheld", "contradicting"] == 0
    assert scores["withheld", "none"] == 0.5
    assert scores["empty", "contradicting"] == 0
    assert scores["side follows", "contradicting"] == 0
    assert scores["named", "contradicting"] == 0
    assert scores["satellite", "contradicting"] == 0
    assert scores["withheld volume", "own"] < 0.1


def test_a_network_that_reads_nothing_is_at_chance(patient):
    both = np.maximum(patient.label, patient.second_lesion)
    scores = scores_of(patient, lambda image, name, text: both)
    for control in ("own", "dealt", "contradicting", "none"):
        assert scores["empty", control] == 0
        assert scores["side follows", control] == 0.5
        assert scores["satellite", control] == 0.5
        assert scores["other", control] == 1
        assert scores["loss", control] == 0
    for measure in ("thick ring", "oedema", "oedema, no FLAIR", "withheld volume"):
        assert scores[measure, "own"] == 1
    assert scores["monotone", "own"] == 0
    assert scores["empty", "parser"] == 1  # the rival edits what the network found
    assert scores["side follows", "parser"] == 1


def test_a_wrong_report_that_costs_is_a_loss(patient):
    def network(image, name, text):
        return np.zeros_like(patient.label) if name == "denied" else patient.label

    scores = scores_of(patient, network)
    assert scores["loss", "contradicting"] == 1
    assert scores["loss ET", "contradicting"] == 1
    assert scores["loss", "none"] == 0
    assert scores["loss", "own"] == pytest.approx(1 / 3)  # the mean of three controls


def test_a_tumour_that_does_not_enhance_is_scored_as_it_is(patient, brain):
    label = obedience.solid(patient.label)
    plain = replace(patient, label=label, facts=measure_facts(label, brain, spacing_mm=1.0))
    texts, answers = answers_of(plain, lambda image, name, text: label)
    assert ("dose 0", "none") not in texts
    scores = obedience.Scorer(plain, texts, answers)()
    assert ("empty", "own", 1.0) in scores
    assert not any(measure == "withheld" for measure, _, _ in scores)


@pytest.mark.parametrize(
    ("shares", "expected"),
    [((0, 0.5, 1), True), ((0, 0, 0), False), ((1, 1, 1), False), ((0, 1, 0.6), False)],
)
def test_volume_must_rise_with_dose(shares, expected):
    assert obedience.rises(shares) is expected


def test_ratios_of_nothing():
    assert obedience.ratio(0, 0) == 1
    assert obedience.ratio(1000, 0) == obedience.RATIO_CAP
    assert obedience.ratio(1.9, 0.9) == pytest.approx(2)


# Table


@pytest.mark.parametrize(
    ("target", "value", "without", "expected"),
    [
        (">= .95", 0.95, None, True),
        ("<= 1.2", 1.3, None, False),
        ("< .30", 0.3, None, False),
        (">= none + .10", 0.45, 0.4, False),
        (">= none + .10", 0.55, 0.4, True),
        (">= none + .10", 0.55, None, None),
        ("region - .02", 0.5, None, None),
        ("-", 0.5, None, None),
    ],
)
def test_targets_are_compared(target, value, without, expected):
    assert obedience.is_met(target, value, without) is expected


def test_the_table_says_what_is_met_and_what_was_not_run(tmp_path):
    rows = [
        obedience.Row("w", "S", "1", "empty", control, f"p{i}", value)
        for control, value in (("own", 1.0), ("none", 0.25))
        for i in range(3)
    ]
    lines = {line[1]: line for line in obedience.table(rows)}
    empty = lines[obedience.MEASURES["empty"].text]
    assert empty[3:9] == ["3", "1.000", "1.00 to 1.00", ">= .95", "yes", "0.250"]
    assert lines[obedience.MEASURES["prompts known"].text][4] == "not run"
    obedience.write_rows(tmp_path / "rows.csv", rows)
    assert (tmp_path / "rows.csv").read_text().splitlines()[1] == "w,S,1,empty,own,p0,1.0000"
    obedience.write_means(tmp_path / "means.csv", rows)
    own, none = (tmp_path / "means.csv").read_text().splitlines()[1:]
    assert own.startswith("w,S,1,empty,")
    assert own.endswith(">= .95,own,3,1.0000,1.0000,1.0000")
    assert none.endswith("none,3,0.2500,0.2500,0.2500")
    obedience.draw(rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_the_interval_holds_the_mean_and_shrinks():
    few, many = [0.0, 1.0] * 3, [0.0, 1.0] * 50
    low, high = obedience.interval(few)
    assert 0 <= low < 0.5 < high <= 1
    narrow = obedience.interval(many)
    assert narrow[1] - narrow[0] < high - low


# Probes


def test_left_out_facts_are_not_said():
    rng = np.random.default_rng(5)
    for _ in range(60):
        sample = probes.leave_out(probes.draw_sample(rng), rng)
        for fact in ("enhancement", "necrosis"):
            assert probes.parse(sample.report, fact) == sample.values[fact], sample.report


def test_a_replaced_fact_is_told_once():
    sample = probes.draw_sample(np.random.default_rng(1))
    changed = probes.replace_fact(sample, "enhancement", "It fails to enhance.", "no")
    assert changed.report.endswith("It fails to enhance.")
    assert changed.report.lower().count("enhanc") + changed.report.lower().count("contrast") == 1
    assert changed.values["side"] == sample.values["side"]


def test_necrosis_that_takes_up_no_contrast_is_not_about_enhancement():
    necrosis = "Necrosis is seen inside the lesion as an area that does not take up contrast."
    sample = probes.Sample(f"{necrosis} The core enhances solidly.", {"enhancement": "yes"})
    changed = probes.replace_fact(sample, "enhancement", "It fails to enhance.", "no")
    assert changed.report == f"{necrosis} It fails to enhance."


def test_accuracy_is_balanced_over_values():
    samples = [probes.Sample("", {"side": side}) for side in ("left", "left", "left", "right")]
    assert probes.balanced(["left"] * 4, samples, "side") == 0.5


# Prompts


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("the whole tumour", prompts.Request("whole")),
        ("oedema and tumour", prompts.Request("whole")),
        ("the necrotic core on the left", prompts.Request("necrosis", side="left")),
        ("non-enhancing centre", prompts.Request("necrosis")),
        ("biggest ring of contrast", prompts.Request("enhancing", pick="largest")),
        ("swelling in the temporal lobe", prompts.Request("oedema", site="temporal")),
        ("the core", prompts.Request("core")),
        ("the kidney", prompts.Request("none")),
    ],
)
def test_keywords_of_a_prompt(prompt, expected):
    assert parser.read_prompt(prompt) == expected


def test_parts_are_cut_by_label_side_lobe_and_size(label):
    part = prompts.part_of
    assert np.array_equal(part(label, prompts.Request("necrosis")), label == 1)
    assert np.array_equal(part(label, prompts.Request("oedema")), label == 2)
    assert np.array_equal(part(label, prompts.Request("core")), np.isin(label, (1, 4)))
    assert not part(label, prompts.Request("none")).any()
    whole = prompts.Request("whole")
    left, right = (part(label, replace(whole, side=side)) for side in ("left", "right"))
    assert np.array_equal(left, label > 0)
    assert not right.any()
    lobes = [part(label, replace(whole, site=s)) for s in ("frontal", "parietal", "temporal")]
    assert sum(lobe.sum() for lobe in lobes) <= (label > 0).sum()
    two = label.copy()
    two[5:9, 5:9, 5:9] = 2
    sizes = [part(two, replace(whole, pick=pick)).sum() for pick in ("largest", "smallest")]
    assert sizes == [(label > 0).sum(), 64]


def test_unseen_prompts_are_requests_that_can_be_cut(label):
    unseen = prompts.unseen_prompts()
    assert len(unseen) == 40
    assert {request.target for request in unseen.values()} == set(prompts._LABELS)
    assert not set(unseen) & set(prompts.KNOWN)
    for request in unseen.values():
        prompts.part_of(label, request)


class Answering:
    """Finds the truth, and answers every prompt with the whole tumour, or with nothing."""

    def __init__(self, label, *, anything):
        self.label, self.anything = label, anything

    def __call__(self, images, affine, *, prompts):
        mask = ((self.label > 0) & self.anything).astype(np.uint8)
        answers = [SimpleNamespace(text=text, mask=mask) for text in prompts]
        return SimpleNamespace(label=self.label, release=BRATS_2020, prompts=answers)


@pytest.mark.parametrize("anything", [True, False])
def test_prompts_are_scored_beside_the_region_and_the_parser(patient, label, anything):
    box = tuple(slice(0, n) for n in SIZE)
    scores = {
        (measure, control): value
        for measure, control, value in prompts.score_prompts(
            Answering(label, anything=anything), patient.images, patient.affine, label, box,
            voxel_ml=0.001,
        )
    }  # fmt: skip
    assert scores["prompts present", "own"] == anything
    assert scores["prompts absent", "own"] == (not anything)
    assert scores["prompts absent", "parser"] > 0.5
    # what is found is the truth, so keywords that read rightly lose nothing
    assert scores["prompts known", "parser"] > -0.05
    assert scores["prompts known", "own"] < -0.15
    if not anything:
        assert scores["prompts known", "own"] == -1
