"""The texts that CLIP reads: prompts of each region, and reports cut into sentences."""

import re

REGION_PROMPTS = {
    "WT": "FLAIR-bright glioma with surrounding oedema",
    "TC": "tumour core with necrosis on post-contrast T1",
    "ET": "ring of contrast enhancement on post-contrast T1",
    "RC": "resection cavity after surgery",
    "CC": "cyst beside the tumour core",
    "GTV": "contrast-enhancing mass on post-contrast T1",
}
TEMPLATES = ("{}", "a brain MRI with {}", "a slice of a brain scan that shows {}")

_ABBREVIATIONS = ("approx", "ca", "cf", "dr", "e.g", "fig", "i.e", "max", "min", "resp", "vs")
_SENTENCE_END = re.compile(
    "".join(rf"(?<!\b{re.escape(short)}\.)" for short in _ABBREVIATIONS)
    + r"(?<=[.!?\u061f\u06d4\u0964])\s+|(?<=[\u3002\uff01\uff1f])\s*",
    re.IGNORECASE,
)


def region_prompts(region: str, prompt: str | None = None) -> list[str]:
    """Return a region's prompt in several wordings; their embeddings are averaged.

    Args:
        region: name of the region.
        prompt: what to say of it; None takes that of ``REGION_PROMPTS``, or the region's name.
    """
    return [template.format(prompt or REGION_PROMPTS.get(region, region)) for template in TEMPLATES]


def split_sentences(report: str) -> list[str]:
    """Split a report at line breaks and ends of sentences; white space becomes single spaces.

    A full stop of a common abbreviation or a decimal number ends no sentence. Punctuation of
    Chinese, Japanese, Hindi, Arabic and Urdu ends sentences too.
    """
    pieces = [piece for line in report.splitlines() for piece in _SENTENCE_END.split(line)]
    return [" ".join(piece.split()) for piece in pieces if piece.strip()]
