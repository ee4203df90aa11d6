"""Bytes over real HTTP, from a server that breaks off, forgets and lies."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from triptych.errors import ModelError
from triptych.testing.file_server import FileServer
from triptych.weights.download import PATIENCE, Downloader, new_client
from triptych.weights.fetch import fetch
from triptych.weights.source import parse_source

WEIGHTS = b"GGUF" + bytes(range(256)) * 40_000  # some MB: many chunks
SUM = hashlib.sha256(WEIGHTS).hexdigest()

Fetch = Callable[..., Path]


@pytest.fixture
def waits() -> list[float]:
    """How long it waited between attempts; nobody really waits."""
    return []


@pytest.fixture
def bring(server: FileServer, waits: list[float], tmp_path: Path) -> Iterator[Fetch]:
    server.files["/q4.gguf"] = WEIGHTS
    with new_client() as client:
        downloader = Downloader(client, waits.append)

        def run(path: str = "/q4.gguf", sha256: str | None = SUM, **options: object) -> Path:
            source = parse_source(server.url + path, sha256)
            return fetch(source, tmp_path / "to", downloader=downloader, **options)  # type: ignore[arg-type]

        yield run


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def parts(folder: Path) -> list[Path]:
    return list(folder.glob(".*.gguf.*.part"))


def test_a_file_arrives_whole_and_progress_only_grows(bring: Fetch) -> None:
    told: list[tuple[int, int]] = []
    path = bring(progress=lambda done, total: told.append((done, total)))
    assert path.read_bytes() == WEIGHTS
    assert told == sorted(told)
    assert told[-1] == (len(WEIGHTS), len(WEIGHTS))
    assert parts(path.parent) == []


def test_a_second_fetch_asks_nobody_even_on_a_read_only_folder(
    bring: Fetch, server: FileServer
) -> None:
    path = bring()
    asked = len(server.asked)
    path.parent.chmod(0o555)
    assert bring() == path
    assert len(server.asked) == asked


def test_a_broken_connection_goes_on_where_it_broke(
    bring: Fetch, server: FileServer, waits: list[float]
) -> None:
    server.cut_after = [len(WEIGHTS), 5_000_000, 2_000_000]  # the first answer is for its headers
    assert bring().read_bytes() == WEIGHTS
    ranges = [asked for _, asked in server.asked if asked]
    assert len(ranges) == 2
    assert all(int(asked.removeprefix("bytes=")[:-1]) > 0 for asked in ranges)
    assert waits == [PATIENCE[0], PATIENCE[0]]  # bytes came: patience begins anew


def test_a_killed_fetch_leaves_nothing_that_looks_whole_and_the_next_goes_on(
    bring: Fetch, server: FileServer, tmp_path: Path
) -> None:
    def stop(done: int, total: int) -> None:
        if done > 3_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bring(progress=stop)
    assert visible(tmp_path / "to") == []
    [part] = parts(tmp_path / "to")
    have = part.stat().st_size
    server.asked.clear()
    assert bring().read_bytes() == WEIGHTS
    assert [asked for _, asked in server.asked if asked] == [f"bytes={have}-"]


def test_a_server_without_ranges_sends_it_all_again(bring: Fetch, server: FileServer) -> None:
    server.ranges = False
    server.cut_after = [len(WEIGHTS), 5_000_000]
    assert bring().read_bytes() == WEIGHTS


def test_a_damaged_first_half_costs_one_more_download(
    bring: Fetch, server: FileServer, tmp_path: Path
) -> None:
    server.cut_after = [len(WEIGHTS)] + [5_000_000] + [0] * len(PATIENCE)
    with pytest.raises(ModelError, match="without sending complete message.*retried 5 times"):
        bring()
    [part] = parts(tmp_path / "to")
    part.write_bytes(b"?" * part.stat().st_size)
    assert bring().read_bytes() == WEIGHTS


def test_wrong_bytes_never_get_the_name(bring: Fetch, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"q4\.gguf: what came has a wrong checksum, expected"):
        bring(sha256="0" * 64)
    assert visible(tmp_path / "to") == []
    assert parts(tmp_path / "to") == []


def test_passing_errors_are_waited_for_longer_and_longer(
    bring: Fetch, server: FileServer, waits: list[float]
) -> None:
    server.statuses = [503, 429, 500]
    assert bring().read_bytes() == WEIGHTS
    assert waits == list(PATIENCE[:3])


def test_patience_ends(bring: Fetch, server: FileServer, waits: list[float]) -> None:
    server.statuses = [503] * 10
    with pytest.raises(ModelError, match=r"503 Service Unavailable; retried 5 times"):
        bring()
    assert waits == list(PATIENCE)


@pytest.mark.parametrize(
    "status, message",
    [(404, "404 Not Found"), (401, "401 Unauthorized: it asks for credentials"), (410, "410 Gone")],
)
def test_lasting_errors_are_told_at_once(
    bring: Fetch, server: FileServer, waits: list[float], status: int, message: str
) -> None:
    server.statuses = [status]
    with pytest.raises(ModelError, match=message):
        bring()
    assert waits == []


def test_a_server_that_is_not_there_is_named(tmp_path: Path, waits: list[float]) -> None:
    with new_client() as client, pytest.raises(ModelError, match=r"http://127\.0\.0\.1:1/a\.gguf"):
        source = parse_source("http://127.0.0.1:1/a.gguf")
        fetch(source, tmp_path, downloader=Downloader(client, waits.append))


def test_signatures_and_passwords_are_told_to_nobody(
    bring: Fetch, server: FileServer, tmp_path: Path
) -> None:
    bring("/q4.gguf?sig=secret")
    assert "secret" not in "".join(path.read_text() for path in (tmp_path / "to").glob(".*.json"))
    with pytest.raises(ModelError) as caught:
        bring("/absent.gguf?sig=secret")
    assert "secret" not in str(caught.value)


def test_verify_mends_damage_that_size_and_time_do_not_show(
    bring: Fetch, server: FileServer
) -> None:
    path = bring()
    before = path.stat()
    path.write_bytes(WEIGHTS[:-1] + b"?")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert bring() == path
    assert path.read_bytes() != WEIGHTS  # the quick look does not see it
    assert bring(verify=True).read_bytes() == WEIGHTS


def test_a_file_that_somebody_touched_is_mended_without_being_asked(bring: Fetch) -> None:
    path = bring()
    path.write_bytes(b"short")
    assert bring().read_bytes() == WEIGHTS


def test_a_full_disk_is_told_before_the_first_byte(
    bring: Fetch, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ModelError, match="9 MiB to fetch, but .* has 1 MiB free"):
        bring()
    assert len(server.asked) == 1  # for its size


def test_a_list_of_checksums_brings_a_folder_config_last(bring: Fetch, server: FileServer) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"[]"}
    server.files |= {f"/llama/{name}": data for name, data in files.items()}
    lines = [f"{hashlib.sha256(data).hexdigest()}  {name}" for name, data in files.items()]
    server.files["/llama/SHA256SUMS"] = "\n".join(lines).encode()
    folder = bring("/llama/SHA256SUMS", None)
    assert {name: (folder / name).read_bytes() for name in files} == files
    assert server.asked[-1][0] == "/llama/config.json"
    server.files["/llama/SHA256SUMS"] = b"0" * 64 + b"  ../../etc/passwd"
    with pytest.raises(ModelError, match="is not a checksum and the name of a file beside it"):
        bring("/llama/SHA256SUMS", None, verify=True)


def test_two_checkpoints_do_not_mix_in_one_folder(bring: Fetch, server: FileServer) -> None:
    bring()
    server.files["/other/q4.gguf"] = b"GGUF other"
    with pytest.raises(ModelError, match=r"holds http://.*/q4\.gguf, which has a q4\.gguf, too"):
        bring("/other/q4.gguf", None)
