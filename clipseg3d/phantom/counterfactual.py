"""Changes of one fact of a simulated patient, which make it a twin of itself."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from clipseg3d.phantom.tumour import Kind, TumourPlan
from clipseg3d.texts.facts import Side, TumourFacts

_OEDEMA_ML = {"limited": (8.0, 15.0), "extensive": (75.0, 125.0)}
"""Volumes well within the bounds of :data:`clipseg3d.texts.facts.OEDEMA_WORDS`, since parts of
what is planned may not fit into the brain."""


@dataclass(frozen=True)
class Counterfactual:
    """What is different in a twin; None leaves a fact as it is.

    A fact that the patient has already does not change. Usually one is given; several can be.

    Attributes:
        kind: how the tumour enhances: ``necrotic`` around necrosis, ``solid`` throughout,
            ``spotted`` in small parts, ``plain`` nowhere. Without ``necrosis``, a tumour of
            another kind than ``necrotic`` has no necrosis.
        necrosis: whether there is necrosis inside the core, where it is thick enough. Without it,
            tumour that does not enhance is there, of the same label. A solid core that is to have
            necrosis becomes ``necrotic``.
        oedema: how much of it there is, in the words of reports.
        second_focus: whether there is more than one focus. False removes all but the largest, and
            the oedema that is not connected to it; True adds a small one, at least 20 mm apart
            where there is room.
        side: on which the largest focus lies; for the other, everything is mirrored about the
            middle of the grid, artefacts and noise included.
        cavity: whether a resection has left a cavity in the largest focus.

    Raises:
        ValueError: a value is unknown, or the kind is solid with necrosis.
    """

    kind: Kind | None = None
    necrosis: bool | None = None
    oedema: Literal["limited", "extensive"] | None = None
    second_focus: bool | None = None
    side: Side | None = None
    cavity: bool | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        for name, allowed in (
            ("kind", get_args(Kind)),
            ("oedema", tuple(_OEDEMA_ML)),
            ("side", get_args(Side)),
            *((flag, (True, False)) for flag in ("necrosis", "second_focus", "cavity")),
        ):
            value = getattr(self, name)
            if value is not None and value not in allowed:
                options = ", ".join(map(str, allowed))
                raise ValueError(f"{name}={value!r} is unknown; choose from {options}")
        if self.kind == "solid" and self.necrosis:
            raise ValueError("kind='solid' leaves no room for necrosis=True; take 'necrotic'")

    def change(self, plan: TumourPlan, facts: TumourFacts, rng: np.random.Generator) -> TumourPlan:
        """Return the plan with kind, necrosis, oedema and resection changed.

        Args:
            plan: of the patient.
            facts: of the patient, whose oedema counts.
            rng: draws the volume of oedema; the number of drawn values is always the same.
        """
        volumes = {extent: float(rng.uniform(*bounds)) for extent, bounds in _OEDEMA_ML.items()}
        if self.kind is not None:
            plan = replace(plan, kind=self.kind)
        if self.necrosis is not None:
            kind: Kind = "necrotic" if plan.kind == "solid" and self.necrosis else plan.kind
            plan = replace(plan, kind=kind, necrosis=self.necrosis)
        if self.oedema not in (None, facts.oedema_extent):
            plan = replace(plan, oedema_ml=volumes[self.oedema])
        if self.cavity is not None:
            plan = replace(plan, resected=self.cavity)
        return plan
