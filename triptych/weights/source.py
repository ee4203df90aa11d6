"""What a user may write for a checkpoint that is elsewhere. Pure: no network, no disk.

hf://org/name[@revision][/file]     a repository of a Hugging Face hub, or one file of it
https://host/model.gguf[#sha256=…]  one file
https://host/dir/SHA256SUMS         the files beside it that this list of `sha256sum` names
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import unquote, urldefrag, urlsplit

from triptych.errors import ModelError
from triptych.weights.remote import without_secrets

SUMS = "SHA256SUMS"

_HUB = re.compile(
    r"hf://(?P<repo>[\w.-]+/[\w.-]+)"
    r"(@(?P<revision>refs/(pr|convert)/[\w.-]+|[^/@#]+))?"
    r"(/(?P<file>[^@#]*[^/@#]))?/?"
)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository, or with `file` one file of it."""

    repo: str  # org/name
    revision: str = "main"  # branch, tag or commit
    file: str | None = None  # path inside the repository
    sha256: str | None = None  # of the file, if the user wants that one and no other

    def __str__(self) -> str:
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return f"hf://{self.repo}{revision}" + (f"/{self.file}" if self.file else "")

    @property
    def file_name(self) -> str | None:
        """Of a single file; None: the source is a folder of them."""
        return self.file.rpartition("/")[2] if self.file else None

    @property
    def short_name(self) -> str:
        """As a model is called that comes from here."""
        return self.file_name or self.repo.rpartition("/")[2]

    @property
    def cache_name(self) -> str:
        """A folder's name that no other source has."""
        revision = self.revision.replace("/", "--")
        return f"hf--{self.repo.replace('/', '--')}@{revision}" + _short_hash(self.file or "")


@dataclass(frozen=True, slots=True)
class UrlSource:
    """A file, or what a list of checksums names.

    Its query is no part of what it is: that is where signatures are, new ones every time.
    """

    url: str  # without fragment
    sha256: str | None = None  # of the file; of the list, where it is one

    def __str__(self) -> str:
        return without_secrets(self.url)

    @property
    def is_list(self) -> bool:
        return _last_name(self.url) == SUMS

    @property
    def file_name(self) -> str | None:
        return None if self.is_list else _last_name(self.url)

    @property
    def short_name(self) -> str:
        if not self.is_list:
            return _last_name(self.url)
        return _last_name(str(self).removesuffix(f"/{SUMS}")) or "model"

    @property
    def cache_name(self) -> str:
        return f"url--{self.short_name}{_short_hash(str(self))}"


Source: TypeAlias = HubSource | UrlSource


def is_source(name: str) -> bool:
    """Whether `name` is meant as one; it may still be wrong."""
    return name.startswith(("hf://", "https://", "http://"))


def parse_source(text: str, sha256: str | None = None) -> Source:
    """Raises ModelError with the forms that there are."""
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise ModelError(f"sha256 {sha256!r}: expected 64 lower-case hexadecimal digits")
    if match := _HUB.fullmatch(text):
        if sha256 is not None and not match["file"]:
            raise ModelError(f"{text}: --sha256 is for one file; of these the hub states checksums")
        return HubSource(match["repo"], match["revision"] or "main", match["file"], sha256)
    url, fragment = urldefrag(text)
    if url.startswith(("https://", "http://")) and urlsplit(url).netloc and _last_name(url):
        stated = fragment.removeprefix("sha256=")
        if fragment and not (fragment != stated and _SHA256.fullmatch(stated)):
            raise ModelError(f"{text}: behind # only sha256=<64 hexadecimal digits> has a meaning")
        return UrlSource(url, sha256 or stated or None)
    raise ModelError(
        f"{text}: no source of weights; expected hf://org/name[@revision][/file.gguf], "
        f"https://host/file.gguf, or https://host/folder/{SUMS}"
    )


def _last_name(url: str) -> str:
    name = unquote(urlsplit(url).path).rpartition("/")[2]
    return "" if name in (".", "..") else name.replace("\0", "")


def _short_hash(text: str) -> str:
    return f"-{hashlib.sha256(text.encode()).hexdigest()[:12]}" if text else ""
