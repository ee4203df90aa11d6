"""Checksums of files, in the two ways that hubs and lists state them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Checksum:
    """`git-blob`: the SHA-1 that git gives a file, which hubs state of small files."""

    kind: Literal["sha256", "git-blob"]
    digest: str  # hexadecimal

    def __str__(self) -> str:
        return f"{self.kind}:{self.digest}"

    def matches(self, path: Path) -> bool:
        """Reads the whole file. Raises OSError."""
        return self == checksum_of(path, self.kind)

    @staticmethod
    def parse(text: str) -> Checksum:
        kind, _, digest = text.partition(":")
        return Checksum("git-blob" if kind == "git-blob" else "sha256", digest)


def checksum_of(path: Path, kind: Literal["sha256", "git-blob"] = "sha256") -> Checksum:
    """Raises OSError."""
    with open(path, "rb") as file:
        if kind == "sha256":
            return Checksum(kind, hashlib.file_digest(file, "sha256").hexdigest())
        # No promise of secrecy hangs on it: git's name of the contents is what the hub states.
        hasher = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
        return Checksum(kind, hasher.hexdigest())
