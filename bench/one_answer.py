"""Does every topology and mode give the same tokens?

Sends the same mixed requests through the router of one real cluster after another and compares
token ids with those of the plainest mode: aggregated, one request at a time, nothing cached.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from bench.churn import Churn, churning
from bench.mixture import perturbed
from bench.one_answer_experts import DENSE, MIXTURE
from bench.one_answer_modes import MODES, NIXL, Mode, speculation
from bench.report import finish, print_table
from bench.workload import DTYPES, Ask, mixed_requests
from transport.kv.nixl_agent import REMEDY, library_present
from triptych.config import ClusterConfig, load_config
from triptych.hub import pull_model
from triptych.testing.cluster import Cluster, running_cluster

Answer = list[list[int]]  # token ids by choice


async def run_modes(
    modes: Sequence[Mode], asks: Sequence[Ask], base: Sequence[str]
) -> dict[str, int]:
    """Mismatching tokens by mode; the first mode is what the others are compared with."""
    reference: list[Answer] = []
    mismatches: dict[str, int] = {}
    rows = []
    for overrides in dict.fromkeys(mode.cluster for mode in modes):
        async with started(load_config(None, [*base, *overrides])) as cluster:
            for mode in (mode for mode in modes if mode.cluster == overrides):
                began = time.monotonic()
                async with churn_of(cluster, mode) as churn:
                    answers = await ask_all(cluster, asks, mode.batch)
                seconds = time.monotonic() - began
                reference = reference or answers
                mismatches[mode.name] = sum(map(differing, reference, answers))
                tokens = sum(len(choice) for answer in answers for choice in answer)
                rows.append((mode.name, mode.batch, tokens, mismatches[mode.name], seconds))
                print(
                    f"{mode.name}: {mismatches[mode.name]} of {tokens} differ, {seconds:.0f} s"
                    + (f", {churn.moves} experts moved" if churn else ""),
                    flush=True,
                )
    print_table("one answer", ["mode", "batch", "tokens", "mismatching", "seconds"], rows)
    return mismatches


@contextlib.asynccontextmanager
async def started(config: ClusterConfig) -> AsyncIterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="triptych-") as folder:
        async with running_cluster(config, Path(folder)) as cluster:
            yield cluster


@contextlib.asynccontextmanager
async def churn_of(cluster: Cluster, mode: Mode) -> AsyncIterator[Churn | None]:
    """Moves experts all the time, if the mode wants that."""
    if not mode.churning:
        yield None
        return
    async with churning(cluster.launcher.run_dir.path, mode.churning) as churn:
        yield churn


async def ask_all(cluster: Cluster, asks: Sequence[Ask], batch: int) -> list[Answer]:
    gate = asyncio.Semaphore(batch)

    async def one(ask: Ask) -> Answer:
        async with gate:
            reply = await cluster.http.post(ask.path, json=ask.body)
        assert reply.status_code == 200, f"{reply.status_code}: {reply.text[:500]}"
        choices = sorted(reply.json()["choices"], key=lambda choice: int(choice["index"]))
        return [choice["token_ids"] for choice in choices]

    return await asyncio.gather(*(one(ask) for ask in asks))


def differing(wanted: Answer, found: Answer) -> int:
    """Positions at which two answers differ; a missing token differs too."""
    assert len(wanted) == len(found), "as many choices as were asked for"
    total = 0
    for one, other in zip(wanted, found, strict=True):
        same = sum(a == b for a, b in zip(one, other, strict=False))
        total += max(len(one), len(other)) - same
    return total


def suites(options: argparse.Namespace) -> list[tuple[str, Sequence[Mode]]]:
    """Models and the modes to run with each; the first mode of each is its reference."""
    if options.experts == "remote":
        return [(str(perturbed(options.model)), MIXTURE), (options.model, DENSE)]
    more = speculation(options.model) if options.speculation == "all" else ()
    return [(options.model, (*MODES, *more))]


def chosen(modes: Sequence[Mode], wanted: Sequence[str] | None) -> tuple[list[Mode], list[str]]:
    """The reference and the modes whose names hold what is wanted; those that cannot run here."""
    kept = [
        mode
        for mode in modes
        if mode is modes[0] or not wanted or any(part in mode.name for part in wanted)
    ]
    skipped = [mode.name for mode in kept if NIXL in mode.name and not library_present()]
    if skipped:
        print(f"not run: {', '.join(skipped)}: {REMEDY}", file=sys.stderr)
    return [mode for mode in kept if mode.name not in skipped], skipped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--long-tokens", type=int, default=3000)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompts", type=Path, help="JSON lines; default: made-up prompts")
    parser.add_argument("--modes", nargs="*", help="names or parts of names; default: all")
    parser.add_argument(
        "--speculation",
        choices=["none", "all"],
        default="none",
        help="all: the drafters' modes too",
    )
    parser.add_argument(
        "--experts",
        choices=["none", "remote"],
        default="none",
        help="remote: only the modes in which FFN workers compute, for a mixture made from the "
        "model and for the model itself",
    )
    parser.add_argument("--save", type=Path, help="keep the result with machine and commit")
    options = parser.parse_args()
    if options.model == "smollm2-135m":
        pull_model(options.model)
    asks = mixed_requests(
        options.requests,
        model="bench",
        seed=options.seed,
        max_tokens=options.max_tokens,
        long_tokens=options.long_tokens,
        prompts=options.prompts,
    )
    mismatches: dict[str, int] = {}
    skipped: list[str] = []
    for model, modes in suites(options):
        modes, left_out = chosen(modes, options.modes)
        base = [
            f"model={model}",
            "served_model_name=bench",
            f"dtype={options.dtype}",
            "router.port=0",
            "router.placement=least-loaded",  # a prompt is handed over whenever it can be
            "kv.memory=3GiB",
        ]
        mismatches |= asyncio.run(run_modes(modes, asks, base))
        skipped += left_out
    total = sum(mismatches.values())
    result = {"requests": len(asks), "modes": mismatches, "mismatches": total}
    finish({**result, "skipped": skipped}, options.save)
    raise SystemExit(1 if total else 0)


if __name__ == "__main__":
    main()
