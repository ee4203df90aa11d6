"""Where fetched checkpoints are on this disk. Asks no network."""

from __future__ import annotations

from pathlib import Path

from triptych.config import cache_dir
from triptych.errors import ModelError
from triptych.weights.checksum import Checksum
from triptych.weights.record import Fetched, read_record
from triptych.weights.source import Source, parse_source


def cached(name: str) -> Path:
    """Where `model: hf://…` is, once fetched. Raises ModelError with the remedy."""
    source = parse_source(name)
    path = fetched(source, cache_folder(source))
    if path is None:
        raise ModelError(f"{name} is not fetched yet: run `triptych fetch {name}`")
    return path


def cache_folder(source: Source) -> Path:
    return cache_dir() / "models" / source.cache_name


def fetched(source: Source, folder: Path) -> Path | None:
    """The checkpoint of this source if it is whole in `folder`: a file, or the folder itself.

    Looks at names, sizes and times; reads no weights. What was fetched of a branch stays what it
    is, whatever became of the branch.
    """
    found = read_record(folder).get(str(source))
    if found is None or not found.whole(folder) or not _as_stated(source, found):
        return None
    return folder / source.file_name if source.file_name else folder


def _as_stated(source: Source, found: Fetched) -> bool:
    """Whether it is what the user's checksum, if there is one, asks for."""
    if source.sha256 is None or source.file_name is None:
        return True
    return [file.checksum for file in found.files.values()] == [Checksum("sha256", source.sha256)]
