"""The texts CLIP reads: one prompt per region, and reports cut into sentences."""

import re

REGION_PROMPTS = {
    "WT": "FLAIR-bright glioma with surrounding oedema",
    "TC": "tumour core with necrosis on post-contrast T1",
    "ET": "ring of contrast enhancement on post-contrast T1",
}
TEMPLATES = ("{}", "a brain MRI with {}", "a slice of a brain scan that shows {}")


def region_prompts(region: str) -> list[str]:
    """Return the prompts of a region; their embeddings are averaged.

    Raises:
        ValueError: there are no prompts for this region.
    """
    if region not in REGION_PROMPTS:
        raise ValueError(
            f"no prompt for region {region!r}: choose from {', '.join(REGION_PROMPTS)}"
        )
    return [template.format(REGION_PROMPTS[region]) for template in TEMPLATES]


def split_sentences(report: str) -> list[str]:
    """Split a report at full stops, question and exclamation marks and line breaks."""
    pieces = re.split(r"(?<=[.!?])\s+|\n+", report)
    return [piece.strip() for piece in pieces if piece.strip()]
