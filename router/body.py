"""Reading a JSON body that may be hostile: bounded, in time, strict, checked against its schema."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from fastapi import Request
from pydantic import ValidationError
from pydantic_core import from_json

from router.errors import ClientGone, HttpError, Problem
from router.fields import Body, explain
from router.off_loop import off_loop
from triptych.errors import RequestError

BODY_DEADLINE_S = 60.0
_PARSED_WHILE_ENCODED = 8  # characters of JSON, in the time that takes to tokenise one

_B = TypeVar("_B", bound=Body)


async def read_body(request: Request, model: type[_B], max_bytes: int) -> _B:
    """Raises HttpError (413 after reading at most one chunk too much, 408, 415) or RequestError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise _refusal(415, f"send Content-Type: application/json, not {kind or 'nothing'!r}")
    try:
        async with asyncio.timeout(BODY_DEADLINE_S):
            raw = await _read(request, max_bytes)
    except TimeoutError:
        message = f"the body did not arrive within {BODY_DEADLINE_S:g} s"
        raise _refusal(408, message, close=True) from None
    return await off_loop(lambda: parse_body(raw, model), len(raw) // _PARSED_WHILE_ENCODED)


def parse_body(raw: bytes, model: type[_B]) -> _B:
    """Raises RequestError naming the field."""
    try:
        data = from_json(raw, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        raise RequestError(f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(data, dict):
        raise RequestError("the body must be a JSON object", code="invalid_json")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise explain(error, data) from None


async def _read(request: Request, max_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        if not message.get("more_body", False):
            return bytes(body)


def _too_large(max_bytes: int) -> HttpError:
    return _refusal(413, f"the body may have at most {max_bytes} bytes", close=True)


def _refusal(status: int, message: str, *, close: bool = False) -> HttpError:
    # What is left of a body is not read: the connection cannot carry another request.
    headers = {"Connection": "close"} if close else {}
    return HttpError(Problem(status, message, "invalid_request_error", headers=headers))
