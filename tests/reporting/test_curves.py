"""Mirrors clipseg3d/reporting/curves.py."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread

from clipseg3d.reporting import save_curves

LOG = """epoch,step,train/loss,train/lr,val/dice_mean,val/dice_wt
0,0,3.0,0.1,,
0,1,2.0,0.2,,
0,1,,,0.25,0.5
1,2,1.5,0.1,,
1,2,,,0.5,0.75
"""


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn, as (steps, values)."""
    lines, plot = [], Axes.plot

    def record(self, steps, values, **options):
        lines.append((list(steps), list(values)))
        return plot(self, steps, values, **options)

    monkeypatch.setattr(Axes, "plot", record)
    return lines


def test_every_metric_is_drawn_at_its_steps(drawn, tmp_path):
    (tmp_path / "metrics.csv").write_text(LOG)
    save_curves(tmp_path / "curves.png", tmp_path / "metrics.csv")
    assert drawn == [
        ([0, 1, 2], [3.0, 2.0, 1.5]),
        ([0, 1, 2], [0.1, 0.2, 0.1]),
        ([1, 2], [0.25, 0.5]),
        ([1, 2], [0.5, 0.75]),
    ]
    assert np.ptp(imread(tmp_path / "curves.png")) == 1.0


def test_long_losses_have_a_running_mean(drawn, tmp_path):
    losses = [float(i % 2) for i in range(200)]
    rows = "".join(f"{step},{loss}\n" for step, loss in enumerate(losses))
    (tmp_path / "metrics.csv").write_text(f"step,train/loss\n{rows}")
    save_curves(tmp_path / "curves.png", tmp_path / "metrics.csv")
    steps, mean = drawn[1]
    assert (steps[0], steps[-1]) == (3, 199)  # over four steps
    assert np.allclose(mean, 0.5)


def test_an_empty_plot_says_why(monkeypatch, tmp_path):
    words, text = [], Axes.text
    monkeypatch.setattr(
        Axes, "text", lambda self, x, y, s, **o: words.append(s) or text(self, x, y, s, **o)
    )
    for name, log in (("without", "step,train/loss\n0,3.0\n"), ("with", LOG)):
        (tmp_path / "metrics.csv").write_text(log)
        save_curves(tmp_path / f"{name}.png", tmp_path / "metrics.csv")
    assert words == ["no epoch was validated"]
