"""The HTTP application: which endpoints there are and what every one of them goes through.

Access (request id, log, count) → Doorstep (refusals by the head alone) → FastAPI's span, where
requests are traced → errors in one shape → API keys, where they guard → one file per family.
"""

from __future__ import annotations

from functools import partial

from fastapi import Depends, FastAPI
from starlette.types import ASGIApp

from router import errors, openapi
from router.access import QUIET, Access
from router.auth import ApiKeys
from router.chat import chat_routes
from router.completions import completion_routes
from router.doorstep import Doorstep
from router.health import health_routes
from router.models import model_routes
from router.refused import refused_routes
from router.services import Services
from router.tokens import token_routes


def create_app(services: Services) -> ASGIApp:
    app = FastAPI(
        title="Triptych",
        summary="OpenAI-compatible inference",
        redirect_slashes=False,
        telemetry={
            "metrics": False,  # ours say more
            "logs": False,
            "operation_spans": False,
            "exclude": lambda scope: scope.get("path") in QUIET,
        },
    )
    app.openapi = partial(openapi.complete, app)  # type: ignore[method-assign]
    errors.install(app)
    tenants = services.admission.tenants
    guard = [Depends(ApiKeys(tenants))] if tenants.keys_are_asked_for else []
    for family in (chat_routes, completion_routes, model_routes, token_routes, refused_routes):
        app.include_router(family(services), dependencies=guard)
    app.include_router(health_routes(services))
    doorstep = Doorstep(app, services.admission, services.config.router.max_body)
    return Access(doorstep, services.metrics)
