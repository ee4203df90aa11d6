"""GET /v1/models."""

from __future__ import annotations

from fastapi import APIRouter

from router.openapi import answers
from router.reply import ModelCard, ModelList
from router.services import Services


def model_routes(services: Services) -> APIRouter:
    routes = APIRouter(tags=["models"])

    def card() -> ModelCard:
        return ModelCard(
            id=services.model,
            object="model",
            created=services.started,
            owned_by="triptych",
            max_model_len=services.context,
        )

    @routes.get("/v1/models", summary="The models served here", responses=answers(ModelList, 401))
    async def list_models() -> ModelList:
        return ModelList(object="list", data=[card()])

    # A path: names like "org/model" hold a slash.
    @routes.get(
        "/v1/models/{model:path}", summary="One model", responses=answers(ModelCard, 401, 404)
    )
    async def show_model(model: str) -> ModelCard:
        services.check_model(model)
        return card()

    return routes
