"""Endpoints that clients look for and that are not here. They say so, and what there is instead."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NoReturn

from fastapi import APIRouter

from router.errors import HttpError, Problem
from router.services import Services

_NOT_HERE = {
    "/v1/responses": "this server keeps no conversations; send the messages to "
    "/v1/chat/completions (LangChain: use_responses_api=False)",
    "/v1/embeddings": "this server generates text and computes no embeddings; "
    "there are /v1/chat/completions and /v1/completions",
}


def refused_routes(services: Services) -> APIRouter:
    routes = APIRouter(include_in_schema=False)
    for path, message in _NOT_HERE.items():
        routes.add_api_route(path, _refusal(message), methods=["POST"], response_model=None)
    return routes


def _refusal(message: str) -> Callable[[], Awaitable[NoReturn]]:
    async def refuse() -> NoReturn:
        raise HttpError(Problem(404, message, "invalid_request_error", code="unsupported_endpoint"))

    return refuse
