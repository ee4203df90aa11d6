"""What does speculation gain, where does it lose, and does it ever change a token?

    python -m bench.speculate --prompts FILE.jsonl          (Spec-Bench's format: category, turns)

Plain decoding and every drafter answer the same prompts on one engine, step by step in turns, so
that whatever disturbs one disturbs all. A batch holds prompts of one category: whenever an answer
ends, the next one takes its place, and timed are the steps in which all places are taken and nobody
reads a prompt. Speed-up: tokens per second over plain ones. Tokens per round is what it would be if
drafting and more rows in a step cost nothing; `round` is what a round does cost, in plain steps.
Every answer is compared with the plain one, token by token. A prompt that is asked again (with
another seed) cannot see its earlier answers. Lanes with heads need `make heads` first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.engine_checkpoint import bfloat16_folder
from bench.one_answer import differing
from bench.report import commit, finish, machine, print_table
from bench.speculate_lane import Job, Lane, Outcome, encode, race
from bench.speculate_peer import NAME as PEER
from bench.speculate_peer import PeerPair, PeerRuns
from bench.workload import DTYPES
from triptych.config import load_config
from triptych.launch.machine import usable_cores
from triptych.request import SamplingParams
from triptych.speculation_config import SpeculationConfig
from triptych.tokenizer import Tokenizer
from triptych.worker.args import WorkerArgs
from triptych.worker.boot import build_engine

RESULTS = Path(__file__).parent / "results"
PLAIN = "plain"
LANES: dict[str, dict[str, Any]] = {
    PLAIN: {"mode": "off"},
    "ngram-4": {"mode": "fixed", "max_nodes": 4, "drafters": [{"kind": "ngram"}]},
    "ngram-15": {"mode": "fixed", "max_nodes": 15, "drafters": [{"kind": "ngram"}]},
    "suffix-15": {"mode": "fixed", "max_nodes": 15, "drafters": [{"kind": "suffix"}]},
    "ngram": {"mode": "auto", "drafters": [{"kind": "ngram"}]},
    "suffix": {"mode": "auto", "drafters": [{"kind": "suffix"}]},
    "draft-model-4": {
        "mode": "fixed",
        "max_nodes": 4,
        "drafters": [{"kind": "draft_model", "model": "smollm2-135m", "dtype": "int4"}],
    },
    "sparse-8": {"mode": "fixed", "max_nodes": 8, "drafters": [{"kind": "sparse"}]},
    "eagle3-4": {"mode": "fixed", "max_nodes": 4, "drafters": [{"kind": "eagle3", "width": 1}]},
    "eagle3-tree": {
        "mode": "fixed",
        "max_nodes": 15,
        "drafters": [{"kind": "eagle3"}],
    },
    "eagle3": {"mode": "auto", "drafters": [{"kind": "eagle3"}]},
    "parallel-15": {"mode": "fixed", "max_nodes": 15, "drafters": [{"kind": "parallel"}]},
    "parallel": {"mode": "auto", "drafters": [{"kind": "parallel"}]},
    "switching": {
        "mode": "auto",
        "drafters": [{"kind": "switching", "between": [{"kind": "suffix"}, {"kind": "eagle3"}]}],
    },
    "auto": {"mode": "auto", "drafters": [{"kind": "suffix"}, {"kind": "eagle3"}]},
}


@dataclass(frozen=True, slots=True)
class Cell:
    temperature: float
    batch: int
    category: str


Found = dict[Cell, dict[str, Outcome]]  # by lane
Peers = dict[Cell, PeerRuns]


def read_prompts(path: Path, limit: int) -> dict[str, list[str]]:
    """At most `limit` first turns of every category."""
    found = defaultdict[str, list[str]](list)
    for line in path.read_text().splitlines():
        record = json.loads(line)
        if len(found[record["category"]]) < limit:
            found[record["category"]].append(record["turns"][0])
    return dict(found)


def jobs_of(prompts: Sequence[list[int]], cell: Cell, max_tokens: int) -> list[Job]:
    """Every prompt once or more, so that a full house lasts: half as many again as fit in."""
    jobs = []
    for index in range(max(len(prompts), -(-3 * cell.batch // 2))):
        params = SamplingParams(1000 + index, max_tokens, temperature=cell.temperature)
        tenant = f"{cell.temperature} {cell.batch} {index // len(prompts)}"
        jobs.append(Job(prompts[index % len(prompts)], params, tenant=tenant))
    return jobs


def measure(
    lanes: Sequence[Lane],
    cells: Sequence[Cell],
    prompts: dict[str, list[list[int]]],
    tokens: int,
    peer: PeerPair | None,
) -> tuple[Found, Peers]:
    found: Found = {}
    peers: Peers = {}
    for number, cell in enumerate(cells):
        jobs = jobs_of(prompts[cell.category], cell, tokens)
        turn = number % len(lanes)
        order = (*lanes[turn:], *lanes[:turn])
        outcomes = race(order, jobs, cell.batch)
        found[cell] = {lane.name: own for lane, own in zip(order, outcomes, strict=True)}
        if peer is not None and cell.temperature == 0.0:
            runs = peers[cell] = PeerRuns()
            for begin in range(0, len(prompts[cell.category]), cell.batch):
                peer.run(jobs[begin : begin + cell.batch], runs)
        _tell(cell, found[cell], [lane.name for lane in lanes])
    return found, peers


def _tell(cell: Cell, runs: dict[str, Outcome], lanes: Sequence[str]) -> None:
    ratios = " ".join(f"{name} {speedup(runs, name):.2f}" for name in lanes if name != PLAIN)
    print(
        f"T={cell.temperature} batch {cell.batch} {cell.category}: {ratios}",
        file=sys.stderr,
        flush=True,
    )


def speedup(runs: dict[str, Outcome], lane: str) -> float:
    return runs[lane].tokens_s / runs[PLAIN].tokens_s


def mismatches(runs: dict[str, Outcome], lane: str) -> int:
    """Positions at which an answer differs from the plain one, as far as both got."""
    pairs = zip(runs[PLAIN].answers, runs[lane].answers, strict=False)
    total = 0
    for plain, own in pairs:
        length = min(len(plain), len(own))
        total += differing([plain[:length]], [own[:length]])
    return total


def rows_of(found: Found, peers: Peers, lanes: Sequence[str]) -> list[dict[str, Any]]:
    """A row per lane and cell; category "all" holds geometric means over the categories."""
    rows: list[dict[str, Any]] = []
    for lane in lanes:
        groups = defaultdict[tuple[float, int], list[dict[str, Any]]](list)
        for cell, runs in found.items():
            row = _row(lane, cell, runs)
            if cell in peers:
                row["peers"] = {PEER: peers[cell].speedup}
            groups[cell.temperature, cell.batch].append(row)
        for (temperature, batch), group in groups.items():
            means = {
                key: statistics.geometric_mean(row[key] for row in group)
                for key in ("speedup", "tokens_per_round", "round")
            }
            cell = Cell(temperature, batch, "all")
            of_peers = [row["peers"][PEER] for row in group if row["peers"]]
            mean = {PEER: statistics.geometric_mean(of_peers)} if of_peers else {}
            rows += [*group, {**_head(lane, cell), **means, "peers": mean}]
    return rows


def _row(lane: str, cell: Cell, runs: dict[str, Outcome]) -> dict[str, Any]:
    tokens = runs[lane].tokens_per_round
    gained = speedup(runs, lane)
    return {
        **_head(lane, cell),
        "speedup": gained,
        "tokens_per_round": tokens,
        "round": tokens / gained,
        "peers": {},
    }


def _head(lane: str, cell: Cell) -> dict[str, Any]:
    config = LANES[lane]
    return {
        "drafter": "+".join(drafter["kind"] for drafter in config["drafters"]),
        "budget": config["mode"] if config["mode"] != "fixed" else str(config["max_nodes"]),
        "temperature": cell.temperature,
        "batch": cell.batch,
        "category": cell.category,
    }


def main() -> None:
    options = _options()
    settings = [f"dtype={options.dtype}", "engine.prefix_cache=false", "kv.memory=10GiB"]
    config = load_config(None, settings)
    pool = config.pool("decode")
    parts = build_engine(WorkerArgs(config, pool, "bench", 1, Path(), "", (), ""))
    tokenizer = Tokenizer.load(parts.model_path)
    eos = parts.eos_token_ids(tokenizer)
    prompts = {
        category: [encode(tokenizer, text, options.max_prompt) for text in texts]
        for category, texts in read_prompts(options.prompts, options.limit).items()
    }
    names = [PLAIN, *options.lanes]
    lanes = [Lane(n, SpeculationConfig.model_validate(LANES[n]), parts, eos) for n in names]
    cells = [
        Cell(temperature, batch, category)
        for temperature in options.temperatures
        for batch in options.batches
        for category in prompts
    ]
    lanes[0].run(jobs_of(next(iter(prompts.values())), cells[0], 8)[:1])  # warm up
    with ExitStack() as stack:
        peer = None
        if options.peer:
            model = bfloat16_folder(parts.model_path)
            pair = PeerPair(model, pool.threads or usable_cores(), max(options.batches), eos)
            peer = stack.enter_context(pair)
        found, peers = measure(lanes, cells, prompts, options.max_tokens, peer)
    rows = rows_of(found, peers, options.lanes)
    wrong = sum(mismatches(runs, lane) for runs in found.values() for lane in options.lanes)
    keys = ("drafter", "budget", "temperature", "batch", "category")
    figures = ("speedup", "tokens_per_round", "round")
    table = [[*(row[key] for key in (*keys, *figures)), row["peers"].get(PEER, "")] for row in rows]
    print_table("speculation", (*keys, *figures, PEER), table)
    result = {
        "rows": rows,
        "mismatches": wrong,
        "peer_answers_changed": sum(runs.changed for runs in peers.values()),
        "machine": machine(),
        "commit": commit(),
    }
    finish(result, RESULTS / f"{options.save}.json" if options.save else None)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=Path, required=True, help="JSON lines: category, turns")
    parser.add_argument("--lanes", nargs="+", default=["ngram-4", "suffix-15", "auto"])
    parser.add_argument("--temperatures", nargs="+", type=float, default=[0.0])
    parser.add_argument("--batches", nargs="+", type=int, default=[1])
    parser.add_argument("--limit", type=int, default=4, help="prompts of a category")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--max-prompt", type=int, default=1500, help="tokens kept of a prompt")
    parser.add_argument("--peer", action="store_true", help="also vLLM's n-grams, `make peers`")
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--save", metavar="NAME", help="keep as bench/results/NAME.json")
    options = parser.parse_args()
    for lane in options.lanes:
        if lane not in LANES or lane == PLAIN:
            parser.error(f"--lanes: no lane {lane!r}; there are {', '.join(list(LANES)[1:])}")
    return options


if __name__ == "__main__":
    main()
