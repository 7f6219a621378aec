"""Mirrors clipseg3d/ranges.py."""

import pytest

from clipseg3d.ranges import (
    nearest,
    require_above_zero,
    require_count,
    require_names,
    require_not_negative,
    require_share,
    require_trust,
)

NO_NUMBERS = [float("nan"), float("inf"), None, "0.5", True]


@pytest.mark.parametrize("value", [-0.1, 1.1, *NO_NUMBERS])
def test_a_share_is_from_0_to_1(value):
    require_share(a=0, b=1, c=0.5)
    with pytest.raises(ValueError, match=r"^dropout=.* is not in \[0, 1\]; give a probability"):
        require_share(a=0.5, dropout=value)


@pytest.mark.parametrize("value", [-0.1, 1.1, *NO_NUMBERS])
def test_trust_is_from_0_to_1_and_says_what_that_means(value):
    require_trust(0)
    require_trust(1.0)
    with pytest.raises(
        ValueError, match=r"^trust=.* is not in \[0, 1\]; .* no report.* leaves open"
    ):
        require_trust(value)


@pytest.mark.parametrize("value", [-1, *NO_NUMBERS])
def test_numbers_have_a_sign(value):
    require_above_zero(a=1e-9)
    require_not_negative(a=0)
    for require in (require_above_zero, require_not_negative):
        with pytest.raises(ValueError, match=r"^size=.*; give "):
            require(size=value)
    with pytest.raises(ValueError, match="size=0 is not above 0"):
        require_above_zero(size=0)


@pytest.mark.parametrize(
    ("value", "fault"),
    [(0, "is not positive"), (1.5, "is not a whole number"), (True, "whole"), (9, "is too large")],
)
def test_a_count_is_whole_and_in_its_range(value, fault):
    require_count(a=1, b=8, at_most=8)
    with pytest.raises(ValueError, match=f"^workers=.*{fault}.*; give a whole number, 1 to 8"):
        require_count(workers=value, at_most=8)


def test_a_misspelt_name_answers_with_the_nearest():
    require_names(["channels"], ["channels"], of="network")
    with pytest.raises(ValueError, match=r"network\.chanels: no such .*did you mean channels\?"):
        require_names(["chanels"], ["channels", "dropout"], of="network")
    assert nearest("model.los", ["model.loss", "data.loss"]) == "did you mean model.loss?"
    assert nearest("--promt", ["--prompt", "-o"]) == "did you mean --prompt?"
    assert (
        nearest("--config", ["--fit", "-o"]) == "choose one of --fit, -o"
    )  # dashes are no likeness
