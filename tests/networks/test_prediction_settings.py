"""Mirrors clipseg3d/networks/prediction_settings.py."""

import pytest

from clipseg3d.networks.prediction_settings import PredictionSettings

VALUES = {
    "release": "brats2020",
    "spacing_mm": 1.5,
    "roi_size": [16, 24, 20],
    "overlap": 0.25,
    "sequence_dropout": 0.1,
    "report_dropout": 0.5,
}
"""Hyperparameters of a fit, of which some matter for prediction."""


def test_hyperparameters_give_the_settings():
    expected = PredictionSettings("brats2020", 1.5, (16, 24, 20), 0.25, allow_missing=True)
    assert PredictionSettings.from_hyperparameters(VALUES) == expected


def test_rules_of_post_processing_are_among_them():
    rules = {"enhancing_to_core": 0.5}
    settings = PredictionSettings.from_hyperparameters({**VALUES, "postprocessing": rules})
    assert settings.postprocessing == rules
    assert PredictionSettings.from_hyperparameters(VALUES).postprocessing is None


def test_sequences_may_be_missing_only_where_training_withheld_some():
    without = {name: value for name, value in VALUES.items() if name != "sequence_dropout"}
    assert not PredictionSettings.from_hyperparameters(without).allow_missing
    assert not PredictionSettings.from_hyperparameters(
        {**VALUES, "sequence_dropout": 0.0}
    ).allow_missing


@pytest.mark.parametrize("name", ["release", "spacing_mm", "roi_size", "overlap"])
def test_a_missing_hyperparameter_is_named(name):
    values = {key: value for key, value in VALUES.items() if key != name}
    with pytest.raises(KeyError, match=name):
        PredictionSettings.from_hyperparameters(values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spacing_mm": 0.0}, "spacing_mm=0.0 is not above 0"),
        ({"spacing_mm": float("nan")}, "spacing_mm=nan is not above 0"),
        ({"roi_size": [16, 24]}, r"roi_size=\(16, 24\): give three sizes"),
        ({"roi_size": [16, 24, 0]}, "give three sizes in voxels, each from 1 to 1024"),
        ({"overlap": 1.0}, r"overlap=1.0 is not in \[0, 1\)"),
        ({"overlap": -0.1}, r"overlap=-0.1 is not in \[0, 1\)"),
    ],
)
def test_values_that_no_prediction_can_use_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PredictionSettings.from_hyperparameters({**VALUES, **changes})
