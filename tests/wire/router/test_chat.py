"""POST /v1/chat/completions, from the request's JSON to the worker's call and back."""

from __future__ import annotations

import json
from typing import Any

from triptych.request import FinishReason
from triptych.testing.fake_worker import says

QUESTION: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
PROMPT = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


async def ask(world: Any, headers: dict[str, str] | None = None, **fields: Any) -> Any:
    response = await world.client.post(
        "/v1/chat/completions", json={**QUESTION, **fields}, headers=headers
    )
    assert response.status_code == 200, response.text
    return response


async def chunks(world: Any, headers: dict[str, str] | None = None, **fields: Any) -> list[Any]:
    response = await ask(world, headers, stream=True, **fields)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *events, done, nothing = response.text.split("\n\n")
    assert (done, nothing) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


async def test_an_answer_holds_text_reason_and_usage(start_world: Any) -> None:
    world = await start_world()
    eos = world.tokenizer.eos_token_ids[0]
    script = says([*world.tokenizer.encode("Hello"), eos], cached_tokens=16)
    worker = await world.add_worker("decode-0", script)
    response = await ask(world)
    body = response.json()
    assert body["id"].startswith("chatcmpl-")
    assert body["object"] == "chat.completion"
    assert body["model"] == "tiny"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello"},
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ]
    prompt = world.tokenizer.encode(PROMPT)
    assert body["usage"] == {
        "prompt_tokens": len(prompt),
        "completion_tokens": 6,
        "total_tokens": len(prompt) + 6,
        "prompt_tokens_details": {"cached_tokens": 16},
    }
    decision = response.headers["x-triptych-decision"]
    assert decision.startswith("decode=decode-0; prefill=none; reason=load; cached=0; ttft_ms=")
    assert list((await worker.next_call()).request.prompt_ids) == prompt


async def test_the_worker_gets_every_parameter(start_world: Any) -> None:
    world = await start_world()
    worker = await world.add_worker("decode-0")
    await ask(
        world,
        max_completion_tokens=5,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        repetition_penalty=1.1,
        logit_bias={"7": -3},
        n=2,
        seed=-2,
        stop=["x", "y"],
        stop_token_ids=[9],
        min_tokens=1,
        ignore_eos=True,
        logprobs=True,
        top_logprobs=4,
        cache_salt="mine",
    )
    request = (await worker.next_call()).request
    sampling = request.sampling
    assert (request.n, request.cache_salt) == (2, "mine")
    assert (sampling.temperature, sampling.top_p, sampling.min_p) == (0.5, 0.9, 0.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.2, 0.3)
    assert (sampling.repetition_penalty, sampling.top_k) == (1.1, 40)
    assert dict(sampling.logit_bias) == {7: -3.0}
    assert sampling.seed == (1 << 64) - 2
    assert (list(sampling.stop), list(sampling.stop_token_ids)) == (["x", "y"], [9])
    assert (sampling.max_tokens, sampling.min_tokens, sampling.ignore_eos) == (5, 1, True)
    assert sampling.logprobs == 4


async def test_without_a_limit_the_rest_of_the_context_is_asked_for(start_world: Any) -> None:
    world = await start_world()
    worker = await world.add_worker("decode-0", max_model_len=100)
    await ask(world)
    request = (await worker.next_call()).request
    assert request.sampling.max_tokens == 100 - len(request.prompt_ids)
    assert not request.sampling.HasField("logprobs")


async def test_a_stream_begins_with_the_role_and_ends_with_the_reason(start_world: Any) -> None:
    world = await start_world()
    await world.add_worker(
        "decode-0", says(world.tokenizer.encode("ab"), finish=FinishReason.LENGTH)
    )
    found = await chunks(world)
    assert len({chunk["id"] for chunk in found}) == 1
    assert {chunk["object"] for chunk in found} == {"chat.completion.chunk"}
    assert [chunk["choices"][0]["delta"] for chunk in found] == [
        {"role": "assistant", "content": ""},
        {"content": "a"},
        {"content": "b"},
        {},
    ]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in found]
    assert reasons == [None, None, None, "length"]
    assert not any("usage" in chunk for chunk in found)


async def test_usage_comes_last_with_no_choice_when_asked_for(world: Any) -> None:
    found = await chunks(world, stream_options={"include_usage": True}, max_tokens=3)
    assert all(chunk["usage"] is None for chunk in found[:-1])
    assert found[-1]["choices"] == []
    usage = found[-1]["usage"]
    assert usage["completion_tokens"] == 3
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}


async def test_continuous_usage_counts_along(world: Any) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    found = await chunks(world, stream_options=options, max_tokens=3)
    counts = [chunk["usage"]["completion_tokens"] for chunk in found]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (1, 3)


async def test_choices_of_a_stream_keep_apart(start_world: Any) -> None:
    world = await start_world()
    await world.add_worker("decode-0", says(world.tokenizer.encode("abc")))
    found = await chunks(world, n=3)
    for choice in range(3):
        mine = [chunk["choices"][0] for chunk in found if chunk["choices"][0]["index"] == choice]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(part["delta"].get("content", "") for part in mine) == "abc"
        assert [part["finish_reason"] for part in mine].count("stop") == 1


async def test_a_stop_string_is_trimmed_in_both_kinds_of_answer(start_world: Any) -> None:
    world = await start_world()
    ids = world.tokenizer.encode("one END")
    await world.add_worker("decode-0", says(ids, stop_reason="END"))
    body = (await ask(world, stop="END")).json()
    choice = body["choices"][0]
    assert (choice["message"]["content"], choice["stop_reason"]) == ("one ", "END")
    found = await chunks(world, stop="END")
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in found)
    assert text == "one "
    assert found[-1]["choices"][0]["stop_reason"] == "END"


async def test_logprobs_are_the_same_whole_and_streamed(start_world: Any) -> None:
    world = await start_world()
    ids = [*world.tokenizer.encode("é the"), world.tokenizer.eos_token_ids[0]]
    await world.add_worker("decode-0", says(ids, tokens_per_delta=2))
    body = (await ask(world, logprobs=True, top_logprobs=2)).json()
    whole = body["choices"][0]["logprobs"]["content"]
    assert len(whole) == len(ids) == body["usage"]["completion_tokens"]
    assert whole[0]["top_logprobs"][1]["logprob"] == -2.0
    assert b"".join(bytes(entry["bytes"]) for entry in whole[:-1]).decode() == "é the"
    found = await chunks(world, logprobs=True, top_logprobs=2)
    streamed = [
        chunk["choices"][0]["logprobs"] for chunk in found if chunk["choices"][0]["logprobs"]
    ]
    assert [entry for part in streamed for entry in part["content"]] == whole


async def test_timings_come_on_request_only(world: Any) -> None:
    asked = {"X-Triptych-Timings": "1"}
    assert "triptych" not in (await ask(world)).json()
    timings = (await ask(world, asked)).json()["triptych"]
    assert timings["decode_worker"] == "decode-0"
    assert timings["first_token_ms"] == 1.5
    last = (await chunks(world, asked))[-1]
    assert (last["choices"], last["triptych"]) == ([], timings)
    assert "usage" not in last


async def test_a_prefill_worker_is_named_with_its_spares(world: Any) -> None:
    for number in range(3):
        await world.add_worker(f"prefill-{number}", role="prefill", epoch=7 + number)
    worker = await world.add_worker("decode-1")
    named = []
    for _ in range(2):
        response = await ask(world)
        named.append(response.headers["x-triptych-decision"])
    assert any("decode=decode-1; prefill=prefill-" in decision for decision in named)
    request = (await worker.next_call()).request
    assert request.prefill.address.endswith(f"{request.prefill.worker_id}.sock")
    assert request.prefill.epoch == 7 + int(request.prefill.worker_id[-1])
    others = {spare.worker_id for spare in request.spare_prefill}
    assert len(others | {request.prefill.worker_id}) == 3


async def test_requests_share_the_homes(world: Any) -> None:
    await world.add_worker("decode-1")
    decisions = [(await ask(world)).headers["x-triptych-decision"] for _ in range(4)]
    homes = [decision.partition(";")[0] for decision in decisions]
    assert sorted(homes) == ["decode=decode-0"] * 2 + ["decode=decode-1"] * 2


async def test_what_happened_is_counted(world: Any) -> None:
    route = {"route": "/v1/chat/completions"}
    await ask(world, max_tokens=3)
    await chunks(world, max_tokens=3)
    assert world.metric("triptych_http_requests_total", status="200", **route) == 2
    assert world.metric("triptych_choices_total", finish_reason="length", **route) == 2
    assert world.metric("triptych_completion_tokens_total") == 6
    assert world.metric("triptych_prompt_tokens_total") > 20
    assert world.metric("triptych_time_to_first_token_seconds_count", **route) == 2
    assert world.metric("triptych_inter_token_latency_seconds_count", **route) == 4
    assert world.metric("triptych_placements_total", reason="load", remote_prefill="no") == 2
    assert world.metric("triptych_live_streams") == 0
