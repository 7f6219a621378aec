"""One registry of encoders: a name becomes an encoder by its prefix."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import cast

from clipseg3d.clip.encoder import ClipEncoder, TextEncoder
from clipseg3d.weights import CONFIG

Loader = Callable[..., TextEncoder]
"""Called as ``loader(rest, local_files_only=...)``; ``rest`` is what follows the prefix and its
colon, empty if the name is the prefix alone."""
HUGGING_FACE = "hf"
"""Prefix of folders and hub names, which need none."""
_BUNDLED = "tiny"
"""File of the encoders that come with the package."""
_LOADERS: dict[str, Loader] = {}


def register(prefix: str, loader: Loader) -> None:
    """Let encoders be loaded by name: ``prefix:rest``, or the prefix alone.

    Such names work wherever an encoder is named: ``NetworkConfig.clip`` and ``text_encoder``,
    :func:`load_encoder`, and on the command line if your module is imported there.

    Args:
        prefix: of the names; the last loader that a module registers for it counts.
        loader: called as ``loader(rest, local_files_only=...)``, returns a
            :class:`~clipseg3d.clip.encoder.ClipEncoder`, or a
            :class:`~clipseg3d.clip.encoder.TextEncoder`. With ``local_files_only``, it must not
            download. The encoder's ``name`` is set to the name that it was loaded by.

    Raises:
        ValueError: the prefix is empty, holds ``:`` or ``/``, or is another module's.

    Example:
        >>> from clipseg3d.clip import HuggingFaceCLIP, load_encoder, register
        >>> register("seeded", lambda rest, **_: HuggingFaceCLIP.tiny_random(seed=int(rest)))
        >>> load_encoder("seeded:3").name
        'seeded:3'
    """
    if not prefix or any(sign in prefix for sign in ":/\\"):
        raise ValueError(f"prefix {prefix!r} is empty or holds ':' or '/'; take a plain word")
    taken = _LOADERS.get(prefix)
    owner = getattr(taken, "__module__", None)
    if taken is not None and owner != getattr(loader, "__module__", None):
        raise ValueError(f"prefix {prefix!r} is that of {owner}; take another word")
    _LOADERS[prefix] = loader


def load_encoder(name: str, *, local_files_only: bool = False) -> ClipEncoder:
    """Return the CLIP of that name.

    Args:
        name: ``tiny``, which comes with the package: ``examples/train_tiny_clip.py`` trained it on
            many wordings of facts, denied ones too, then on slices of simulated and some real
            brains; its embeddings of other images mean nothing; ``tiny-random``; a local folder or
            a hub name with a CLIP or SigLIP of Hugging Face; ``open_clip:...``, see
            :class:`~clipseg3d.clip.open_clip.OpenClipEncoder`; or a prefix of :func:`register`.
        local_files_only: use folders and caches, and no network.

    Raises:
        ValueError: the encoder reads no images; the name is also that of a folder here; a folder
            lacks weights or a tokenizer, or they are not complete.
        ImportError: a package that the encoder needs is not installed.
        OSError: there is no such encoder, or it cannot be downloaded and no copy is cached.

    Example:
        >>> clip = load_encoder("tiny")
        >>> left, right = clip.encode_text(["a tumour on the left", "a tumour on the right"])
        >>> bool(left @ right < 0.99)
        True
    """
    encoder = load_text_encoder(name, local_files_only=local_files_only)
    if not hasattr(encoder, "encode_image"):
        raise ValueError(
            f"{name}: reads texts and no images; give a CLIP as clip, and this as text_encoder"
        )
    return cast(ClipEncoder, encoder)


def load_text_encoder(name: str, *, local_files_only: bool = False) -> TextEncoder:
    """Return the encoder of that name, which may read texts only.

    Args:
        name: as for :func:`load_encoder`; also a folder or a hub name with another text encoder of
            Hugging Face, or ``texts:FILE`` with a file of :class:`clipseg3d.clip.TextCache`.
        local_files_only: use folders and caches, and no network.

    Raises:
        ValueError, ImportError, OSError: as for :func:`load_encoder`.
    """
    prefix, colon, rest = name.partition(":")
    _import_families(prefix)
    loader = _LOADERS.get(prefix)
    if loader is None:
        if colon and len(prefix) > 1 and "/" not in prefix and not Path(name).exists():
            known = ", ".join(sorted(_LOADERS))
            raise FileNotFoundError(
                f"encoder {name!r}: no encoders have the prefix {prefix!r}: choose from {known}; "
                "clipseg3d.clip.register adds your own"
            )
        loader, rest = _LOADERS[HUGGING_FACE], name
    elif not colon and Path(name, CONFIG).is_file():
        raise ValueError(
            f"{name!r} is both a folder here and an encoder of clipseg3d; give ./{name} for the "
            "folder, or rename it"
        )
    encoder = loader(rest, local_files_only=local_files_only)
    encoder.name = name
    return encoder


def _import_families(prefix: str) -> None:
    """Import the files of this folder that may register a prefix: a family registers itself.

    The encoders of the package come first; for those, transformers need not be loaded.
    """
    package = __name__.rpartition(".")[0]
    import_module(f"{package}.{_BUNDLED}")
    if prefix in _LOADERS:
        return
    for module in iter_modules(import_module(package).__path__):
        import_module(f"{package}.{module.name}")
