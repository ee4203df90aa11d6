"""How much work is a request to our router, and to routers that are written in Rust?

    make routers && python -m bench.router_peers          (ten minutes)

Each stands in front of four workers of the same made-up pace (`bench/routers/pace.py`): ours speaks
gRPC to homes, the others HTTP to OpenAI servers. They take turns, round by round, with the same
requests at the same times. Two runs for each case:

steady: requests at a fixed rate; *added* is the quantile of the latency less that of asking a
worker directly. flood: 32 open requests at any time; *requests per core-second* is how many were
answered per second of CPU time of the router and its children, which says the same on a machine
with few cores, or with other work to do.

It is not the same work. The others pass text through, and place by a tree of the prompts' text.
Ours renders the chat template, tokenises, hashes the prompt's blocks, looks them up among what
workers told of their caches, and makes text of each token that comes back; behind the others the
worker has to do that.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from bench.report import finish, print_table, quantile
from bench.routers.cases import CASES, Case
from bench.routers.load import Heard, flood, steady, text_of
from bench.routers.sides import Side, installed, started
from triptych.hub import pull_model

ROUTERS = ("triptych", "sglang-router", "vllm-router")
_NUM_OPEN = 32


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--routers", nargs="*", choices=ROUTERS, default=ROUTERS)
    parser.add_argument("--cases", nargs="*", choices=[case.name for case in CASES])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each steady run")
    parser.add_argument("--model", default="smollm2-135m", help="whose tokenizer is used")
    parser.add_argument("--save", type=Path, help="keep the result in this file")
    args = parser.parse_args(argv)
    if args.model == "smollm2-135m":
        pull_model(args.model)
    names = [name for name in args.routers if installed(name)]
    for name in set(args.routers) - set(names):
        print(f"{name} is not installed and left out: run `make routers`")
    cases = [case for case in CASES if not args.cases or case.name in args.cases]
    result = uvloop.run(_measure(cases, names, args))
    for case in cases:
        _print(case, result[case.name])
    finish({"rounds": args.rounds, "cases": result}, args.save)


async def _measure(
    cases: Sequence[Case], names: Sequence[str], args: argparse.Namespace
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="tri-") as folder:
        async with started(names, Path(folder), args.model) as sides:
            found = {}
            for case in cases:
                rounds = [
                    await _round(case, sides, args.seconds, r) for r in range(args.rounds + 1)
                ]
                found[case.name] = _medians(rounds[1:])  # the first warms up
            return found


async def _round(
    case: Case, sides: Sequence[Side], seconds: float, number: int
) -> dict[str, dict[str, float]]:
    times = case.times(number, seconds)
    bodies = case.bodies(number)
    calm = list(itertools.islice(bodies, len(times)))
    dense = list(itertools.islice(bodies, case.flooding))
    turn = number % len(sides)
    seen: dict[str, dict[str, float]] = {}
    texts = set()
    for side in (*sides[turn:], *sides[:turn]):
        heard = await steady(side.url, calm, times)
        texts |= {text_of(one) for one in heard}
        seen[side.name] = _latencies(heard)
        if side.process is not None:
            before = side.cpu_s()
            heard = await flood(side.url, dense, _NUM_OPEN)
            cpu_s = side.cpu_s() - before
            texts |= {text_of(one) for one in heard}
            seen[side.name]["per_core_s"] = len(heard) / cpu_s
            took_s = max(h.ended_at for h in heard) - min(h.asked_at for h in heard)
            seen[side.name]["busy"] = cpu_s / took_s
        await asyncio.sleep(0.2)
    assert len(texts) == 1, "the routers' answers differ"
    return seen


def _latencies(heard: Sequence[Heard]) -> dict[str, float]:
    first = [one.first_at - one.asked_at for one in heard]
    whole = [one.ended_at - one.asked_at for one in heard]
    return {
        f"{name}_p{percent}_ms": quantile(values, percent) * 1e3
        for name, values in {"first": first, "whole": whole}.items()
        for percent in (50, 99)
    }


def _medians(rounds: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Of each side over the rounds; latencies less the direct ones of the same round."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for seen in rounds:
        direct = seen["direct"]
        for side, told in seen.items():
            for name, value in told.items():
                values[side][name].append(value)
                if name in direct and side != "direct":
                    values[side][f"added_{name}"].append(value - direct[name])
    return {
        side: {name: statistics.median(each) for name, each in told.items()}
        for side, told in values.items()
    }


def _print(case: Case, found: dict[str, dict[str, float]]) -> None:
    ours = found.get("triptych", {}).get("per_core_s")
    columns = [
        "",
        "added first p50 ms",
        "p99",
        "added whole p50 ms",
        "p99",
        "req / core-s",
        "ours / it",
    ]
    rows = [
        [
            side,
            told["added_first_p50_ms"],
            told["added_first_p99_ms"],
            told["added_whole_p50_ms"],
            told["added_whole_p99_ms"],
            round(told["per_core_s"]),
            ours / told["per_core_s"] if ours else "",
        ]
        for side, told in found.items()
        if side != "direct"
    ]
    print_table(f"{case.name}: {case.what}", columns, rows)


if __name__ == "__main__":
    main()
