"""Which facts radiology reports mention, and so what they can add to the scan.

    python examples/report_facts.py textbrats_reports.json --output report_facts.csv

Says for each fact how many of the reports mention it. A fact that all reports mention cannot
distinguish cases.
"""

import argparse
import csv
import re
from pathlib import Path

from clipseg3d.atomic_write import atomic_write
from clipseg3d.data.reports import read_reports

FACTS = {
    "side": r"\b(left|right|bilateral)",
    "lobe": r"\b(frontal|temporal|parietal|occipital)",
    "oedema": r"\bo?edema",
    "necrosis": r"\bnecro",
    "pressed ventricles or midline": r"\b(compress|midline|shift|mass effect)",
    "outline": r"\b(smooth|irregular|(well|ill)-defined|indistinct|blurr)",
    "enhancement": r"\benhanc",
    "haemorrhage": r"\bha?emorrh",
    "a sequence": r"\b(T1|T2|FLAIR)",
}
"""Fact -> pattern of the words that mention it."""


def main() -> None:
    """Count, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("reports", type=Path, help="JSON or CSV of reports by case")
    parser.add_argument("--output", type=Path, default=Path("report_facts.csv"))
    arguments = parser.parse_args()
    try:
        texts = read_reports(arguments.reports).values()
    except (OSError, ValueError) as error:
        parser.error(str(error))
    rows = [("fact", "reports that mention it", "reports")]
    for fact, words in FACTS.items():
        count = sum(re.search(words, text, re.IGNORECASE) is not None for text in texts)
        print(f"{fact:30s} {count:4d} of {len(texts)}")
        rows.append((fact, str(count), str(len(texts))))
    with atomic_write(arguments.output) as tmp, tmp.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    main()
