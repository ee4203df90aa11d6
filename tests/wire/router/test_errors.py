"""Every refusal in OpenAI's shape, naming the field."""

from __future__ import annotations

from typing import Any

import pytest

from triptych.errors import ConfigError, RequestError

CHAT = "/v1/chat/completions"
GOOD: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}


def error_of(response: Any, status: int) -> Any:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    assert sorted(body["error"]) == ["code", "message", "param", "type"]
    return body["error"]


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b'{"messages": NaN}', b'{"messages": "\xff"}', b"[" * 100_000, b"[]"],
    ids=["empty", "cut off", "NaN", "no UTF-8", "deep", "array"],
)
async def test_what_is_not_a_json_object_is_a_400(world: Any, raw: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    error = error_of(await world.client.post(CHAT, content=raw, headers=headers), 400)
    assert error["code"] == "invalid_json"


async def test_another_content_type_is_refused_with_the_remedy(world: Any) -> None:
    response = await world.client.post(CHAT, content=b"{}", headers={"Content-Type": "text/plain"})
    assert "send Content-Type: application/json" in error_of(response, 415)["message"]
    error_of(await world.client.post(CHAT, content=b"{}"), 415)


async def test_a_charset_in_the_content_type_is_fine(world: Any) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    raw = b'{"messages": [{"role": "user", "content": "Hi"}]}'
    assert (await world.client.post(CHAT, content=raw, headers=headers)).status_code == 200


async def test_a_wrong_field_is_named(world: Any) -> None:
    response = await world.client.post(CHAT, json={**GOOD, "top_p": 2})
    error = error_of(response, 400)
    assert (error["type"], error["param"]) == ("invalid_request_error", "top_p")


async def test_an_unknown_model_is_a_404(world: Any) -> None:
    error = error_of(await world.client.post(CHAT, json={**GOOD, "model": "gpt-x"}), 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "this is 'tiny'" in error["message"]
    assert error_of(await world.client.get("/v1/models/org/other"), 404)["param"] == "model"


async def test_an_unknown_route_and_a_wrong_method_have_the_same_shape(world: Any) -> None:
    assert "GET /v2/nothing" in error_of(await world.client.get("/v2/nothing"), 404)["message"]
    response = await world.client.get(CHAT)
    error_of(response, 405)
    assert response.headers["allow"] == "POST"
    error_of(await world.client.post("/v1/models"), 405)


async def test_an_empty_prompt_is_refused(world: Any) -> None:
    error = error_of(await world.client.post("/v1/completions", json={"prompt": ""}), 400)
    assert error["param"] == "prompt"


async def test_too_long_a_prompt_is_told_apart_from_too_much_asked(world: Any) -> None:
    long = {"messages": [{"role": "user", "content": "x" * 300}]}
    error = error_of(await world.client.post(CHAT, json=long), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    error = error_of(await world.client.post(CHAT, json={**GOOD, "max_tokens": 250}), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "max_tokens")


async def test_a_template_that_refuses_the_messages_is_a_400(world: Any, monkeypatch: Any) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RequestError("messages: roles must alternate", param="messages")

    monkeypatch.setattr(type(world.tokenizer), "encode_chat", refuse)
    assert error_of(await world.client.post(CHAT, json=GOOD), 400)["param"] == "messages"


async def test_without_a_worker_the_answer_is_to_try_again(start_world: Any) -> None:
    world = await start_world()
    response = await world.client.post(CHAT, json=GOOD)
    assert error_of(response, 503)["code"] == "no_capacity"
    assert response.headers["retry-after"] == "1"
    error_of(await world.client.get("/ready"), 503)
    for path in ("/health", "/live", "/version", "/metrics"):
        assert (await world.client.get(path)).status_code == 200
    await world.add_worker("decode-0")
    assert (await world.client.get("/ready")).status_code == 200


async def test_a_bug_is_a_500_that_tells_nothing(world: Any, monkeypatch: Any) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(type(world.tokenizer), "encode_chat", fail)
    world.client._transport.raise_app_exceptions = False
    response = await world.client.post(CHAT, json=GOOD, headers={"X-Request-Id": "abc"})
    assert "secret" not in response.text
    error_of(response, 500)
    assert response.headers["x-request-id"] == "abc"


@pytest.mark.parametrize("given", ["abc-123", "x" * 128])
async def test_a_request_id_comes_back(world: Any, given: str) -> None:
    response = await world.client.get("/health", headers={"X-Request-Id": given})
    assert response.headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "with space", "caf\xe9", "tab\there"])
async def test_a_bad_request_id_is_replaced(world: Any, given: str) -> None:
    headers = [(b"X-Request-Id", given.encode("latin-1"))]
    response = await world.client.get("/health", headers=headers)
    assert len(response.headers["x-request-id"]) == 32


async def test_refusals_are_counted_by_route_not_by_path(world: Any) -> None:
    await world.client.get("/nobody/was/here")
    await world.client.post(CHAT, json={})
    metric = "triptych_http_requests_total"
    assert world.metric(metric, route="unmatched", status="404") == 1
    assert world.metric(metric, route=CHAT, status="400") == 1


GUARDED = [
    ("POST", CHAT),
    ("POST", "/v1/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
]


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer wrong", "Basic right", "right", "Bearer r\xefght"]
)
async def test_without_a_key_nothing_is_answered(
    start_world: Any, method: str, path: str, header: str | None
) -> None:
    world = await start_world(api_keys=("right", "other"))
    headers = [] if header is None else [(b"Authorization", header.encode("latin-1"))]
    response = await world.client.request(method, path, headers=headers)
    assert error_of(response, 401)["code"] == "invalid_api_key"
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("key", ["Bearer right", "bearer other"])
async def test_any_of_the_keys_opens(start_world: Any, key: str) -> None:
    world = await start_world(api_keys=("right", "other"))
    await world.add_worker("decode-0")
    response = await world.client.post(CHAT, json=GOOD, headers={"Authorization": key})
    assert response.status_code == 200


async def test_an_empty_key_in_the_config_is_refused(start_world: Any) -> None:
    with pytest.raises(ConfigError, match=r"router\.api_keys"):
        await start_world(api_keys=("right", ""))


async def test_probes_need_no_key(start_world: Any) -> None:
    world = await start_world(api_keys=("right",))
    await world.add_worker("decode-0")
    for path in ("/health", "/live", "/ready", "/version", "/metrics", "/openapi.json"):
        assert (await world.client.get(path)).status_code == 200
