"""The outermost layer: request ids, one log line and one count per request."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router.doorstep import TurnedAway
from router.errors import stopping
from router.metrics import RouterMetrics
from triptych.obs.log import bind_request

_log = logging.getLogger(__name__)

_GOOD_ID = re.compile(r"[\x21-\x7e]{1,128}")  # printable ASCII, no spaces
QUIET = frozenset({"/health", "/live", "/ready", "/metrics", "/workers"})  # asked every few seconds


class Access:
    """Gives each request an X-Request-Id: the caller's if printable and short, else a new one."""

    def __init__(self, app: ASGIApp, metrics: RouterMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope))
        status: int | None = None
        began = time.monotonic()

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        with bind_request(request_id):
            try:
                await self._app(scope, receive, note_status)
            except asyncio.CancelledError:  # the server gives up what outlived its drain
                if status is None:
                    await stopping().response()(scope, receive, note_status)
                raise
            finally:
                self._count(scope, status or 500, time.monotonic() - began)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        route = route_of(scope)
        self._metrics.http_requests.labels(route, str(status)).inc()
        fields = {"route": route, "status": status, "seconds": round(seconds, 4)}
        quiet = route in QUIET or isinstance(scope.get("route"), TurnedAway)
        _log.log(
            logging.DEBUG if quiet else logging.INFO,
            "%s %s",
            scope["method"],
            route,
            extra={"fields": fields},
        )


def route_of(scope: Scope) -> str:
    """The template of the route that took the request."""
    return getattr(scope.get("route"), "path", "unmatched")


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _GOOD_ID.fullmatch(given) else uuid.uuid4().hex
