"""Libraries of the extra ``prepare``, imported when they are needed."""

from importlib import import_module
from typing import Any


def import_extra(name: str, *, needed_for: str) -> Any:
    """Return a module of an optional library.

    Args:
        name: of the module.
        needed_for: what needs it, as the subject of the message.

    Raises:
        ImportError: it is not installed; the message names the extra.
    """
    try:
        return import_module(name)
    except ImportError as error:
        library = name.partition(".")[0]
        raise ImportError(
            f'{needed_for} needs {library}: pip install "clipseg3d[prepare]"'
        ) from error
