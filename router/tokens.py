"""POST /tokenize and /detokenize: what the model sees of a text."""

from __future__ import annotations

from fastapi import APIRouter, Request

from router.body import read_body
from router.off_loop import off_loop
from router.openapi import json_body, reads_body
from router.prompt import Prompt, chat_prompt, text_prompts
from router.reply import DetokenizeReply, TokenizeReply
from router.sampling import check_token_ids
from router.schema import DetokenizeRequest, TokenizeRequest
from router.services import Services


def token_routes(services: Services) -> APIRouter:
    routes = APIRouter(tags=["tokens"])
    max_body = services.config.router.max_body

    @routes.post(
        "/tokenize",
        summary="Token ids of a prompt or a conversation",
        responses=reads_body(TokenizeReply),
        openapi_extra=json_body(TokenizeRequest),
    )
    async def tokenize(request: Request) -> TokenizeReply:
        body = await read_body(request, TokenizeRequest, max_body)
        services.check_model(body.model)
        ids = list((await _prompt(services, body)).ids)
        return TokenizeReply(tokens=ids, count=len(ids), max_model_len=services.context)

    @routes.post(
        "/detokenize",
        summary="Text of token ids, special tokens spelled out",
        responses=reads_body(DetokenizeReply),
        openapi_extra=json_body(DetokenizeRequest),
    )
    async def detokenize(request: Request) -> DetokenizeReply:
        body = await read_body(request, DetokenizeRequest, max_body)
        services.check_model(body.model)
        check_token_ids(body.tokens, services.tokenizer.vocab_size, "tokens")

        def decode() -> str:
            return services.tokenizer.decode(body.tokens, skip_special_tokens=False)

        return DetokenizeReply(prompt=await off_loop(decode, len(body.tokens)))

    return routes


async def _prompt(services: Services, body: TokenizeRequest) -> Prompt:
    if body.messages is not None:
        return await chat_prompt(
            services.tokenizer,
            body.messages,
            add_generation_prompt=body.add_generation_prompt is not False,
        )
    assert body.prompt is not None, "the schema wants one of the two"
    special = body.add_special_tokens is not False
    [prompt] = await text_prompts(services.tokenizer, [body.prompt], add_special_tokens=special)
    return prompt
