"""The weights that come with the package: small, licensed, recorded, and able to segment."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from clipseg3d import CLIPSeg3D, Predictor
from clipseg3d.clip.registry import load_encoder
from clipseg3d.data.cases import find_cases
from clipseg3d.data.nifti import read_voxels
from clipseg3d.data.releases import PHANTOM
from clipseg3d.inference.postprocessing import PostProcessing
from clipseg3d.metrics.dice import dice_empty_is_one
from clipseg3d.phantom.write import write_phantoms
from clipseg3d.pretrained.formats import upgrade_checkpoint
from clipseg3d.vocabulary import REGIONS
from clipseg3d.weights import BUNDLED

FOLDER = BUNDLED / "tiny"
UNSEEN = 5000
"""Seed of a simulated patient; training took those from 0 to 159."""


@pytest.fixture(scope="module")
def record():
    return json.loads((FOLDER / "training.json").read_text(encoding="utf-8"))


def test_they_are_small():
    size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    assert (FOLDER / "model.safetensors").stat().st_size <= 12e6
    assert size <= 20e6


def test_only_public_cases_and_simulated_ones_shaped_them(record):
    for fit in record.values():
        assert len(fit["cases"]) == 12
        assert all(name.startswith("Brats18_TCIA") for name in fit["cases"])
        assert fit["phantoms"] <= UNSEEN


def test_the_record_is_that_of_the_network(record):
    network = CLIPSeg3D.from_pretrained("tiny")
    *_, last = record.values()
    assert last["encoders"] == network.encoder_identities()
    assert network.encoder_identities()["CLIP"]["sha256"] == load_encoder("tiny").fingerprint()
    settings = upgrade_checkpoint(last)["hyper_parameters"]
    assert tuple(settings["roi_size"]) == network.settings.roi_size
    assert network.settings.allow_missing == (settings["sequence_dropout"] > 0)


def test_their_rules_of_post_processing_are_on_unless_switched_off():
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    rules = PostProcessing.from_values(config["prediction"]["postprocessing"])
    assert rules.relative_components["WT"] > 0
    assert Predictor.from_pretrained("tiny").postprocessing == rules
    assert Predictor.from_pretrained("tiny", postprocessing=None).postprocessing is None


def test_the_card_says_what_must_be_said():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for text in (
        "CC BY 3.0",
        "Not a medical device",
        "| case | region | Dice |",
        "lesion-wise Dice",
    ):
        assert text in card
    assert "To be filled in" not in card


@pytest.fixture(scope="module")
def patient(tmp_path_factory):
    root = tmp_path_factory.mktemp("patient")
    write_phantoms(root, 1, spacing_mm=1.0, seed=UNSEEN)
    (case,) = find_cases(root, PHANTOM)
    return case


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sequences", "least"),
    [(("t1", "t1ce", "t2", "flair"), (0.8, 0.7, 0.6)), (("t1ce", "flair"), (0.7, 0.6, 0.5))],
)
def test_they_segment_a_simulated_patient(patient, sequences, least):
    given = replace(patient, sequences={name: patient.sequences[name] for name in sequences})
    predicted = Predictor.from_checkpoint("tiny")(given)
    masks = [
        torch.from_numpy(PHANTOM.to_regions(values.astype(np.uint8)))
        for values in (predicted.label, read_voxels(patient.label))
    ]
    scores = dice_empty_is_one(*masks).tolist()
    for region, score, bound in zip(REGIONS, scores, least, strict=True):
        assert score > bound, region


@pytest.mark.slow
def test_a_report_decides_where_the_image_cannot_tell_and_only_there(patient):
    """Without T1ce, nobody sees enhancement; with it, the image is clear."""
    predictor = Predictor.from_pretrained("tiny")
    without = {name: path for name, path in patient.sequences.items() if name != "t1ce"}
    denied, told = "The lesion does not enhance.", "The lesion has a thick, enhancing rim."

    def enhancing(sequences, report):
        case = replace(patient, sequences=sequences, report=report)
        return int((predictor(case).label == 4).sum())

    assert enhancing(without, denied) == 0
    assert enhancing(without, told) > 1000
    clear = enhancing(patient.sequences, "")
    assert enhancing(patient.sequences, denied) > 0.9 * clear > 1000


@pytest.mark.slow
def test_prompts_are_answered(patient):
    prompts = ["the enhancing rim", "the whole tumour", "the left kidney"]
    rim, tumour, kidney = Predictor.from_pretrained("tiny")(patient, prompts=prompts).prompts
    masks = PHANTOM.to_regions(read_voxels(patient.label).astype(np.uint8))
    for answer, region in ((rim, 2), (tumour, 0)):
        dice = dice_empty_is_one(
            torch.from_numpy(answer.mask > 0)[None], torch.from_numpy(masks[region])[None]
        )
        assert dice.item() > 0.5, answer
    assert not kidney.mask.any()
