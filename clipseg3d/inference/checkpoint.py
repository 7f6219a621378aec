"""Checkpoints of training and published weights, as networks to predict with."""

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from torch import Tensor

from clipseg3d.clip.encoder import ClipEncoder, load_encoder
from clipseg3d.data.releases import REGIONS, SEQUENCES
from clipseg3d.hub import WEIGHTS, find_pretrained
from clipseg3d.networks.clipseg3d import CLIPSeg3D, build_clipseg3d
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.networks.settings import PredictionSettings

SAME = ("release", "spacing_mm")
"""Settings that the members of an ensemble must share."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained network and what it was trained for.

    Attributes:
        path: of the file with the weights.
        sha256: of that file.
        network: with these weights, and ``settings`` that are the same.
        settings: what it was trained for.
    """

    path: Path
    sha256: str
    network: CLIPSeg3D
    settings: PredictionSettings


def read_checkpoints(sources: Sequence[str | Path], *, clip: str | None = None) -> list[Checkpoint]:
    """Read files that :class:`CLIPSeg3DModule` wrote, or published weights; no code in them runs.

    A CLIP that several checkpoints use is loaded once.

    Args:
        sources: one file, or the members of an ensemble. What is no file and does not end in .ckpt
            is for :meth:`CLIPSeg3D.from_pretrained`: a name of weights that come with the package,
            a folder, or a hub id.
        clip: folder or hub name of CLIP, where it is not to be found under the name it had in
            training; its weights must be the same.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: none is given; one is no such checkpoint, of another architecture, or of other
            sequences or regions than this library's; CLIP has other weights; or the members were
            trained on different releases or voxel sizes.
        OSError: the hub has no such weights, or cannot be reached.
    """
    if not sources:
        raise ValueError("no weights are given; name a checkpoint written by training")
    members: list[Checkpoint] = []
    encoders: dict[str, ClipEncoder] = {}
    for source in sources:
        path = Path(source)
        if path.is_file() or path.suffix == ".ckpt":
            member = _read_file(path, clip, encoders)
        else:
            member = _read_pretrained(source, clip)
        for name in SAME:
            first, this = (
                getattr(each.settings, name) for each in (members[0] if members else member, member)
            )
            if first != this:
                raise ValueError(
                    f"{source}: trained with {name}={this!r}, but {sources[0]} with "
                    f"{name}={first!r}; use them apart"
                )
        members.append(member)
    return members


def _read_pretrained(source: str | Path, clip: str | None) -> Checkpoint:
    """Read what :meth:`CLIPSeg3D.save_pretrained` wrote."""
    folder = find_pretrained(source)
    network = CLIPSeg3D.from_pretrained(folder, clip=clip)
    settings, config = network.settings, network.config
    if settings is None or config is None:
        raise ValueError(
            f"{folder}: does not say which scans the network is for; set network.settings and save "
            "it again with save_pretrained"
        )
    _require_inputs(folder, config)
    return Checkpoint(
        path=folder / WEIGHTS,
        sha256=_digest(folder / WEIGHTS),
        network=network,
        settings=settings,
    )


def _read_file(path: Path, clip: str | None, encoders: dict[str, ClipEncoder]) -> Checkpoint:
    """Read one checkpoint; CLIP comes from ``encoders``, or goes there."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a checkpoint written by training")
    content = _read_content(path)
    settings = content["hyper_parameters"]
    config = _config(path, settings)
    encoder = None
    if config.semantics:
        name = clip or config.clip
        config = replace(config, clip=name)
        encoder = encoders[name] = encoders[name] if name in encoders else load_encoder(name)
    network = build_clipseg3d(config, encoder=encoder)
    network.require_encoders(content["encoders"])
    _load_weights(path, network, content["state_dict"])
    network.settings = PredictionSettings(
        release=settings["release"],
        spacing_mm=settings["spacing_mm"],
        window=tuple(settings["window"]),
        overlap=settings["overlap"],
        allow_missing=settings.get("sequence_dropout", 0) > 0,
    )
    return Checkpoint(
        path=path,
        sha256=_digest(path),
        network=network,
        settings=network.settings,
    )


def _read_content(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running any code in it."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path}: not a readable checkpoint; copy or train it again") from error
    keys = {"hyper_parameters", "state_dict", "encoders"}
    if not isinstance(checkpoint, dict) or not keys <= set(checkpoint):
        raise ValueError(f"{path}: not a checkpoint of clipseg3d; give one written by its training")
    return checkpoint


def _config(path: Path, settings: Mapping[str, Any]) -> NetworkConfig:
    """Return the network's config if this library can build it."""
    try:
        config = NetworkConfig(**settings["network"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: describes no network of this version of clipseg3d ({error}); use the version "
            "it was trained with"
        ) from error
    _require_inputs(path, config)
    return config


def _require_inputs(path: Path, config: NetworkConfig) -> None:
    """Raise a ValueError for a network of other sequences or regions than this library's."""
    for name, here, there in (
        ("sequences", SEQUENCES, tuple(config.sequences)),
        ("regions", REGIONS, tuple(config.regions)),
    ):
        if here != there:
            raise ValueError(
                f"{path}: trained with the {name} {', '.join(there)}, not {', '.join(here)}; give "
                "weights trained with those"
            )


def _load_weights(path: Path, network: CLIPSeg3D, state: Mapping[str, Tensor]) -> None:
    """Put the weights of the LightningModule's network into ``network``."""
    prefix = "network."
    weights = {
        name.removeprefix(prefix): weight
        for name, weight in state.items()
        if name.startswith(prefix)
    }
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise ValueError(
            f"{path}: its weights are of another architecture than it says ({reason}); give the "
            "file as training wrote it"
        ) from error


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
