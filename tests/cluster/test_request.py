"""One request through real processes: what it costs, what it tells, what it leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any

import openai
import pytest

from triptych.config import load_config
from triptych.launch.checkup import check_cluster
from triptych.launch.doctor import Finding
from triptych.testing.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="module")]


def prompt_of(length: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(3, 250) for _ in range(length)]


async def complete(cluster: Cluster, **body: Any) -> dict[str, Any]:
    reply = await cluster.http.post(
        "/v1/completions",
        json={"model": "tiny", "ignore_eos": True, "temperature": 0, **body},
        headers={"X-Triptych-Timings": "1"},
    )
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


async def test_a_long_prompt_is_prefilled_elsewhere_and_its_kv_fetched(cluster: Cluster) -> None:
    answer = await complete(cluster, prompt=prompt_of(300, 1), max_tokens=4)
    timings = answer["triptych"]
    assert timings["prefill_worker"] == "prefill-0" and timings["kv_path"] == "shm"
    assert timings["kv_bytes"] > 0 and timings["fallbacks"] == []
    assert answer["usage"]["prompt_tokens"] == 300 and answer["usage"]["completion_tokens"] == 4
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


async def test_a_short_prompt_is_prefilled_at_home(cluster: Cluster) -> None:
    answer = await complete(cluster, prompt=prompt_of(20, 2), max_tokens=4)
    assert answer["triptych"]["kv_path"] == "" and answer["triptych"]["kv_bytes"] == 0


async def test_cached_tokens_are_those_that_nobody_computed(cluster: Cluster) -> None:
    prompt = prompt_of(200, 3)
    await complete(cluster, prompt=prompt, max_tokens=1)
    again = await complete(cluster, prompt=prompt, max_tokens=1)
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 192
    other_tenant = await complete(cluster, prompt=prompt, max_tokens=1, cache_salt="other")
    assert other_tenant["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


async def test_choices_share_one_prefill(cluster: Cluster) -> None:
    answer = await complete(cluster, prompt=prompt_of(150, 4), max_tokens=3, n=3, temperature=1)
    assert len(answer["choices"]) == 3 and answer["usage"]["completion_tokens"] == 9
    assert answer["usage"]["prompt_tokens"] == 150


async def test_who_asks_for_speculation_hears_what_became_of_it(
    start_cluster: Callable[..., contextlib.AbstractAsyncContextManager[Cluster]],
) -> None:
    """A tiny model repeats itself, so that drafts are right sooner or later."""
    prompt = prompt_of(40, 11)
    async with start_cluster("speculation.mode=fixed") as cluster:
        plain = await complete(cluster, prompt=prompt, max_tokens=200, speculation="off")
        drafted = await complete(cluster, prompt=prompt, max_tokens=200, speculation="auto")
        silent = await complete(cluster, prompt=prompt, max_tokens=2)
    assert drafted["choices"] == plain["choices"]
    off, auto = (answer["usage"]["completion_tokens_details"] for answer in (plain, drafted))
    assert off == {
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
        "rounds": 200,
        "acceptance_length": 1.0,
        "drafters": {},
        "draft_ms": 0.0,
    }
    assert auto["accepted_prediction_tokens"] > 0
    assert auto["rounds"] == 200 - auto["accepted_prediction_tokens"]
    assert auto["acceptance_length"] == pytest.approx(200 / auto["rounds"], abs=1e-3)
    own = auto["drafters"]["suffix"]
    assert own["accepted_tokens"] == auto["accepted_prediction_tokens"]
    assert own["drafted_tokens"] - own["accepted_tokens"] == auto["rejected_prediction_tokens"]
    assert 0 < own["rounds"] <= auto["rounds"] and auto["draft_ms"] > 0
    assert "completion_tokens_details" not in silent["usage"]


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"drafters": ["oracle"]}, "speculation"),
        ({"max_nodes": 0}, "speculation.max_nodes"),
        ("sometimes", "speculation"),
    ],
)
async def test_speculation_that_is_not_there_is_refused_by_its_field(
    cluster: Cluster, asked: Any, field: str
) -> None:
    body = {"model": "tiny", "prompt": prompt_of(20, 9), "max_tokens": 4, "speculation": asked}
    reply = await cluster.http.post("/v1/completions", json=body)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"].startswith(field.split(".")[0]), reply.text


@pytest.mark.parametrize(
    "field", [{"logit_bias": {"60000": 1}}, {"stop_token_ids": [60000], "min_tokens": 2}]
)
async def test_a_token_that_the_model_does_not_have_is_refused_by_name(
    cluster: Cluster, field: dict[str, Any]
) -> None:
    body = {"model": "tiny", "prompt": prompt_of(20, 9), "max_tokens": 4, **field}
    reply = await cluster.http.post("/v1/completions", json=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"].startswith(next(iter(field)))


async def test_many_long_and_short_prompts_at_once_all_get_their_turn(cluster: Cluster) -> None:
    answers = await asyncio.gather(
        *(
            complete(
                cluster, prompt=prompt_of(1200 if index % 4 == 0 else 50, index), max_tokens=6, n=2
            )
            for index in range(40)
        )
    )
    assert all(len(answer["choices"]) == 2 for answer in answers)
    await cluster.until_at_rest(timeout_s=2)


async def test_requests_cancelled_at_random_moments_leave_no_block_behind(cluster: Cluster) -> None:
    draw = random.Random(5)
    sizes = {worker["worker_id"]: worker["num_blocks"] for worker in await cluster.workers()}

    async def cancelled(index: int) -> None:
        body = {
            "model": "tiny",
            "prompt": prompt_of(draw.choice([10, 100, 400, 1500]), 1000 + index),
            "max_tokens": 200,
            "ignore_eos": True,
            "stream": bool(index % 2),
            "n": 1 + index % 2,
        }
        async with asyncio.timeout(draw.uniform(0.0, 1.5)):
            async with cluster.http.stream("POST", "/v1/completions", json=body) as reply:
                async for _ in reply.aiter_bytes():
                    pass

    results = await asyncio.gather(*(cancelled(i) for i in range(200)), return_exceptions=True)
    assert sum(isinstance(result, TimeoutError) for result in results) > 100
    blocks = await cluster.until_at_rest(timeout_s=2)
    for worker, states in blocks.items():
        assert states["pool/free"] + states["prefix/cached"] == sizes[worker]
    answer = await complete(cluster, prompt=prompt_of(300, 6), max_tokens=4)
    assert answer["triptych"]["prefill_worker"] == "prefill-0"


async def test_the_openai_client_is_served(cluster: Cluster) -> None:
    async with openai.AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key="none") as client:
        listed = await client.models.list()
        assert [model.id for model in listed.data] == ["tiny"]

        messages: Any = [{"role": "user", "content": "Tell me about the sea, at some length."}]
        whole = await client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=9, temperature=0.7, seed=11
        )
        assert whole.choices[0].message.role == "assistant" and whole.usage is not None

        text, usage, roles, reasons = "", None, [], []
        stream = await client.chat.completions.create(
            model="tiny",
            messages=messages,
            max_tokens=9,
            temperature=0.7,
            seed=11,
            stream=True,
            stream_options={"include_usage": True},
        )
        async for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                roles += [choice.delta.role] if choice.delta.role else []
                reasons += [choice.finish_reason] if choice.finish_reason else []
                text += choice.delta.content or ""
        assert text == whole.choices[0].message.content
        assert roles == ["assistant"] and reasons == [whole.choices[0].finish_reason]
        assert usage is not None and usage.total_tokens == whole.usage.total_tokens

        completion = await client.completions.create(
            model="tiny", prompt=["one", "two"], max_tokens=3, logprobs=2
        )
        assert [choice.index for choice in completion.choices] == [0, 1]

        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="gpt-nope", messages=messages)
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model="tiny", messages=messages, temperature=-1)
        assert refused.value.param == "temperature"


async def test_the_doctor_finds_a_running_cluster_well_and_tells_the_path_of_its_kv(
    cluster: Cluster,
) -> None:
    found = await check_cluster(load_config(None, ["router.port=0"]), cluster.url, None)
    assert not [finding for finding in found if finding.problem]
    assert Finding("KV path", "prefill-0 to decode-0: shm") in found
    assert {"decode-0", "prefill-0", "completion", "transfer"} <= {each.name for each in found}
