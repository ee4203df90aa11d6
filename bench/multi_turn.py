"""How much sooner do turns of a chat get their first token where placement knows who holds what?

    python -m bench.multi_turn

Eight conversations of six turns, once for each placement policy and round, each with a cluster of
its own: no cache is shared. Every turn sends all that was said before, the model's answers too;
users do not think. What users say are pieces of this repository's documentation; answers are
greedy. They must be the same under every policy (exit code 1 if not).

Where n workers of each role are asked in turn, the last turn's is met again with probability 1 / n:
the more there are (`--workers`), the more is to be gained.

The limit of time to first token is that of computing a turn's new tokens and no others, alone:
their number times what a prefill worker took per token in this run, queues, transfers and the first
decode step left out.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.report import finish, print_table
from bench.serving import quantile
from triptych.config import ClusterConfig, load_config
from triptych.hub import pull_model
from triptych.testing.cluster import Cluster, running_cluster

_DOCS = Path(__file__).parents[1] / "docs"
_SYSTEM = (
    "You help the operators of an inference server. Each message holds a piece of its manual. Say "
    "in one or two sentences what an operator should do about it, and remember earlier pieces: "
    "later ones refer to them. Do not invent options that the manual does not name."
)
_CHARACTERS = (600, 1300)  # of what a user says: some 150 to 400 tokens
_WARM_SALT = "warm"


@dataclass(slots=True)
class Turn:
    """One answer, as its client saw it."""

    conversation: int
    number: int  # from 0
    ttft_s: float = 0.0
    text: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0  # of the prompt: computed by nobody
    timings: dict[str, Any] = field(default_factory=dict)  # the home's
    decision: str = ""  # the router's


@dataclass(frozen=True, slots=True)
class Replay:
    """All conversations, once, with one cluster."""

    turns: list[Turn]
    prefill_s: float  # of the prefill workers' steps
    prefill_rows: float


def said_by_users(text: str, conversations: int, turns: int) -> list[list[str]]:
    """Pieces of `text` that follow each other, by conversation and turn; from its beginning again
    where it is too short.
    """
    least, most = _CHARACTERS
    found, begin = [], 0
    for number in range(conversations * turns):
        length = least + number * 377 % (most - least)
        if begin + length > len(text):
            begin = 0
        found.append(text[begin : begin + length])
        begin += length
    return [found[i : i + turns] for i in range(0, len(found), turns)]


def new_tokens(turns: Sequence[Turn]) -> list[int]:
    """Of each turn's prompt, those that no earlier turn of its conversation had or generated."""
    known: dict[int, int] = {}
    found = []
    for turn in sorted(turns, key=lambda turn: (turn.conversation, turn.number)):
        found.append(turn.prompt_tokens - known.get(turn.conversation, 0))
        known[turn.conversation] = turn.prompt_tokens + turn.completion_tokens
    return found


def texts(turns: Sequence[Turn]) -> dict[tuple[int, int], str]:
    return {(turn.conversation, turn.number): turn.text for turn in turns}


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    manual = "\n\n".join(path.read_text() for path in sorted(_DOCS.rglob("*.md")))
    said = said_by_users(manual, options.conversations, options.turns)
    replays: dict[str, list[Replay]] = {policy: [] for policy in options.policies}
    for number in range(options.rounds):
        for policy in options.policies[:: -1 if number % 2 else 1]:
            replays[policy].append(await replay(config_of(policy, options), said, options))
    return summary(replays)


def config_of(policy: str, options: argparse.Namespace) -> ClusterConfig:
    pools = [
        {"name": role, "role": role, "replicas": options.workers, "threads": 1}
        for role in ("decode", "prefill")
    ]
    settings = [f"model={options.model}", "router.port=0", f"router.placement={policy}"]
    return load_config(None, [*settings, f"pools={json.dumps(pools)}", *options.set])


async def replay(
    config: ClusterConfig, said: Sequence[Sequence[str]], options: argparse.Namespace
) -> Replay:
    room = asyncio.Semaphore(options.in_flight)
    with tempfile.TemporaryDirectory(prefix="triptych-") as folder:
        async with running_cluster(config, Path(folder)) as cluster:
            # Workers learn their pace, and links are opened; nothing of it can be read again.
            await asyncio.gather(*(hold(cluster, n, said[n][:1], 4, _WARM_SALT) for n in range(4)))
            before = await prefilled(cluster)

            async def in_turn(number: int) -> list[Turn]:
                async with room:
                    return await hold(cluster, number, said[number], options.answer_tokens)

            held = await asyncio.gather(*(in_turn(number) for number in range(len(said))))
            after = await prefilled(cluster)
    seconds, rows = (b - a for a, b in zip(before, after, strict=True))
    return Replay([*itertools.chain(*held)], seconds, rows)


async def prefilled(cluster: Cluster) -> tuple[float, float]:
    """Seconds that prefill workers spent in steps so far, and rows of these."""
    names = [w["worker_id"] for w in await cluster.workers() if w["role"] == "prefill"]
    samples = [await cluster.metrics(name) for name in names]
    seconds, rows = (
        sum(each.get((f"triptych_step_{what}_sum", frozenset()), 0.0) for each in samples)
        for what in ("seconds", "rows")
    )
    return seconds, rows


async def hold(
    cluster: Cluster, number: int, said: Sequence[str], answer_tokens: int, salt: str = ""
) -> list[Turn]:
    """One conversation."""
    messages = [{"role": "system", "content": _SYSTEM}]
    turns = []
    for index, words in enumerate(said):
        messages.append({"role": "user", "content": words})
        body = {"messages": messages, "max_tokens": answer_tokens, "temperature": 0}
        turn = Turn(number, index)
        await ask(cluster, turn, {**body, **({"cache_salt": salt} if salt else {})})
        messages.append({"role": "assistant", "content": turn.text})
        turns.append(turn)
    return turns


async def ask(cluster: Cluster, turn: Turn, body: dict[str, Any]) -> None:
    """Fills in what comes of it. Raises RuntimeError when the answer fails."""
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    headers = {"X-Triptych-Timings": "1"}
    began = time.perf_counter()
    where = "/v1/chat/completions"
    async with cluster.http.stream("POST", where, json=body, headers=headers) as reply:
        if reply.status_code != 200:
            raise RuntimeError((await reply.aread()).decode())
        turn.decision = reply.headers.get("x-triptych-decision", "")
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise RuntimeError(str(event["error"]))
            for choice in event["choices"]:
                words = choice["delta"].get("content") or ""
                if (words or choice.get("finish_reason")) and not turn.ttft_s:
                    turn.ttft_s = time.perf_counter() - began
                turn.text += words
            if event.get("usage"):
                usage = event["usage"]
                turn.prompt_tokens = usage["prompt_tokens"]
                turn.completion_tokens = usage["completion_tokens"]
                turn.cached_tokens = usage["prompt_tokens_details"]["cached_tokens"]
                turn.timings = event["triptych"]


def summary(replays: dict[str, list[Replay]]) -> dict[str, Any]:
    """Quantiles over all rounds' turns; the first policy against the last one."""
    everything = [each for found in replays.values() for each in found]
    rows = [row(policy, found) for policy, found in replays.items()]
    pace_s = sum(each.prefill_s for each in everything) / max(
        1.0, sum(each.prefill_rows for each in everything)
    )
    new = statistics.median(new_tokens(everything[0].turns))
    first = texts(everything[0].turns)
    return {
        "rows": rows,
        "ttft_p50_ratio": rows[-1]["ttft_p50"] / rows[0]["ttft_p50"],
        "limit_ttft_p50": new * pace_s,
        "new_tokens_p50": new,
        "prefill_token_s": pace_s,
        "same_text": all(texts(each.turns) == first for each in everything),
    }


def row(policy: str, replays: Sequence[Replay]) -> dict[str, Any]:
    turns = [turn for each in replays for turn in each.turns]
    by_turn: dict[int, list[float]] = {}
    for turn in turns:
        by_turn.setdefault(turn.number, []).append(turn.ttft_s)
    prompts = sum(turn.prompt_tokens for turn in turns)
    ttfts = [turn.ttft_s for turn in turns]
    parts = {
        f"{part}_p50": statistics.median(turn.timings[f"{part}_ms"] / 1e3 for turn in turns)
        for part in ("queue", "prefill", "transfer")
    }
    return {
        "policy": policy,
        "ttft_p50": quantile(ttfts, 50),
        "ttft_p90": quantile(ttfts, 90),
        "cached_share": sum(turn.cached_tokens for turn in turns) / prompts,
        "by_turn_p50": [statistics.median(by_turn[number]) for number in sorted(by_turn)],
        **parts,
        "computed_tokens": prompts - sum(turn.cached_tokens for turn in turns),
        "fetched_mb": sum(turn.timings["kv_bytes"] for turn in turns) / 1e6,
        "prefilled_at_home": sum(not turn.timings["prefill_worker"] for turn in turns) / len(turns),
    }


def show(result: dict[str, Any]) -> None:
    rows = result["rows"]
    heads = [name for name in rows[0] if name != "by_turn_p50"]
    print_table(
        "multi-turn chat, seconds", heads, [[each[name] for name in heads] for each in rows]
    )
    turns = [f"turn {number + 1}" for number in range(len(rows[0]["by_turn_p50"]))]
    cells = [[each["policy"], *each["by_turn_p50"]] for each in rows]
    print_table("TTFT p50, seconds", ["policy", *turns], cells)
    print(f"the first policy is {result['ttft_p50_ratio']:.2f} times as fast as the last one;")
    print(
        f"limit of TTFT p50, {result['new_tokens_p50']:.0f} new tokens at "
        f"{1e3 * result['prefill_token_s']:.2f} ms each: {result['limit_ttft_p50']:.2f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.multi_turn", description=__doc__)
    parser.add_argument("--policies", nargs="+", default=["predicted", "round-robin"])
    parser.add_argument("--conversations", type=int, default=8)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--answer-tokens", type=int, default=32, help="at most")
    parser.add_argument("--in-flight", type=int, default=4, help="conversations at once")
    parser.add_argument("--workers", type=int, default=2, help="of each role")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--set", action="append", default=[], help="config override, e.g. a.b=1")
    parser.add_argument("--save", type=Path, help="keep the result with machine and commit")
    options = parser.parse_args()
    if options.model == "smollm2-135m":
        pull_model(options.model)
    if options.conversations < 4:
        parser.error("--conversations: at least 4, which warm the workers up")
    result = asyncio.run(measure(options))
    show(result)
    finish(result, options.save)
    raise SystemExit(not result["same_text"])


if __name__ == "__main__":
    main()
