"""Does a head that learns while it serves get better on texts that it was not trained for?

    python -m bench.online --prompts FILE.jsonl --category translation

The same prompts of one domain are answered round after round, with a pause behind each round as
between requests of a small service. One lane's head is frozen, the other's learns in the pauses
(`learn: true`); seeds differ from round to round. Then a version of noise is slipped in, which must
go away again. Every answer is compared with the plain one. Needs `triptych draft train`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.one_answer import differing
from bench.report import commit, finish, machine, print_table
from bench.speculate import read_prompts
from bench.speculate_lane import Job, Lane, Outcome, encode
from triptych.config import load_config
from triptych.drafters.heads.head import DraftHead
from triptych.drafters.heads.place import head_dir
from triptych.request import SamplingParams
from triptych.speculation_config import SpeculationConfig
from triptych.tokenizer import Tokenizer
from triptych.training.checkpoint import load_head_tensors
from triptych.training.learning_drafter import LearningHead
from triptych.worker.args import WorkerArgs
from triptych.worker.boot import build_engine

RESULTS = Path(__file__).parent / "results"
NODES = 4


def main() -> None:
    options = _options()
    config = load_config(None, ["dtype=bfloat16", "engine.prefix_cache=false"])
    parts = build_engine(WorkerArgs(config, config.pool("decode"), "bench", 1, Path(), "", (), ""))
    tokenizer = Tokenizer.load(parts.model_path)
    eos = parts.eos_token_ids(tokenizer)
    texts = read_prompts(options.prompts, options.limit)[options.category]
    prompts = [encode(tokenizer, text, 1000) for text in texts]
    lanes = {
        name: Lane(name, _config(name), parts, eos) for name in ("plain", "frozen", "learning")
    }
    learning = lanes["learning"]
    learner = learning.speculator.drafter("eagle3")
    assert isinstance(learner, LearningHead)
    learning.speculator.start()
    rows, wrong = [], 0
    for number in range(options.rounds):
        found = {name: lane.run(_jobs(prompts, number, options)) for name, lane in lanes.items()}
        rows.append(_row(number, found, learner.version))
        wrong += _differing(found)
        print(rows[-1], flush=True)
        time.sleep(options.pause)
    learning.speculator.stop()
    version = learner.version
    learner.publish(_noise(learner.head, head_dir(parts.fingerprint, "eagle3")))
    for number in range(options.rounds, options.rounds + 3):
        found = {name: lane.run(_jobs(prompts, number, options)) for name, lane in lanes.items()}
        wrong += _differing(found)
    print_table("online", list(rows[0]), [list(row.values()) for row in rows])
    result = {
        "rows": rows,
        "rolled_back": learner.num_rollbacks > 0 and learner.version == version,
        "mismatches": wrong,
        "machine": machine(),
        "commit": commit(),
    }
    finish(result, RESULTS / f"{options.save}.json" if options.save else None)


def _noise(head: DraftHead, folder: Path) -> DraftHead:
    """A broken version: the layer's matrices are anything."""
    tensors = {
        name: torch.randn_like(value) if "proj" in name else value
        for name, value in load_head_tensors(folder).items()
    }
    return head.successor(99, tensors)


def _config(lane: str) -> SpeculationConfig:
    if lane == "plain":
        return SpeculationConfig.model_validate({"mode": "off"})
    drafter = {"kind": "eagle3", "learn": lane == "learning"}
    return SpeculationConfig.model_validate(
        {"mode": "fixed", "max_nodes": NODES, "drafters": [drafter]}
    )


def _jobs(prompts: Sequence[list[int]], number: int, options: argparse.Namespace) -> list[Job]:
    params = [
        SamplingParams(
            seed=1000 * number + index,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
        )
        for index in range(len(prompts))
    ]
    return [Job(prompt, own) for prompt, own in zip(prompts, params, strict=True)]


def _row(number: int, found: dict[str, Outcome], version: int) -> dict[str, Any]:
    row: dict[str, Any] = {"round": number, "version": version}
    for name in ("frozen", "learning"):
        row[f"{name}_tokens_per_round"] = found[name].tokens / max(1, found[name].rounds)
    return row


def _differing(found: dict[str, Outcome]) -> int:
    plain = found["plain"].answers
    return sum(differing(plain, found[name].answers) for name in ("frozen", "learning"))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=Path, required=True, help="JSON lines: category, turns")
    parser.add_argument("--category", default="translation")
    parser.add_argument("--limit", type=int, default=8, help="prompts")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--pause", type=float, default=30.0, help="seconds behind each round")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--save", metavar="NAME", help="keep as bench/results/NAME.json")
    return parser.parse_args()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
