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
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench.engine_checkpoint import bfloat16_folder
from bench.engine_ours import OurEngine
from bench.engine_peer import KINDS, Peer, PeerError, peer_command
from bench.engine_roofline import Rates, decode_seconds, prefill_seconds
from bench.engine_rows import Cell, Row, Samples, table_of
from bench.probe import Limits, measure_limits, typical
from bench.report import commit, finish, machine, print_table
from triptych.hub import pull_model

RESULTS = Path(__file__).parent / "results"
VERIFY_CONTEXT = 512
VERIFY_REPEATS = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, in which order."""

    dtypes: tuple[str, ...]
    cells: tuple[Cell, ...]
    peers: tuple[str, ...]
    rounds: int
    context: int  # tokens of each prompt that is decoded from
    steps: int  # timed decode steps
    threads: int

    @property
    def batch(self) -> int:
        return max((cell.size for cell in self.cells if cell.phase == "decode"), default=1)

    @property
    def longest(self) -> int:
        prompts = [cell.size for cell in self.cells if cell.phase == "prefill"]
        return max([VERIFY_CONTEXT, *prompts])


class Bench:
    """The engines of one run, and what they have shown."""

    def __init__(self, plan: Plan, stack: contextlib.ExitStack) -> None:
        self._plan = plan
        self.samples = Samples()
        self.limits: list[Limits] = []
        self._random = random.Random(0)
        model = pull_model("smollm2-135m")
        self._prompts = [self._prompt(plan.context) for _ in range(plan.batch)]
        self.ours = []
        for dtype in plan.dtypes:
            tell(f"loading {dtype}")
            self.ours.append(
                OurEngine(model, dtype, self._prompts, steps=plan.steps, longest=plan.longest)
            )
        self.peers = []
        for name in plan.peers:
            tell(f"starting {name}")
            kind = KINDS[name]
            weights = bfloat16_folder(model) if kind.dtype == "bfloat16" else model
            tokens = max(plan.batch * (plan.context + plan.steps + 8), plan.longest + 8)
            peer = Peer(
                name,
                peer_command(kind),
                weights,
                threads=plan.threads,
                batch=plan.batch,
                tokens=tokens,
                **kind.options,
            )
            self.peers.append(stack.enter_context(peer))

    def run(self) -> None:
        for number in range(self._plan.rounds):
            self.limits.append(measure_limits(self._plan.threads))
            tell(f"round {number + 1}: reads {self.limits[-1].read_gb_s:.1f} GB/s")
            for cell in self._plan.cells:
                self._measure(cell)

    def _measure(self, cell: Cell) -> None:
        plan = self._plan
        prompt = self._prompt(cell.size if cell.phase == "prefill" else VERIFY_CONTEXT)
        for engine in self.ours:
            match cell.phase:
                case "decode":
                    tokens_s = engine.decode(cell.size, plan.steps).tokens_s
                case "prefill":
                    tokens_s = engine.prefill(prompt).tokens_s
                case _:
                    tokens_s = cell.size / engine.verify(prompt, cell.size, VERIFY_REPEATS)
            self._note(engine.dtype, cell, tokens_s)
        for peer in self.peers:
            if cell.phase == "verify":
                continue
            if cell.phase == "decode":
                tokens_s = peer.decode(self._prompts[: cell.size], plan.steps).tokens_s
            else:
                tokens_s = peer.prefill(prompt).tokens_s
            self._note(peer.name, cell, tokens_s)

    def _note(self, engine: str, cell: Cell, tokens_s: float) -> None:
        self.samples.add(engine, cell, tokens_s)
        tell(f"  {cell.phase} {cell.size}: {engine} {tokens_s:.1f} tokens/s")

    def _prompt(self, tokens: int) -> list[int]:
        """Any ordinary tokens: speed does not depend on what they say."""
        return [self._random.randrange(100, 40_000) for _ in range(tokens)]

    def rows(self) -> list[Row]:
        limits = typical(self.limits)
        return [
            self._row(engine, cell, limits) for cell in self._plan.cells for engine in self.ours
        ]

    def _row(self, engine: OurEngine, cell: Cell, limits: Limits) -> Row:
        tokens_s = self.samples.typical(engine.dtype, cell)
        assert tokens_s is not None, "every cell was measured"
        rates = Rates(limits.read_gb_s, limits.matmul_tflop_s(engine.dtype))
        sizes, plan = engine.sizes(), self._plan
        ratio = None
        if cell.phase == "decode":
            context = plan.context + plan.steps / 2
            least = decode_seconds(sizes, rates, batch=cell.size, context=context)
        elif cell.phase == "prefill":
            least = prefill_seconds(sizes, rates, cell.size)
        else:
            least = decode_seconds(sizes, rates, batch=1, context=VERIFY_CONTEXT, rows=cell.size)
            one = self.samples.typical(engine.dtype, Cell("verify", 1))
            ratio = None if one is None else one * cell.size / tokens_s
        peers = {}
        for peer in self.peers:
            theirs = self.samples.typical(peer.name, cell)
            if theirs is not None and KINDS[peer.name].dtype == engine.dtype:
                peers[peer.name] = theirs
        return Row(cell, engine.dtype, tokens_s, least * tokens_s / cell.size, peers, ratio)


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def summary(bench: Bench, plan: Plan) -> dict[str, Any]:
    limits = typical(bench.limits)
    return {
        "rows": [row.to_json() for row in bench.rows()],
        "bandwidth_gb_s": round(limits.read_gb_s, 2),
        "tflop_s": round(limits.bfloat16_tflop_s, 3),
        "tflop_s_float32": round(limits.float32_tflop_s, 3),
        "tflop_s_tiles": round(limits.tile_tflop_s, 3),
        "load_s": {engine.dtype: round(engine.load_s, 2) for engine in bench.ours},
        "plan": {key: value for key, value in asdict(plan).items() if key != "cells"},
        "peers": {peer.name: {"engine": peer.engine, **peer.settings} for peer in bench.peers},
        "machine": machine(),
        "commit": commit(),
    }


def read_plan(arguments: Sequence[str] | None) -> tuple[Plan, argparse.Namespace]:
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
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peers", default="", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--save", metavar="NAME", help="keep the result as bench/results/NAME.json")
    parser.add_argument("--json", action="store_true", help="no table, only the last line")
    options = parser.parse_args(arguments)
    peers = tuple(filter(None, options.peers.split(",")))
    dtypes = tuple(options.dtypes.split(","))
    for peer in peers:
        if peer not in KINDS:
            parser.error(f"--peers: no peer {peer!r}; there are {', '.join(KINDS)}")
        if KINDS[peer].dtype not in dtypes:
            parser.error(f"--peers: {peer} is compared with {KINDS[peer].dtype}, see --dtypes")
    sizes = {"decode": options.batches, "prefill": options.prefill, "verify": options.verify}
    cells = [
        Cell(phase, int(size)) for phase, text in sizes.items() for size in text.split(",") if size
    ]
    plan = Plan(
        dtypes, tuple(cells), peers, options.rounds, options.context, options.steps, options.threads
    )
    return plan, options


def main() -> None:
    plan, options = read_plan(None)
    torch.set_num_threads(plan.threads)
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
