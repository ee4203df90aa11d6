"""API keys: any key of the configuration, as `Authorization: Bearer <key>`."""

from __future__ import annotations

from fastapi import Request
from fastapi.security import HTTPBearer

from router.admission.tenants import Tenants
from router.errors import HttpError, Problem


class ApiKeys(HTTPBearer):
    """A dependency that notes whose key a request bears in `state.tenant`, or raises a 401."""

    def __init__(self, tenants: Tenants) -> None:
        super().__init__(scheme_name="api key", auto_error=False)
        self._tenants = tenants

    async def __call__(self, request: Request) -> None:  # type: ignore[override]
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        tenant = self._tenants.of_key(key.strip()) if scheme.lower() == "bearer" else None
        if tenant is None:
            raise HttpError(
                Problem(
                    401,
                    "missing or unknown API key; send Authorization: Bearer <key>",
                    "authentication_error",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            )
        request.state.tenant = tenant
