"""How fast does the automatic mode notice that texts turn from copies to random ones, and back?

    python -m bench.speculate_switch [--rounds 20] [--turns 6] [--drafters suffix]

Texts that repeat a paragraph and texts drawn at a high temperature take turns on one engine. Behind
the first `--rounds` rounds of each, the automatic mode is compared with both fixed choices, plain
decoding and drafts of 15 tokens: `share` is its speed over that of the better one.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from bench.report import commit, finish, machine, print_table
from bench.speculate_lane import Job, Lane, race
from triptych.request import SamplingParams
from triptych.speculation_config import SpeculationConfig
from triptych.tokenizer import Tokenizer
from triptych.training.offline import offline_parts

RESULTS = Path(__file__).parent / "results"
PARAGRAPH = 120  # words


def jobs_of(tokenizer: Tokenizer, turn: int) -> dict[str, Job]:
    """A copying and a random text, another one in every turn."""
    dice = random.Random(turn)
    vocabulary = range(1000, tokenizer.vocab_size - 1000)
    words = [dice.choice(vocabulary) for _ in range(PARAGRAPH)]
    copying = SamplingParams(turn, 640, temperature=0.0, ignore_eos=True)
    drawn = SamplingParams(turn, 80, temperature=2.0, ignore_eos=True)
    return {"copying": Job(words * 4, copying), "random": Job(words, drawn)}


def lanes_of(drafters: list[dict[str, Any]], parts: Any, eos: tuple[int, ...]) -> dict[str, Lane]:
    configs: dict[str, dict[str, Any]] = {
        "plain": {"mode": "off"},
        "fixed": {"mode": "fixed", "max_nodes": 15, "drafters": drafters[:1]},
        "auto": {"mode": "auto", "drafters": drafters},
    }
    return {
        name: Lane(name, SpeculationConfig.model_validate(config), parts, eos)
        for name, config in configs.items()
    }


def main() -> None:
    options = _options()
    parts = offline_parts(["dtype=bfloat16", "engine.prefix_cache=false"])
    tokenizer = Tokenizer.load(parts.model_path)
    drafters = [{"kind": kind} for kind in options.drafters]
    lanes = lanes_of(drafters, parts, parts.eos_token_ids(tokenizer))
    speeds = defaultdict[str, dict[str, list[float]]](lambda: defaultdict(list))
    mismatches = 0
    for turn in range(options.turns + 1):  # the first one warms up
        for text, job in jobs_of(tokenizer, turn).items():
            outcomes = race([*lanes.values()], [job], 1, options.rounds)
            ran = dict(zip(lanes, outcomes, strict=True))
            mismatches += sum(own.answers != ran["plain"].answers for own in ran.values())
            for name, outcome in ran.items():
                if turn:
                    speeds[text][name].append(outcome.tokens_s)
            print(f"turn {turn} {text} done", file=sys.stderr, flush=True)
    rows = [_row(text, by_lane) for text, by_lane in speeds.items()]
    keys = ("text", "plain", "fixed", "auto", "share")
    print_table("tokens per second", keys, [[row[key] for key in keys] for row in rows])
    result = {"rows": rows, "mismatches": mismatches, "rounds": options.rounds}
    result |= {"machine": machine(), "commit": commit()}
    finish(result, RESULTS / f"{options.save}.json" if options.save else None)


def _row(text: str, speeds: dict[str, list[float]]) -> dict[str, Any]:
    best = [max(pair) for pair in zip(speeds["plain"], speeds["fixed"], strict=True)]
    shares = [own / other for own, other in zip(speeds["auto"], best, strict=True)]
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    return {"text": text, **medians, "share": statistics.median(shares)}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20, help="of a text before it is timed")
    parser.add_argument("--turns", type=int, default=6, help="texts of each sort")
    parser.add_argument("--drafters", nargs="+", default=["suffix"])
    parser.add_argument("--save", metavar="NAME", help="keep as bench/results/NAME.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
