"""Kill -9 of a decode worker, a prefill worker, a second router and the other decode worker, in
turn, under mixed streams: how long do streams pause, and do they end with the tokens of an
undisturbed run?

    python -m bench.continuation --model smollm2-135m --streams 32

Streams are spread over both routers. Those of the router that is killed break, as their clients'
connections do: each client asks again at the other router, with the same seed. All others must end
as if nothing had been.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from triptych.config import load_config
from triptych.testing.cluster import Cluster, eventually, running_cluster

_ROUTERS = ("router", "router-1")
_VICTIMS = ("decode-0", "prefill-0", "router-1", "decode-1")  # each when the one before is back
_THREADS = 2  # that compute when one home is dead: the other one's and the prefill worker's
_TEXTS = ("Tell me about the tides.", "How is paper made?", "Why do cats purr?", "Who was Bach?")
_KINDS: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 0.9, "top_p": 0.9},
    {"temperature": 1.0, "n": 2},
    {"temperature": 0.8, "logprobs": 2, "frequency_penalty": 0.5},
)


@dataclass(slots=True)
class Stream:
    """What one client saw."""

    number: int
    choices: list[list[int]]  # token ids
    prompt_tokens: int = 0
    seen: list[tuple[float, int]] = field(default_factory=list)  # monotonic seconds, tokens so far
    retried: bool = False

    def pause(self, begin: float, end: float) -> float:
        """The longest one of those that ended between two moments."""
        times = [at for at, _ in self.seen]
        pairs = zip(times, times[1:], strict=False)
        return max((b - a for a, b in pairs if begin < b <= end), default=0.0)

    def tokens_at(self, moment: float) -> int:
        """Prompt and output, of a stream that was running; else 0."""
        before = [tokens for at, tokens in self.seen if at <= moment]
        if not before or self.seen[-1][0] <= moment:
            return 0
        return self.prompt_tokens + before[-1]


@dataclass(slots=True)
class Beginning:
    """Over when each of so many streams has its first token."""

    streams: int
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def count(self) -> None:
        self.streams -= 1
        if not self.streams:
            self.over.set()


@dataclass(slots=True)
class Kill:
    name: str
    at: float  # monotonic seconds
    back_s: float = 0.0  # until another process under this name served
    running: int = 0  # streams
    given_tokens: int = 0  # prompts and answers of all streams at that moment
    compute_s: float = 0.0  # what to compute those anew takes the threads that are left
    pause_p50_s: float = 0.0
    pause_p99_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Result:
    streams: int
    tokens: int
    mismatches: int  # streams with other tokens than in the calm run
    retried: int  # streams of the router that was killed
    pause_p50_s: float  # of the longest pauses of streams whose connection was kept
    pause_p99_s: float
    calm_pause_p99_s: float
    kills: list[Kill]


async def run_bench(model: str, dtype: str, streams: int, max_tokens: int) -> Result:
    pools = [
        {"name": role, "role": role, "replicas": count, "threads": 1}
        for role, count in (("decode", 2), ("prefill", 1))
    ]
    settings = [f"model={model}", f"dtype={dtype}", "router.port=0", "router.replicas=2"]
    config = load_config(None, [*settings, f"pools={json.dumps(pools)}"])
    bodies = [body_of(number, max_tokens) for number in range(streams)]
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="triptych-"))
        cluster = await stack.enter_async_context(running_cluster(config, Path(folder)))
        routers = [await stack.enter_async_context(cluster.at_router(name)) for name in _ROUTERS]
        # With a salt of its own: its answers would be in the caches of the homes that survive.
        calm = await run_all(routers, [{**body, "cache_salt": "calm"} for body in bodies])
        row_s = await prompt_row_s(cluster)
        beginning, kills = Beginning(streams), list[Kill]()
        killing = asyncio.create_task(kill_in_turn(cluster, beginning, kills))
        shaken = await run_all(routers, bodies, beginning)
        killing.cancel()
        with suppress(asyncio.CancelledError):
            await killing
    for kill, after in zip(kills, [*kills[1:], None], strict=True):
        judge(kill, shaken, after.at if after else float("inf"), row_s)
    kept = [stream for stream in shaken if not stream.retried]
    return Result(
        streams=streams,
        tokens=sum(len(ids) for stream in shaken for ids in stream.choices),
        mismatches=sum(a.choices != b.choices for a, b in zip(shaken, calm, strict=True)),
        retried=len(shaken) - len(kept),
        pause_p50_s=percentile(longest(kept), 0.5),
        pause_p99_s=percentile(longest(kept), 0.99),
        calm_pause_p99_s=percentile(longest(calm), 0.99),
        kills=kills,
    )


def judge(kill: Kill, streams: Sequence[Stream], end: float, row_s: float) -> None:
    """What became of the streams that were running when it happened, until the next kill."""
    running = [s for s in streams if s.tokens_at(kill.at) and not s.retried]
    pauses = [stream.pause(kill.at, end) for stream in running]
    kill.running = len(running)
    kill.given_tokens = sum(stream.tokens_at(kill.at) for stream in running)
    kill.compute_s = round(kill.given_tokens * row_s / _THREADS, 3)
    kill.pause_p50_s, kill.pause_p99_s = percentile(pauses, 0.5), percentile(pauses, 0.99)


def longest(streams: Sequence[Stream]) -> list[float]:
    return [stream.pause(float("-inf"), float("inf")) for stream in streams]


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank; 0 of nothing."""
    if not values:
        return 0.0
    return round(sorted(values)[int(share * (len(values) - 1) + 0.5)], 3)


def body_of(number: int, max_tokens: int) -> dict[str, Any]:
    prompt = f"{number}. {_TEXTS[number % len(_TEXTS)]} " * (1 + number % 7)
    fixed = {"stream": True, "ignore_eos": True, "return_token_ids": True, "seed": number}
    usage = {"stream_options": {"include_usage": True}}
    kind = _KINDS[number // len(_ROUTERS) % len(_KINDS)]  # each of them at each router
    return {**fixed, **usage, "prompt": prompt, "max_tokens": max_tokens, **kind}


async def run_all(
    routers: Sequence[Cluster],
    bodies: Sequence[dict[str, Any]],
    beginning: Beginning | None = None,
) -> list[Stream]:
    """One stream per body, at the routers in turn."""

    async def run(number: int, body: dict[str, Any]) -> Stream:
        try:
            return await follow(routers[number % len(routers)], number, body, beginning)
        except httpx.HTTPError:  # only a client of the dead router's may see this
            assert number % len(routers), f"stream {number} broke at a router that lives"
        stream = await follow(routers[0], number, body)
        stream.retried = True
        return stream

    return list(await asyncio.gather(*(run(n, body) for n, body in enumerate(bodies))))


async def follow(
    router: Cluster, number: int, body: dict[str, Any], beginning: Beginning | None = None
) -> Stream:
    """Raises httpx.HTTPError when the connection breaks, RuntimeError when the answer fails."""
    stream, tokens = Stream(number, [[] for _ in range(body.get("n", 1))]), 0
    async with router.http.stream("POST", "/v1/completions", json=body) as reply:
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise RuntimeError(f"stream {number}: {event['error']}")
            for choice in event["choices"]:
                ids = choice.get("token_ids") or ()
                stream.choices[choice["index"]] += ids
                tokens += len(ids)
            if event["choices"]:
                if beginning is not None and not stream.seen:
                    beginning.count()
                stream.seen.append((time.monotonic(), tokens))
            if event.get("usage"):
                stream.prompt_tokens = event["usage"]["prompt_tokens"]
    return stream


async def kill_in_turn(cluster: Cluster, beginning: Beginning, kills: list[Kill]) -> None:
    """Until cancelled, or all victims have died and come back."""
    await beginning.over.wait()
    for name in _VICTIMS:
        pid = cluster.pid(name)
        epoch = None if name in _ROUTERS else ((await cluster.worker(name)) or {})["epoch"]
        kill = Kill(name, time.monotonic())
        os.kill(pid, signal.SIGKILL)
        kills.append(kill)
        back = partial(_is_back, cluster, name, epoch)
        await eventually(back, timeout_s=120)
        kill.back_s = round(time.monotonic() - kill.at, 3)


async def _is_back(cluster: Cluster, name: str, epoch: int | None) -> bool:
    if epoch is not None:
        worker = await cluster.worker(name)
        return worker is not None and worker["epoch"] != epoch
    try:
        async with cluster.at_router(name) as router:
            return (await router.http.get("/ready")).is_success
    except httpx.HTTPError:
        return False


async def prompt_row_s(cluster: Cluster) -> float:
    """Seconds that a worker of one thread takes for a token of a prompt: the prefill worker has
    computed nothing else.
    """
    samples = await cluster.metrics("prefill-0")
    rows, seconds = (
        samples[f"triptych_step_{what}_sum", frozenset()] for what in ("rows", "seconds")
    )
    return seconds / rows if rows else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.continuation", description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=300)
    options = parser.parse_args()
    result = asyncio.run(
        run_bench(options.model, options.dtype, options.streams, options.max_tokens)
    )
    figures = asdict(result)
    for name, value in figures.items():
        if name != "kills":
            print(f"{name:>17}  {value}")
    heads = ("killed", "back s", "streams", "tokens", "compute s", "pause p50", "pause p99")
    print("".join(f"{head:>12}" for head in heads))
    for kill in result.kills:
        numbers = (kill.back_s, kill.running, kill.given_tokens, kill.compute_s)
        cells = (kill.name, *numbers, kill.pause_p50_s, kill.pause_p99_s)
        print("".join(f"{cell:>12}" for cell in cells))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
