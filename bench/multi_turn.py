"""How much sooner do turns of a chat get their first token where placement knows who holds what?

    python -m bench.multi_turn

Eight conversations of six turns. Every turn sends all that was said before, the model's answers
too; users do not think. What users say are pieces of this repository's documentation, several
hundred tokens each, as who pastes a page or a log says them; answers are greedy. They must be the
same under every policy and in every round (exit code 1 if not).

Each policy has a cluster of its own, all of them alive at once and asked in turn, a few
conversations at a time: whatever slows the machine down for a while slows down all of them. No
round finds anything of another one's in a cache (`cache_salt`).

Where n workers of each role are asked in turn, the last turn's is met again with probability 1 / n:
the more there are (`--workers`), the more is to be gained. With two, what one turn missed the next
but one computes at the latest, so that half of the work is the most that placement can spare (seen:
1.55 times as fast); with three it is more (1.3 to 2.5 by round, 1.9 over three).

The limit of time to first token is that of computing a turn's new tokens and no others, alone:
their number times what a prefill worker took per token in this run, queues, transfers and the first
decode step left out.

`--log` tells of every turn where it was placed and why, what it found in caches, and the first
token's time as predicted and as it was.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.captured import documents
from bench.report import finish, print_table, quantile
from triptych.config import ClusterConfig, load_config
from triptych.hub import pull_model
from triptych.testing.cluster import Cluster, running_cluster

_SYSTEM = (
    "You help the operators of an inference server. Each message holds a piece of its manual. Say "
    "in one or two sentences what an operator should do about it, and remember earlier pieces: "
    "later ones refer to them. Do not invent options that the manual does not name."
)
_CHARACTERS = (600, 1300)  # of what a user says: some 150 to 400 tokens
_WARM = -1  # the round before the first one


@dataclass(slots=True)
class Turn:
    """One answer, as its client saw it."""

    conversation: int
    number: int  # from 0
    round: int = 0
    ttft_s: float = 0.0
    text: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0  # of the prompt: computed by nobody
    timings: dict[str, Any] = field(default_factory=dict)  # the home's
    decision: str = ""  # the router's

    @property
    def line(self) -> dict[str, Any]:
        """For the log, milliseconds."""
        timed = {name: self.timings[f"{name}_ms"] for name in ("queue", "prefill", "transfer")}
        return {
            "round": self.round,
            "conversation": self.conversation,
            "turn": self.number,
            "prompt": self.prompt_tokens,
            "cached": self.cached_tokens,
            "ttft": 1e3 * self.ttft_s,
            **timed,
            "fetched_bytes": self.timings["kv_bytes"],
            "fallbacks": self.timings["fallbacks"],
            "decision": self.decision,
        }


@dataclass(frozen=True, slots=True)
class Replay:
    """All conversations of all rounds, with one cluster."""

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
    known: dict[tuple[int, int], int] = {}
    found = []
    for turn in sorted(turns, key=lambda turn: (turn.round, turn.conversation, turn.number)):
        chat = (turn.round, turn.conversation)
        found.append(turn.prompt_tokens - known.get(chat, 0))
        known[chat] = turn.prompt_tokens + turn.completion_tokens
    return found


def same_text(turns: Iterable[Turn]) -> bool:
    """Whether every turn has one text, whoever was asked and however often."""
    texts: dict[tuple[int, int], set[str]] = {}
    for turn in turns:
        texts.setdefault((turn.conversation, turn.number), set()).add(turn.text)
    return all(len(found) == 1 for found in texts.values())


async def measure(options: argparse.Namespace) -> dict[str, Replay]:
    said = said_by_users(documents(), options.conversations, options.turns)
    async with contextlib.AsyncExitStack() as stack:
        clusters = {
            policy: await start(stack, config_of(policy, options)) for policy in options.policies
        }
        for cluster in clusters.values():
            await warm_up(cluster, said)
        before = {policy: await prefilled(cluster) for policy, cluster in clusters.items()}
        held: dict[str, list[Turn]] = {policy: [] for policy in clusters}
        for policy, number, some in asked_in_turn(options):
            held[policy] += await hold_all(clusters[policy], number, some, said, options)
        after = {policy: await prefilled(cluster) for policy, cluster in clusters.items()}
    spent = {
        policy: [b - a for a, b in zip(before[policy], after[policy], strict=True)]
        for policy in clusters
    }
    return {policy: Replay(held[policy], *spent[policy]) for policy in clusters}


def asked_in_turn(options: argparse.Namespace) -> Iterator[tuple[str, int, Sequence[int]]]:
    """Policy, round and conversations: whoever was first is last the next time."""
    everybody, at_once = range(options.conversations), options.in_flight
    groups = [everybody[first : first + at_once] for first in everybody[::at_once]]
    for turn, (number, some) in enumerate(itertools.product(range(options.rounds), groups)):
        for policy in options.policies[:: -1 if (turn + number) % 2 else 1]:
            yield policy, number, some


async def start(stack: contextlib.AsyncExitStack, config: ClusterConfig) -> Cluster:
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="triptych-"))
    return await stack.enter_async_context(running_cluster(config, Path(folder)))


async def warm_up(cluster: Cluster, said: Sequence[Sequence[str]]) -> None:
    """Workers learn their pace, and links are opened; nothing of it can be read again."""
    await asyncio.gather(*(hold(cluster, _WARM, n, words[:1], 8) for n, words in enumerate(said)))


async def hold_all(
    cluster: Cluster,
    number: int,
    conversations: Sequence[int],
    said: Sequence[Sequence[str]],
    options: argparse.Namespace,
) -> list[Turn]:
    chats = (hold(cluster, number, n, said[n], options.answer_tokens) for n in conversations)
    return [*itertools.chain(*await asyncio.gather(*chats))]


def config_of(policy: str, options: argparse.Namespace) -> ClusterConfig:
    pools = [
        {"name": role, "role": role, "replicas": options.workers, "threads": 1}
        for role in ("decode", "prefill")
    ]
    settings = [
        f"model={options.model}",
        "router.port=0",
        f"router.placement={policy}",
        "kv.memory=512MiB",  # all clusters are alive at once
    ]
    return load_config(None, [*settings, f"pools={json.dumps(pools)}", *options.set])


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
    cluster: Cluster, number: int, conversation: int, said: Sequence[str], answer_tokens: int
) -> list[Turn]:
    """One conversation, in round `number`."""
    messages = [{"role": "system", "content": _SYSTEM}]
    turns = []
    for index, words in enumerate(said):
        messages.append({"role": "user", "content": words})
        body = {"messages": messages, "max_tokens": answer_tokens, "temperature": 0}
        turn = Turn(conversation, index, number)
        await ask(cluster, turn, {**body, "cache_salt": f"round {number}"})
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


def summary(replays: dict[str, Replay]) -> dict[str, Any]:
    """Quantiles over all rounds' turns; the first policy against the last one."""
    everything = [*replays.values()]
    turns = [turn for each in everything for turn in each.turns]
    rows = [row(policy, found) for policy, found in replays.items()]
    pace_s = sum(each.prefill_s for each in everything) / max(
        1.0, sum(each.prefill_rows for each in everything)
    )
    new = statistics.median(new_tokens(everything[0].turns))
    return {
        "rows": rows,
        "ttft_p50_ratio": ratio(replays),
        "ratio_by_round": [ratio(replays, number) for number in sorted({t.round for t in turns})],
        "limit_ttft_p50": new * pace_s,
        "new_tokens_p50": new,
        "prompt_tokens_p50": statistics.median(turn.prompt_tokens for turn in turns),
        "prefill_token_s": pace_s,
        "same_text": same_text(turns),
    }


def ratio(replays: dict[str, Replay], number: int | None = None) -> float:
    """Of TTFT p50, last policy's over first one's, in one round or in all of them."""
    first, *_, last = (
        statistics.median(t.ttft_s for t in each.turns if number in (None, t.round))
        for each in replays.values()
    )
    return last / first


def row(policy: str, replay: Replay) -> dict[str, Any]:
    turns = replay.turns
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
        "ttft_p50": statistics.median(ttfts),
        "ttft_p90": quantile(ttfts, 90),
        "cached_share": sum(turn.cached_tokens for turn in turns) / prompts,
        "by_turn_p50": [statistics.median(by_turn[number]) for number in sorted(by_turn)],
        **parts,
        "computed_tokens": prompts - sum(turn.cached_tokens for turn in turns),
        "fetched_mb": sum(turn.timings["kv_bytes"] for turn in turns) / 1e6,
        "at_home": sum(not turn.timings["prefill_worker"] for turn in turns) / len(turns),
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
    rounds = ", ".join(f"{each:.2f}" for each in result["ratio_by_round"])
    print(
        f"the first policy is {result['ttft_p50_ratio']:.2f} times as fast as the last one "
        f"(by round: {rounds});"
    )
    print(
        f"prompts of {result['prompt_tokens_p50']:.0f} tokens, {result['new_tokens_p50']:.0f} of "
        f"them new (medians); limit of TTFT p50, {1e3 * result['prefill_token_s']:.2f} ms a new "
        f"token: {result['limit_ttft_p50']:.2f} s"
    )


def write_log(path: Path, replays: dict[str, Replay]) -> None:
    """A line of JSON for each turn."""
    lines = [
        json.dumps({"policy": policy, **turn.line})
        for policy, replay in replays.items()
        for turn in replay.turns
    ]
    path.write_text("".join(f"{line}\n" for line in lines))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.multi_turn", description=__doc__)
    parser.add_argument("--policies", nargs="+", default=["predicted", "round-robin"])
    parser.add_argument("--conversations", type=int, default=8)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--answer-tokens", type=int, default=32, help="at most")
    parser.add_argument("--in-flight", type=int, default=4, help="conversations at once")
    parser.add_argument("--workers", type=int, default=3, help="of each role")
    parser.add_argument("--rounds", type=int, default=2, help="one cannot tell order from policy")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--set", action="append", default=[], help="config override, e.g. a.b=1")
    parser.add_argument("--save", type=Path, help="keep the result with machine and commit")
    parser.add_argument("--log", type=Path, help="a line of JSON for each turn")
    options = parser.parse_args()
    if len(set(options.policies)) < 2:
        parser.error("--policies: at least two different ones, to compare")
    if options.model == "smollm2-135m":
        pull_model(options.model)
    replays = asyncio.run(measure(options))
    if options.log is not None:
        write_log(options.log, replays)
    result = summary(replays)
    show(result)
    finish(result, options.save)
    raise SystemExit(not result["same_text"])


if __name__ == "__main__":
    main()
