"""Write a trained network as a MONAI bundle."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from clipseg3d import __version__
from clipseg3d.atomic_write import atomic_folder
from clipseg3d.networks.clipseg3d import CLIPSeg3D
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.networks.prediction_settings import PredictionSettings

_README = """# {name}

A MONAI bundle written by clipseg3d {version}. `models/README.md` is the model card.

```bash
pip install "clipseg3d=={version}" fire
python -m monai.bundle run --config_file configs/inference.json --bundle_root . \\
    --dataset_dir CASES --output_dir SEGMENTATIONS
```

`CASES` is a folder of cases. Each case is a folder of four NIfTI files named as in BraTS,
skull-stripped and in one space. What has not voxels of {spacing_mm:g} mm is resampled to them. A
report beside the scans (`CASE_flair_text.txt`) is read. Labels are written as
`SEGMENTATIONS/CASE.nii.gz`, on the grid of the scans (of T1ce, if they have several), in the label
convention of {release}. `--clip DIR` gives the folder of CLIP, if it has moved since training;
`--device cpu` runs without a GPU. {rules} Not a medical device.
"""


def write_bundle(network: CLIPSeg3D, folder: Path, settings: PredictionSettings) -> None:
    """Write a MONAI bundle: configs, model, model card and instructions; complete or absent.

    ``python -m monai.bundle run`` then segments cases as :class:`clipseg3d.Predictor` does; the
    package clipseg3d must be installed there. The frozen CLIP is not part of the bundle, as with
    ``save_pretrained``.

    Args:
        network: trained, with a config.
        folder: folder of the bundle; it must be empty, or not exist yet.
        settings: prediction settings of the network.

    Raises:
        ValueError: the folder holds files, or the network was built from parts, without a config.
        OSError: a file cannot be written.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(f"{folder}: holds something already; give a new folder")
    readme = _README.format(
        name=folder.name,
        version=__version__,
        release=settings.release_name,
        spacing_mm=settings.spacing_mm,
        rules=(
            "Labels are cleaned up by the rules of post-processing in `models/config.json`."
            if settings.postprocessing
            else "No rules of post-processing come with the weights."
        ),
    )
    with atomic_folder(folder) as tmp:
        network.save_pretrained(tmp / "models")
        texts = {
            "configs/metadata.json": _json(_metadata(network, settings)),
            "configs/inference.json": _json(_inference(settings)),
            "docs/README.md": readme,
        }
        for name, text in texts.items():
            path = tmp / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")


def _inference(settings: PredictionSettings) -> dict[str, Any]:
    """Return inference.json; its plain values may be overridden on the command line."""
    return {
        "imports": [
            "$import torch",
            "$from pathlib import Path",
            "$from clipseg3d.data.cases import find_cases",
            "$from clipseg3d.data.releases import get_release",
        ],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/cases'",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "clip": None,
        "release": settings.release,
        "spacing_mm": settings.spacing_mm,
        "roi_size": list(settings.roi_size),
        "overlap": settings.overlap,
        "allow_missing": settings.allow_missing,
        "network_def": {
            "_target_": "clipseg3d.CLIPSeg3D.from_pretrained",
            "source": "$Path(@bundle_root) / 'models'",
            "clip": "@clip",
        },
        "inferer": {
            "_target_": "clipseg3d.Predictor",
            "network": "@network_def",
            "release": "$get_release(@release)",
            "spacing_mm": "@spacing_mm",
            "roi_size": "$tuple(@roi_size)",
            "overlap": "@overlap",
            "allow_missing": "@allow_missing",
            "device": "$str(@device)",
        },
        "dataset": "$find_cases(@dataset_dir, @inferer.release, require_label=False, "
        "allow_missing=@allow_missing, spacing_mm=None, one_grid=False)",
        "run": [
            "$[@inferer(case).save(Path(@output_dir) / f'{case.case_id}.nii.gz') "
            "for case in @dataset]"
        ],
    }


def _metadata(network: CLIPSeg3D, settings: PredictionSettings) -> dict[str, Any]:
    """Return metadata.json, with the keys of MONAI's bundle specification."""
    config = cast(NetworkConfig, network.config)  # save_pretrained refuses a network without one
    common = {
        "type": "image",
        "spatial_shape": list(settings.roi_size),
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
    }
    return {
        "version": "0.0.1",
        "changelog": {"0.0.1": f"written by clipseg3d {__version__}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch"),
        "numpy_version": version("numpy"),
        "required_packages_version": {
            name: version(name) for name in ("clipseg3d", "nibabel", "transformers", "safetensors")
        },
        "name": "CLIPSeg3D",
        "task": "Segmentation of brain tumours in MRI",
        "description": "A 3D U-Net guided by CLIP: it reads slices of the volume and the report.",
        "authors": "to be filled in by the author",
        "copyright": "to be filled in by the author",
        "intended_use": "Research. Not a medical device.",
        "network_data_format": {
            "inputs": {
                "image": {
                    **common,
                    "format": "magnitude",
                    "modality": "MR",
                    "num_channels": len(config.sequences),
                    "channel_def": _numbered(config.sequences),
                }
            },
            "outputs": {
                "pred": {
                    **common,
                    "format": "segmentation",
                    "num_channels": len(config.regions),
                    "channel_def": _numbered(config.regions),
                }
            },
        },
    }


def _numbered(names: tuple[str, ...]) -> dict[str, str]:
    """Return channel number -> name, as the specification wants it."""
    return {str(channel): name for channel, name in enumerate(names)}


def _json(values: dict[str, Any]) -> str:
    return f"{json.dumps(values, indent=2)}\n"
