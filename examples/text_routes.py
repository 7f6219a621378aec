r"""Which route does text take to the voxels? What each one is worth, in any weights.

    python examples/text_routes.py --weights tiny runs/a/best.ckpt --patients 20

Simulated patients with enhancing tumour are segmented with all sequences and their true report, and
without T1ce, told of their rim or of no enhancement, each with its own mask. Then one route of
the semantic path is left out at a time, or only what the report brings on it:

- *bottleneck*: the features of the bottleneck are not changed (equations 3 to 5 of the paper);
- *skips*: nor are those of the levels above it;
- *attention*: the logits are not changed by semantic attention (equations 6 and 7);
- *presence*: no region is emptied, or kept, by its presence;
- *all*: the plain U-Net.

What is lost is Dice, of ET and of the mean of the regions; two empty masks score 1. A route
whose loss is 0 is dead: it could be removed. Intervals are 95 %, by bootstrap over patients.
"""

import argparse
import csv
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from obedience import FIRST_SEED, Patient, dice, interval, load, plain_labels, plan, solid
from torch import Tensor
from tqdm import tqdm

from clipseg3d import Predictor
from clipseg3d.atomic_write import atomic_write
from clipseg3d.blocks.semantic_fusion import Semantics
from clipseg3d.data.cases import find_cases
from clipseg3d.data.releases import PHANTOM
from clipseg3d.inference.segmentation import ScanWarning
from clipseg3d.networks.clipseg3d import CLIPSeg3D
from clipseg3d.phantom.write import write_phantoms

ROUTES = ("bottleneck", "skips", "attention", "presence", "all")
HEADER = (
    "weights",
    "route",
    "without",
    "image",
    "measure",
    "patients",
    "dice",
    "lost",
    "low",
    "high",
)
MEASURES = ("ET", "mean")


def routes_of(network: CLIPSeg3D) -> list[str]:
    """Return the routes that a network has."""
    fusion = network.semantic_fusion
    if fusion is None:
        return []
    has = {
        "skips": len(fusion.skips) > 0,
        "attention": bool(fusion.guided) or fusion.condition is not None,
        "presence": fusion.presence is not None,
    }
    return [route for route in ROUTES if has.get(route, True)]


@contextmanager
def left_out(network: CLIPSeg3D, route: str, *, report: bool) -> Iterator[None]:
    """Leave one route out for a while, or only what the report brings on it."""
    fusion: Any = network.semantic_fusion
    encode, guide, attend = fusion.encode, fusion.guide, fusion.attend_with_maps
    tell, gates = fusion.tell_presence, [(gate, gate.forward) for gate in fusion.skips]
    unread: list[Semantics] = []

    def encode_both(views: Any, text: Any, mask: Any, **_: Any) -> Semantics:
        unread[:] = [encode(views, text, mask, trust=0.0)]
        return encode(views, text, mask)

    changed: list[tuple[Any, str, Callable[..., Any]]] = []
    if report and route == "all":
        changed = [(fusion, "encode", lambda *given, **_: encode(*given, trust=0.0))]
    elif report:
        changed = [(fusion, "encode", encode_both)]
    if route == "all" and not report:
        changed = [(network, "encode_semantics", lambda *_, **__: None)]
    elif route == "bottleneck":
        new = (lambda x, _, box: guide(x, unread[0], box)) if report else (lambda x, *_: x)
        changed.append((fusion, "guide", new))
    elif route == "skips":
        for gate, forward in gates:
            new = partial(_unread_gate, forward, unread) if report else (lambda x, _: x)
            changed.append((gate, "forward", new))
    elif route == "attention":
        new = (
            (lambda x, _, head, box: attend(x, unread[0], head, box))
            if report
            else (lambda x, _, head, box: (head(x), None))
        )
        changed.append((fusion, "attend_with_maps", new))
    elif route == "presence":
        new = (lambda levels, _: tell(levels, unread[0])) if report else (lambda *_: None)
        changed.append((fusion, "tell_presence", new))
    for owner, name, function in changed:
        setattr(owner, name, function)
    try:
        yield
    finally:
        for owner, name, _ in changed:
            delattr(owner, name)


def _unread_gate(
    forward: Callable[[Tensor, Tensor], Tensor], unread: list[Semantics], x: Tensor, _: Tensor
) -> Tensor:
    """Return what a gate makes of semantics without the report."""
    return forward(x, unread[0].summary)


def score(predictor: Predictor, patient: Patient) -> dict[str, NDArray[np.float64]]:
    """Return Dice of ET and the mean, by what is shown; see the top of this file."""
    asked = plan(patient, "", missing=True, tests=("2", "4"))
    truths = {"own": patient.label, "denied": solid(patient.label)}

    def ask(image: str, text: str) -> NDArray[np.float64]:
        make, texts = asked[image]
        found = predictor(dict(make()), patient.affine, text=texts[text])
        scores = dice(plain_labels(found), truths[text])
        return np.array([scores[2], scores.mean()])

    return {
        "all sequences": ask("all", "own"),
        "no T1ce": (ask("no t1ce", "own") + ask("no t1ce", "denied")) / 2,
    }


def compare(predictor: Predictor, patients: list[Callable[[], Patient]]) -> list[dict[str, Any]]:
    """Return the rows of one network, without its name."""
    scores: dict[tuple[str, str], list[Mapping[str, NDArray[np.float64]]]] = {}
    network = predictor.network
    asked = [(route, what) for route in routes_of(network) for what in ("route", "report")]
    for make in tqdm(patients, unit="patient"):
        patient = make()
        scores.setdefault(("", ""), []).append(score(predictor, patient))
        for route, what in asked:
            with left_out(network, route, report=what == "report"):
                scores.setdefault((route, what), []).append(score(predictor, patient))
    rows = []
    for (route, what), image in product(asked, scores["", ""][0]):
        whole, without = (
            np.stack([found[image] for found in scores[key]]) for key in (("", ""), (route, what))
        )
        for index, measure in enumerate(MEASURES):
            lost = whole[:, index] - without[:, index]
            figures = (whole[:, index].mean(), lost.mean(), *interval(list(lost)))
            values = (route, what, image, measure, len(lost), *(f"{x:.4f}" for x in figures))
            rows.append(dict(zip(HEADER[1:], values, strict=True)))
    return rows


def main() -> None:
    """Segment, score and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--weights", nargs="+", default=["tiny"], help="names or checkpoints")
    parser.add_argument("--names", nargs="+", help="of the weights in the CSV (default: the same)")
    parser.add_argument("--patients", type=int, default=20, help="simulated patients")
    parser.add_argument("--data", type=Path, default=Path("obedience"), help="keeps patients")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "text_routes.csv"
    )
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    names = arguments.names or arguments.weights
    if len(names) != len(arguments.weights):
        parser.error(f"--names: {len(names)} names for {len(arguments.weights)} weights")
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore", ScanWarning)
    rows: list[dict[str, Any]] = []
    if arguments.output.is_file():
        with arguments.output.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["weights"] not in names]
    for weights, name in zip(arguments.weights, names, strict=True):
        predictor = Predictor.from_pretrained(weights)
        spacing_mm = predictor.spacing_mm
        folder = arguments.data / f"patients {spacing_mm:g} mm"
        written = write_phantoms(folder, arguments.patients, spacing_mm=spacing_mm, seed=FIRST_SEED)
        cases = [
            case
            for case in find_cases(folder, PHANTOM, spacing_mm=spacing_mm)
            if case.case_id in written
        ]
        enhancing = [case for case in cases if load(case).with_rim]
        rows += [
            {"weights": name} | row
            for row in compare(predictor, [partial(load, case) for case in enhancing])
        ]
    with atomic_write(arguments.output) as tmp, tmp.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, HEADER, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
