"""Write made-up stroke patients: two sequences, two regions, no file of a real patient.

They show how data of your own are used; ``stroke.yaml`` beside this script describes them. DWI is
bright and ADC dark in a lesion, more so in its core. ``cases.csv`` lists the same files for those
whose names follow no pattern.
"""

import argparse
import csv
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (60, 70, 54)
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])


def stroke_patient(seed: int, shape: tuple[int, ...] = SHAPE) -> dict[str, np.ndarray]:
    """Return dwi and adc, (x, y, z) float32, and mask, (x, y, z) uint8."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    middle = np.array(shape) / 2
    brain = (((grid - middle) / (0.45 * np.array(shape))) ** 2).sum(axis=-1) < 1
    centre = middle + rng.uniform(-0.15, 0.15, 3) * shape
    distance = np.linalg.norm(grid - centre, axis=-1) / min(shape)
    mask = ((distance < 0.22).astype(np.uint8) + (distance < 0.13)) * brain
    noise = rng.normal(0, 5, (2, *shape))
    images = {"dwi": 100 + 60 * mask + noise[0], "adc": 100 - 30 * mask + noise[1]}
    brains = {name: (volume * brain).astype(np.float32) for name, volume in images.items()}
    return {**brains, "mask": mask.astype(np.uint8)}


def write_patients(root: Path, num_cases: int, shape: tuple[int, ...] = SHAPE) -> None:
    """Write patients as root/CASE/CASE_dwi.nii.gz and so on, and root/cases.csv."""
    rows = []
    for seed in range(num_cases):
        case_id = f"sub-{seed + 1:02d}"
        folder = root / case_id
        folder.mkdir(parents=True, exist_ok=True)
        for name, volume in stroke_patient(seed, shape).items():
            image = nib.Nifti1Image(volume, AFFINE)
            image.set_sform(AFFINE, code=1)
            nib.save(image, folder / f"{case_id}_{name}.nii.gz")
        files = {name: f"{case_id}/{case_id}_{name}.nii.gz" for name in ("dwi", "adc", "mask")}
        rows.append({"case": case_id, "patient": case_id, **files, "report": "A recent stroke."})
    with (root / "cases.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["seg" if name == "mask" else name for name in rows[0]])
        writer.writerows(row.values() for row in rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder to write to")
    parser.add_argument("--num-cases", type=int, default=4)
    arguments = parser.parse_args()
    write_patients(arguments.root, arguments.num_cases)
