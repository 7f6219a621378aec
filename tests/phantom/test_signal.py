"""Mirrors clipseg3d/phantom/signal.py."""

import math
from dataclasses import replace

import numpy as np
import pytest

from clipseg3d.phantom import signal as module
from clipseg3d.phantom.signal import Tissue

FLUID = Tissue(4000, 2000, 1.0)
WHITE = Tissue(600, 80, 0.7)
SCANNER = module._Scanner(
    tesla=1.5,
    t1_spin_echo=(True, True),
    t1_times_ms=((500, 10, 0), (500, 10, 0)),
    t2_times_ms=(4000, 100),
    flair_times_ms=(9000, 120, 1.0),
)


def signal(sequence, tissue, scanner=SCANNER):
    return scanner.signal(sequence, tissue, FLUID.t1_ms)


def test_spin_echoes_follow_their_equation():
    expected = 0.7 * (1 - math.exp(-500 / 600)) * math.exp(-10 / 80)
    assert signal("t1", WHITE) == pytest.approx(expected)
    assert signal("t1ce", WHITE) == pytest.approx(expected)
    expected = 0.7 * (1 - math.exp(-4000 / 600)) * math.exp(-100 / 80)
    assert signal("t2", WHITE) == pytest.approx(expected)


def test_flair_nulls_fluid():
    assert signal("flair", FLUID) == pytest.approx(0, abs=1e-9)
    early = replace(SCANNER, flair_times_ms=(9000, 120, 0.9))
    assert signal("flair", FLUID, early) > 0.02
    assert signal("flair", WHITE) > 0.1


def test_gadolinium_is_seen_after_contrast_only():
    with_contrast = WHITE._replace(gadolinium_mm=1.0)
    assert signal("t1", with_contrast) == signal("t1", WHITE)
    t1 = 1 / (1 / 600 + 4.5 / 1000)
    t2 = 1 / (1 / 80 + 5.5 / 1000)
    expected = 0.7 * (1 - math.exp(-500 / t1)) * math.exp(-10 / t2)
    assert signal("t1ce", with_contrast) == pytest.approx(expected)


def test_inversion_prepared_t1_follows_its_equation():
    scanner = replace(SCANNER, t1_spin_echo=(False, True), t1_times_ms=((2000, 3, 900),) * 2)
    recovered = 1 - 2 * math.exp(-900 / 600) / (1 + math.exp(-2000 / 600))
    assert signal("t1", WHITE, scanner) == pytest.approx(0.7 * recovered * math.exp(-3 / 80))


def test_t1_has_its_own_settings_before_and_after_contrast():
    scanner = replace(SCANNER, t1_times_ms=((500, 10, 0), (700, 15, 0)))
    assert signal("t1", WHITE, scanner) == signal("t1", WHITE)
    expected = 0.7 * (1 - math.exp(-700 / 600)) * math.exp(-15 / 80)
    assert signal("t1ce", WHITE, scanner) == pytest.approx(expected)


def test_t1_is_longer_at_3_tesla():
    strong = replace(SCANNER, tesla=3.0)
    assert signal("t1", WHITE, strong) < signal("t1", WHITE)


def test_tissues_contrast_as_radiologists_know_them():
    white, grey, csf, oedema, enhancing = (
        module._TISSUES[name][1] for name in ("white", "grey", "csf", "oedema", "enhancing")
    )
    for tesla in (1.5, 3.0):
        scanner = replace(SCANNER, tesla=tesla)

        def of(sequence, tissue, scanner=scanner):
            return scanner.signal(sequence, tissue, csf.t1_ms)

        assert of("t1", white) > of("t1", grey) > of("t1", csf)
        assert of("t2", csf) > of("t2", oedema) > of("t2", grey) > of("t2", white)
        assert of("flair", oedema) > of("flair", grey) > of("flair", csf)
        assert of("t1ce", enhancing) > of("t1ce", white) > of("t1ce", oedema)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_thick_slices_average_along_one_axis_and_keep_the_total(axis):
    volume = np.zeros((24, 24, 24), np.float32)
    volume[12, 12, 12] = 1
    thick = module._thick_slices(volume, axis, 4.0, 0.3)
    others = tuple(a for a in range(3) if a != axis)
    assert (thick.any(axis=others)).sum() >= 5
    for other in others:
        rest = tuple(a for a in range(3) if a != other)
        assert (thick.any(axis=rest)).sum() == 1
    assert thick.sum() == pytest.approx(1, rel=0.15)
    flat = np.full((24, 24, 24), 7, np.float32)
    np.testing.assert_allclose(module._thick_slices(flat, axis, 3.3, 0.6), 7, rtol=1e-5)
