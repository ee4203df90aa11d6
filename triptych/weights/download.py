"""One file over HTTP: resumed where it broke off, verified, and there whole or not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import httpx

from triptych.errors import ModelError
from triptych.weights.remote import RemoteFile, without_secrets

PATIENCE = (1.0, 2.0, 4.0, 8.0, 16.0)  # s between attempts in a row that brought no byte
MAX_RETRY_AFTER_S = 60.0  # a server may ask for a longer wait, but does not get it

_CHUNK = 1 << 20
_PLAIN = {"Accept-Encoding": "identity"}  # ranges count the bytes of the file itself
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})

Sleep = Callable[[float], None]
Report = Callable[[int], None]  # bytes of a file that are there


def new_client() -> httpx.Client:
    """Takes proxies and certificates out of the environment, as httpx does."""
    timeout = httpx.Timeout(30.0, connect=15.0)  # of one read, not of the file
    return httpx.Client(timeout=timeout, follow_redirects=True)


class Again(Exception):
    """What may be better next time."""

    def __init__(self, message: str, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class Downloader:
    """Brings files with patience: whatever may pass by itself is tried again, from where it was."""

    def __init__(self, client: httpx.Client, sleep: Sleep = time.sleep) -> None:
        self._client = client
        self._sleep = sleep

    def fetch(self, file: RemoteFile, folder: Path, report: Report) -> None:
        """Afterwards `folder / file.name` is the file. Raises ModelError; OSError of the disk."""
        part = folder / file.part_name
        resumed = part.exists()
        self._fill(file, part, report)
        damage = _damage(file, part)
        if damage and resumed:  # perhaps by the half that was there before: once more, all of it
            part.unlink()
            self._fill(file, part, report)
            damage = _damage(file, part)
        if damage:
            part.unlink()
            raise ModelError(damage)
        os.replace(part, folder / file.name)

    def head(self, url: str) -> httpx.Headers:
        """What the server says of a file, without its bytes. Raises ModelError.

        By a GET that is closed: addresses that were signed for GET refuse HEAD.
        """
        answers: list[httpx.Headers] = []

        def ask() -> None:
            with self._client.stream("GET", url, headers=_PLAIN) as response:
                _check_status(response)
                answers.append(response.headers)

        self.persist(without_secrets(url), ask)
        return answers[0]

    def content(self, url: str) -> bytes:
        """Of a small file. Raises ModelError."""
        answers: list[bytes] = []

        def ask() -> None:
            response = self._client.get(url)
            _check_status(response)
            answers.append(response.content)

        self.persist(without_secrets(url), ask)
        return answers[0]

    def _fill(self, file: RemoteFile, part: Path, report: Report) -> None:
        with open(part, "ab") as sink:
            self.persist(str(file), lambda: self._append(file, sink, report), sink.tell)
            sink.flush()
            os.fsync(sink.fileno())

    def _append(self, file: RemoteFile, sink: BinaryIO, report: Report) -> None:
        """One attempt, from the byte where the last one ended."""
        have = sink.tell()
        report(have)
        if file.size is not None and have >= file.size:
            return
        headers = {**_PLAIN, **file.headers, **_range(file, have)}
        with self._client.stream("GET", file.url, headers=headers) as response:
            if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                _empty(sink)  # it is shorter than what we have: that is no half of it
                raise Again(f"there is no byte {have}")
            _check_status(response, file.remedy)
            if not _goes_on(response, have):
                _empty(sink)
            for chunk in response.iter_bytes(_CHUNK):
                sink.write(chunk)
                report(sink.tell())
        if file.size is not None and sink.tell() < file.size:
            raise Again(f"broke off at byte {sink.tell()} of {file.size}")

    def persist(
        self, what: str, attempt: Callable[[], None], done: Callable[[], int] = lambda: 0
    ) -> None:
        """Until an attempt succeeds, fails for good, or too many in a row bring `done` nowhere."""
        failures, best = 0, done()
        while True:
            try:
                attempt()
                return
            except (httpx.TransportError, Again) as error:
                if done() > best:
                    failures, best = 0, done()
                if failures == len(PATIENCE):
                    raise ModelError(f"{what}: {error}; retried {failures} times") from error
                self._sleep(max(PATIENCE[failures], getattr(error, "wait_s", 0.0)))
                failures += 1
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise ModelError(f"{what}: {error}") from error


def _range(file: RemoteFile, have: int) -> dict[str, str]:
    if not have:
        return {}
    # Another version comes from its start instead. Weak tags do not promise equal bytes.
    same = {} if file.version.startswith("W/") or not file.version else {"If-Range": file.version}
    return {"Range": f"bytes={have}-", **same}


def _goes_on(response: httpx.Response, have: int) -> bool:
    """Whether these bytes come behind those that are there."""
    return response.status_code == httpx.codes.PARTIAL_CONTENT and response.headers.get(
        "Content-Range", ""
    ).startswith(f"bytes {have}-")


def _empty(sink: BinaryIO) -> None:
    sink.seek(0)
    sink.truncate()


def _check_status(response: httpx.Response, remedy: str = "") -> None:
    status, url = response.status_code, without_secrets(str(response.request.url))
    if response.is_success:
        return
    reason = f"{status} {response.reason_phrase}".strip()
    if status in TRANSIENT:
        asked = response.headers.get("Retry-After", "")
        raise Again(reason, min(float(asked), MAX_RETRY_AFTER_S) if asked.isdigit() else 0.0)
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        remedy = remedy or "it asks for credentials; put them into the URL, or sign it"
        raise ModelError(f"{url}: {reason}: {remedy}")
    raise ModelError(f"{url}: {reason}")


def _damage(file: RemoteFile, part: Path) -> str:
    """What is wrong with the bytes that came; "" if nothing is."""
    size = part.stat().st_size
    if file.size is not None and size != file.size:
        return f"{file}: {size} bytes came, expected {file.size}"
    if file.checksum is not None and not file.checksum.matches(part):
        return (
            f"{file}: what came has a wrong checksum, expected {file.checksum}; "
            "it was changed there, or by something on the way"
        )
    return ""
