"""A whole patient from file to file: ``clipseg3d segment``, a plain MONAI script, and nnU-Net.

    python examples/benchmarks/peers.py --data BRATS2018 --nnunet VENV/bin/python

Each is a command of its own, as users run it: it imports, reads the files of the patients, segments
them on the CPU with the ROI size and overlap of the bundled weights, and writes labels, in turn.

- ``clipseg3d segment`` with the bundled weights ``tiny``, their semantics and their rules.
- MONAI: ``LoadImage``, ``NormalizeIntensity``, ``sliding_window_inference`` over the volume with
  Gaussian weights, ``SaveImage``; with the same network, without semantics and without rules.
- ``nnUNetv2_predict_from_modelfolder``, without mirroring: nnU-Net's ``PlainConvUNet`` with random
  weights, so narrow that it needs as many operations for a window as ``tiny``. ``--nnunet`` is the
  Python of an environment with ``nnunetv2``; it is left out without.

Wall time is that of the command. Memory is the largest sum over its processes; pages that they
share count once. ``ratio`` is the median over rounds of MONAI's wall time / ours.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

ROI, OVERLAP = (160, 192, 160), 0.5
COUNTED = 64
"""Edge of the crop on which operations are counted; they grow with its volume."""
SEQUENCES = ("t1", "t1ce", "t2", "flair")
OURS, MONAI, NNUNET = "clipseg3d segment", "MONAI script", "nnUNetv2_predict"


def monai_script(cases: Sequence[Path], out: Path) -> None:
    """Segment cases as a script of MONAI does."""
    from monai.inferers import sliding_window_inference
    from monai.transforms import Compose, LoadImage, NormalizeIntensity, SaveImage

    from clipseg3d.networks.clipseg3d import CLIPSeg3D

    warnings.filterwarnings("ignore")
    network = CLIPSeg3D.from_pretrained("tiny").eval()
    steps = [LoadImage(), NormalizeIntensity(nonzero=True, channel_wise=True)]
    load = Compose(steps, map_items=False)
    save = SaveImage(out, output_postfix="", separate_folder=False, print_log=False)
    for case in cases:
        image = load([case / f"{case.name}_{name}.nii.gz" for name in SEQUENCES])
        with torch.no_grad():
            logits = sliding_window_inference(
                image[None],
                ROI,
                1,
                lambda crop: network.segment(crop, None).logits,
                overlap=OVERLAP,
                mode="gaussian",
            )[0]
        wt, tc, et = logits > 0
        label = torch.where(et, 4, torch.where(tc, 1, torch.where(wt, 2, 0)))
        save(label[None].to(torch.uint8))


def write_nnunet(folder: Path, operations: int) -> None:
    """Write a model folder of nnU-Net whose network needs about so many operations."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    def arguments(width: int) -> dict:
        return {
            "n_stages": 5,
            "features_per_stage": [width, 2 * width, 4 * width, 8 * width, 10 * width],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * 5,
            "strides": [[1, 1, 1], *[[2, 2, 2]] * 4],
            "n_conv_per_stage": [2] * 5,
            "n_conv_per_stage_decoder": [2] * 4,
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        }

    def network(width: int) -> torch.nn.Module:
        classes = {
            "conv_op": torch.nn.Conv3d,
            "norm_op": torch.nn.InstanceNorm3d,
            "nonlin": torch.nn.LeakyReLU,
        }
        return PlainConvUNet(
            input_channels=4, num_classes=3, **{**arguments(width), **classes}
        ).eval()

    counts = {width: count_operations(network(width)) for width in range(2, 33)}
    width = min(counts, key=lambda width: abs(counts[width] - operations))
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(ROI),
        "median_image_size_in_voxels": [140.0, 175.0, 140.0],
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"] * 4,
        "use_mask_for_norm": [True] * 4,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": arguments(width),
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
    }
    plans = {
        "dataset_name": "Dataset001_Peers",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0] * 3,
        "original_median_shape_after_transp": [140, 175, 140],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(i): {} for i in range(len(SEQUENCES))},
    }
    dataset = {
        "channel_names": dict(enumerate(SEQUENCES)),
        "labels": {
            "background": 0,
            "WT": [1, 2, 3],
            "TC": [2, 3],
            "ET": 3,
        },
        "regions_class_order": [1, 2, 3],
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    checkpoint = {
        "network_weights": network(width).state_dict(),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "3d_fullres"},
        "inference_allowed_mirroring_axes": None,
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    print(json.dumps({"width": width, "ratio_of_operations": counts[width] / operations}))


def count_operations(network: torch.nn.Module) -> int:
    """Return the operations of a forward pass on a small crop of four sequences."""
    crop = torch.rand(1, 4, COUNTED, COUNTED, COUNTED)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.segment(crop, None) if hasattr(network, "segment") else network(crop)
    return int(counter.get_total_flops())


def run(command: Sequence[str | Path], threads: int) -> dict[str, float]:
    """Return wall time, CPU time and peak memory of a command with its processes."""
    from loading import memory_of

    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, str(threads)), "nnUNet_results": "/"}
    environment |= {"nnUNet_raw": "/", "nnUNet_preprocessed": "/"}  # without them it warns
    with tempfile.TemporaryFile() as told:
        start = time.perf_counter()
        process = subprocess.Popen(
            [str(part) for part in command], env=environment, stdout=told, stderr=told
        )
        peak, done = 0.0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.1):
                peak = max(peak, memory_of(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        done.set()
        watcher.join()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            told.seek(0)
            raise RuntimeError(f"{command[1]}: {told.read().decode()[-2000:]}")
    return {"wall_s": wall, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_mb": peak}


def nnunet_command(
    python: Path, cases: Sequence[Path], work: Path, operations: int, threads: int
) -> tuple[list[str | Path], dict[str, float]]:
    """Write what nnU-Net reads, and return its command without the folder for its results."""
    images, model = work / "nnunet images", work / "nnunet model"
    images.mkdir()
    for case in cases:
        for index, name in enumerate(SEQUENCES):
            link = images / f"{case.name}_{index:04d}.nii.gz"
            link.symlink_to((case / f"{case.name}_{name}.nii.gz").resolve())
    line = [python, __file__, "--write-nnunet", model, "--operations", str(operations)]
    written = subprocess.run([str(part) for part in line], check=True, capture_output=True)
    facts = json.loads(written.stdout.splitlines()[-1])
    program = python.parent / "nnUNetv2_predict_from_modelfolder"
    options = ["-i", images, "-m", model, "-f", "0", "-device", "cpu", "--disable_tta"]
    return [python, program, *options, "-o"], facts


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of BraTS 2018 cases; phantoms without")
    parser.add_argument("--cases", type=int, default=1, help="patients in one command")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--nnunet", type=Path, help="Python of an environment with nnunetv2")
    parser.add_argument("--monai", nargs="+", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--write-nnunet", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--operations", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.monai:
        torch.set_num_threads(arguments.threads)
        monai_script(arguments.monai[1:], arguments.monai[0])
        return
    if arguments.write_nnunet:
        write_nnunet(arguments.write_nnunet, arguments.operations)
        return

    # not before: the MONAI script, which runs in this file, must not pay for these
    from commands import find_patients

    from clipseg3d.networks.clipseg3d import CLIPSeg3D

    operations = count_operations(CLIPSeg3D.from_pretrained("tiny").eval())
    threads = str(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        cases = find_patients(arguments.data, arguments.cases, work)
        commands: dict[str, list[str | Path]] = {
            OURS: [sys.executable, "-m", "clipseg3d", "segment", *cases, "--device", "cpu", "-o"],
            MONAI: [sys.executable, __file__, "--threads", threads, "--monai"],
        }
        facts: dict[str, float] = {}
        if arguments.nnunet is not None:
            commands[NNUNET], facts = nnunet_command(
                arguments.nnunet.absolute(), cases, work, operations, arguments.threads
            )
        rows: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
        for number in range(arguments.rounds):
            for name, command in commands.items():
                out = work / f"{name} {number}"
                out.mkdir()
                line = [*command, out, *(cases if name == MONAI else [])]
                rows[name].append(run(line, arguments.threads))
                if len(list(out.glob("*.nii.gz"))) != len(cases):
                    raise RuntimeError(f"{name} wrote {sorted(out.iterdir())}")
                values = ", ".join(f"{key} {value:.1f}" for key, value in rows[name][-1].items())
                print(f"{name:20s}{values}", flush=True)
    medians = {
        name: {key: statistics.median(row[key] for row in mine) for key in mine[0]}
        for name, mine in rows.items()
    }
    ratios = {
        name: {
            key: statistics.median(
                peer[key] / own[key] for peer, own in zip(rows[name], rows[OURS], strict=True)
            )
            for key in ("wall_s", "cpu_s", "peak_mb")
        }
        for name in rows
        if name != OURS
    }
    print(
        json.dumps(
            {
                "benchmark": "peers",
                "ratio": ratios[MONAI]["wall_s"],
                "ours": medians[OURS]["wall_s"] / len(cases),
                "peer": medians[MONAI]["wall_s"] / len(cases),
                "unit": "s per patient, wall time",
                "ratios": ratios,
                "medians": medians,
                "cases": len(cases),
                "rounds": arguments.rounds,
                "threads": arguments.threads,
                "nnunet": facts,
            }
        )
    )


if __name__ == "__main__":
    main()
