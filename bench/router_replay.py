"""Which placement policy serves a recorded trace best?

    python -m bench.router_replay --trace FILE --workers 16        (minutes)

The router's own placement code, called for every request of a trace, over simulated workers in
virtual time: prefill workers with queues and LRU prefix caches, homes with continuous batching and
limited KV, reports and cache events that come late. Goodput counts requests that met both
objectives: time to first token, and mean time between tokens. `--refuse` adds rows in which
requests whose predicted first token would come too late are refused, whatever the policy.

The three levels of load are parts of what the prefill workers could compute if all prefixes that
one cache of their common size holds were found: below it, near it, and above it.

The ideal hit ratio is that of the best placement found by one that knows the whole trace, over
the prefill workers' LRU caches (bench/replay_ideal.py). Homes lend what they hold to prefill
workers, so a policy may find more than that.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import track

from bench.replay_cluster import Cluster, Outcome, Simulation
from bench.replay_ideal import placed_hit_ratio
from bench.replay_prefill import Job
from bench.replay_timing import MACHINES, fitted_machine
from bench.replay_trace import BLOCK_TOKENS, Recorded, load_trace, pooled_hit_ratio
from bench.report import finish, print_table
from router.placement import POLICIES, Slo

LEVELS = (0.5, 0.9, 1.3)  # of the capacity; the last one is overload


class Row(NamedTuple):
    """One policy under one load. Times in seconds, shares 0-1."""

    trace: str
    load: float  # times the recorded arrival rate
    policy: str
    goodput: float  # requests a second that met both objectives
    met: float  # their share of all
    ttft_p50: float
    ttft_p99: float
    itl_p50: float
    itl_p99: float
    hit_ratio: float  # of the prompt tokens of requests that were served
    ideal_hit_ratio: float  # of a placement that knows the whole trace and nothing of load
    max_over_mean: float  # seconds of computing, of prefill workers
    refused: float  # share


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    cluster, trace = _cluster(args), load_trace(args.trace)[: args.requests]
    pooled = (cluster.prefill or cluster.decode) * cluster.cache_blocks
    ideal = placed_hit_ratio(trace, cluster.prefill or cluster.decode, cluster.cache_blocks)
    ideals = {
        "infinite cache": pooled_hit_ratio(trace, None),
        "one cache of their size, clairvoyant": pooled_hit_ratio(trace, pooled, "clairvoyant"),
        "the same, LRU": pooled_hit_ratio(trace, pooled),
        "best placement found": ideal,
    }
    capacity = capacity_of(trace, cluster, ideals["the same, LRU"])
    loads = args.load or [round(level * capacity, 2) for level in LEVELS]
    refusals = (False, True) if args.refuse else (False,)
    cells = list(product(loads, args.policy or list(POLICIES), refusals))
    run = partial(judge, args.trace.stem, trace, cluster, ideal)
    with ProcessPoolExecutor(args.processes) as pool:
        found = pool.map(run, *zip(*cells, strict=True))
        console = Console(stderr=True)
        rows = list(track(found, args.trace.stem, len(cells), console=console))
    print(f"{cluster.machine.name}: {cluster.prefill} prefill, {cluster.decode} decode workers;")
    print(f"TTFT ≤ {cluster.slo.ttft_s:g} s, mean ITL ≤ {1e3 * cluster.slo.itl_s:g} ms")
    print("hit ratios: " + ", ".join(f"{name} {ratio:.3f}" for name, ratio in ideals.items()))
    print_table(f"{args.trace.name}, {len(trace)} requests", Row._fields[1:], [r[1:] for r in rows])
    finish({"rows": [row._asdict() for row in rows], "ideals": ideals}, args.save)


def judge(
    name: str,
    trace: Sequence[Recorded],
    cluster: Cluster,
    ideal: float,
    load: float,
    policy: str,
    refuse: bool,
) -> Row:
    """One cell of the table."""
    faster = [replace(recorded, at=recorded.at / load) for recorded in trace]
    outcome = Simulation(cluster, POLICIES[policy], refuse_late=refuse).run(faster)
    ttfts = sorted(job.first_at - job.arrived for job in outcome.jobs)
    itls = sorted(mean_itl_s(job) for job in outcome.jobs)
    good = goodput(outcome, cluster.slo)
    return Row(
        trace=name,
        load=load,
        policy=policy + ("+refuse" if refuse else ""),
        goodput=round(good / max(faster[-1].at, 1e-9), 3),
        met=round(good / len(trace), 4),
        ttft_p50=_quantile(ttfts, 0.5),
        ttft_p99=_quantile(ttfts, 0.99),
        itl_p50=_quantile(itls, 0.5),
        itl_p99=_quantile(itls, 0.99),
        hit_ratio=round(outcome.hit_ratio, 4),
        ideal_hit_ratio=round(ideal, 4),
        max_over_mean=round(outcome.max_over_mean, 3),
        refused=round(len(outcome.refused) / len(trace), 4),
    )


def goodput(outcome: Outcome, slo: Slo) -> int:
    """Requests that met both objectives."""
    return sum(
        job.first_at - job.arrived <= slo.ttft_s and mean_itl_s(job) <= slo.itl_s
        for job in outcome.jobs
    )


def mean_itl_s(job: Job) -> float:
    return (job.finished_at - job.first_at) / max(1, job.recorded.output - 1)


def capacity_of(trace: Sequence[Recorded], cluster: Cluster, hit_ratio: float) -> float:
    """Times the recorded rate that the prefill workers can compute, never waiting, if so much of
    every prompt is cached.
    """
    prompts = cluster.machine.prompt_s
    work_s = sum(prompts(each.prompt, int(hit_ratio * (each.prompt - 1))) for each in trace)
    return cluster.prefill * max(trace[-1].at, 1e-9) / work_s


def _cluster(args: argparse.Namespace) -> Cluster:
    machine = fitted_machine(args.fitted) if args.fitted else MACHINES[args.machine]
    prefill = args.workers * 3 // 4 if args.prefill is None else args.prefill
    if not 0 <= prefill < args.workers:
        raise SystemExit("--prefill: must leave one of --workers as a home")
    cache = args.cache_tokens or machine.kv_tokens
    slo = Slo(args.ttft, args.itl)
    return Cluster(machine, prefill, args.workers - prefill, cache // BLOCK_TOKENS, slo)


def _quantile(ordered: Sequence[float], share: float) -> float:
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 4) if ordered else 0.0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.router_replay",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--trace", type=Path, required=True, help="Mooncake .jsonl or Azure .csv")
    parser.add_argument("--requests", type=int, help="only the first so many")
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--prefill", type=int, help="of them; default: three of four")
    parser.add_argument("--machine", choices=MACHINES, default="70b-a800")
    parser.add_argument("--fitted", type=Path, help="take constants from bench.engine's JSON")
    parser.add_argument("--cache-tokens", type=int, help="KV of a worker; default: its memory")
    parser.add_argument("--load", type=float, nargs="+", help="times the recorded arrival rate")
    parser.add_argument("--policy", choices=POLICIES, nargs="+", help="default: all")
    parser.add_argument("--refuse", action="store_true", help="also rows with early refusal")
    # The Mooncake paper judges by 30 s and 0.1-0.3 s.
    parser.add_argument("--ttft", type=float, default=30.0, help="objective, seconds")
    parser.add_argument("--itl", type=float, default=0.1, help="objective, seconds")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--save", type=Path, help="keep the result in this file")
    return parser


if __name__ == "__main__":
    main()
