"""uvicorn's HTTP/1.1 protocol, with a limit where it has none, errors in our shape, and a short way
for the body of an answer that comes in many small parts.
"""

from __future__ import annotations

from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from router.errors import Problem

_MAX_HEAD_BYTES = 64 << 10  # request line and headers; llhttp alone would collect without end


BODY_EXTENSION = "triptych.body"  # of the ASGI scope; a DirectBody


class DirectBody:
    """Writes parts of a response's body without a task that awaits `send`.

    Only between two calls of `send`, after the first part of the body, and only while `ready`.
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._write = cycle.transport.write

    @property
    def ready(self) -> bool:
        """The client is there and reads; otherwise `send` knows what to do."""
        cycle = self._cycle
        return not (cycle.flow.write_paused or cycle.disconnected or cycle.response_complete)

    def write(self, part: bytes) -> None:
        self._write(b"%x\r\n%b\r\n" % (len(part), part))  # as uvicorn's `send` does it


class HttpProtocol(HttpToolsProtocol):
    _head_bytes = 0
    _in_head = True

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)  # a callback resets it if the head ends in here
        super().data_received(data)
        if self._in_head and self._head_bytes > _MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"the request's head is over {_MAX_HEAD_BYTES} bytes")

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()
        if self.cycle is not None and self.cycle.scope is self.scope:  # no upgrade, and not run yet
            scope = cast(dict[str, Any], self.scope)
            scope["extensions"] = {BODY_EXTENSION: DirectBody(self.cycle)}

    def on_message_complete(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP never reaches the application. Closes the connection."""
        body = Problem(400, msg, "invalid_request_error", code="invalid_http").body()
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
