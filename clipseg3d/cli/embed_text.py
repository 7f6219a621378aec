"""``clipseg3d embed-text``."""

import argparse
import glob
from pathlib import Path

from clipseg3d.cli.terminal import Commands, require_output, say


def add_command(commands: Commands) -> None:
    """Add the command to the command line."""
    embed = commands.add_parser(
        "embed-text",
        help="embed reports in advance, into a file",
        description="Embed the prompts of all regions and the chunks of all reports, and write "
        "them to a file for --model.text_cache of 'clipseg3d fit', or TextBank(cache=FILE).",
    )
    embed.add_argument(
        "sources",
        nargs="+",
        type=Path,
        metavar="SOURCE",
        help="a .txt file with one report, a .json file (case -> report), or a folder that is "
        "searched for *_flair_text.txt",
    )
    embed.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="file to write, ending in .safetensors",
    )
    embed.add_argument(
        "--encoder",
        default="openai/clip-vit-base-patch32",
        metavar="NAME",
        help="folder, Hugging Face hub name, open_clip:NAME, or tiny (default: %(default)s)",
    )
    embed.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``clipseg3d embed-text``."""
    if arguments.output.suffix != ".safetensors":
        raise ValueError(f"{arguments.output}: does not end in .safetensors; rename it")
    require_output(arguments.output)
    reports = [report for source in arguments.sources for report in _reports(source)]

    from clipseg3d.clip.prompts import REGION_PROMPTS
    from clipseg3d.clip.registry import load_text_encoder
    from clipseg3d.clip.text_bank import TextBank

    encoder = load_text_encoder(arguments.encoder)
    count = TextBank(encoder, tuple(REGION_PROMPTS)).save(arguments.output, reports)
    say(
        f"{arguments.output}: {count} texts (prompts and {len(reports)} reports) embedded by "
        f"{encoder.name}"
    )
    return 0


def _reports(source: Path) -> list[str]:
    """Return the reports in a file or folder, at least one."""
    from clipseg3d.data.reports import REPORT_SUFFIX, read_reports
    from clipseg3d.text_files import read_report

    if source.is_dir():
        names = glob.glob(f"**/*{REPORT_SUFFIX}", root_dir=source, recursive=True)
        texts = [read_report(source / name) for name in sorted(names)]
    elif source.suffix == ".json":
        texts = list(read_reports(source).values())
    elif source.suffix == ".txt":
        texts = [read_report(source)]
    else:
        raise ValueError(f"{source}: no folder, .txt or .json file; give one that holds reports")
    reports = [text for text in texts if text.strip()]
    if not reports:
        raise ValueError(
            f"{source}: holds no report; give a .txt file, a .json file (case -> report), or a "
            f"folder with *{REPORT_SUFFIX} files"
        )
    return reports
