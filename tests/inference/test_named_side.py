"""Mirrors clipseg3d/inference/named_side.py."""

import numpy as np
import pytest

from clipseg3d.inference.named_side import named_side
from clipseg3d.texts import Statement, write_text


@pytest.mark.parametrize(
    ("side", "report"),
    [
        ("left", "There is a mass in the left temporal lobe."),
        ("right", "GBM R frontal, thick irregular rim CE"),
        ("left", "Left-sided tumour without multifocal disease."),
        ("right", "Right parietal glioma, no second lesion, midline shift of 5 mm to the left."),
        ("left", "The lesion in the left frontal lobe does not enhance."),
        ("left", "Mass in the left temporal lobe. The right hemisphere is normal. No lesion in the "
                 "right frontal lobe. The right temporal lobe is not involved."),
        ("right", "Number of lesions: one. Location: right frontal. Several mm of midline shift."),
    ],
)  # fmt: skip
def test_the_side_of_a_lesion_is_read(side, report):
    assert named_side(report) == side


@pytest.mark.parametrize(
    "report",
    [
        "",
        "There is a tumour.",
        "The right hemisphere is normal.",
        "No lesion in the right hemisphere.",
        "There is a tumour. The right frontal lobe is spared.",
        "There is a glioma. Midline shift to the right.",
        "Compression of the right lateral ventricle.",
        "Large enhancing mass. The left hemisphere is unremarkable.",
        "Nothing abnormal on the right.",
        "Right-sided structures show no signal change.",
        "The right temporal lobe is not involved.",
        "Sparing of the right insula.",
        "Old lacunar infarct in the right thalamus. There is a mass.",
        "Weakness of the left arm. There is a mass.",
        "Craniotomy on the left.",
    ],
)
def test_a_side_without_a_lesion_is_none(report):
    assert named_side(report) is None


@pytest.mark.parametrize(
    "report",
    [
        "Enhancing lesion in the left frontal lobe. Similar lesion in the right parietal lobe.",
        "A lesion in the left frontal lobe and the contralateral side.",
        "Largest lesion in the left frontal lobe.",
        "Two lesions in the left frontal lobe.",
        "Left frontal mass, suggesting multiple lesions.",
        "Left frontal mass that crosses the midline.",
        "Tumour with extension to the right hemisphere, centred on the left.",
        "Mass in the left frontal lobe. Mass in the right frontal lobe.",
        "Bilateral disease, more on the left.",
    ],
)
def test_several_lesions_or_both_sides_are_none(report):
    assert named_side(report) is None


def test_written_reports_are_never_read_wrongly():
    rng, read = np.random.default_rng(0), []
    for index in range(300):
        side = ("left", "right")[index % 2]
        statement = Statement(
            side=side,
            sites=(("frontal",), ("temporal",), ())[index % 3],
            enhancement=("none", "rim", None)[index % 3],
            oedema=("extensive", None)[index % 2],
            foci=("single", None)[index % 2],
            shifted=(True, None)[index % 2],
        )
        found = named_side(write_text(statement, rng))
        assert found in (side, None)
        read.append(found is not None)
    assert np.mean(read) > 0.75


def test_written_reports_of_several_lesions_are_none():
    """Nearly all; the prompt head tells too."""
    rng = np.random.default_rng(1)
    reports = (
        write_text(Statement(side="left", foci="multiple"), rng, slips=0) for _ in range(200)
    )
    assert np.mean([named_side(report) is None for report in reports]) > 0.95
