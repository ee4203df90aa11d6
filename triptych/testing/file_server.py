"""A web server on loopback that misbehaves to order, and a hub that lists what it serves."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40
_RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass
class FileServer:
    """`files` by path; the other fields say what goes wrong, and how often yet."""

    files: dict[str, bytes] = field(default_factory=dict)
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)  # by org/name
    gated: set[str] = field(default_factory=set)  # repos whose bytes need the token "leave"
    statuses: list[int] = field(default_factory=list)  # of the next answers, before any good one
    cut_after: list[int] = field(default_factory=list)  # body bytes of the next answers
    longest: int | None = None  # body bytes of any answer: where larger ones break off
    ranges: bool = True
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # (path, Range) of bytes
    url: str = ""

    def bytes_of(self, path: str) -> bytes | None:
        if (match := _RESOLVE.fullmatch(path)) and match["repo"] in self.repos:
            return self.repos[match["repo"]].get(match["path"])
        return self.files.get(path)

    def listing(self, path: str) -> tuple[int, object]:
        """What the hub's API answers."""
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path)
        if match is None or match[1] not in self.repos:
            return 404, {"error": "Repository not found"}
        if match[3] not in ("main", COMMIT):
            return 404, {"error": f"Invalid rev id: {match[3]}"}
        if match[2] == "revision":
            return 200, {"id": match[1], "sha": COMMIT}
        return 200, [_entry(name, data) for name, data in self.repos[match[1]].items()]


@contextlib.contextmanager
def serving(host: str = "127.0.0.1") -> Iterator[FileServer]:
    state = FileServer()

    class Handler(_Handler):
        server_state = state

    server = ThreadingHTTPServer((host, 0), Handler)
    state.url = f"http://{host}:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server_state: FileServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        state, path = self.server_state, unquote(urlsplit(self.path).path)
        if state.statuses:
            self._send(state.statuses.pop(0), b"", {})
        elif path.startswith("/api/"):
            status, answer = state.listing(path)
            code = {404: "RepoNotFound"}.get(status, "")
            if status == 404 and "Invalid rev" in str(answer):
                code = "RevisionNotFound"
            headers = {"Content-Type": "application/json", "X-Error-Code": code}
            self._send(status, json.dumps(answer).encode(), headers)
        elif (data := state.bytes_of(path)) is None:
            self._send(404, b"", {})
        elif self._refused(path):
            self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        else:
            self._send_file(path, data)

    def _refused(self, path: str) -> bool:
        match = _RESOLVE.fullmatch(path)
        has_token = self.headers.get("Authorization") == "Bearer leave"
        return match is not None and match["repo"] in self.server_state.gated and not has_token

    def _send_file(self, path: str, data: bytes) -> None:
        state, wanted = self.server_state, self.headers.get("Range")
        state.asked.append((path, wanted))
        tag = f'"{hashlib.sha256(data).hexdigest()}"'
        start = 0
        if wanted and state.ranges and self.headers.get("If-Range", tag) == tag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start and start >= len(data):
            self._send(416, b"", {})
            return
        headers = {"ETag": tag}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._send(206 if start else 200, data[start:], headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        cuts = self.server_state.cut_after
        sent = body[: cuts.pop(0)] if cuts and status in (200, 206) else body
        sent = sent[: self.server_state.longest]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # who only wanted the headers hung up
            self.wfile.write(sent)
        self.close_connection = len(sent) < len(body)


def _entry(path: str, data: bytes) -> dict[str, object]:
    """As the hub lists it: large files by SHA-256, small ones by git's name of them."""
    git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(data), "oid": git}
    if path.endswith((".safetensors", ".gguf")):
        digest = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 130}
    return entry
