"""Trained networks as folders: config.json, model.safetensors, README.md; from the hub or a disk.

This file knows folders and what may be wrong with them, and no network:
:class:`clipseg3d.networks.clipseg3d.CLIPSeg3D` turns what is read here into itself. Nothing is
ever unpickled.
"""

import json
from argparse import ArgumentError
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import snapshot_download
from jsonargparse import ArgumentParser
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from clipseg3d import __version__
from clipseg3d.data.text_files import read_json
from clipseg3d.whole_file import whole_file

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
BUNDLED = Path(__file__).with_name("weights")
"""Folder of the weights that come with the package, a folder for each name."""
KEYS = {"clipseg3d", "network", "prediction", "encoders"}
"""What config.json says: the version that wrote it, and what the network is, is for and needs."""
_Values = TypeVar("_Values")

MODEL_CARD = """---
{{ card_data }}
---

# {{ name | default("CLIPSeg3D", true) }}

3D segmentation of brain tumours ({{ regions }}) in MRI ({{ sequences }}), skull-stripped and on one
grid, by a network of `clipseg3d` {{ version }} with {{ parameters }} parameters.

```python
from clipseg3d import CLIPSeg3D

network = CLIPSeg3D.from_pretrained({{ source | default("FOLDER_OR_HUB_ID", true) | tojson }})
```

## What it is for
{% if settings %}
- label convention: {{ settings.release }}
- voxel size: {{ settings.spacing_mm }} mm; scans of another one are refused
- sliding window: {{ settings.window | join(" x ") }} voxels, overlap {{ settings.overlap }}
- cases that lack sequences: {{ "yes, trained for it" if settings.allow_missing else "no" }}
{% else %}
Not stated.
{% endif %}
Frozen encoders, which are not part of these files; others are refused:
{% for role, encoder in encoders.items() %}
- {{ role }}: `{{ encoder.name }}`, SHA-256 of its weights `{{ encoder.sha256 }}`
{% else %}
- none
{% endfor %}
## Training data, and their licences

{{ data | default("To be filled in by the author.", true) }}

## Measured

{{ metrics | default("To be filled in by the author: Dice and HD95 per region, on which cases, by "
"which protocol.", true) }}

## Limits

{{ limits | default("To be filled in by the author.", true) }} Not a medical device.

## Citation

The method: [arXiv 2507.09966](https://arxiv.org/abs/2507.09966).
"""


def bundled_names() -> list[str]:
    """Return the names of the weights that come with the package."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{CONFIG}"))


def find_pretrained(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """Return the folder of a trained network; one on the hub is downloaded first.

    Args:
        source: a name of weights that come with the package, a folder, or a hub id
            (``user/model``), looked for in this order; a Path is always a folder.
        revision: branch, tag or commit on the hub.
        token: for private models of the hub; None takes the one stored on this machine.
        cache_dir: folder of the Hugging Face cache; None takes the usual one.
        force_download: download even what is cached.
        local_files_only: use the cache and no network.

    Raises:
        FileNotFoundError: a path to no folder.
        ValueError: the name of nothing, of two things, or of a file.
        OSError: the hub has no such model, or it cannot be reached and no copy is cached.
    """
    folder = Path(source).expanduser()
    if isinstance(source, str) and source in bundled_names():
        if (folder / CONFIG).is_file():
            raise ValueError(
                f"{source!r} is both a folder here and the name of weights that come with "
                f"clipseg3d; give ./{source} for the folder, or rename it"
            )
        return BUNDLED / source
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ValueError(
            f"{source}: a file, expected a folder with {CONFIG} and {WEIGHTS}; 'clipseg3d export' "
            "makes one of a checkpoint"
        )
    if isinstance(source, Path) or folder.is_absolute() or source.startswith((".", "~")):
        raise FileNotFoundError(f"{source}: no such folder; check the path")
    if "/" not in source:
        names = ", ".join(bundled_names()) or "none"
        raise ValueError(
            f"no weights are called {source!r}: choose from those that come with clipseg3d "
            f"({names}), or give a folder or a hub id such as user/model"
        )
    try:
        return Path(
            snapshot_download(
                source,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                allow_patterns=[CONFIG, WEIGHTS],  # one commit of both; nothing else is of use
                library_name="clipseg3d",
                library_version=__version__,
            )
        )
    except Exception as error:  # every version of huggingface_hub raises its own
        raise OSError(
            f"{source!r} is no local folder, not in the Hugging Face cache, and was not downloaded "
            f"({reason_of(error)}); check the name and the network, or download it where there is "
            "a network and give its folder"
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """Return what config.json says, as plain values.

    Raises:
        FileNotFoundError: the folder holds none.
        ValueError: it is no JSON, or tells of no network of this library or of this version of it.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder}: holds no {CONFIG}; give a folder written by save_pretrained"
        )
    content = read_json(path)
    if not isinstance(content, dict) or not content.keys() >= KEYS:
        raise ValueError(
            f"{path}: describes no network of clipseg3d; give a folder written by save_pretrained"
        )
    unknown = content.keys() - KEYS
    if unknown:
        reason = f"unknown key {min(unknown)}"
        raise ValueError(_not_understood(folder, content["clipseg3d"], reason))
    encoders = content["encoders"]
    if not isinstance(encoders, dict) or not all(
        isinstance(one, dict) and one.keys() >= {"name", "sha256"} for one in encoders.values()
    ):
        reason = "encoders need a name and a sha256 each"
        raise ValueError(_not_understood(folder, content["clipseg3d"], reason))
    return content


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of model.safetensors, on the CPU.

    Raises:
        FileNotFoundError: the folder holds none.
        ValueError: the file is damaged.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: holds no {WEIGHTS}; copy it there too")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{path}: not a readable safetensors file ({error}); copy or download it again"
        ) from error


def parse_values(kind: type[_Values], values: Any, folder: Path, version: str) -> _Values:
    """Turn plain values of a config.json into a dataclass, every type checked.

    Args:
        kind: the dataclass.
        values: field -> value; a field that is absent takes its default.
        folder: where config.json lies, for messages.
        version: of clipseg3d that wrote it, for messages.

    Raises:
        ValueError: a key is unknown or a value is wrong.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "values")
    try:
        parsed = parser.parse_object({"values": values})["values"].as_dict()
        # JSON knows no tuples, and not every version of the parser makes them
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in parsed.items()})
    except (ArgumentError, AttributeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).replace("values.", "").split())
        raise ValueError(_not_understood(folder, version, reason)) from error


def write_pretrained(
    folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> None:
    """Write model.safetensors and config.json, each all or nothing, the config last.

    Raises:
        OSError: a file cannot be written.
    """
    plain = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    contents = {
        WEIGHTS: save(plain, metadata={"format": "pt"}),
        CONFIG: f"{json.dumps({'clipseg3d': __version__, **config}, indent=2)}\n".encode(),
    }
    for name, content in contents.items():
        with whole_file(folder / name) as aside:
            aside.write_bytes(content)


def reason_of(error: Exception) -> str:
    """Return what went wrong with the hub in a few words; its own messages fill paragraphs."""
    return getattr(error, "strerror", None) or type(error).__name__


def _not_understood(folder: Path, version: Any, reason: str) -> str:
    """Say that this version of the library cannot use a config.json."""
    return (
        f"{folder / CONFIG}: written by clipseg3d {version}, not understood by {__version__} "
        f"({reason}); install that version, or repair the file"
    )
