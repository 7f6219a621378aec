"""Checks of settings where they are declared: one line that names the setting, value and cure."""

import difflib
import math
from collections.abc import Collection, Iterable
from numbers import Integral, Real
from typing import Any


class UnknownNameError(ValueError):
    """There is no setting, preset, plan or release of a name."""


def require_share(**settings: Any) -> None:
    """Refuse settings that are not a number in [0, 1].

    Raises:
        ValueError: one is not; the message names it.

    Example:
        >>> require_share(dropout=15)
        Traceback (most recent call last):
        ...
        ValueError: dropout=15 is not in [0, 1]; give a probability, such as 0.15
    """
    for name, value in settings.items():
        if not (_is_number(value) and 0 <= value <= 1):
            raise ValueError(f"{name}={value!r} is not in [0, 1]; give a probability, such as 0.15")


def require_trust(trust: Any) -> None:
    """Refuse a trust in reports that is not a number in [0, 1].

    Raises:
        ValueError: it is not; the message says what the number means.
    """
    if not (_is_number(trust) and 0 <= trust <= 1):
        raise ValueError(
            f"trust={trust!r} is not in [0, 1]; give a number from 0, as if there were no report, "
            "to 1, where the report may decide whatever the image leaves open"
        )


def require_above_zero(**settings: Any) -> None:
    """Refuse settings that are not a finite number above 0.

    Raises:
        ValueError: one is not; the message names it.
    """
    for name, value in settings.items():
        if not (_is_number(value) and value > 0):
            raise ValueError(f"{name}={value!r} is not above 0; give a finite number above 0")


def require_not_negative(**settings: Any) -> None:
    """Refuse settings that are not 0 or a finite number above 0.

    Raises:
        ValueError: one is not; the message names it.
    """
    for name, value in settings.items():
        if not (_is_number(value) and value >= 0):
            raise ValueError(f"{name}={value!r} is not a finite number from 0 on; give one")


def require_count(*, at_least: int = 1, at_most: int | None = None, **settings: Any) -> None:
    """Refuse settings that are not whole numbers in a range.

    Args:
        at_least: smallest value.
        at_most: largest value; None for any.
        **settings: value by name.

    Raises:
        ValueError: one is not in it; the message names it.
    """
    for name, value in settings.items():
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if whole and value >= at_least and (at_most is None or value <= at_most):
            continue
        fault = "is too large"
        if not whole:
            fault = "is not a whole number"
        elif value < at_least:
            fault = {0: "is negative", 1: "is not positive"}.get(at_least, "is too small")
        limit = f"{at_least} or more" if at_most is None else f"{at_least} to {at_most}"
        raise ValueError(f"{name}={value!r} {fault}; give a whole number, {limit}")


def require_names(names: Iterable[str], allowed: Collection[str], *, of: str) -> None:
    """Refuse names of settings that do not exist, and say which one is nearest.

    Args:
        names: given.
        allowed: all there are.
        of: what they are settings of, such as ``network``.

    Raises:
        UnknownNameError: there is no such setting.

    Example:
        >>> require_names(["chanels"], ["channels", "dropout"], of="network")
        Traceback (most recent call last):
        ...
        clipseg3d.ranges.UnknownNameError: network.chanels: no such setting; did you mean channels?
    """
    for name in names:
        if name not in allowed:
            raise UnknownNameError(f"{of}.{name}: no such setting; {nearest(str(name), allowed)}")


def nearest(name: str, allowed: Collection[str]) -> str:
    """Return which of the allowed names is meant, as the end of a message."""
    prefix = name[: name.rfind(".") + 1] or name[: 2 * name.startswith("--")]
    if not any(option.startswith(prefix) for option in allowed):
        prefix = ""
    ends = [option.removeprefix(prefix) for option in allowed if option.startswith(prefix)]
    if close := difflib.get_close_matches(name.removeprefix(prefix), ends, n=1):
        return f"did you mean {prefix}{close[0]}?"
    return f"choose one of {', '.join(allowed)}" if len(allowed) < 30 else "see --help for all"


def _is_number(value: Any) -> bool:
    """Return whether a value is a finite number."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
