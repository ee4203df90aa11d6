"""API keys: any key of the configuration, as `Authorization: Bearer <key>`."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import Request
from fastapi.security import HTTPBearer

from router.admission.tenants import Tenants
from router.errors import HttpError, Problem
from triptych.admission_config import TenantConfig


class ApiKeys(HTTPBearer):
    """A dependency that notes whose key a request bears in `state.tenant`, or raises a 401."""

    def __init__(self, tenants: Tenants) -> None:
        super().__init__(scheme_name="api key", auto_error=False)
        self._tenants = tenants

    async def __call__(self, request: Request) -> None:  # type: ignore[override]
        tenant = bearer(self._tenants, request.headers)
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


def bearer(tenants: Tenants, headers: Mapping[str, str]) -> TenantConfig | None:
    """Whose key the request bears; None: nobody's."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return tenants.of_key(key.strip()) if scheme.lower() == "bearer" else None
