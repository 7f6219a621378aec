"""Mirrors clipseg3d/phantom/counterfactual.py; whole twins are tested in test_simulate.py."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from clipseg3d.phantom.counterfactual import Counterfactual
from clipseg3d.phantom.tumour import TumourPlan
from clipseg3d.texts.facts import TumourFacts

PLAN = TumourPlan(
    kind="solid",
    foci=[(1, 2, 3)],
    starts=[0.0],
    tc_ml=30.0,
    oedema_ml=40.0,
    rim_mm=3.5,
    gap=0.1,
    speed=0.15,
    grey_speed=0.3,
    swelling=1.0,
)
FACTS = TumourFacts(
    side="left",
    lobe="frontal",
    foci=1,
    crosses_midline=False,
    enhancement="solid",
    necrosis=False,
    wt_ml=70.0,
    tc_ml=30.0,
    et_ml=30.0,
)


def changed(plan=PLAN, facts=FACTS, seed=0, **facts_changed):
    new = Counterfactual(**facts_changed).change(plan, facts, np.random.default_rng(seed))
    old = asdict(plan)
    return {name: value for name, value in asdict(new).items() if value != old[name]}


def test_only_what_is_given_changes():
    assert changed() == {}
    assert changed(kind="plain") == {"kind": "plain"}
    assert changed(kind="solid") == {}
    assert changed(necrosis=False) == {"necrosis": False}
    assert changed(cavity=True) == {"resected": True}
    assert changed(replace(PLAN, resected=True), cavity=False) == {"resected": False}
    assert changed(second_focus=True, side="right") == {}  # more than a plan is needed
    assert changed(kind="plain", cavity=True) == {"kind": "plain", "resected": True}


def test_a_solid_core_with_necrosis_becomes_a_rim():
    assert changed(necrosis=True) == {"kind": "necrotic", "necrosis": True}
    assert changed(replace(PLAN, kind="plain"), necrosis=True) == {"necrosis": True}
    assert changed(kind="spotted", necrosis=True) == {"kind": "spotted", "necrosis": True}


@pytest.mark.parametrize(
    ("oedema_ml", "extent"), [(10.0, "limited"), (40.0, "moderate"), (80.0, "extensive")]
)
def test_oedema_is_drawn_anew_where_its_word_is_another(oedema_ml, extent):
    facts = replace(FACTS, wt_ml=FACTS.tc_ml + oedema_ml)
    for wanted, low, high in (("limited", 0, 20), ("extensive", 60, 140)):
        drawn = [changed(facts=facts, seed=seed, oedema=wanted) for seed in range(9)]
        if wanted == extent:
            assert drawn == [{}] * 9
        else:
            volumes = {change.pop("oedema_ml") for change in drawn}
            assert drawn == [{}] * 9
            assert len(volumes) == 9
            assert low < min(volumes) < max(volumes) < high


def test_every_change_draws_as_many_values():
    states = set()
    for options in ({}, {"oedema": "limited"}, {"oedema": "extensive"}, {"cavity": True}):
        rng = np.random.default_rng(0)
        Counterfactual(**options).change(PLAN, FACTS, rng)
        states.add(rng.random())
    assert len(states) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "ring"}, "kind='ring' is unknown; choose from necrotic, solid, spotted, plain"),
        ({"oedema": "moderate"}, "oedema='moderate' is unknown; choose from limited, extensive"),
        ({"side": "other"}, "side='other' is unknown; choose from left, right"),
        ({"necrosis": "no"}, "necrosis='no' is unknown; choose from True, False"),
        ({"kind": "solid", "necrosis": True}, "kind='solid' leaves no room for necrosis=True"),
    ],
)
def test_refuses_changes(options, message):
    with pytest.raises(ValueError, match=message):
        Counterfactual(**options)
