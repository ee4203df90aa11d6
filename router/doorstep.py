"""Turns requests away by their heads, before anybody reads a body or looks for a route."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from router.admission.admission import Admission
from router.admission.fields import body_bytes
from router.auth import bearer
from router.errors import Problem, problem_of

_ROUTES = frozenset({"/v1/chat/completions", "/v1/completions"})


@dataclass(frozen=True, slots=True)
class TurnedAway:
    """Stands in a scope for the route that the request did not come to."""

    path: Literal["/v1/chat/completions", "/v1/completions"]


class Doorstep:
    """What it lets pass is judged again when its body was read: it may be wrong about that.

    The answer leaves the connection usable: the server drops the body as it comes. So bodies that
    are too long, or do not say how long they are, go on to those who end such connections.
    """

    def __init__(self, app: ASGIApp, admission: Admission, max_bytes: int) -> None:
        self._app = app
        self._admission = admission
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = self._problem(scope)
        if problem is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = TurnedAway(scope["path"])
        await problem.response()(scope, receive, send)

    def _problem(self, scope: Scope) -> Problem | None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in _ROUTES:
            return None
        headers = Headers(scope=scope)
        length = body_bytes(headers)
        if not 0 < length <= self._max_bytes:
            return None
        tenants = self._admission.tenants
        tenant = bearer(tenants, headers) if tenants.keys_are_asked_for else tenants.anybody
        if tenant is None:
            return None
        error = self._admission.refusal(tenant.name, length)
        return None if error is None else problem_of(error)
