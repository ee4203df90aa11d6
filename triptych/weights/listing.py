"""What a source holds, as its hub, list or server says: names, sizes, checksums."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from typing import TYPE_CHECKING
from urllib.parse import quote, urljoin

from triptych.errors import ModelError
from triptych.weights.checksum import Checksum
from triptych.weights.download import TRANSIENT, Again, Downloader
from triptych.weights.remote import Listing, RemoteFile
from triptych.weights.source import HubSource, Source, UrlSource

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

# What loading a checkpoint reads, of the files at the top of a repository.
_WANTED = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")
_UNWANTED = ("consolidated*.safetensors",)  # the same weights once more, in Mistral's layout

_SUM_LINE = re.compile(r"(?P<digest>[0-9a-f]{64}) [ *](?P<name>.+)")


def list_source(source: Source, downloader: Downloader) -> Listing:
    """Asks the network. Raises ModelError."""
    if isinstance(source, HubSource):
        return _list_hub(source, downloader)
    if source.is_list:
        return _list_sums(source, downloader)
    return Listing((_remote_url(source.url, source.sha256, downloader),))


def wanted(names: list[str]) -> list[str]:
    """Those that make up a checkpoint, in the order in which to bring them.

    config.json is the last: a folder without it is no model to anybody.
    """
    kept = [
        name
        for name in names
        if "/" not in name
        and any(fnmatch.fnmatchcase(name, pattern) for pattern in _WANTED)
        and not any(fnmatch.fnmatchcase(name, pattern) for pattern in _UNWANTED)
    ]
    return sorted(kept, key=lambda name: (name == "config.json", name))


def _list_sums(source: UrlSource, downloader: Downloader) -> Listing:
    content = downloader.content(source.url)
    if source.sha256 not in (None, hashlib.sha256(content).hexdigest()):
        raise ModelError(f"{source}: has a wrong checksum, expected sha256:{source.sha256}")
    sums: dict[str, str] = {}
    for line in content.decode(errors="replace").splitlines():
        match = _SUM_LINE.fullmatch(line)
        if match is None or "/" in match["name"] or match["name"] in (".", ".."):
            raise ModelError(
                f"{source}: {line[:100]!r} is not a checksum and the name of a file beside it"
            )
        sums[match["name"]] = match["digest"]
    if not sums:
        raise ModelError(f"{source}: names no file")
    order = sorted(sums, key=lambda name: (name == "config.json", name))
    urls = {name: urljoin(source.url, quote(name)) for name in order}
    return Listing(tuple(_remote_url(urls[name], sums[name], downloader, name) for name in order))


def _remote_url(
    url: str, sha256: str | None, downloader: Downloader, name: str | None = None
) -> RemoteFile:
    headers = downloader.head(url)
    length = headers.get("Content-Length", "")
    return RemoteFile(
        name=name or UrlSource(url).file_name or "",
        url=url,
        size=int(length) if length.isdigit() else None,
        checksum=Checksum("sha256", sha256) if sha256 else None,
        version=headers.get("ETag", ""),
    )


def _list_hub(source: HubSource, downloader: Downloader) -> Listing:
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile
    except ImportError as error:
        raise ModelError(
            f"{source}: a hub needs huggingface_hub: pip install 'triptych-runtime[hub]'"
        ) from error
    api = HfApi()
    answers: list[tuple[str, list[RepoFile]]] = []

    def ask() -> None:
        try:
            commit = api.model_info(source.repo, revision=source.revision).sha or source.revision
            tree = api.list_repo_tree(source.repo, revision=commit, recursive=True)
            answers.append((commit, [entry for entry in tree if isinstance(entry, RepoFile)]))
        except Exception as error:  # of the HTTP library beneath, which changes with its version
            raise _hub_error(source, error, api.endpoint) from error

    downloader.persist(str(source), ask)
    [(commit, entries)] = answers
    files = {entry.path: entry for entry in entries}
    remote = [_remote_hub(source, files[path], commit, api) for path in _choose(source, files)]
    return Listing(tuple(remote), commit)


def _choose(source: HubSource, files: dict[str, RepoFile]) -> list[str]:
    if source.file:
        if source.file in files:
            return [source.file]
        kind = source.file.rpartition(".")[2]
        same_kind = [path for path in files if path.endswith(f".{kind}")]
        there = ", ".join(same_kind[:20]) or "no file of that kind"
        raise ModelError(f"{source}: no such file; the repository has {there}")
    chosen = wanted(list(files))
    if not any(name.endswith(".safetensors") for name in chosen) or "config.json" not in chosen:
        ggufs = [path for path in files if path.endswith(".gguf")]
        remedy = f"; name one of its files, e.g. {source}/{ggufs[0]}" if ggufs else ""
        raise ModelError(f"{source}: has no config.json with .safetensors files{remedy}")
    return chosen


def _remote_hub(source: HubSource, entry: RepoFile, commit: str, api: HfApi) -> RemoteFile:
    from huggingface_hub import get_token, hf_hub_url

    token = get_token()
    return RemoteFile(
        name=entry.path.rpartition("/")[2],
        url=hf_hub_url(source.repo, entry.path, revision=commit, endpoint=api.endpoint),
        size=entry.size,
        checksum=_stated(source, entry),
        headers={"Authorization": f"Bearer {token}"} if token else {},
        remedy=_gate(source, api.endpoint),
    )


def _stated(source: HubSource, entry: RepoFile) -> Checksum:
    """By the user, else by the hub. Raises ModelError where they disagree."""
    stated = (
        Checksum("sha256", entry.lfs.sha256) if entry.lfs else Checksum("git-blob", entry.blob_id)
    )
    if source.sha256 is None:
        return stated
    expected = Checksum("sha256", source.sha256)
    if stated.kind == "sha256" and stated != expected:
        raise ModelError(f"{source}: the hub has {stated}, expected {expected}")
    return expected


def _hub_error(source: HubSource, error: Exception, endpoint: str) -> ModelError | Again:
    """Again: what may pass by itself."""
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return ModelError(f"{source}: not here, and HF_HUB_OFFLINE forbids to ask {endpoint}")
    if isinstance(error, errors.GatedRepoError):
        return ModelError(f"{source}: {_gate(source, endpoint)}")
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelError(f"{source}: {source.repo} has no revision {source.revision!r}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelError(
            f"{source}: {endpoint} has no such repository, or shows it to its members alone: "
            "check the name, and set HF_TOKEN if it is private"
        )
    if isinstance(error, errors.HFValidationError):
        return ModelError(f"{source}: {error}")
    response = getattr(error, "response", None)  # none: no answer came
    if response is not None and response.status_code not in TRANSIENT:
        refused = response.status_code in (401, 403)
        remedy = "; is HF_TOKEN right?" if refused else ""
        return ModelError(f"{source}: {endpoint} answers {response.status_code}{remedy}")
    return Again(f"{endpoint} cannot be asked: {str(error) or type(error).__name__}")


def _gate(source: HubSource, endpoint: str) -> str:
    return (
        f"{source.repo} asks for leave: accept its terms at {endpoint}/{source.repo}, "
        "and set HF_TOKEN to a token of that account"
    )
