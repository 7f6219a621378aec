"""The course of a fit as a picture: loss, learning rate and scores, from a log in CSV."""

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from clipseg3d.atomic_write import atomic_write

_Curve = list[tuple[float, float]]
_DICE = "val/dice_"


def save_curves(path: Path, log: Path) -> None:
    """Draw the curves of a fit as a PNG.

    Args:
        path: picture to write.
        log: ``metrics.csv`` of Lightning's CSVLogger, with the columns ``step``, ``train/loss``,
            ``train/lr`` and ``val/dice_...``; those that are missing are left out.

    Raises:
        FileNotFoundError: there is no such log.
        OSError: the picture cannot be written.
    """
    curves = _read(log)
    figure = Figure(figsize=(8, 8), layout="constrained")
    FigureCanvasAgg(figure)
    loss, rate, dice = figure.subplots(3, 1, sharex=True, height_ratios=(3, 1, 3))
    _draw_loss(loss, curves.get("train/loss", []))
    loss.set_ylabel("loss")
    rate.plot(*_columns(curves.get("train/lr", [])), color="#555555")
    rate.set_ylabel("learning rate")
    for name, points in curves.items():
        if name.startswith(_DICE):
            region = name.removeprefix(_DICE).upper().replace("MEAN", "mean")
            colour = "#000000" if region == "mean" else None
            dice.plot(*_columns(points), marker=".", color=colour, label=region)
    dice.set(ylabel="Dice of validation", ylim=(0, 1), xlabel="step")
    if dice.lines:
        dice.legend()
    else:
        dice.text(0.5, 0.5, "no epoch was validated", ha="center", transform=dice.transAxes)
    for axes in (loss, rate, dice):
        axes.grid(alpha=0.3)
    with atomic_write(path) as tmp:
        figure.savefig(tmp, format="png", dpi=100)


def _read(log: Path) -> dict[str, _Curve]:
    """Return the points (step, value) of every metric."""
    curves: dict[str, _Curve] = defaultdict(list)
    with log.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name not in ("step", "epoch"):
                    curves[name].append((float(row["step"]), float(value)))
    return curves


def _draw_loss(axes: Axes, points: _Curve) -> None:
    """Draw every step, faintly, and a running mean over a fiftieth of the fit."""
    steps, losses = _columns(points)
    width = max(1, len(losses) // 50)
    axes.plot(steps, losses, color="#0072B2", alpha=0.3 if width > 1 else 1.0)
    if width > 1:
        mean = np.convolve(losses, np.full(width, 1 / width), mode="valid")
        axes.plot(steps[width - 1 :], mean, color="#0072B2")


def _columns(points: _Curve) -> tuple[list[float], list[float]]:
    """Return steps and values apart."""
    return [step for step, _ in points], [value for _, value in points]
