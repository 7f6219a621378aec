"""Reading trained networks: from checkpoints, folders, bundled weights and the hub.

All sources go through the same checks: types of plain values, weights of the frozen encoders, and
the architecture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from clipseg3d.checksums import sha256_of_file
from clipseg3d.clip.encoder import ClipEncoder
from clipseg3d.clip.registry import load_encoder
from clipseg3d.networks.build import build_clipseg3d
from clipseg3d.networks.clipseg3d import CLIPSeg3D
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.networks.prediction_settings import PredictionSettings
from clipseg3d.pretrained.checkpoint import read_checkpoint_file
from clipseg3d.pretrained.folder import (
    WEIGHTS,
    check_encoders,
    find_pretrained,
    no_settings,
    parse_values,
    read_config,
    read_weights,
    settings_of,
)
from clipseg3d.weights import CONFIG

_SHARED_SETTINGS = ("release", "spacing_mm")
"""Settings that the members of an ensemble must share."""


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A trained network and where it is from.

    Attributes:
        name: of bundled weights, or hub id; else that of the folder or checkpoint, without where it
            lies.
        path: file with the weights.
        sha256: of that file.
        network: with these weights and settings, in evaluation mode.
        settings: of prediction.
    """

    name: str
    path: Path
    sha256: str
    network: CLIPSeg3D
    settings: PredictionSettings


@dataclass(frozen=True)
class _Stored:
    """Content of a checkpoint or a folder, before a network is built from it."""

    config_path: Path
    weights_path: Path
    config: NetworkConfig
    settings: PredictionSettings | None
    encoders: Mapping[str, Mapping[str, str]]
    weights: Mapping[str, Tensor]


def load_pretrained(
    source: str | Path, *, clip: ClipEncoder | str | None = None, **hub_options: Any
) -> CLIPSeg3D:
    """Load a trained network from a folder, in float32 and evaluation mode.

    Args:
        source: as for :func:`clipseg3d.pretrained.folder.find_pretrained`.
        clip: CLIP itself, its folder or its hub name, if it no longer has the name that it had in
            training; its weights must be the same.
        hub_options: other options of :func:`clipseg3d.pretrained.folder.find_pretrained`;
            ``local_files_only`` also holds for CLIP.

    Raises:
        FileNotFoundError: there is no such folder, or it lacks a file.
        ValueError: unknown name; a damaged file, or one that this version of the library cannot
            read; weights of another architecture; a CLIP with other weights.
        OSError: the network or its CLIP is neither on this machine nor can it be downloaded.
    """
    stored = _read_folder(find_pretrained(source, **hub_options))
    return _build(stored, clip, local_files_only=hub_options.get("local_files_only", False))


def read_networks(
    sources: Sequence[str | Path], *, clip: ClipEncoder | str | None = None
) -> list[TrainedNetwork]:
    """Read trained networks to predict with, one or the members of an ensemble.

    A CLIP that several of them use is loaded once.

    Args:
        sources: files and names ending in .ckpt are checkpoints of
            :class:`clipseg3d.CLIPSeg3DModule`; all else is for
            :func:`clipseg3d.pretrained.folder.find_pretrained`: names of weights that come with the
            package, folders, and hub ids.
        clip: CLIP itself, its folder or its hub name, if it no longer has the name that it had in
            training; its weights must be the same.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: none is given; one is damaged, or of another architecture; CLIP has other
            weights; or the members were trained on different releases or voxel sizes.
        OSError: the network or its CLIP is neither on this machine nor can it be downloaded.
    """
    if not sources:
        raise ValueError("no weights are given; name a checkpoint written by training")
    members: list[TrainedNetwork] = []
    clips: dict[str, ClipEncoder] = {}
    for source in sources:
        member = _read_network(source, clip, clips)
        for name in _SHARED_SETTINGS:
            first = getattr(members[0].settings if members else member.settings, name)
            this = getattr(member.settings, name)
            if first != this:
                raise ValueError(
                    f"{source}: trained with {name}={this!r}, but {sources[0]} with "
                    f"{name}={first!r}; they cannot form one ensemble; predict with each alone"
                )
        members.append(member)
    return members


def weight_mismatches(saved: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Return how the names and shapes of saved weights differ from a network's own, if they do."""
    mismatches = {
        "missing": own.keys() - saved.keys(),
        "unknown": saved.keys() - own.keys(),
        "of another shape": {
            name for name in own.keys() & saved.keys() if own[name].shape != saved[name].shape
        },
    }
    return [
        f"{len(names)} {kind}, such as {min(names)}" for kind, names in mismatches.items() if names
    ]


def _read_network(
    source: str | Path, clip: ClipEncoder | str | None, clips: dict[str, ClipEncoder]
) -> TrainedNetwork:
    """Read one network; its CLIP is taken from ``clips``, or loaded and added to them."""
    path = Path(source)
    is_checkpoint = path.is_file() or path.suffix == ".ckpt"
    stored = _read_checkpoint(path) if is_checkpoint else _read_folder(find_pretrained(source))
    if stored.settings is None:
        raise ValueError(no_settings(stored.config_path))
    encoder = None if isinstance(clip, str) else clip
    if stored.config.semantics and encoder is None:
        name = clip if isinstance(clip, str) else stored.config.clip
        if name not in clips:
            clips[name] = _load_clip(stored, name, local_files_only=clip is None)
        encoder = clips[name]
    return TrainedNetwork(
        name=path.absolute().name if path.expanduser().exists() else str(source),
        path=stored.weights_path,
        sha256=sha256_of_file(stored.weights_path),
        network=_build(stored, encoder),
        settings=stored.settings,
    )


def _read_folder(folder: Path) -> _Stored:
    """Read a folder that :meth:`CLIPSeg3D.save_pretrained` wrote."""
    path, content = folder / CONFIG, read_config(folder)
    config, settings = settings_of(content, path)
    return _Stored(
        config_path=path,
        weights_path=folder / WEIGHTS,
        config=config,
        settings=settings,
        encoders=content["encoders"],
        weights=read_weights(folder, sha256=content.get("weights_sha256")),
    )


def _read_checkpoint(path: Path) -> _Stored:
    """Read a checkpoint that training wrote."""
    content = read_checkpoint_file(path)
    if not {"hyper_parameters", "encoders"} <= content.keys():
        raise ValueError(f"{path}: not a checkpoint of clipseg3d; give one written by its training")
    values = content["hyper_parameters"]
    manifest = content.get("manifest")
    versions = manifest.get("versions") if isinstance(manifest, dict) else None
    version = versions.get("clipseg3d") if isinstance(versions, dict) else "of another version"
    try:
        settings = PredictionSettings.from_hyperparameters(values)
        network = values["network"]
        check_encoders(content["encoders"])
        if not all(
            isinstance(name, str) and isinstance(weight, Tensor)
            for name, weight in content["state_dict"].items()
        ):
            raise ValueError("state_dict holds more than named tensors")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: its hyperparameters are not those of clipseg3d ({error!r}); give a "
            "checkpoint written by its training"
        ) from error
    prefix = "network."
    return _Stored(
        config_path=path,
        weights_path=path,
        config=parse_values(NetworkConfig, network, path, version),
        settings=parse_values(PredictionSettings, asdict(settings), path, version),
        encoders=content["encoders"],
        weights={
            name.removeprefix(prefix): weight
            for name, weight in content["state_dict"].items()
            if name.startswith(prefix)
        },
    )


def _build(
    stored: _Stored, clip: ClipEncoder | str | None, *, local_files_only: bool = False
) -> CLIPSeg3D:
    """Build the stored network and load its weights."""
    config = stored.config
    _check_sizes(stored)
    # A name that only a file states is not fetched: files may come from anybody.
    local_files_only = local_files_only or clip is None
    if isinstance(clip, str):
        config = replace(config, clip=clip)
    encoder = None if isinstance(clip, str) else clip
    try:
        network = build_clipseg3d(config, encoder=encoder, local_files_only=local_files_only)
    except OSError as error:
        raise _no_encoder(stored, error) from error
    except ValueError as error:
        raise ValueError(
            f"{stored.config_path}: no network can be built as it says ({error}); copy or download "
            "it again"
        ) from error
    unnamed = network.encoder_identities().keys() - stored.encoders.keys()
    if unnamed:
        raise ValueError(
            f"{stored.config_path}: does not say which {min(unnamed)} encoder the network was "
            "trained with; save the network again"
        )
    network.require_encoders(stored.encoders)
    if mismatches := weight_mismatches(stored.weights, network.state_dict()):
        raise ValueError(
            f"{stored.weights_path}: weights of another architecture than the config says "
            f"({'; '.join(mismatches)}); give a config and weights that were saved together"
        )
    network.load_state_dict(stored.weights)
    network.settings = stored.settings
    return network.eval()


def _check_sizes(stored: _Stored) -> None:
    """Raise a ValueError for weights that cannot be those of the config, or are not finite.

    Every width of the config is an axis of some weight; a larger one would only take memory.
    """
    config, path = stored.config, stored.weights_path
    if broken := sorted(
        name for name, weight in stored.weights.items() if not weight.isfinite().all()
    ):
        raise ValueError(
            f"{path}: {broken[0]} holds values that are not finite; copy it again, or give other "
            "weights"
        )
    largest = max((size for weight in stored.weights.values() for size in weight.shape), default=0)
    widths = {
        "channels": max(config.channels, default=0),
        "refinement": config.refinement,
        "semantic_dim": config.semantic_dim if config.semantics else 0,
    }
    if wrong := [f"{name} up to {width}" for name, width in widths.items() if width > largest]:
        raise ValueError(
            f"{path}: weights of another architecture than the config says ({'; '.join(wrong)}, "
            f"but no weight has more than {largest}); give a config and weights that were saved "
            "together"
        )


def _load_clip(stored: _Stored, name: str, *, local_files_only: bool) -> ClipEncoder:
    """Load the CLIP of a stored network."""
    try:
        return load_encoder(name, local_files_only=local_files_only)
    except OSError as error:
        raise _no_encoder(stored, error) from error


def _no_encoder(stored: _Stored, error: OSError) -> OSError:
    """Return the error for an encoder that is neither on this machine nor can be downloaded."""
    names = " and ".join(
        f"{role} encoder {identity['name']!r}" for role, identity in stored.encoders.items()
    )
    return OSError(
        f"{stored.config_path}: trained with {names}, which is not on this machine ({error}); name "
        "CLIP yourself, by folder or by hub name, which is then downloaded, or give the encoder "
        "itself (clip, --clip)"
    )
