"""POST /v1/chat/completions."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from starlette.responses import Response

from router.body import read_body
from router.chat_shape import ChatShape
from router.openapi import generated, json_body
from router.prompt import chat_prompt
from router.render import Shape
from router.reply import ChatCompletion
from router.schema import ChatRequest
from router.services import Services
from router.tool_shape import ToolShape
from router.tool_use import answer_grammar, tool_use


def chat_routes(services: Services) -> APIRouter:
    routes = APIRouter(tags=["generation"])

    @routes.post(
        "/v1/chat/completions",
        summary="Answer a conversation",
        response_model=None,
        responses=generated(ChatCompletion),
        openapi_extra=json_body(ChatRequest),
    )
    async def chat(request: Request) -> Response:
        body = await read_body(request, ChatRequest, services.config.router.max_body)
        arrived = time.monotonic()
        services.check(body.model)
        tools = tool_use(body, services.config.router.tool_parser, services.tokenizer)
        prompt = await chat_prompt(
            services.tokenizer,
            body.messages,
            tools=() if tools is None else tools.described,
            scope=services.salt(request, body),
        )
        job = services.job(
            request,
            body,
            [prompt],
            prefix="chatcmpl",
            arrived=arrived,
            grammar=await answer_grammar(body, tools),
            shown_tokens=frozenset() if tools is None else tools.shown_tokens,
        )
        shape: Shape
        if tools is None:
            shape = ChatShape(services.model, services.tokenizer, job)
        else:
            shape = ToolShape(services.model, services.tokenizer, job, tools)
        return await services.answer(request, body, job, shape)

    return routes
