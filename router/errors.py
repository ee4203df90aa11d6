"""Every failure in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from types import MappingProxyType

from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from triptych.errors import CapacityError, RequestError, TriptychError, WorkerError

_log = logging.getLogger(__name__)

CLIENT_GONE_STATUS = 499  # nginx's word for it; nobody is left to read it, logs and metrics do


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorDetail


class HttpError(Exception):
    """A refusal that is about HTTP rather than about the request's meaning."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class DeadlineError(WorkerError):
    """The request was not finished within `router.request_deadline_s`."""


class Refusal(CapacityError):
    """Turned away before anything was computed: come back later, and not sooner than told."""

    def __init__(
        self,
        message: str,
        *,
        type: str,
        code: str,
        retry_after_s: float,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(message)
        self.problem = Problem(
            429,
            message,
            type,
            code=code,
            headers={**headers, "Retry-After": str(max(1, math.ceil(retry_after_s)))},
        )


class ClientGone(Exception):
    """The client closed the connection before it got an answer."""


def stopping() -> Problem:
    """For requests that the drain could not wait for: their task is cancelled."""
    return problem_of(CapacityError("the router is stopping; try again"))


@dataclass(frozen=True, slots=True)
class Problem:
    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> bytes:
        detail = ErrorDetail(message=self.message, type=self.type, param=self.param, code=self.code)
        return ErrorBody(error=detail).model_dump_json().encode()

    def response(self) -> Response:
        return Response(self.body(), self.status, dict(self.headers), "application/json")


def problem_of(error: BaseException) -> Problem:
    """What a client is told. An error outside of our tree is a bug: it says so and nothing else."""
    match error:
        case HttpError() | Refusal():
            return error.problem
        case RequestError():
            status = 404 if error.code == "model_not_found" else 400
            return Problem(status, str(error), "invalid_request_error", error.param, error.code)
        case CapacityError():
            retry = {"Retry-After": "1"}
            return Problem(503, str(error), "overloaded_error", code="no_capacity", headers=retry)
        case DeadlineError():
            return Problem(504, str(error), "timeout_error", code="deadline_exceeded")
        case TriptychError():
            return Problem(502, str(error), "server_error", code="worker_failed")
        case _:
            return Problem(500, "internal error of the router", "server_error", code="internal")


def install(app: FastAPI) -> None:
    """One handler for all of it, unknown routes and wrong methods included."""
    app.add_exception_handler(HttpError, _answer)
    app.add_exception_handler(TriptychError, _answer)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(ClientGone, _answer_nobody)
    app.add_exception_handler(Exception, _answer)


async def _answer(request: Request, error: Exception) -> Response:
    problem = problem_of(error)
    if problem.status >= 500:
        _log.warning("%s: %s", type(error).__name__, error)
    return problem.response()


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for this class"
    message = str(error.detail)
    if error.status_code == HTTPStatus.NOT_FOUND:
        message = f"no such route: {request.method} {request.url.path}"
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        message = f"{request.url.path} does not answer {request.method}"
    headers = dict(error.headers or {})
    return Problem(error.status_code, message, "invalid_request_error", headers=headers).response()


async def _answer_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE_STATUS)
