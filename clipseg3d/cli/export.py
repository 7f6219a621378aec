"""``clipseg3d export``."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from clipseg3d.cli.terminal import Commands, say

if TYPE_CHECKING:
    from clipseg3d.networks.clipseg3d import CLIPSeg3D

GRAPHS = ("onnx", "torch")


def add_command(commands: Commands) -> None:
    """Add the command to the command line."""
    export = commands.add_parser(
        "export",
        help="turn trained weights into a folder to publish, an ONNX graph or a MONAI bundle",
        description="Write trained weights in another format. The frozen CLIP is in none of them. "
        "pretrained: a folder for CLIPSeg3D.from_pretrained and the Hugging Face hub, with a model "
        "card to fill in. bundle: a MONAI bundle, for 'python -m monai.bundle run'. onnx and "
        "torch: the image path of one window as a graph, with the prompts and one report read "
        "beforehand; what CLIP sees in the views of a case is an input.",
    )
    export.add_argument(
        "weights",
        metavar="WEIGHTS",
        help="checkpoint written by 'clipseg3d fit', a folder written by this command, the name of "
        "weights that come with clipseg3d, or a Hugging Face hub id",
    )
    export.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="PATH",
        help="folder to write (pretrained, bundle), or file ending in .onnx or .pt2",
    )
    export.add_argument(
        "--format",
        choices=("pretrained", "bundle", *GRAPHS),
        default="pretrained",
        help="(default: %(default)s)",
    )
    export.add_argument(
        "--text", metavar="FILE|STR", help="report for onnx and torch: a .txt file, or the text"
    )
    export.add_argument(
        "--clip",
        metavar="NAME|DIR",
        help="where CLIP is, if not where it was in training; what is written names this one",
    )
    export.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``clipseg3d export``."""
    if arguments.text is not None and arguments.format not in GRAPHS:
        raise ValueError(
            f"--text is read into graphs only, not into --format {arguments.format}; leave it out"
        )
    report = "" if arguments.text is None else _text(arguments.text)
    network = _network(arguments.weights, arguments.clip)
    settings = network.settings
    if arguments.format == "pretrained":
        network.save_pretrained(arguments.output)
    elif settings is None:
        raise ValueError(
            f"{arguments.weights}: does not say which scans the network is for; set "
            "network.settings and save it again with save_pretrained"
        )
    elif arguments.format == "bundle":
        from clipseg3d.export.bundle import write_bundle

        write_bundle(network, arguments.output, settings)
    else:
        from clipseg3d.export.graph import write_onnx, write_torch

        write = write_onnx if arguments.format == "onnx" else write_torch
        write(network, arguments.output, settings, report=report)
    say(str(arguments.output))
    return 0


def _network(weights: str, clip: str | None) -> "CLIPSeg3D":
    """Return the network of a checkpoint, or of what :meth:`CLIPSeg3D.from_pretrained` takes."""
    from clipseg3d.inference.checkpoint import read_checkpoints
    from clipseg3d.networks.clipseg3d import CLIPSeg3D
    from clipseg3d.networks.settings import PredictionSettings

    path = Path(weights)
    if not path.is_file() and path.suffix != ".ckpt":
        return CLIPSeg3D.from_pretrained(weights, clip=clip)
    (checkpoint,) = read_checkpoints([path], clip=clip)
    network = checkpoint.network.eval()
    network.settings = PredictionSettings(
        release=checkpoint.release,
        spacing_mm=checkpoint.spacing_mm,
        window=checkpoint.window,
        overlap=checkpoint.overlap,
        allow_missing=checkpoint.allow_missing,
    )
    return network


def _text(value: str) -> str:
    """Return the report that ``--text`` gives, from a file if it names one."""
    from clipseg3d.data.text_files import read_text

    return read_text(Path(value)) if value.endswith(".txt") else value
