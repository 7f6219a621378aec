"""The record that ``prepare`` writes beside a case."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipseg3d.prepare.native_scan import NativeScan
from clipseg3d.prepare.volume import Affine

RECORD_SUFFIX = "_prepare.json"
_OF_SCANS = {"shape", "affine", "qform", "sform", "case_to_scan_mm", "sha256"}


def describe_scan(scan: NativeScan, matrix: Affine) -> dict[str, Any]:
    """Return what labels need to be carried back to a scan, as plain values.

    Args:
        scan: as the scanner gave it.
        matrix: 4 x 4 rigid, from mm of the case to mm of the scan.
    """
    return {
        "shape": [*scan.voxels.shape],
        "affine": scan.affine.tolist(),
        **scan.forms,
        "case_to_scan_mm": matrix.tolist(),
        "sha256": scan.sha256(),
    }


def read_record(case_folder: Path) -> dict[str, Any]:
    """Return what ``prepare`` wrote about a case.

    Raises:
        FileNotFoundError: the folder was not written by ``prepare``.
        ValueError: the record is damaged.
    """
    files = sorted(case_folder.glob(f"*{RECORD_SUFFIX}")) if case_folder.is_dir() else []
    cure = "give the folder of a case that 'clipseg3d prepare' wrote"
    if len(files) != 1:
        raise FileNotFoundError(f"{case_folder}: holds no CASE{RECORD_SUFFIX}; {cure}")
    try:
        record: dict[str, Any] = json.loads(files[0].read_text(encoding="utf-8"))
        record["case"], record["atlas"]["grid"], record["atlas"]["affine"]
        for about in record["sequences"].values():
            if not about.keys() >= _OF_SCANS:
                raise KeyError
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{files[0]}: was not written by 'clipseg3d prepare'; {cure}") from error
    return record


def require_same_scans(case_folder: Path, files: Mapping[str, Path]) -> None:
    """Raise a ValueError if a prepared case was made of other scans.

    Args:
        case_folder: the case, as ``prepare`` wrote it.
        files: sequence -> NIfTI file.
    """
    made_of = {
        name: about["sha256"] for name, about in read_record(case_folder)["sequences"].items()
    }
    if made_of != {name: NativeScan.read(path).sha256() for name, path in files.items()}:
        raise ValueError(
            f"{case_folder}: was prepared from other scans; delete it, or choose another folder "
            "for the output"
        )
