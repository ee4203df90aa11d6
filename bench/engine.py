"""How fast is one engine on this machine, against the machine's limits and against others?

    python -m bench.engine --json                     ours, under a minute
    python -m bench.engine --peers vllm,llama_cpp     the same work by others (see `make peers`)

All engines get the same weights and the same prompts and take turns, cell by cell; what is reported
is the median over the rounds. The machine's limits are measured in every round (see bench.probe),
how a share of them is counted stands in bench.engine_roofline.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.engine_attention import CONTEXT
from bench.engine_bench import VERIFY_CONTEXT, Bench, Plan
from bench.engine_peer import KINDS, PeerError
from bench.engine_rows import Cell, table_of
from bench.report import commit, finish, machine, print_table
from triptych.launch.machine import usable_cores
from triptych_kernels.cpu.native import set_threads

RESULTS = Path(__file__).parent / "results"


def summary(bench: Bench, plan: Plan) -> dict[str, Any]:
    limits = bench.limits
    return {
        "rows": [row.to_json() for row in bench.rows()],
        "bandwidth_gb_s": round(limits.read_gb_s, 2),
        "tflop_s": round(limits.bfloat16_tflop_s, 3),
        "tflop_s_float32": round(limits.float32_tflop_s, 3),
        "tflop_s_tiles": round(limits.tile_tflop_s, 3),
        "load_s": {engine.dtype: round(engine.load_s, 2) for engine in bench.ours},
        "peers": {peer.name: {"engine": peer.engine, **peer.settings} for peer in bench.peers},
        "plan": {
            **{key: value for key, value in asdict(plan).items() if key != "cells"},
            "verify_context": VERIFY_CONTEXT,
            "attention_context": CONTEXT,
        },
        "machine": machine(),
        "commit": commit(),
    }


def read_plan(arguments: Sequence[str] | None = None) -> tuple[Plan, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtypes", default="bfloat16,int8,int4")
    parser.add_argument("--batches", default="1,4,16,32", help="sequences that decode together")
    parser.add_argument("--prefill", default="512,2048", help="tokens of a prompt")
    parser.add_argument("--verify", default="1,5,16", help="rows of one sequence in a step")
    parser.add_argument("--context", type=int, default=128, help="tokens before the decoded ones")
    parser.add_argument("--steps", type=int, default=32, help="timed decode steps")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--peers", default="", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--save", metavar="NAME", help="keep the result as bench/results/NAME.json")
    parser.add_argument("--json", action="store_true", help="no table, only the last line")
    options = parser.parse_args(arguments)
    peers, dtypes = _names(options.peers), _names(options.dtypes)
    for peer in peers:
        if peer not in KINDS:
            parser.error(f"--peers: no peer {peer!r}; there are {', '.join(KINDS)}")
        if KINDS[peer].dtype not in dtypes:
            parser.error(f"--peers: {peer} is compared with {KINDS[peer].dtype}, see --dtypes")
    sizes = {"decode": options.batches, "prefill": options.prefill, "verify": options.verify}
    cells = [Cell(phase, int(size)) for phase, text in sizes.items() for size in _names(text)]
    return Plan(
        dtypes, tuple(cells), peers, options.rounds, options.context, options.steps, options.threads
    ), options


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def main() -> None:
    plan, options = read_plan()
    torch.set_num_threads(plan.threads)
    set_threads(plan.threads)
    with contextlib.ExitStack() as stack:
        try:
            bench = Bench(plan, stack)
            bench.run()
        except PeerError as error:
            raise SystemExit(f"bench.engine: {error}") from error
        result = summary(bench, plan)
    if not options.json:
        columns, lines = table_of(bench.rows(), plan.peers)
        print_table(f"engine, {plan.threads} threads, context {plan.context}", columns, lines)
    finish(result, RESULTS / f"{options.save}.json" if options.save else None)


if __name__ == "__main__":
    main()
