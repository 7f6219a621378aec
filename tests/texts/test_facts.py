"""Facts are measured on label maps."""

import numpy as np
import pytest

from clipseg3d.texts.facts import measure_facts


def label_map(*blobs):
    """A brain of 60 x 80 x 50 voxels in a larger grid, and cubes (corner, edge, label) in it."""
    label = np.zeros((80, 100, 60), np.uint8)
    brain = np.zeros(label.shape, bool)
    brain[10:70, 5:85, 4:54] = True
    for corner, edge, value in blobs:
        x, y, z = np.add(corner, (10, 5, 4))
        label[x : x + edge, y : y + edge, z : z + edge] = value
    return label, brain


def measured(*blobs, spacing_mm=2.0):
    return measure_facts(*label_map(*blobs), spacing_mm=spacing_mm)


@pytest.mark.parametrize(
    ("centre", "side", "lobe"),
    [
        ((45, 15, 35), "left", "frontal"),
        ((10, 15, 35), "right", "frontal"),
        ((45, 45, 35), "left", "parietal"),
        ((10, 72, 25), "right", "occipital"),
        ((8, 35, 10), "right", "temporal"),
        ((50, 10, 10), "left", "frontal"),
    ],
)
def test_measures_a_label_map_made_by_hand(centre, side, lobe):
    label = np.zeros((80, 100, 60), np.uint8)
    brain = np.zeros(label.shape, bool)
    brain[10:70, 5:85, 4:54] = True
    x, y, z = np.add(centre, (10, 5, 4))
    label[x - 2 : x + 3, y - 2 : y + 3, z - 2 : z + 3] = 2
    label[x - 1 : x + 2, y - 1 : y + 2, z - 1 : z + 2] = 4
    label[x, y, z] = 1
    facts = measure_facts(label, brain, spacing_mm=2.0)
    assert (facts.side, facts.lobe) == (side, lobe)
    assert (facts.wt_ml, facts.tc_ml, facts.et_ml) == pytest.approx((1.0, 0.216, 0.208))
    assert facts.enhancing
    assert facts.necrosis


def test_measuring_names_what_is_wrong():
    label, brain = np.zeros((3, 4, 5), np.uint8), np.ones((3, 4, 5), bool)
    with pytest.raises(ValueError, match="core"):
        measure_facts(label, brain, spacing_mm=1.0)
    with pytest.raises(ValueError, match=r"\(3, 4, 5\).*\(3, 4\)"):
        measure_facts(label, brain[..., 0], spacing_mm=1.0)


@pytest.mark.parametrize(
    ("blobs", "foci", "side"),
    [
        ([((8, 20, 30), 8, 4)], 1, "right"),
        # 27 voxels of 8 cubic mm are less than half a millilitre
        ([((8, 20, 30), 8, 4), ((45, 20, 30), 3, 4)], 1, "right"),
        ([((8, 20, 30), 8, 4), ((45, 20, 30), 4, 1)], 2, "right"),
        ([((8, 20, 30), 5, 4), ((45, 20, 30), 8, 1), ((45, 60, 30), 5, 1)], 3, "left"),
        # touching at a corner is one focus
        ([((8, 20, 30), 5, 4), ((13, 25, 35), 5, 1)], 1, "right"),
    ],
)
def test_counts_foci_and_takes_the_side_of_the_largest(blobs, foci, side):
    facts = measured(*blobs)
    assert (facts.foci, facts.side) == (foci, side)


def test_foci_are_counted_in_millilitres():
    blobs = [((8, 20, 30), 8, 4), ((45, 20, 30), 3, 4)]
    assert measured(*blobs, spacing_mm=3.0).foci == 2


def test_a_tumour_crosses_the_midline_with_what_lies_well_beyond_it():
    core = ((8, 20, 20), 6, 4)
    assert not measured(((20, 16, 16), 12, 2), core).crosses_midline  # up to 2 voxels beyond
    assert measured(((24, 16, 16), 12, 2), core).crosses_midline
    mirrored = ((46, 20, 20), 6, 4)
    assert not measured(((28, 16, 16), 12, 2), mirrored).crosses_midline
    assert measured(((24, 16, 16), 12, 2), mirrored).crosses_midline


@pytest.mark.parametrize(
    ("corner", "edge", "enhancement"),
    [(0, 0, "none"), (0, 3, "spots"), (0, 6, "patches"), (2, 6, "patches"), (0, 10, "solid")],
)
def test_enhancement_is_named_by_its_share(corner, edge, enhancement):
    enhancing = (np.add((8, 20, 20), corner), edge, 4)
    facts = measured(((8, 20, 20), 10, 1), enhancing)
    assert facts.enhancement == enhancement
    assert facts.enhancing == (edge > 0)
    assert not facts.necrosis


def test_a_rim_encloses_what_does_not_enhance():
    facts = measured(((8, 20, 20), 12, 4), ((9, 21, 21), 10, 1))  # thin, and yet all round
    assert (facts.enhancement, facts.necrosis) == ("rim", True)
    # a lid that does not enhance, but nothing behind the rim
    facts = measured(((8, 20, 20), 10, 4), ((10, 22, 20), 6, 1), ((10, 22, 21), 6, 4))
    assert (facts.enhancement, facts.necrosis) == ("rim", False)


def test_mass_effect_is_unknown_from_labels():
    facts = measured(((8, 20, 20), 10, 1))
    assert facts.ventricle_loss is None
    assert facts.midline_shift_mm is None


def test_a_cavity_is_part_of_the_lesion_and_of_no_volume():
    core, hole = ((8, 20, 20), 12, 4), ((9, 21, 21), 10, 3)
    facts, before = measured(core, hole), measured(core, ((9, 21, 21), 10, 1))
    ml = 2**3 / 1000
    assert facts.cavity_ml == pytest.approx(10**3 * ml)
    assert facts.tc_ml == facts.wt_ml == facts.et_ml == pytest.approx((12**3 - 10**3) * ml)
    assert (facts.foci, facts.side, facts.lobe) == (1, before.side, before.lobe)
    assert facts.enhancement == "solid"  # all that remains
    assert facts.rim_mm == pytest.approx(before.rim_mm)
    assert before.cavity_ml == 0


def test_what_remains_around_a_cavity_is_a_rim_by_its_outer_surface():
    remains = ((11, 23, 23), 4, 1)  # not enhancing, beside the hole
    facts = measured(((8, 20, 20), 12, 4), ((9, 21, 21), 10, 3), remains)
    assert (facts.enhancement, facts.necrosis) == ("rim", True)


def test_a_core_without_a_surface_of_its_own_has_no_rim():
    facts = measured(((8, 20, 20), 12, 3), ((10, 22, 22), 4, 1), ((10, 22, 22), 2, 4))
    assert facts.enhancement == "spots"
