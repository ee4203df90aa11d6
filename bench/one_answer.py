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
from dataclasses import dataclass
from pathlib import Path

from bench.report import finish, print_table
from bench.workload import DTYPES, Ask, mixed_requests
from transport.kv.nixl_agent import REMEDY, library_present
from triptych.config import ClusterConfig, load_config
from triptych.drafters.heads.place import head_dir
from triptych.fingerprint import weight_fingerprint
from triptych.hub import pull_model, resolve_model
from triptych.testing.cluster import Cluster, running_cluster

Answer = list[list[int]]  # token ids by choice


@dataclass(frozen=True, slots=True)
class Mode:
    """One pass over the workload. Modes of one `cluster` share its processes, and so its cache."""

    name: str
    cluster: tuple[str, ...]  # config overrides
    batch: int  # requests in flight


NIXL = "nixl"
PLAIN = "speculation.mode=off"
ONE_POOL = "pools=[{name: decode, role: decode}]"
AGGREGATED = (ONE_POOL, PLAIN)


def pd(link: str, *more: str) -> tuple[str, ...]:
    return (PLAIN, f"transport.links=[{link}]", f"transport.require={link}", *more)


MODES = (
    Mode("aggregated", AGGREGATED, batch=1),  # the reference
    Mode("aggregated/warm", AGGREGATED, batch=32),
    Mode("aggregated/batch-32", (*AGGREGATED, "log.level=warning"), batch=32),
    Mode("aggregated/chunk-64", (*AGGREGATED, "engine.chunk_tokens=64"), batch=32),
    Mode("pd/shm", pd("shm"), batch=32),
    Mode("pd/shm/warm", pd("shm"), batch=32),
    Mode("pd/shm/batch-1", pd("shm", "log.level=warning"), batch=1),
    Mode("pd/shm/chunk-64", pd("shm", "engine.chunk_tokens=64"), batch=32),
    Mode("pd/shm/layers-6", pd("shm", "transport.announce_layers=6"), batch=32),
    Mode("pd/tcp", pd("tcp"), batch=32),
    Mode(f"pd/{NIXL}", pd(NIXL), batch=32),
)


REMOTE = "remote, pool: draft"
# Its drafters differ from those at home, so that it shows which were at work.
SMALL_MODEL = "draft_model, model: smollm2-135m, dtype: int4"
DRAFT_POOL = (
    "pools=[{name: decode, role: decode}, "
    "{name: draft, role: draft, threads: 1, drafters: [{kind: suffix, trees: true}]}]",
    PLAIN,
)


def drafting(batch: int, mode: str, *kinds: str, pools: tuple[str, ...] = AGGREGATED) -> Mode:
    """Speculation of one kind, on top of `pools`."""
    drafters = ", ".join(f"{{kind: {kind}}}" for kind in kinds)
    name = "aggregated" if pools in (AGGREGATED, DRAFT_POOL) else "pd"
    overrides = (f"speculation.mode={mode}", f"speculation.drafters=[{drafters}]")
    return Mode(f"{name}/{mode}/{'+'.join(kinds)}/{batch}", (*pools, *overrides), batch)


SPECULATION = (
    drafting(32, "fixed", "ngram"),
    drafting(1, "fixed", "ngram"),
    drafting(32, "fixed", "suffix"),
    drafting(1, "fixed", "suffix"),
    drafting(32, "fixed", "suffix, trees: true"),
    drafting(32, "table", "suffix"),
    drafting(32, "dice", "suffix, trees: true", "ngram"),
    drafting(1, "dice", "suffix, trees: true", "ngram"),
    drafting(32, "auto", "suffix", "ngram"),
    drafting(32, "auto", "suffix", "ngram", pools=pd("shm")),
    drafting(32, "dice", "suffix, trees: true", "ngram", pools=pd("shm")),
    drafting(32, "fixed", REMOTE, pools=DRAFT_POOL),
    drafting(32, "auto", REMOTE, "ngram", pools=DRAFT_POOL),
    drafting(32, "dice", f"{REMOTE}, trouble: 0.3", "ngram", pools=DRAFT_POOL),
    drafting(1, "dice", f"{REMOTE}, trouble: 0.3", "ngram", pools=DRAFT_POOL),
    drafting(32, "dice", SMALL_MODEL, "sparse"),
    drafting(1, "fixed", SMALL_MODEL),
    drafting(32, "dice", f"switching, between: [{{kind: suffix}}, {{kind: {SMALL_MODEL}}}]"),
    drafting(32, "length_aware", "suffix", SMALL_MODEL, pools=pd("shm")),
)
# Need what `triptych draft train` makes.
HEADS = (
    drafting(32, "dice", "eagle3, width: 3", "suffix"),
    drafting(1, "fixed", "eagle3"),
    drafting(32, "auto", "eagle3, learn: true", "suffix"),
    drafting(32, "dice", "eagle3", "suffix", pools=pd("shm")),
)


def speculation(model: str) -> tuple[Mode, ...]:
    """All kinds of drafts that can be made here."""
    path = resolve_model(model)
    if (head_dir(weight_fingerprint(path), "eagle3") / "head.json").exists():
        return (*SPECULATION, *HEADS)
    print("no head was trained for this model: its modes are left out", flush=True)
    return SPECULATION


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
                answers = await ask_all(cluster, asks, mode.batch)
                seconds = time.monotonic() - began
                reference = reference or answers
                mismatches[mode.name] = sum(map(differing, reference, answers))
                tokens = sum(len(choice) for answer in answers for choice in answer)
                rows.append((mode.name, mode.batch, tokens, mismatches[mode.name], seconds))
                print(
                    f"{mode.name}: {mismatches[mode.name]} of {tokens} differ, {seconds:.0f} s",
                    flush=True,
                )
    print_table("one answer", ["mode", "batch", "tokens", "mismatching", "seconds"], rows)
    return mismatches


@contextlib.asynccontextmanager
async def started(config: ClusterConfig) -> AsyncIterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="triptych-") as folder:
        async with running_cluster(config, Path(folder)) as cluster:
            yield cluster


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
    parser.add_argument("--save", type=Path, help="keep the result with machine and commit")
    options = parser.parse_args()
    if options.model == "smollm2-135m":
        pull_model(options.model)
    modes = [
        mode
        for mode in (*MODES, *(speculation(options.model) if options.speculation == "all" else ()))
        if mode is MODES[0] or not options.modes or any(part in mode.name for part in options.modes)
    ]
    skipped = [mode.name for mode in modes if NIXL in mode.name and not library_present()]
    if skipped:
        print(f"not run: {', '.join(skipped)}: {REMEDY}", file=sys.stderr)
        modes = [mode for mode in modes if mode.name not in skipped]
    base = [
        f"model={options.model}",
        "served_model_name=bench",
        f"dtype={options.dtype}",
        "router.port=0",
        "kv.memory=3GiB",
    ]
    asks = mixed_requests(
        options.requests,
        model="bench",
        seed=options.seed,
        max_tokens=options.max_tokens,
        long_tokens=options.long_tokens,
        prompts=options.prompts,
    )
    mismatches = asyncio.run(run_modes(modes, asks, base))
    total = sum(mismatches.values())
    result = {"requests": len(asks), "modes": mismatches, "mismatches": total}
    finish({**result, "skipped": skipped}, options.save)
    raise SystemExit(1 if total else 0)


if __name__ == "__main__":
    main()
