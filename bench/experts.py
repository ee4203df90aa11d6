"""The FFN pool: the way there and back, micro-batches, balance, and workers that are killed.

    python -m bench.experts [--parts round_trip tempo balance kill] [--save FILE]

round_trip: one call of 16 rows in flight over shared memory and TCP, beside a bare pipe between two
processes, in turns. tempo: decode steps in 1 to 4 micro-batches and in as many as the runtime
chooses, in turns, and how long attention waited against the law in triptych/experts/pipeline.py.
balance: Zipf-1.2 load on four FFN workers of simulated speed, placed evenly and balanced while it
runs. kill: a cluster with three FFN workers of which one is killed (-9) every five seconds under
eight streams, whose tokens are compared with an undisturbed run.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import rows
from bench.expert_balance import compare
from bench.experts_kill import run_kills
from bench.experts_tempo import measure as measure_tempo
from bench.mixture import perturbed
from bench.report import finish, print_table
from triptych.hub import pull_model

PARTS = ("round_trip", "tempo", "balance", "kill")


def round_trip(options: argparse.Namespace) -> dict[str, Any]:
    found = rows.measure(rounds=options.rounds)
    print_table(
        "round trip of 16 rows × 576, one in flight",
        ["way", "p50 µs", "p99 µs", "of a 1-byte ping-pong"],
        [
            (name, trip.p50_us, trip.p99_us, trip.p50_us / found["pipe_byte"].p50_us)
            for name, trip in found.items()
        ],
    )
    return {
        "p50_us": found["shm"].p50_us,
        "pingpong_p50_us": found["pipe_byte"].p50_us,
        "pingpong_rows_p50_us": found["pipe_rows"].p50_us,
        "tcp_p50_us": found["tcp"].p50_us,
    }


def tempo(options: argparse.Namespace) -> dict[str, Any]:
    kinds = {
        "dense": (options.model, options.workers),
        "mixture": (str(perturbed(options.model)), options.workers),
    }
    result = {}
    for kind, (model, workers) in kinds.items():
        found = measure_tempo(
            model,
            batch=options.batch,
            context=options.context,
            rounds=options.steps,
            workers=workers,
        )
        print_table(
            f"{kind}: steps of {options.batch} sequences behind {options.context} tokens",
            ["micro-batches", "ms", "throughput", "waits", "by the law", "law's period"],
            [
                (
                    row.count or "as measured",
                    row.step_ms,
                    row.speedup,
                    f"{row.stall:.0%}",
                    f"{row.predicted_stall:.0%}",
                    f"{row.period_error:+.1%}",
                )
                for row in found
            ],
        )
        result[kind] = [asdict(row) for row in found]
    return result


def balance(options: argparse.Namespace) -> dict[str, Any]:
    found = compare()
    print_table("Zipf-1.2 load on four FFN workers", list(found), [list(found.values())])
    return dict(found)


def kill(options: argparse.Namespace) -> dict[str, Any]:
    model = perturbed(options.model)
    found = asyncio.run(run_kills(model, seconds=options.seconds))
    print_table("kill -9 of FFN workers", list(asdict(found)), [list(asdict(found).values())])
    return asdict(found)


_RUN: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "round_trip": round_trip,
    "tempo": tempo,
    "balance": balance,
    "kill": kill,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=3000, help="round trips of each kind")
    parser.add_argument("--steps", type=int, default=60, help="of each number of micro-batches")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--workers", type=int, default=1, help="FFN workers of the tempo part")
    parser.add_argument("--seconds", type=float, default=60.0, help="of killing")
    parser.add_argument("--save", type=Path, help="keep the result with machine and commit")
    options = parser.parse_args()
    if options.model == "smollm2-135m":
        pull_model(options.model)
    result = {part: _RUN[part](options) for part in options.parts}
    finish(result, options.save)
    failed = result.get("kill", {}).get("mismatches", 0)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
