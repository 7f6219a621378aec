"""The one side on which a report says that the tumour lies, by its words; a safeguard.

How a prompt head reads a sentence tells places well, but not whether the sentence denies a lesion
there, or speaks of something else, such as the way in which the midline is shifted. A lesion that
is left out wrongly harms a patient, so words must say the same.
"""

import re
from typing import Literal

_SIDE = re.compile(r"\b((?i:left|right)|[LR])\b")
_CLAUSES = re.compile(
    r"[.,;:()\n]+|\s-\s|\b(?:with|without|but|while|whereas|which|that|causing|compressing)\b"
)
_NOT_ENHANCING = re.compile(r"\b(?:does|do|did|is|are|was)(?: not|n't)\s+(?:\w+ly\s+)?enhanc\w*")
"""Says nothing of whether there is a lesion."""
_NO_LESION_THERE = re.compile(
    # it is denied
    r"\b(?:no|not|none|nor|neither|never|nothing|n't|nil|absen\w+|negative|excluded"
    # it is healthy
    r"|normal\w*|unremarkable|spar(?:ed|ing|es)|intact|preserv\w+|unaffected|uninvolved|clear|free"
    r"|healthy|inconspicuous|regular"
    # it gives way to a tumour
    r"|midline|falx|septum|shift\w*|displac\w+|deviat\w+|push\w*|bow(?:ed|ing)|compress\w*|effac\w+"
    r"|narrow\w*|distort\w+|obliterat\w+|dilat\w+|enlarg\w+|herniat\w+|mass effect|ventric\w+"
    r"|horns?|trigone|atrium|sulc\w+|fissures?|cisterns?|peduncles?"
    # it has to do with something else
    r"|old|chronic|infarct\w*|lacun\w+|bleed\w*|scars?|contusion\w*|sinus(?:es)?|mastoids?|orbits?"
    r"|cyst|polyp|craniotom\w+|burr|bone flap|shunt|drain|catheter|electrodes?|resect\w+"
    r"|surg\w+|biops\w+|hand(?:ed)?|arm|leg|face|body|weakness|\w*pares\w+|\w*plegi\w+)\b",
    re.IGNORECASE,
)
_SEVERAL = re.compile(
    r"\b(?:both|bi(?:lateral\w*|hemispher\w+|frontal|temporal|parietal|occipital|thalamic)"
    r"|contralateral\w*|opposite|other|another|second\w*|further|additional\w*|similar\w*|also"
    r"|largest|larger|biggest|bigger|smaller|smallest|dominant|main|several(?! mm)|multiple|many"
    r"|numerous|few|two|three|four|five|multi\w+|lesions|tumou?rs|masses|foci|nodules|metastases"
    r"|daughter|more than|deposits|growths|neoplasms"
    r"|abnormalities|gliomas|satellites?|butterfly|callos\w+|cross\w*|each"
    r"|(?:exten(?:sion|ds|ding)|spread\w*|reach\w*|growth) (?:in)?to|across)\b",
    re.IGNORECASE,
)
"""A report with one of these words may speak of more than one lesion, or of both sides."""
_ONE = re.compile(
    r"\b(?:no|not|without|nor|neither|absence of|nothing|only)\b[^.,;:\n]*"
    r"|\bnumber of lesions:? (?:1|one)\b|\bdisplaced to the opposite side\b",
    re.IGNORECASE,
)
"""Denies that there are several, or counts one."""


def named_side(report: str) -> Literal["left", "right"] | None:
    """Return the side on which a report places its only lesion.

    Args:
        report: in English.

    Returns:
        None if it names no side or both, if a side is named only where no lesion is, or if it may
        speak of several lesions.

    Example:
        >>> named_side("Mass in the left temporal lobe. The right hemisphere is normal.")
        'left'
        >>> named_side("There is a glioma. The midline is shifted to the right.") is None
        True
    """
    if _SEVERAL.search(_ONE.sub(" ", report)):
        return None
    sides: set[Literal["left", "right"]] = set()
    for clause in _CLAUSES.split(_NOT_ENHANCING.sub(" ", report)):
        if _NO_LESION_THERE.search(clause):
            continue
        for word in _SIDE.findall(clause):
            sides.add("left" if word[0] in "lL" else "right")
    return sides.pop() if len(sides) == 1 else None
