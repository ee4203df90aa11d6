"""What was fetched into a folder, kept beside it: a second fetch only looks."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from triptych.weights.checksum import Checksum, checksum_of

RECORD = ".triptych-fetch.json"


@dataclass(frozen=True, slots=True)
class FetchedFile:
    """A file as it was when it had been verified."""

    size: int
    mtime_ns: int
    checksum: Checksum

    @staticmethod
    def of(path: Path, checksum: Checksum | None) -> FetchedFile:
        """Reads the file where nobody stated a checksum: damage shall be seen later on."""
        found = path.stat()
        return FetchedFile(found.st_size, found.st_mtime_ns, checksum or checksum_of(path))

    def untouched(self, path: Path) -> bool:
        """By size and time; the contents are not read."""
        with contextlib.suppress(OSError):
            found = path.stat()
            return (found.st_size, found.st_mtime_ns) == (self.size, self.mtime_ns)
        return False


@dataclass(frozen=True, slots=True)
class Fetched:
    """What one source brought."""

    revision: str = ""
    complete: bool = False
    files: dict[str, FetchedFile] = field(default_factory=dict)

    def whole(self, folder: Path) -> bool:
        """Everything is there and as it was."""
        return self.complete and all(
            file.untouched(folder / name) for name, file in self.files.items()
        )

    def with_file(self, name: str, file: FetchedFile) -> Fetched:
        return replace(self, files={**self.files, name: file})


def read_record(folder: Path) -> dict[str, Fetched]:
    """By source. A record that cannot be read is none: everything is looked at again."""
    try:
        data: dict[str, Any] = json.loads((folder / RECORD).read_text())
        return {source: _fetched(entry) for source, entry in data.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def write_record(folder: Path, record: dict[str, Fetched]) -> None:
    data = {
        source: {
            "revision": fetched.revision,
            "complete": fetched.complete,
            "files": {
                name: {
                    "size": file.size,
                    "mtime_ns": file.mtime_ns,
                    "checksum": str(file.checksum),
                }
                for name, file in fetched.files.items()
            },
        }
        for source, fetched in record.items()
    }
    scratch = folder / f"{RECORD}.part"
    scratch.write_text(json.dumps(data, indent=1))
    os.replace(scratch, folder / RECORD)


def _fetched(entry: dict[str, Any]) -> Fetched:
    files = {
        name: FetchedFile(file["size"], file["mtime_ns"], Checksum.parse(file["checksum"]))
        for name, file in entry["files"].items()
    }
    return Fetched(entry["revision"], entry["complete"], files)
