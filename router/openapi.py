"""An OpenAPI document that is true: the bodies that are read, the errors that are sent."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from router.errors import ErrorBody
from router.fields import Body
from router.reply import Reply
from router.schema import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest

_BODIES: tuple[type[Body], ...] = (
    ChatRequest,
    CompletionRequest,
    TokenizeRequest,
    DetokenizeRequest,
)
_REFERENCES = "#/components/schemas/{model}"

_Responses = dict[int | str, dict[str, Any]]

_TEXTS = {
    400: "A field is wrong; the error names it",
    401: "Missing or unknown API key",
    404: "No such model",
    408: "The body did not arrive in time",
    413: "The body is too large",
    415: "The body is not application/json",
    429: "Over a limit, or too much is before it; come back after Retry-After seconds",
    502: "A worker failed",
    503: "No worker can take the request now; try again after Retry-After seconds",
    504: "The request did not finish before its deadline",
}
_READING = (400, 401, 404, 408, 413, 415)


def answers(model: type[Reply], *statuses: int) -> _Responses:
    """Responses of an endpoint: `model` on success, errors in our one shape."""
    errors: _Responses = {s: {"model": ErrorBody, "description": _TEXTS[s]} for s in statuses}
    return {200: {"model": model}, **errors, "default": {"model": ErrorBody}}


def reads_body(model: type[Reply]) -> _Responses:
    return answers(model, *_READING)


def generated(model: type[Reply]) -> _Responses:
    """As `reads_body`, for an endpoint that asks workers and may stream."""
    responses = answers(model, *_READING, 429, 502, 503, 504)
    # No type: some readers of the document check the stream's text, others each event of it.
    events = {"schema": {"description": "chunks as server-sent events"}}
    responses[200] |= {"content": {"text/event-stream": events}}
    return responses


def json_body(model: type[Body]) -> dict[str, Any]:
    """For `openapi_extra` of an endpoint that reads its body with `read_body`."""
    schema = {"$ref": _REFERENCES.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def complete(app: FastAPI) -> dict[str, Any]:
    """The document with the schemas that `json_body` refers to."""
    if app.openapi_schema is None:
        document = FastAPI.openapi(app)
        models: list[tuple[type[BaseModel], Any]] = [(body, "validation") for body in _BODIES]
        _, definitions = models_json_schema(models, ref_template=_REFERENCES)
        document["components"]["schemas"] |= definitions["$defs"]
    assert app.openapi_schema is not None, "FastAPI keeps what it made"
    return app.openapi_schema
