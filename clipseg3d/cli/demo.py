"""``clipseg3d demo``."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clipseg3d.cli.terminal import Commands, require_output, say

if TYPE_CHECKING:
    from clipseg3d.inference.segmentation import Segmentation
    from clipseg3d.phantom.simulate import Phantom

PATIENT_SEED = 12
SPACING_MM = 1.0
PROMPT = "the enhancing rim"


@dataclass(frozen=True)
class DemoResult:
    """Files of the demo, and Dice of its patient.

    Attributes:
        case: folder of the simulated patient: sequences, expert mask, report.
        segmentation: NIfTI labels, with the report.
        picture: PNG of sequences, reference and prediction.
        page: case page.
        report: the patient's report.
        dice: region -> Dice with the report.
        dice_without: region -> Dice without it.
        changed: voxels whose label the report has changed.
        prompt: what was asked for and found, in words; empty if the weights answer no prompts.
    """

    case: Path
    segmentation: Path
    picture: Path
    page: Path
    report: str
    dice: dict[str, float]
    dice_without: dict[str, float]
    changed: int
    prompt: str


def add_command(commands: Commands) -> None:
    """Add the command to the command line."""
    demo = commands.add_parser(
        "demo",
        help="show everything on a simulated patient, offline",
        description="Simulate a patient, segment it with the bundled weights, with and without "
        "its report, and write labels, a picture and a case page. Needs no data, no internet and "
        "no GPU.",
    )
    demo.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("clipseg3d-demo"),
        metavar="DIR",
        help="folder for all files (default: %(default)s)",
    )
    demo.add_argument(
        "--train",
        action="store_true",
        help="train a tiny network on simulated patients for a few minutes, and segment with that",
    )
    demo.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``clipseg3d demo``."""
    from clipseg3d.cli.quiet import quiet

    require_output(arguments.output, folder=True)
    with quiet():
        if arguments.train:
            _show_training(arguments.output)
        else:
            _show(run_demo(arguments.output))
    return 0


def run_demo(out: Path) -> DemoResult:
    """Simulate a patient, and segment it with the bundled weights.

    Args:
        out: folder for all files.
    """
    from clipseg3d.inference.predictor import Predictor
    from clipseg3d.phantom.simulate import simulate_phantom
    from clipseg3d.phantom.write import write_phantom
    from clipseg3d.reporting.figures import save_overlay

    name = f"Phantom_{PATIENT_SEED:05d}"
    folder = out / name
    say(f"Simulating a patient at {SPACING_MM:g} mm ...")
    phantom = simulate_phantom(PATIENT_SEED, spacing_mm=SPACING_MM)
    if not folder.is_dir():
        write_phantom(phantom, out, name)
    predictor = Predictor.from_pretrained()
    answers = all(network.prompt_head is not None for network in predictor.networks)
    say("Segmenting it with its report, and without ...\n")
    told = predictor(folder, prompts=[PROMPT] if answers else [], explain=True)
    untold = predictor(folder, text="")
    told.save(out / f"{name}.nii.gz")
    told.save_case_page(out / f"{name}.html", reference=folder / f"{name}_seg.nii.gz")
    if answers:
        told.save_prompts(out / "prompts")
    dice, dice_without = _dice(told, phantom), _dice(untold, phantom)
    save_overlay(
        out / f"{name}.png",
        phantom.image,
        prediction=told.release.to_regions(told.label),
        reference=told.release.to_regions(phantom.label),
        title=f"Simulated patient {PATIENT_SEED}: Dice {_in_words(dice)}",
    )
    return DemoResult(
        case=folder,
        segmentation=out / f"{name}.nii.gz",
        picture=out / f"{name}.png",
        page=out / f"{name}.html",
        report=phantom.report,
        dice=dice,
        dice_without=dice_without,
        changed=int((told.label != untold.label).sum()),
        prompt="".join(map(str, told.prompts)),
    )


def _dice(segmentation: "Segmentation", phantom: "Phantom") -> dict[str, float]:
    """Return the Dice of every region."""
    import torch

    from clipseg3d.metrics.dice import dice_empty_is_one

    release = segmentation.release
    masks = (release.to_regions(label) for label in (segmentation.label, phantom.label))
    scores = dice_empty_is_one(*map(torch.from_numpy, masks)).tolist()
    return dict(zip(release.regions, scores, strict=True))


def _in_words(dice: dict[str, float]) -> str:
    """Return scores in one line."""
    return "   ".join(f"{region} {score:.3f}" for region, score in dice.items())


def _show(result: DemoResult) -> None:
    """Print what was done, and last what to open."""
    say(f"Report: {result.report}\n")
    say(f"Dice with the report     {_in_words(result.dice)}")
    say(f"Dice without it          {_in_words(result.dice_without)}")
    say(f"Changed by the report    {result.changed} voxels")
    if result.prompt:
        say(f"Prompt                   {result.prompt}")
    say(
        f"\nPatient    {result.case}\nLabels     {result.segmentation}\n"
        f"Picture    {result.picture}\nCase page  {result.page}\n\n"
        "Your own scans: clipseg3d segment CASE -o labels --html\n"
        f"Open {result.page} in a browser."
    )


def _show_training(out: Path) -> None:
    """Train a network, and print what it does."""
    from clipseg3d.cli.demo_training import train_demo

    result = train_demo(out)
    say(f"\nReport: {result.report}\n")
    say(f"Dice  {_in_words(result.dice)}")
    say(
        f"\nPatient       {result.case}\nSegmentation  {result.segmentation}\n"
        f"Picture       {result.picture}\nWeights       {result.weights}\n\n"
        "The network was trained on simulated patients for a few minutes: this shows that "
        f"everything runs,\nnot how well it segments real scans. Open {result.picture}"
    )
