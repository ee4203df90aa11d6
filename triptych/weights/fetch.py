"""`triptych fetch`: from a source to a folder on this disk, once."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from triptych.errors import ModelError
from triptych.weights.download import Downloader, Report, new_client
from triptych.weights.listing import list_source
from triptych.weights.place import fetched
from triptych.weights.record import Fetched, FetchedFile, read_record, write_record
from triptych.weights.remote import Listing, RemoteFile
from triptych.weights.source import Source
from triptych.wheels import Progress

LOCK = ".triptych-fetch.lock"
_SPARE_BYTES = 16 << 20  # a disk that is full to the last byte helps nobody


def fetch(
    source: Source,
    folder: Path,
    progress: Progress | None = None,
    *,
    verify: bool = False,
    downloader: Downloader | None = None,
) -> Path:
    """Brings what is missing; returns the file, or the folder of a source that is one.

    `verify` reads what is there again, and replaces what is damaged. Safe to call from several
    processes at once (the others wait) and to interrupt (the next one goes on from there). Raises
    ModelError.
    """
    if not verify and (path := fetched(source, folder)):
        return path  # before anything is written: the folder may be read-only
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _only_fetch(folder), contextlib.ExitStack() as stack:
            if not verify and (path := fetched(source, folder)):
                return path  # somebody else finished while we waited
            if downloader is None:
                downloader = Downloader(stack.enter_context(new_client()))
            _bring(source, folder, progress or _silent, downloader, verify)
    except OSError as error:
        raise ModelError(f"{source}: cannot write to {folder}: {error}") from error
    return folder / source.file_name if source.file_name else folder


def _bring(
    source: Source, folder: Path, progress: Progress, downloader: Downloader, verify: bool
) -> None:
    listing = list_source(source, downloader)
    record = read_record(folder)
    _check_owners(source, listing, folder, record)
    before_us = record.get(str(source), Fetched())
    done, missing = Fetched(listing.revision), []
    for file in listing.files:
        if _is_there(file, folder, before_us.files.get(file.name), verify):
            done = done.with_file(file.name, FetchedFile.of(folder / file.name, file.checksum))
        else:
            missing.append(file)
    _clear_parts(listing, folder)
    _check_space(source, missing, folder)
    total = sum(file.size or 0 for file in listing.files)
    have = total - sum(file.size or 0 for file in missing)
    for file in missing:
        downloader.fetch(file, folder, _onward(progress, have, total))
        have += file.size or 0
        done = done.with_file(file.name, FetchedFile.of(folder / file.name, file.checksum))
        write_record(folder, {**record, str(source): done})
    write_record(folder, {**record, str(source): replace(done, complete=True)})
    progress(total, total)


def _is_there(file: RemoteFile, folder: Path, known: FetchedFile | None, verify: bool) -> bool:
    """By its checksum, which is read again unless we did and nobody touched the file since."""
    path = folder / file.name
    expected = file.checksum or (known.checksum if known and known.size == file.size else None)
    if expected is None or not path.is_file():
        return False
    if known and known.checksum == expected and known.untouched(path) and not verify:
        return True
    return expected.matches(path)


def _check_owners(
    source: Source, listing: Listing, folder: Path, record: dict[str, Fetched]
) -> None:
    """Weights of two checkpoints in one folder are none."""
    for other, found in record.items():
        shared = sorted(found.files.keys() & {file.name for file in listing.files})
        if other != str(source) and shared:
            raise ModelError(
                f"{source}: {folder} holds {other}, which has a {shared[0]}, too; "
                "fetch into another folder, or remove that one"
            )


def _clear_parts(listing: Listing, folder: Path) -> None:
    """Of versions that are no longer what the source holds."""
    current = {file.part_name for file in listing.files}
    for file in listing.files:
        for part in folder.glob(f".{glob.escape(file.name)}.*.part"):
            if part.name not in current:
                part.unlink()


def _check_space(source: Source, missing: list[RemoteFile], folder: Path) -> None:
    needed = sum(file.size or 0 for file in missing)
    for file in missing:
        with contextlib.suppress(FileNotFoundError):
            needed -= (folder / file.part_name).stat().st_size
    free = shutil.disk_usage(folder).free
    if needed and needed + _SPARE_BYTES > free:
        raise ModelError(
            f"{source}: {needed >> 20} MiB to fetch, but {folder} has {free >> 20} MiB free"
        )


@contextlib.contextmanager
def _only_fetch(folder: Path) -> Iterator[None]:
    # The kernel drops the lock with its holder, so a killed fetch never blocks the next one.
    with open(folder / LOCK, "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _onward(progress: Progress, have: int, total: int) -> Report:
    return lambda more: progress(have + more, total)


def _silent(done: int, total: int) -> None:
    pass
