"""Is this running cluster well, seen from here? Its router, each worker at the address that it
tells others, a streamed answer, and the paths that KV takes.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from transport.kv.paths import takes
from triptych.config import ClusterConfig
from triptych.errors import TriptychError
from triptych.launch.client import ChatClient
from triptych.launch.doctor import Finding
from triptych.launch.timings import timing_rows

_ANSWER_S = 5.0
_QUESTION = "Repeat after me: " + "one two three four five six seven eight nine ten. " * 8

Card = Mapping[str, Any]  # of a worker, as GET /workers tells it


async def check_cluster(
    config: ClusterConfig,
    url: str,
    api_key: str | None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> list[Finding]:
    """What is there, next to what the config wants. An unreachable router is the only finding."""
    base = url.rstrip("/").removesuffix("/v1")
    # No proxy of the environment knows the addresses of pods.
    async with httpx.AsyncClient(timeout=_ANSWER_S, transport=transport, trust_env=False) as http:
        try:
            ready = await http.get(f"{base}/ready")
            workers: list[Card] = (await http.get(f"{base}/workers")).json()["workers"]
        except (httpx.HTTPError, ValueError, KeyError) as error:
            return [Finding("router", base, f"does not answer as a router: {_words(error)}")]
        findings = [Finding("router", base, "" if ready.is_success else _message(ready))]
        findings += count_workers(config, workers)
        findings += await asyncio.gather(*(_visit(http, card) for card in workers))
        client = ChatClient(base, api_key=api_key or config.router.any_key, transport=transport)
        findings += await _converse(client)
        pages = await asyncio.gather(*(_metrics(http, card) for card in workers))
    for card, page in zip(workers, pages, strict=True):
        findings += judge_paths(config, card["worker_id"], page)
    return findings


def count_workers(config: ClusterConfig, workers: Sequence[Card]) -> list[Finding]:
    """By role, those that serve."""
    wanted: Counter[str] = Counter()
    for pool in config.pools:
        wanted[pool.role] += pool.replicas
    there = Counter(card["role"] for card in workers if not card["draining"])
    return [
        Finding(
            f"{role} workers",
            f"{there[role]} of {number}",
            "the others are not attached: still loading, not scheduled, or they cannot reach the "
            "router's registry; see their logs"
            if there[role] < number
            else "",
        )
        for role, number in wanted.items()
        if number
    ]


def judge_paths(config: ClusterConfig, worker_id: str, metrics: str) -> list[Finding]:
    """The paths that a worker's probes of its peers proved, out of its metrics."""
    required = config.transport.require
    found = []
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name == "triptych_kv_path_info":
                peer, path = sample.labels["peer"], sample.labels["path"]
                wrong = required is not None and not takes(path, required)
                problem = f"transport.require says {required}" if wrong else ""
                found.append(Finding("KV path", f"{peer} to {worker_id}: {path}", problem))
    return found


async def _visit(http: httpx.AsyncClient, card: Card) -> Finding:
    """Of a worker, at the address that it told."""
    address = card["metrics_address"]
    value = f"{card['role']}, gRPC at {card['address']}, metrics at {address}"
    try:
        answer = await http.get(f"http://{address}/ready")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        problem = (
            f"{address} cannot be reached from here ({_words(error)}): workers on other hosts need "
            "--host with an address that others see; a network policy may be in the way"
        )
    else:
        problem = "" if answer.is_success else f"not ready: {answer.text.strip()}"
    return Finding(card["worker_id"], value, problem)


async def _converse(client: ChatClient) -> list[Finding]:
    """A short answer, streamed, to a prompt long enough to be prefilled elsewhere."""
    try:
        answer = await client.ask(
            [{"role": "user", "content": _QUESTION}],
            lambda text: None,
            timings=True,
            model=await client.model(),
            max_tokens=8,
            seed=1,
        )
    except TriptychError as error:
        return [Finding("completion", "none", str(error))]
    return [
        Finding("completion", f"{len(answer.arrivals)} pieces of text"),
        *(Finding(row.name, f"{row.value}  {row.note}".rstrip()) for row in timing_rows(answer)),
    ]


async def _metrics(http: httpx.AsyncClient, card: Card) -> str:
    try:
        answer = await http.get(f"http://{card['metrics_address']}/metrics")
    except (httpx.HTTPError, httpx.InvalidURL):  # told already, by _visit
        return ""
    return answer.text if answer.is_success else ""


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {answer.status_code}"


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
