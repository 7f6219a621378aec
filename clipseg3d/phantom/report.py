"""A report of a simulated patient, in few wordings.

:func:`clipseg3d.texts.write_text` has many, and leaves facts out.
"""

import copy

import numpy as np

from clipseg3d.texts.facts import (
    COMPRESSED_SHARE,
    SHIFTED_MM,
    SPARED_SHARE,
    THICK_RIM_MM,
    Enhancement,
    TumourFacts,
)


def describe(
    facts: TumourFacts, rng: np.random.Generator, *, like: TumourFacts | None = None
) -> str:
    """Write a report in which every sentence is true.

    Args:
        facts: facts to state; the constants of :mod:`clipseg3d.texts.facts` define the words for
            numbers.
        rng: chooses the wording.
        like: facts of a twin. The report is worded as the same ``rng`` words that of the twin:
            sentences about facts that they share are the same.

    Returns:
        Three to eight English sentences on one line.
    """
    sentences: list[str] = []
    for section in (_location, _cavity, _oedema, _inside, _midline_crossing, _ventricles, _shift):
        if like is None:
            sentences += section(facts, rng)
        else:
            sentences += section(facts, copy.deepcopy(rng))
            section(like, rng)  # the next section starts where that of the twin does
    return " ".join(sentences)


def _location(facts: TumourFacts, rng: np.random.Generator) -> list[str]:
    """Return a sentence about the number and location of foci."""
    lobe = f"the {facts.side} {facts.lobe} lobe"
    if facts.foci > 1:
        count = ("two", "three", "four")[facts.foci - 2] if facts.foci < 5 else "several"
        return _pick(
            rng,
            f"There are {count} separate foci of mixed signal, the largest of them in {lobe}.",
            f"The lesion consists of {count} foci; the largest is centered in {lobe}.",
            f"{count.capitalize()} foci with uneven signals are seen, the main one in {lobe}.",
        )
    return _pick(
        rng,
        f"The lesion area is in {lobe} with mixed high and low signals.",
        f"A single lesion with uneven signal intensity is centered in {lobe}.",
        f"There is a mass of mixed signal in {lobe}.",
        f"{lobe[0].upper()}{lobe[1:]} contains a space-occupying lesion with mixed signals.",
    )


def _cavity(facts: TumourFacts, rng: np.random.Generator) -> list[str]:
    """Return a sentence about a resection cavity; none if there is none."""
    if facts.cavity_ml <= 0:
        return []
    return _pick(
        rng,
        "A resection cavity filled with fluid lies within the lesion.",
        "After resection, a cavity remains, dark on FLAIR and bright on T2.",
        "There is a postoperative cavity with the signal of fluid.",
    )


def _oedema(facts: TumourFacts, rng: np.random.Generator) -> list[str]:
    """Return a sentence about oedema."""
    if facts.oedema_ml <= 0:
        return ["No edema is observed."]
    extent = facts.oedema_extent
    return _pick(
        rng,
        f"Edema is {extent}, presenting as high signal on FLAIR in the tissue around the lesion.",
        f"{extent.capitalize()} edema surrounds the lesion, seen as high signal on T2 and FLAIR.",
        f"The surrounding edema is {extent} and bright on FLAIR.",
    )


def _inside(facts: TumourFacts, rng: np.random.Generator) -> list[str]:
    """Return sentences about necrosis, where something is certain, and enhancement."""
    if not facts.enhancing and not facts.necrosis and rng.random() < 0.4:
        return _pick(
            rng,
            "Neither necrosis nor contrast enhancement is observed.",
            "The lesion shows no necrosis and no contrast enhancement.",
        )
    if facts.necrosis or facts.enhancement in ("none", "rim", "solid"):
        return _necrosis(facts, rng) + _enhancement(facts, rng)
    return _enhancement(facts, rng)


def _necrosis(facts: TumourFacts, rng: np.random.Generator) -> list[str]:
    """Return a sentence about necrosis."""
    if facts.necrosis:
        return _pick(
            rng,
            "Necrosis is present within the lesion, with low signal on T1.",
            "The core of the lesion contains necrosis, dark on T1 and bright on T2.",
            "Necrosis is seen inside the lesion as an area that does not take up contrast.",
        )
    return _pick(
        rng,
        "Necrosis is not observed.",
        "There is no sign of necrosis.",
        "No necrosis is seen within the lesion.",
    )


def _enhancement(facts: TumourFacts, rng: np.random.Generator) -> list[str]:
    """Return a sentence about enhancement."""
    rim = "thick" if facts.rim_mm >= THICK_RIM_MM else "thin"
    if facts.cavity_ml > 0 and facts.enhancing:
        remaining = {
            "spots": "Only small parts of the remaining tumor take up contrast.",
            "patches": "Parts of the remaining tumor take up contrast, in patches.",
            "rim": f"A {rim} rim of contrast enhancement surrounds the cavity.",
            "solid": "All of the remaining tumor takes up contrast.",
        }
        return [remaining[facts.enhancement]]
    wordings: dict[Enhancement, tuple[str, ...]] = {
        "none": (
            "No contrast enhancement is seen.",
            "The lesion does not take up contrast.",
            "Contrast enhancement is absent.",
        ),
        "spots": (
            "Most of the core does not enhance; only small parts of it take up contrast.",
            "After contrast, a few small spots within the core enhance.",
            "Enhancement is confined to small areas of the core.",
        ),
        "patches": (
            "Parts of the core take up contrast, in patches.",
            "Patchy contrast enhancement is seen within the core.",
        ),
        "rim": (
            f"A {rim} rim of contrast enhancement surrounds the core.",
            f"After contrast, the lesion shows {rim} ring enhancement.",
            f"The enhancing rim on T1 after contrast is {rim}.",
        ),
        "solid": (
            "The whole core shows solid contrast enhancement.",
            "After contrast, the core enhances solidly.",
        ),
    }
    return _pick(rng, *wordings[facts.enhancement])


def _midline_crossing(facts: TumourFacts, rng: np.random.Generator) -> list[str]:
    """Return a sentence about a tumour on both sides; none if it is on one."""
    if not facts.crosses_midline:
        return []
    return _pick(
        rng,
        "The abnormal signal extends across the midline.",
        "The lesion reaches beyond the midline into the other hemisphere.",
    )


def _ventricles(facts: TumourFacts, rng: np.random.Generator) -> list[str]:
    """Return a sentence about the ventricles; none if nothing is certain."""
    loss = facts.ventricle_loss
    if loss is not None and loss >= COMPRESSED_SHARE:
        return _pick(
            rng,
            "Ventricular compression is present.",
            "The ventricles are compressed by the mass.",
            "The lesion compresses the ventricular system.",
        )
    if loss is not None and loss < SPARED_SHARE:
        return _pick(
            rng,
            "No ventricular compression is observed.",
            "The ventricles are not compressed.",
        )
    return []


def _shift(facts: TumourFacts, rng: np.random.Generator) -> list[str]:
    """Return a sentence about a shift of the midline; none if nothing is certain."""
    shift = facts.midline_shift_mm
    if shift is not None and shift >= SHIFTED_MM:
        return _pick(
            rng,
            "The midline is shifted away from the lesion.",
            "Midline structures are displaced to the opposite side.",
        )
    if shift is not None and shift < SHIFTED_MM / 3:
        return _pick(rng, "There is no midline shift.", "Midline structures are in their place.")
    return []


def _pick(rng: np.random.Generator, *wordings: str) -> list[str]:
    """Draw one of some wordings."""
    return [wordings[int(rng.integers(len(wordings)))]]
