"""Folders of trained networks: config.json and model.safetensors, from a disk or the hub.

Nothing here builds a network, and nothing is ever unpickled.
"""

import hashlib
import json
from argparse import ArgumentError
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentParser
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from clipseg3d import __version__
from clipseg3d.atomic_write import atomic_files, locked
from clipseg3d.checksums import sha256_of_file
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.networks.prediction_settings import PredictionSettings
from clipseg3d.pretrained.formats import FORMAT, check_format, upgrade_config, upgrade_weights
from clipseg3d.text_files import read_json
from clipseg3d.weights import BUNDLED, CONFIG, bundled_names

WEIGHTS, CARD = "model.safetensors", "README.md"
KEYS = {"clipseg3d", "network", "prediction", "encoders"}
"""Keys of config.json: the version of this library that wrote it; the network's configuration; the
settings for prediction; the frozen encoders it was trained with."""
LATER_KEYS = {"format", "weights_sha256"}
"""Keys from format 2 on: the format, and the SHA-256 of model.safetensors."""
_Values = TypeVar("_Values")


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
        cache_dir: folder of the Hugging Face cache; None takes the default one.
        force_download: download again even if it is cached.
        local_files_only: use the cache and no network.

    Raises:
        FileNotFoundError: the source is a path, and there is no such folder.
        ValueError: there are no weights of that name; the name is also that of a folder here; the
            source is a file.
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
    from huggingface_hub import snapshot_download  # half a second, which most weights do not need

    try:
        return Path(
            snapshot_download(
                source,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                allow_patterns=[CONFIG, WEIGHTS],  # both of one commit; no other file is needed
                library_name="clipseg3d",
                library_version=__version__,
            )
        )
    except Exception as error:  # versions of huggingface_hub differ in what they raise
        raise OSError(
            f"{source!r} is no local folder, not in the Hugging Face cache, and was not downloaded "
            f"({hub_error(error)}); check the name and the network, or download it where there is "
            "a network and give its folder"
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json: plain values, upgraded to the current format.

    Raises:
        FileNotFoundError: the folder holds none.
        ValueError: it is no JSON, or describes no network of this library, or one of a version of
            this library whose files cannot be read.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder}: holds no {CONFIG}; give a folder written by save_pretrained"
        )
    content = read_json(path)
    described = isinstance(content, dict) and "clipseg3d" in content
    if not described or ("format" not in content and not content.keys() >= KEYS):
        raise ValueError(
            f"{path}: describes no network of clipseg3d; give a folder written by save_pretrained"
        )
    try:
        file_format = check_format(content.get("format"))
        _check_values(content)
    except ValueError as error:
        raise ValueError(not_understood(path, content["clipseg3d"], str(error))) from error
    return content if file_format == FORMAT else upgrade_config(content)


def _check_values(content: Mapping[str, Any]) -> None:
    """Raise a ValueError if a key of config.json is missing or unknown, or a value is no object."""
    if missing := KEYS - content.keys():
        raise ValueError(f"missing key {min(missing)}")
    if unknown := content.keys() - KEYS - LATER_KEYS:
        raise ValueError(f"unknown key {min(unknown)}")
    if not isinstance(content["network"], dict):
        raise ValueError("network is not an object")
    if not isinstance(content["prediction"], dict | None):
        raise ValueError("prediction is neither an object nor null")
    check_encoders(content["encoders"])


def check_encoders(encoders: Any) -> None:
    """Raise a ValueError if the description of frozen encoders is not one, as it is in files."""
    if not isinstance(encoders, dict) or not all(
        isinstance(encoder, dict)
        and isinstance(encoder.get("name"), str)
        and isinstance(encoder.get("sha256"), str)
        for encoder in encoders.values()
    ):
        raise ValueError("encoders need a name and a sha256 each")


def read_settings(folder: Path) -> tuple[NetworkConfig, PredictionSettings]:
    """Read what config.json says of the network and of its predictions.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_config`; or a value is wrong, or it says
            nothing of predictions.
    """
    path, content = folder / CONFIG, read_config(folder)
    network, settings = settings_of(content, path)
    if settings is None:
        raise ValueError(no_settings(path))
    return network, settings


def settings_of(
    content: Mapping[str, Any], path: Path
) -> tuple[NetworkConfig, PredictionSettings | None]:
    """Return what the content of a config.json says of the network and of its predictions."""
    version, prediction = content["clipseg3d"], content["prediction"]
    settings = None
    if prediction is not None:
        settings = parse_values(PredictionSettings, prediction, path, version)
    return parse_values(NetworkConfig, content["network"], path, version), settings


def read_weights(folder: Path, *, sha256: str | None = None) -> dict[str, Tensor]:
    """Read model.safetensors: tensors on the CPU, under their current names.

    Args:
        folder: that holds it.
        sha256: of the file, as config.json says; None if it does not.

    Raises:
        FileNotFoundError: the folder holds none.
        ValueError: the file is damaged, or not the one that belongs to config.json.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: holds no {WEIGHTS}; copy it there too")
    try:
        weights = upgrade_weights(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{path}: not a readable safetensors file ({error}); copy or download it again"
        ) from error
    if sha256 is not None and sha256_of_file(path) != sha256:
        raise ValueError(
            f"{path}: not the weights that {CONFIG} belongs to (another SHA-256); copy or download "
            "both again"
        )
    return weights


def parse_values(kind: type[_Values], values: Any, path: Path, version: Any) -> _Values:
    """Turn plain values of a file into a dataclass; all types are checked.

    Args:
        kind: the dataclass.
        values: field -> value; a field that is absent takes its default.
        path: the file, for messages.
        version: of clipseg3d that wrote it, for messages.

    Raises:
        ValueError: a key is unknown or a value is wrong.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "values")
    try:
        parsed = parser.parse_object({"values": values})["values"].as_dict()
        for name, value in parsed.items():  # the parser takes null for a value that is not given
            if value is None and getattr(kind, name, ...) is not None:
                raise ValueError(f"{name} is null")
        # JSON has no tuples, and not all versions of the parser make them
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in parsed.items()})
    except (ArgumentError, AttributeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).replace("values.", "").split())
        raise ValueError(not_understood(path, version, reason)) from error


def write_folder(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write config.json and model.safetensors; if that fails, those of before stay.

    Args:
        folder: it is made if missing.
        config: values of config.json, without version and format.
        weights: of the network.

    Raises:
        OSError: a file cannot be written.
    """
    plain = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    data = save(plain, metadata={"format": "pt"})
    digest = hashlib.sha256(data).hexdigest()
    content = {"clipseg3d": __version__, "format": FORMAT, "weights_sha256": digest, **config}
    # The config first: it tells other weights by their hash.
    paths = (folder / CONFIG, folder / WEIGHTS)
    with locked(folder / WEIGHTS), atomic_files(*paths) as (config_file, weights_file):
        weights_file.write_bytes(data)
        config_file.write_text(f"{json.dumps(content, indent=2)}\n", encoding="utf-8")


def hub_error(error: Exception) -> str:
    """Return a few words for an error of the hub, whose own messages have several paragraphs."""
    return getattr(error, "strerror", None) or type(error).__name__


def no_settings(path: Path) -> str:
    """Return the message for a config.json or checkpoint without settings of prediction."""
    return (
        f"{path}: does not say which scans the network is for; set network.settings and save it "
        "again with save_pretrained"
    )


def not_understood(path: Path, version: Any, reason: str) -> str:
    """Return the message for a file that this version of the library cannot use."""
    return (
        f"{path}: written by clipseg3d {version}, not understood by {__version__} ({reason}); "
        "install that version, or repair the file"
    )
