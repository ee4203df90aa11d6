"""POST /v1/completions, /tokenize, /detokenize and the model list."""

from __future__ import annotations

import json
from typing import Any

import pytest

from triptych.request import choice_seed
from triptych.testing.fake_worker import says


async def ask(world: Any, **fields: Any) -> Any:
    response = await world.client.post("/v1/completions", json={"model": "tiny", **fields})
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_completion_continues_a_text(start_world: Any) -> None:
    world = await start_world()
    worker = await world.add_worker("decode-0", says(world.tokenizer.encode("abc")))
    body = await ask(world, prompt="the")
    assert body["id"].startswith("cmpl-")
    assert body["object"] == "text_completion"
    assert body["choices"] == [
        {
            "index": 0,
            "text": "abc",
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ]
    call = await worker.next_call()
    assert list(call.request.prompt_ids) == world.tokenizer.encode("the")


@pytest.mark.parametrize("prompt", [[5, 6, 7], [[5, 6, 7]]])
async def test_token_ids_reach_the_worker_as_they_are(start_world: Any, prompt: Any) -> None:
    world = await start_world()
    worker = await world.add_worker("decode-0")
    await ask(world, prompt=prompt)
    assert list((await worker.next_call()).request.prompt_ids) == [5, 6, 7]


async def test_every_prompt_is_a_call_and_choices_are_numbered_through(start_world: Any) -> None:
    world = await start_world()
    worker = await world.add_worker("decode-0")
    body = await ask(world, prompt=["aa", "bbb"], n=2, seed=11)
    texts = [(choice["index"], choice["text"]) for choice in body["choices"]]
    assert texts == [(0, "aa"), (1, "aa"), (2, "bbb"), (3, "bbb")]
    assert body["usage"]["prompt_tokens"] == 5
    assert body["usage"]["completion_tokens"] == 10
    calls = sorted((call.request for call in worker.calls), key=lambda r: len(r.prompt_ids))
    assert [request.sampling.seed for request in calls] == [11, choice_seed(11, 2)]
    assert len({request.request_id for request in calls}) == 2


async def test_an_echo_repeats_the_prompt_first(start_world: Any) -> None:
    world = await start_world()
    await world.add_worker("decode-0", says(world.tokenizer.encode("xy")))
    body = await ask(world, prompt=["a ", "b "], echo=True)
    assert [choice["text"] for choice in body["choices"]] == ["a xy", "b xy"]
    body = await ask(world, prompt=world.tokenizer.encode("the"), echo=True)
    assert body["choices"][0]["text"] == "thexy"


async def test_a_streamed_echo_comes_before_the_text(start_world: Any) -> None:
    world = await start_world()
    await world.add_worker("decode-0", says(world.tokenizer.encode("xy")))
    response = await world.client.post(
        "/v1/completions", json={"prompt": "a ", "echo": True, "stream": True}
    )
    *events, done, _ = response.text.split("\n\n")
    assert done == "data: [DONE]"
    found = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events]
    assert [choice["text"] for choice in found] == ["a ", "x", "y", ""]
    assert [choice["finish_reason"] for choice in found] == [None, None, None, "stop"]


async def test_logprobs_are_columns(start_world: Any) -> None:
    world = await start_world()
    await world.add_worker("decode-0", says(world.tokenizer.encode("a the")))
    logprobs = (await ask(world, prompt="x", logprobs=1))["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["a", " the"]
    assert logprobs["text_offset"] == [0, 1]
    assert logprobs["token_logprobs"] == [-0.5, -0.5]
    assert [sorted(top.values()) for top in logprobs["top_logprobs"]] == [[-1.0, -0.5]] * 2


async def test_tokenize_and_detokenize_are_each_others_inverse(world: Any) -> None:
    text = "the naïve café <|im_end|>"
    response = await world.client.post("/tokenize", json={"prompt": text})
    body = response.json()
    assert body["tokens"] == world.tokenizer.encode(text)
    assert (body["count"], body["max_model_len"]) == (len(body["tokens"]), 256)
    response = await world.client.post("/detokenize", json={"tokens": body["tokens"]})
    assert response.json() == {"prompt": text}


async def test_messages_are_tokenized_as_chat_does(world: Any) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    response = await world.client.post("/tokenize", json={"messages": messages})
    assert response.json()["tokens"] == world.tokenizer.encode_chat(messages)
    response = await world.client.post(
        "/tokenize", json={"messages": messages, "add_generation_prompt": False}
    )
    wanted = world.tokenizer.encode_chat(messages, add_generation_prompt=False)
    assert response.json()["tokens"] == wanted


async def test_a_very_long_prompt_is_counted_and_refused(world: Any) -> None:
    text = "the " * 100_000
    response = await world.client.post("/tokenize", json={"prompt": text})
    assert response.json()["count"] > 100_000
    response = await world.client.post("/v1/completions", json={"prompt": text})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


async def test_the_model_list_tells_the_context(start_world: Any) -> None:
    world = await start_world()
    before = (await world.client.get("/v1/models")).json()
    assert before["data"][0]["max_model_len"] is None
    await world.add_worker("decode-0", max_model_len=300)
    await world.add_worker("decode-1", max_model_len=200)
    card = (await world.client.get("/v1/models/tiny")).json()
    assert (await world.client.get("/v1/models")).json() == {"object": "list", "data": [card]}
    assert (card["id"], card["object"], card["owned_by"]) == ("tiny", "model", "triptych")
    assert card["max_model_len"] == 200  # what every home can do
