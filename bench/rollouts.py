"""How much sooner do the rollouts of a reinforcement learning step end, with the same tokens?

    python -m bench.rollouts --prompts FILE.jsonl     (Spec-Bench's or GSM8K's format)

An epoch samples every problem several times and ends with its longest sample: that is the makespan,
prompts included. All samples are submitted at once, the engine's scheduler runs `--running` of them
at a time. Seeds differ from epoch to epoch, as in training; the weights do not (DAS, arXiv
2511.13841, follows a policy that moves). Lanes take turns in one process, step by step, each with
its own clock, and keep what they have learned; every answer is compared with the plain one, token
by token.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.one_answer import differing
from bench.report import commit, finish, machine, print_table
from bench.speculate_lane import Job, Lane, Outcome, Sprint, side_by_side
from bench.workload import DTYPES, read_prompts
from triptych.config import load_config
from triptych.request import SamplingParams
from triptych.speculation_config import SpeculationConfig
from triptych.tokenizer import Tokenizer
from triptych.worker.args import WorkerArgs
from triptych.worker.boot import EngineParts, build_engine

RESULTS = Path(__file__).parent / "results"
PLAIN = "plain"
SUFFIX = [{"kind": "suffix"}]
LANES: dict[str, dict[str, Any]] = {
    PLAIN: {"mode": "off"},
    "suffix": {"mode": "fixed", "max_nodes": 4, "drafters": SUFFIX},
    "auto": {"mode": "auto", "drafters": SUFFIX},
    "das": {"mode": "length_aware", "drafters": SUFFIX},
    "das-heads": {"mode": "length_aware", "drafters": [*SUFFIX, {"kind": "eagle3"}]},
}


Found = dict[str, list[Outcome]]  # by lane, epoch after epoch


def jobs_of(
    prompts: Sequence[list[int]],
    epoch: int,
    samples: int,
    *,
    temperature: float,
    max_tokens: int,
    salt: str = "",
) -> list[Job]:
    """A sample of every problem, then the next: while places last for a few samples of each, later
    ones find the text of earlier ones.
    """
    return [
        Job(
            prompt,
            SamplingParams(
                seed=(epoch * len(prompts) + problem) * samples + sample + 1,
                max_tokens=max_tokens,
                temperature=temperature,
            ),
            problem_id=f"problem-{problem}",
            cache_salt=salt,
        )
        for sample in range(samples)
        for problem, prompt in enumerate(prompts)
    ]


def measure(
    lanes: Sequence[Lane], prompts: Sequence[list[int]], options: argparse.Namespace
) -> Found:
    found: Found = {lane.name: [] for lane in lanes}
    for epoch in range(options.epochs):
        sprints = [
            Sprint(
                lane,
                jobs_of(
                    prompts,
                    epoch,
                    options.samples,
                    temperature=options.temperature,
                    max_tokens=options.max_tokens,
                    salt=f"{lane.name}-{epoch}",  # each epoch has new weights: its prompts are read
                ),
            )
            for lane in lanes
        ]
        for lane, own in zip(lanes, side_by_side(sprints), strict=True):
            found[lane.name].append(own)
            print(
                f"epoch {epoch + 1} {lane.name}: {own.seconds:.1f} s, "
                f"{own.tokens_per_round:.2f} tokens a round",
                file=sys.stderr,
                flush=True,
            )
    return found


def rows_of(found: Mapping[str, Sequence[Outcome]]) -> list[dict[str, Any]]:
    return [
        {
            "lane": lane,
            "epoch": number,
            "makespan_s": own.seconds,
            "speedup": plain.seconds / own.seconds,
            "tokens": own.tokens,
            "tokens_per_round": own.tokens_per_round,
        }
        for lane, epochs in found.items()
        for number, (own, plain) in enumerate(zip(epochs, found[PLAIN], strict=True), 1)
    ]


def makespan_ratio(found: Mapping[str, Sequence[Outcome]]) -> dict[str, float]:
    """Time of all epochs by that of plain decoding: lower is better."""
    total = {lane: sum(own.seconds for own in epochs) for lane, epochs in found.items()}
    return {lane: total[lane] / total[PLAIN] for lane in found if lane != PLAIN}


def mismatches(found: Mapping[str, Sequence[Outcome]]) -> int:
    """Positions at which an answer differs from the plain one."""
    return sum(
        differing(plain.answers, own.answers)
        for epochs in found.values()
        for own, plain in zip(epochs, found[PLAIN], strict=True)
    )


def main() -> None:
    options = _options()
    parts = _engine(options)
    tokenizer = Tokenizer.load(parts.model_path)
    eos = parts.eos_token_ids(tokenizer)
    texts = spread(read_prompts(options.prompts), options.problems)
    prompts = [tokenizer.encode_chat([{"role": "user", "content": text}]) for text in texts]
    names = [PLAIN, *options.lanes]
    lanes = [
        Lane(n, SpeculationConfig.model_validate(LANES[n]), parts, eos, options.running)
        for n in names
    ]
    lanes[0].run(jobs_of(prompts[:1], 0, 2, temperature=0.0, max_tokens=8, salt="warm up"))
    found = measure(lanes, prompts, options)
    rows = rows_of(found)
    print_table("rollouts", list(rows[0]), [list(row.values()) for row in rows])
    result = {
        "rows": rows,
        "makespan_ratio": makespan_ratio(found),
        "mismatches": mismatches(found),
        "machine": machine(),
        "commit": commit(),
    }
    finish(result, RESULTS / f"{options.save}.json" if options.save else None)


def spread(texts: Sequence[str], count: int) -> list[str]:
    """`count` of them from all over the file; fewer if it holds fewer."""
    return list(texts[:: max(1, len(texts) // count)][:count])


def _engine(options: argparse.Namespace) -> EngineParts:
    config = load_config(None, [f"dtype={options.dtype}", "kv.memory=8GiB", *options.set])
    return build_engine(WorkerArgs(config, config.pool("decode"), "bench", 1, Path(), "", (), ""))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=Path, required=True, help="JSON lines")
    parser.add_argument("--lanes", nargs="*", default=["suffix", "auto", "das"])
    parser.add_argument("--problems", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8, help="of each problem and epoch")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--running", type=int, default=32, help="samples decoded at a time")
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--set", nargs="*", default=[], help="more configuration, a.b=value")
    parser.add_argument("--save", metavar="NAME", help="keep as bench/results/NAME.json")
    options = parser.parse_args()
    for lane in options.lanes:
        if lane not in LANES or lane == PLAIN:
            parser.error(f"--lanes: no lane {lane!r}; there are {', '.join(list(LANES)[1:])}")
    return options


if __name__ == "__main__":
    main()
