"""What the files of a case were made with: a small JSON file per case, kept beside them."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clipseg3d.atomic_write import atomic_write
from clipseg3d.checksums import sha256_of_file
from clipseg3d.data.layout import RECORDS
from clipseg3d.text_files import read_json

_ADDED: dict[str, Any] = {
    **{"trust": 1.0, "prompts": [], "grid_of": None, "spacing_mm": 1.0},
    **{"procedure": 1},
}
"""What records did not hold at first, and the values that there were then. Scans had the voxel size
of the weights, which is 1 mm for all published ones."""


def record_path(out: Path, case_id: str) -> Path:
    """Return the file that says what the files of a case in a folder were made with."""
    return out / RECORDS / f"{case_id}.json"


@dataclass(frozen=True)
class CaseRecord:
    """What the files of one case were made with, and the files themselves.

    Only files with a record are taken for finished, and only while they are as they were written.

    Attributes:
        path: of the record, in a subfolder of ``folder``.
        folder: that the files lie in, or in subfolders of which they lie.
        made_with: plain values that decide what is written: inputs, weights, text and settings.
        files: name relative to ``folder`` -> SHA-256; None for a file that is being written, or was
            made otherwise. ``data.layout`` reads the names, since outputs are no scans.
        found: plain values that are told about the case and are in no other file: scores.
    """

    path: Path
    folder: Path
    made_with: Mapping[str, Any]
    files: Mapping[str, str | None]
    found: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, folder: Path) -> "CaseRecord | None":
        """Read a record; None if there is none, or none that can be understood."""
        if not path.is_file():
            return None
        try:
            content = read_json(path)
            made_with = {**_ADDED, **dict(content["made_with"])}
            return cls(
                path, folder, made_with, dict(content["files"]), dict(content.get("found", {}))
            )
        except (ValueError, KeyError, TypeError):
            return None

    @classmethod
    def begin(
        cls, path: Path, folder: Path, made_with: Mapping[str, Any], files: Iterable[Path]
    ) -> "CaseRecord":
        """Write and return the record of files that are about to be written.

        If the process is killed now, it is known whose files these are. Files that were written
        for the case before stay listed.

        Raises:
            OSError: the record cannot be written.
        """
        before = cls.read(path, folder)
        record = cls(path, folder, made_with, dict.fromkeys(before.files if before else ()))
        record = replace(record, files={**record.files, **dict.fromkeys(map(record._name, files))})
        record.write()
        return record

    def with_files(self, files: Iterable[Path], found: Mapping[str, Any]) -> "CaseRecord":
        """Return the record of files that have been written, and of what was found."""
        hashes = {self._name(file): sha256_of_file(file) for file in files}
        return replace(self, files={**self.files, **hashes}, found=found)

    def write(self) -> None:
        """Write the record; raises an OSError if it cannot be written."""
        content = {"made_with": self.made_with, "files": self.files, "found": self.found}
        with atomic_write(self.path) as tmp:
            tmp.write_text(f"{json.dumps(content, indent=2)}\n", encoding="utf-8")

    def fits(self, made_with: Mapping[str, Any]) -> bool:
        """Return whether the files were made with these values; others do not matter."""
        return all(self.made_with.get(name) == value for name, value in made_with.items())

    def lists(self, file: Path) -> bool:
        """Return whether a file was written for the case, or was going to be."""
        return self._name(file) in self.files

    def holds(self, files: Iterable[Path]) -> bool:
        """Return whether all files are there, and were written to the end."""
        return all(file.is_file() and self.files.get(self._name(file)) for file in files)

    def others(self, files: Iterable[Path]) -> list[Path]:
        """Return the files of the case that are there, without some."""
        left = self.files.keys() - set(map(self._name, files))
        return sorted(path for name in left if (path := self.folder / name).is_file())

    def changed(self, files: Iterable[Path]) -> list[Path]:
        """Return the files that are not as they were written."""
        return [
            file
            for file in files
            if (then := self.files.get(self._name(file)))
            and not (file.is_file() and then == sha256_of_file(file))
        ]

    def _name(self, file: Path) -> str:
        return file.relative_to(self.folder).as_posix()
