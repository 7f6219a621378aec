"""Writing trained networks to a folder, and uploading them to the hub."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from clipseg3d.atomic_write import atomic_write, locked
from clipseg3d.networks.clipseg3d import CLIPSeg3D
from clipseg3d.pretrained.folder import CARD, WEIGHTS, hub_error, read_settings, write_folder
from clipseg3d.pretrained.model_card import model_card
from clipseg3d.text_files import read_json
from clipseg3d.weights import CONFIG


def save_pretrained(
    network: CLIPSeg3D,
    folder: str | Path,
    *,
    model_card_kwargs: Mapping[str, Any] | None = None,
    push_to_hub: bool = False,
    repo_id: str | None = None,
    **hub_options: Any,
) -> str | None:
    """Write config.json and model.safetensors, and a model card README.md if there is none.

    Frozen encoders are named, not written. Weights keep their type.

    Args:
        network: the trained network.
        folder: it is made if missing.
        model_card_kwargs: texts of the card: ``name``, ``data``, ``metrics``, ``limits``.
        push_to_hub: whether the folder is uploaded too.
        repo_id: of the hub, such as ``user/model``; None takes the folder's name.
        hub_options: other options of :func:`push_folder`.

    Returns:
        The address of the commit if it was uploaded, else None.

    Raises:
        ValueError: the network was made of parts, without a config.
        OSError: a file cannot be written, or the hub refuses.
    """
    folder = Path(folder)
    description = describe(network)
    write_folder(folder, description, network.state_dict())
    if not (folder / CARD).is_file():
        card = model_card(network, description, model_card_kwargs)
        with atomic_write(folder / CARD) as tmp:
            tmp.write_text(str(card), encoding="utf-8")
    return push_folder(folder, repo_id or folder.name, **hub_options) if push_to_hub else None


def write_postprocessing(folder: Path, rules: Mapping[str, Any] | None) -> Path:
    """Replace the rules of post-processing in the config.json of a folder; all else stays.

    Args:
        folder: written by :func:`save_pretrained`.
        rules: plain values, as :meth:`clipseg3d.inference.PostProcessing.values` gives them; None
            or empty for none.

    Returns:
        The file that was written.

    Raises:
        FileNotFoundError: the folder holds no config.json.
        ValueError: it describes no network of this library, or not for which scans it is.
        OSError: it cannot be written.
    """
    read_settings(folder)  # fails if it has none
    path = folder / CONFIG
    with locked(folder / WEIGHTS):  # as when both are written
        content = read_json(path)  # in the format that it has
        content["prediction"]["postprocessing"] = rules or None
        with atomic_write(path) as tmp:
            tmp.write_text(f"{json.dumps(content, indent=2)}\n", encoding="utf-8")
    return path


def push_to_hub(
    network: CLIPSeg3D,
    repo_id: str,
    *,
    model_card_kwargs: Mapping[str, Any] | None = None,
    **hub_options: Any,
) -> str:
    """Upload config.json, model.safetensors and README.md to the Hugging Face hub.

    A README.md on the hub is replaced: give its texts as ``model_card_kwargs``, or fill in the card
    that :func:`save_pretrained` writes and upload the folder with ``hf upload``.

    Args:
        network: the trained network.
        repo_id: such as ``user/model``; it is made if missing.
        model_card_kwargs: as for :func:`save_pretrained`.
        hub_options: other options of :func:`push_folder`.

    Returns:
        The address of the commit.

    Raises:
        ValueError: the network was made of parts, without a config; ``repo_id`` is no such id.
        OSError: the hub cannot be reached, or refuses.
    """
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(network, folder, model_card_kwargs=model_card_kwargs)
        return push_folder(Path(folder), repo_id, **hub_options)


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    commit_message: str = "Upload a network of clipseg3d",
    branch: str | None = None,
    create_pr: bool | None = None,
) -> str:
    """Upload a folder of :func:`save_pretrained`; return the address of the commit.

    Args:
        folder: what to upload.
        repo_id: such as ``user/model``; it is made if missing.
        token: of the hub; None takes the one stored on this machine.
        private: whether a new repository is private; None takes the account's default.
        commit_message: of the commit.
        branch: to commit to; None takes the main one.
        create_pr: open a pull request instead.

    Raises:
        ValueError: ``repo_id`` is no such id.
        OSError: the hub cannot be reached, or refuses.
    """
    try:
        api = HfApi(token=token)
        name = api.create_repo(repo_id=repo_id, private=private, exist_ok=True).repo_id
        address: str = api.upload_folder(
            repo_id=name,
            repo_type="model",
            folder_path=folder,
            commit_message=commit_message,
            revision=branch,
            create_pr=create_pr,
        )
    except ValueError:  # repo_id is no such id; the message says so
        raise
    except Exception as error:  # versions of huggingface_hub differ in what they raise
        raise OSError(
            f"{repo_id!r} was not uploaded to the Hugging Face hub ({hub_error(error)}); check the "
            "network, the name and the login ('hf auth login')"
        ) from error
    return address


def describe(network: CLIPSeg3D) -> dict[str, Any]:
    """Return the values of a network's config.json, without version and format.

    Raises:
        ValueError: the network was made of parts, without a config.
    """
    if network.config is None:
        raise ValueError(
            "a network that was made of parts has no config to be saved with; build it with "
            "build_clipseg3d, or give CLIPSeg3D the config of its parts"
        )
    return {
        "network": asdict(network.config),
        "prediction": None if network.settings is None else asdict(network.settings),
        "encoders": network.encoder_identities(),
    }
