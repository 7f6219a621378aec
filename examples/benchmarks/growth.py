"""How cost grows with cases, voxels, prompts and ranks, and whether memory of a case is given back.

    python examples/benchmarks/growth.py                           # all parts
    python examples/benchmarks/growth.py --parts evaluate memory   # some of them
    python examples/benchmarks/growth.py --plot                    # draws what is stored

- ``index``, ``check-data``, ``evaluate``: 10, 100 and 1,251 cases.
- ``cache``, ``epoch``: the same; one epoch reads a crop of each.
- ``segment``, ``page``: 10, 30 and 100 cases; ``page`` also writes case pages.
- ``volumes segment``, ``volumes check-data``, ``volumes cache``, ``volumes evaluate``,
  ``volumes page``: one case of 96 x 96 x 96 to 512 x 512 x 400 voxels, in one field of view.
- ``prompts``: one case with 1 to 32 prompts.
- ``ranks``: the same steps of training on 1 to 3 processes; CPU time of all of them.
- ``memory``: what a process holds after each of 40 cases, segmented with case page.

Cases are simulated patients whose voxels are repeated until a volume is as large as wanted. All but
three of many cases are links to those three. Every measurement has a process of its own, forked
after the same was done for two cases, so that imports do not count. Seconds are those of the CPU,
all threads together, and hold on a busy machine too. ``--rounds`` takes medians.

Rows of ``growth.csv`` are one measurement each; rows of other parts stay. ``exponent`` is that of
the power law from the row before: 1 if cost grows as the work does. What does not grow with the
work makes it smaller. ``ratio`` is the largest exponent of a step that took more than a second.
Memory is what a part adds to its process: its peak, and what is left when it is done; for
``memory``, what is left after each further case.
"""

import argparse
import contextlib
import csv
import io
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import torch
from nibabel.affines import voxel_sizes

from clipseg3d.atomic_write import atomic_write
from clipseg3d.cli.freed_memory import keep_freed_memory
from clipseg3d.cli.main import main as clipseg3d
from clipseg3d.data.cache import build_cache
from clipseg3d.data.cases import index_cases
from clipseg3d.data.dataset import BraTSDataset
from clipseg3d.data.nifti import read_voxels
from clipseg3d.data.releases import BRATS_2020
from clipseg3d.phantom.simulate import simulate_phantom
from clipseg3d.vocabulary import SEQUENCES

RESULTS = Path(__file__).parents[1] / "results"
COLUMNS = (
    *("part", "work", "unit", "seconds", "ms_per_unit", "exponent", "peak_mb", "kept_mb"),
    *("rounds", "threads", "machine"),
)
MANY, SOME = (10, 100, 1251), (10, 30, 100)
VOLUMES = ((96, 96, 96), (160, 160, 160), (240, 240, 155), (512, 512, 400))
SMALL = (48, 48, 40)
"""Size of each of many cases."""
PROMPTS = (
    *("the enhancing rim", "the whole tumour", "the tumour core", "oedema", "necrosis"),
    *("the lesion in the left hemisphere", "the lesion in the right hemisphere"),
    "the largest lesion",
)
"""Eight; more are the same ones, said again in another way."""
PARTS: dict[str, tuple[str, tuple[int, ...]]] = {
    "index": ("cases", MANY),
    "check-data": ("cases", MANY),
    "cache": ("cases", MANY),
    "epoch": ("cases", MANY),
    "evaluate": ("cases", MANY),
    "segment": ("cases", SOME),
    "page": ("cases", SOME),
    **{
        f"volumes {name}": ("voxels", tuple(math.prod(size) for size in VOLUMES))
        for name in ("check-data", "cache", "segment", "page", "evaluate")
    },
    "prompts": ("prompts", (1, 2, 4, 8, 16, 32)),
    "ranks": ("processes", (1, 2, 3)),
    "memory": ("cases", (40,)),
}
"""Part -> unit of its work, and amounts."""


def write_case(
    root: Path,
    name: str,
    size: Sequence[int],
    seed: int,
    *,
    field_mm: Sequence[float] | None = None,
) -> None:
    """Write a simulated patient with repeated voxels, as a case of BraTS 2020.

    Args:
        root: folder of cases.
        name: of the case.
        size: voxels along each axis.
        seed: of the patient.
        field_mm: length of the volume along each axis; None for voxels of 1 mm.
    """
    sizes_mm = np.ones(3) if field_mm is None else np.divide(field_mm, size)
    phantom = simulate_phantom(seed, spacing_mm=4.0)
    (root / name).mkdir(parents=True, exist_ok=True)
    index = np.ix_(*(np.arange(n) * m // n for n, m in zip(size, phantom.label.shape, strict=True)))
    noise = np.random.default_rng(seed)
    for number, sequence in enumerate(SEQUENCES):
        volume = phantom.image[number][index]
        volume = volume * noise.uniform(0.9, 1.1, volume.shape).astype(np.float32)
        file = root / name / f"{name}_{sequence}.nii.gz"
        _save(file, np.rint(volume).astype(np.int16), sizes_mm)
    _save(root / name / f"{name}_seg.nii.gz", phantom.label[index], sizes_mm)


def _save(path: Path, volume: np.ndarray, sizes_mm: np.ndarray) -> None:
    """Write a volume with voxels of some size."""
    image = nib.Nifti1Image(volume, np.diag([*(sizes_mm * (-1, -1, 1)), 1.0]))
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def link_cases(originals: Path, root: Path, count: int) -> None:
    """Make a folder of many cases, whose files are links to those of a few."""
    sources = sorted(originals.iterdir())
    for number in range(1, count + 1):
        source, name = sources[number % len(sources)], f"BraTS20_Training_{number:04d}"
        (root / name).mkdir(parents=True)
        for file in source.iterdir():
            os.link(file, root / name / file.name.replace(source.name, name))


def link_predictions(root: Path, out: Path) -> None:
    """Make a folder of predictions: the expert mask of the next case, or the own one, shifted."""
    out.mkdir()
    names = sorted(path.name for path in root.iterdir())
    if len(names) == 1:
        file = root / names[0] / f"{names[0]}_seg.nii.gz"
        label = np.roll(read_voxels(file), 3, axis=0).astype(np.uint8)
        _save(out / f"{names[0]}.nii.gz", label, voxel_sizes(nib.load(file).affine))
        return
    for name, other in zip(names, [*names[1:], names[0]], strict=True):
        os.link(root / other / f"{other}_seg.nii.gz", out / f"{name}.nii.gz")


def command(*arguments: Any) -> None:
    """Run a command of ours in this process, without what it prints."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as told,
    ):
        code = clipseg3d([str(argument) for argument in arguments])
    if code and arguments[0] != "check-data":  # which tells that cases are copies
        raise RuntimeError(f"{arguments[0]} ended with {code}: {told.getvalue()[-500:]}")


def epoch(root: Path, cache: Path) -> Callable[[], None]:
    """Return the reading of one crop of each case."""
    cases = index_cases(root, BRATS_2020)[0]
    data = BraTSDataset(
        build_cache(cases, BRATS_2020, cache, view_selection="energy"),
        BRATS_2020,
        crop=(32, 32, 32),
        packed=True,
    )

    def read() -> None:
        for index in range(len(data)):
            data[index]

    return read


def cached(root: Path, cache: Path) -> None:
    """Fill the cache."""
    cases = index_cases(root, BRATS_2020)[0]
    build_cache(cases, BRATS_2020, cache, view_selection="energy")


def task(part: str, root: Path, out: Path, work: int) -> Callable[[], None]:
    """Return what is measured, for the cases in a folder; it may run once."""
    name = part.removeprefix("volumes ")
    out.mkdir()
    if name == "index":
        return lambda: index_cases(root, BRATS_2020) and None
    if name == "check-data":
        return lambda: command("check-data", root, "--release", "brats2020")
    if name == "cache":
        return lambda: cached(root, out)
    if name == "epoch":
        return epoch(root, out)
    if name == "evaluate":
        link_predictions(root, out / "predictions")
        return lambda: command("evaluate", out / "predictions", root, "--release", "brats2020")
    arguments = ["segment", root, "-o", out, "--weights", "tiny"]
    if name in ("page", "memory"):
        arguments.append("--html")
    if name == "prompts":
        said = [f"{PROMPTS[i % 8]}{',' * (i // 8)}" for i in range(work)]
        arguments += [part for prompt in said for part in ("--prompt", prompt)]
    return lambda: command(*arguments)


def resident_mb(kind: str = "VmRSS") -> float:
    """Return a line of /proc/self/status in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(kind)) / 1024


def kept_after_each(root: Path, work: Path, count: int) -> list[float]:
    """Return what this process holds after each case, in MB, segmented one by one."""
    cases, held = sorted(root.iterdir()), []
    for number in range(count):
        out = work / f"kept {number}"
        command("segment", cases[number % len(cases)], "-o", out, "--html")
        held.append(resident_mb())
    return held


def measured_in_child(part: str, root: Path, work: int, threads: int) -> dict[str, float]:
    """Measure one part in a process of its own, which has all that this one has imported."""
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send_costs, args=(part, root, work, threads, sender))
    process.start()
    sender.close()
    try:
        facts: dict[str, float] = receiver.recv()
    except EOFError as error:
        raise RuntimeError(f"{part} of {work} failed; its process has said why") from error
    process.join()
    return facts


def send_costs(part: str, root: Path, work: int, threads: int, pipe: Connection) -> None:
    """Send what one part costs."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if part == "memory":
            start = time.process_time()
            held = kept_after_each(root, place, work)
            seconds = time.process_time() - start
            last = held[len(held) // 2 :]  # the first ones fill what is kept once
            kept = float(np.polyfit(np.arange(len(last)), last, 1)[0])
            pipe.send({"seconds": seconds, "peak_mb": resident_mb("VmHWM"), "kept_mb": kept})
            return
        measured = task(part, root, place / "out", work)
        before = resident_mb()
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak so far
        start = time.process_time()
        measured()
        seconds = time.process_time() - start
        peak, kept = resident_mb("VmHWM") - before, resident_mb() - before
        pipe.send({"seconds": seconds, "peak_mb": peak, "kept_mb": kept})


def ranks(count: int, folder: Path, threads: int) -> dict[str, float]:
    """Return CPU seconds of the steps of a fit on so many processes, those of its start left out.

    A fit of three epochs costs two epochs more than a fit of one.
    """
    spent = []
    for epochs in (1, 3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        options = {
            "data.root": folder / "phantoms",
            "data.num_cases": 12,
            "data.crops_per_case": 6,
            "data.num_workers": 0,
            "data.cache_dir": folder / "cache",
            "trainer.max_epochs": epochs,
            "trainer.check_val_every_n_epoch": epochs,
            "trainer.accelerator": "cpu",
            "trainer.devices": count,
            "trainer.strategy": "auto" if count == 1 else "ddp",
            "trainer.logger": "false",
            "trainer.enable_progress_bar": "false",
            "trainer.default_root_dir": folder / f"{count} {epochs}",
            "checkpoint.dirpath": folder / f"{count} {epochs}",
        }
        flags = [part for key, value in options.items() for part in (f"--{key}", str(value))]
        line = [sys.executable, "-m", "clipseg3d", "fit", "--config", "phantom_tiny", *flags]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run(line, check=True, capture_output=True, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {"seconds": spent[1] - spent[0], "peak_mb": math.nan, "kept_mb": math.nan}


def cases_for(part: str, work: int, folder: Path) -> Path:
    """Return a folder of cases, made on first use."""
    sizes = {math.prod(size): size for size in VOLUMES}
    is_volume = part.startswith("volumes ") or part == "prompts"
    root = folder / (f"volume {work}" if is_volume else f"{work} cases")
    if not root.is_dir() and is_volume:
        size = sizes.get(work, VOLUMES[2])
        write_case(root, "BraTS20_Training_0001", size, 1, field_mm=VOLUMES[2])
    elif not root.is_dir():
        originals = folder / "originals"
        if not originals.is_dir():
            for seed in range(3):
                write_case(originals, f"BraTS20_Training_{seed:04d}", SMALL, seed)
        link_cases(originals, root, work)
    return root


def measure(part: str, folder: Path, *, rounds: int, threads: int, largest: int) -> list[dict]:
    """Return the rows of one part."""
    unit, amounts = PARTS[part]
    rows: list[dict] = []
    if part != "ranks":  # imports what it needs
        with tempfile.TemporaryDirectory() as place:
            task(part, cases_for("index", 2, folder), Path(place) / "small", 1)()
    for work in amounts:
        if unit in ("cases", "voxels") and work > largest and part != "memory":
            continue
        found = []
        for _ in range(rounds):
            if part == "ranks":
                found.append(ranks(work, folder, threads))
                continue
            root = cases_for(part, work, folder)
            found.append(measured_in_child(part, root, work, threads))
        row: dict[str, Any] = {"part": part, "work": work, "unit": unit}
        row |= {key: statistics.median(facts[key] for facts in found) for key in found[0]}
        row["ms_per_unit"] = 1e3 * row["seconds"] / work
        row["exponent"] = math.nan
        if rows:
            grown = math.log(row["seconds"] / rows[-1]["seconds"])
            row["exponent"] = grown / math.log(work / rows[-1]["work"])
        row |= {"rounds": rounds, "threads": threads, "machine": machine()}
        rows.append(row)
        print(
            f"{part:20s}{work:12d} {unit:10s}{row['seconds']:10.2f} s{row['ms_per_unit']:12.4g} ms "
            f"each, exponent {row['exponent']:5.2f}, peak {row['peak_mb']:6.0f} MB, "
            f"kept {row['kept_mb']:6.1f} MB",
            flush=True,
        )
    return rows


def machine() -> str:
    """Return the CPU and the number of its cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "?")
    return f"{model}, {os.cpu_count()} cores"


def read_rows(path: Path) -> list[dict]:
    """Return what is stored."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: Sequence[dict]) -> None:
    """Store rows, in the order of the parts; numbers are rounded to four digits."""
    order = list(PARTS)
    with atomic_write(path) as tmp, tmp.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in sorted(rows, key=lambda row: (order.index(row["part"]), int(row["work"]))):
            writer.writerow({key: _rounded(row[key]) for key in COLUMNS})


def _rounded(value: Any) -> Any:
    """Return a number with four digits; other values, and empty ones for NaN, as they are."""
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.4g}"


def plot(rows: Sequence[dict], path: Path) -> None:
    """Draw the cost of a unit of work beside that of the smallest amount of work."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained", sharey=True)
    for axis, unit in zip(axes, ("cases", "voxels", "prompts or processes"), strict=True):
        for part in PARTS:
            mine = [row for row in rows if row["part"] == part and row["unit"] in unit]
            if len(mine) > 1:
                work = [float(row["work"]) for row in mine]
                each = [float(row["ms_per_unit"]) for row in mine]
                label = part.removeprefix("volumes ")
                axis.plot(work, [value / each[0] for value in each], "o-", label=label)
        axis.set(xscale="log", yscale="log", xlabel=unit)
        axis.axhline(1, color="grey", linewidth=0.8)
        if axis.lines[:-1]:
            axis.legend(fontsize="small")
    axes[0].set_ylabel("CPU time per unit / that of the smallest")
    with atomic_write(path) as tmp:
        figure.savefig(tmp, dpi=110, format="png")
    plt.close(figure)


def main() -> None:
    """Measure, print, store and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--largest", type=int, default=10**9, help="skip more cases, or voxels, than this"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of CSV and PNG")
    parser.add_argument("--plot", action="store_true", help="only draw what is stored")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)  # threads do not outlive a fork
    warnings.filterwarnings("ignore")
    table = arguments.output / "growth.csv"
    rows = read_rows(table)
    if not arguments.plot:
        with tempfile.TemporaryDirectory() as folder:
            for part in arguments.parts:
                new = measure(
                    part,
                    Path(folder),
                    rounds=arguments.rounds,
                    threads=arguments.threads,
                    largest=arguments.largest,
                )
                rows = [*(row for row in rows if row["part"] != part), *new]
                write_rows(table, rows)
        rows = read_rows(table)
    plot(rows, arguments.output / "growth.png")
    grown = [row for row in rows if row["exponent"] and float(row["seconds"]) > 1]
    steepest = max(grown, key=lambda row: float(row["exponent"]), default=None)
    print(
        json.dumps(
            {
                "benchmark": "growth",
                "ratio": float(steepest["exponent"]) if steepest else None,
                "ours": float(steepest["seconds"]) if steepest else None,
                "peer": None,
                "unit": "exponent of CPU time by work",
                "steepest": steepest["part"] if steepest else None,
                "kept_mb_per_case": next(
                    (float(row["kept_mb"]) for row in rows if row["part"] == "memory"), None
                ),
            }
        )
    )


if __name__ == "__main__":
    main()
