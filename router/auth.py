"""API keys: any one of the configured keys, as `Authorization: Bearer <key>`."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from fastapi import Request
from fastapi.security import HTTPBearer

from router.errors import HttpError, Problem
from triptych.errors import ConfigError


class ApiKeys(HTTPBearer):
    """A dependency that lets a request pass or raises a 401. Without keys, everybody passes.

    Raises ConfigError for an empty key.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        super().__init__(scheme_name="api key", auto_error=False)
        if "" in keys:
            raise ConfigError("router.api_keys: an empty key would let everybody in")
        self._digests = [_digest(key) for key in keys]

    async def __call__(self, request: Request) -> None:  # type: ignore[override]
        if self._digests and not self._known(request.headers.get("authorization", "")):
            raise HttpError(
                Problem(
                    401,
                    "missing or unknown API key; send Authorization: Bearer <key>",
                    "authentication_error",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            )

    def _known(self, header: str) -> bool:
        scheme, _, key = header.partition(" ")
        given = _digest(key.strip())
        # Digests have one length, and every one is compared: the time taken tells nothing about a
        # key.
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return scheme.lower() == "bearer" and any(matches)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
