"""``clipseg3d export``."""

import argparse
from pathlib import Path

from clipseg3d.cli.terminal import Commands, report_text, require_output, say

GRAPHS = ("onnx", "torch")


def add_command(commands: Commands) -> None:
    """Add the command to the command line."""
    export = commands.add_parser(
        "export",
        help="turn weights into a folder, ONNX or a MONAI bundle",
        description="Write trained weights in another format. None of them holds the frozen CLIP. "
        "pretrained: a folder for CLIPSeg3D.from_pretrained and the Hugging Face hub, with a model "
        "card to fill in. bundle: a MONAI bundle, for 'python -m monai.bundle run'. onnx and "
        "torch: the image path for one crop as a graph, in which the embeddings of the prompts and "
        "of one report are stored; CLIP's embeddings of the views are an input.",
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
        help="where CLIP is, if not at the place it had in training; the files written name this "
        "place",
    )
    export.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``clipseg3d export``."""
    if arguments.text is not None and arguments.format not in GRAPHS:
        raise ValueError(
            f"--text is only for graphs, not for --format {arguments.format}; leave it out"
        )
    report = "" if arguments.text is None else report_text(arguments.text)

    require_output(arguments.output, folder=arguments.format not in GRAPHS)

    from clipseg3d.pretrained.reader import read_networks

    (trained,) = read_networks([arguments.weights], clip=arguments.clip)
    network, settings = trained.network.eval(), trained.settings
    if arguments.format == "pretrained":
        network.save_pretrained(arguments.output)
    elif arguments.format == "bundle":
        from clipseg3d.export.bundle import write_bundle

        write_bundle(network, arguments.output, settings)
    else:
        from clipseg3d.export.graph import write_onnx, write_torch

        write = write_onnx if arguments.format == "onnx" else write_torch
        write(network, arguments.output, settings, report=report)
    say(str(arguments.output))
    return 0
