"""Probes, version and metrics: open to everybody, cheap, never behind a key."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from router.openapi import answers
from router.reply import StatusReply, VersionReply, WorkerCard, WorkersReply
from router.services import Services


def health_routes(services: Services) -> APIRouter:
    routes = APIRouter(tags=["operations"])

    @routes.get("/health", summary="The router runs", responses=answers(StatusReply))
    @routes.get("/live", summary="The router runs", responses=answers(StatusReply))
    async def live() -> StatusReply:
        return StatusReply(status="ok")

    @routes.get(
        "/ready", summary="A decode worker is attached", responses=answers(StatusReply, 503)
    )
    async def ready() -> StatusReply:
        services.require_context()
        return StatusReply(status="ok")

    @routes.get("/version", summary="The router's version", responses=answers(VersionReply))
    async def show_version() -> VersionReply:
        return VersionReply(version=_version())

    @routes.get("/workers", summary="Who is attached", responses=answers(WorkersReply))
    async def list_workers() -> WorkersReply:
        cards = [WorkerCard.model_validate(asdict(view)) for view in services.workers()]
        return WorkersReply(workers=cards)

    @routes.get(
        "/metrics",
        summary="Prometheus metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        text = generate_latest(services.metrics.registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    return routes


def _version() -> str:
    try:
        return version("triptych-runtime")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"
