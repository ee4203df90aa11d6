"""POST /v1/chat/completions."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from starlette.responses import Response

from router.answer_form import answer_grammar
from router.body import read_body
from router.chat_shape import ChatShape
from router.openapi import generated, json_body
from router.prompt import chat_prompt, template_variables
from router.reading import answer_reading
from router.render import Shape
from router.reply import ChatCompletion
from router.schema import ChatRequest
from router.services import Services
from router.tool_shape import ToolShape
from router.tool_use import tool_use


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
        tools = tool_use(body)
        prompt = await chat_prompt(
            services.tokenizer,
            body.messages,
            tools=() if tools is None else tools.described,
            variables=template_variables(body, services.tokenizer.template_text),
            scope=services.salt(request, body),
        )
        reading = answer_reading(services.config.router, services.tokenizer, prompt.ids, tools)
        job = services.job(
            request,
            body,
            [prompt],
            prefix="chatcmpl",
            arrived=arrived,
            grammar=await answer_grammar(body, reading),
            shown_tokens=reading.shown_tokens,
        )
        shape: Shape
        if reading.is_plain:
            shape = ChatShape(services.model, services.tokenizer, job)
        else:
            shape = ToolShape(services.model, services.tokenizer, job, reading)
        return await services.answer(request, body, job, shape)

    return routes
