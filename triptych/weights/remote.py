"""A file that is elsewhere, and everything that is known of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

from triptych.weights.checksum import Checksum


@dataclass(frozen=True, slots=True)
class RemoteFile:
    name: str  # in the folder that it goes to; no separators
    url: str
    size: int | None  # bytes; None: the server does not say
    checksum: Checksum | None  # None: nobody states one
    version: str = ""  # the server's ETag; other bytes have another one
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # may hold a token
    remedy: str = ""  # when the server refuses it

    def __str__(self) -> str:
        return without_secrets(self.url)

    @property
    def part_name(self) -> str:
        """Of what came so far. Bytes of another version have another name: they never mix."""
        known = f"{self} {self.size} {self.checksum} {self.version}"
        return f".{self.name}.{hashlib.sha256(known.encode()).hexdigest()[:12]}.part"


@dataclass(frozen=True, slots=True)
class Listing:
    """What a source holds: its files in the order in which to bring them."""

    files: tuple[RemoteFile, ...]
    revision: str = ""  # the commit, where the source has such a thing


def without_secrets(url: str) -> str:
    """For logs and records: user, password and query, which may be a signature, are left out."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
