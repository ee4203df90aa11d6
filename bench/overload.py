"""Does a live cluster keep its goodput when three times its capacity is asked for?

    python -m bench.overload [--pools pd] [--seconds 60] [--manners once obedient impatient]

A cluster of real processes with the real model. The load with the best goodput is searched for in
a sweep. That load is measured anew (the best of many short phases is partly luck), then three times
as many requests are asked for, in an open loop, for a minute, then the best load once more, since a
machine may change meanwhile. "Of best" compares with the mean of those two.

Goodput: requests per second whose first token came within the SLO and whose tokens kept their pace,
by requests that ended in the phase. Before each phase there is some time of its own load, before
the overload of the best one, so that the cluster is never idle when a phase begins. Prompts are
random tokens: nothing is cached. Four tenants with weights 4:2:1:1 ask for the same.

Manners are of clients that are turned away: they ask `once`, come back when Retry-After said
(`obedient`), or every 50 ms (`impatient`). Every attempt is judged by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import uvloop

from bench.open_loop import Client, Manners, Planned, posted, sampled
from bench.overload_phase import Phase, Slo, Window, jain
from bench.overload_watch import Watch, at_rest, work_of
from bench.report import finish, print_table
from triptych.config import ClusterConfig, load_config
from triptych.hub import pull_model
from triptych.testing.checkpoints import tiny_llama
from triptych.testing.cluster import Cluster, running_cluster

TINY_LAYERS = 24
WEIGHTS = {"gold": 4.0, "silver": 2.0, "bronze": 1.0, "tin": 1.0}
TIMES = 3.0  # the capacity, in the overloaded phase
STEPS = (0.5, 0.65, 0.8, 1.0, 1.2)  # of what got done at the first rate, to sweep
PATIENCE_S = 60.0  # behind a phase, until an open request counts as stuck


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests of random tokens. Lengths are log-normal, given by their medians, in tokens."""

    prompt: int
    answer: int
    vocab: int  # token ids are below
    draw: random.Random

    def poisson(self, rate: float, begins: float, ends: float) -> list[Planned]:
        found, now = [], begins + self.draw.expovariate(rate)
        while now < ends:
            found.append(self._request(now, self.draw.choice([*WEIGHTS])))
            now += self.draw.expovariate(rate)
        return found

    def _request(self, at: float, tenant: str) -> Planned:
        prompt_tokens = _log_normal(self.draw, self.prompt, most=8 * self.prompt)
        prompt = [self.draw.randrange(100, self.vocab) for _ in range(prompt_tokens)]
        answer = _log_normal(self.draw, self.answer, most=6 * self.answer)
        body = {
            "prompt": prompt,
            "max_tokens": answer,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return Planned(at, tenant, prompt, answer, posted(body, tenant))


def _log_normal(draw: random.Random, median: int, most: int) -> int:
    return min(most, max(4, round(draw.lognormvariate(0.0, 0.6) * median)))


class Bench:
    def __init__(self, cluster: Cluster, client: Client, watch: Watch, slo: Slo) -> None:
        self._cluster = cluster
        self._client = client
        self._watch = watch
        self._slo = slo

    async def play(
        self, plans: Sequence[Planned], rate: float, lead_s: float, seconds: float, manners: Manners
    ) -> Phase:
        work = await work_of(self._cluster)
        self._watch.begin()
        sampling = asyncio.create_task(sampled(1.0, self._watch.sample))
        began = time.perf_counter()
        try:
            asked = await self._client.play(plans, manners, lead_s + seconds, PATIENCE_S)
        finally:
            sampling.cancel()
            await asyncio.wait({sampling})
        cores = self._watch.cores(lead_s + seconds)
        rest = await at_rest(self._cluster)
        done = await work_of(self._cluster)
        return Phase(
            rate,
            Window(began + lead_s, began + lead_s + seconds),
            asked,
            self._slo,
            cores,
            self._watch.memory(),
            {name: done[name] - work[name] for name in done},
            rest,
        )


async def measure(config: ClusterConfig, options: argparse.Namespace) -> dict[str, Any]:
    vocab = 250 if options.model == "tiny" else 40_000
    draw = random.Random(options.seed)
    traffic = Traffic(options.prompt_tokens, options.answer_tokens, vocab, draw)
    slo = Slo(options.ttft, options.itl)
    sweep_s, lead_s = options.sweep_seconds, options.lead_seconds
    with tempfile.TemporaryDirectory(prefix="triptych-") as folder:
        async with running_cluster(config, Path(folder)) as cluster:
            with contextlib.closing(Client(cluster.url)) as client:
                bench = Bench(cluster, client, await Watch.of(cluster), slo)

                async def load(
                    rate: float, seconds: float, manners: Manners = "once", lead_rate: float = 0.0
                ) -> Phase:
                    begins, ends = lead_s, lead_s + seconds
                    plans = traffic.poisson(lead_rate or rate, 0.0, begins)
                    plans += traffic.poisson(rate, begins, ends)
                    phase = await bench.play(plans, rate, lead_s, seconds, manners)
                    print(json.dumps(phase.row() | {"codes": phase.codes()}), flush=True)
                    return phase

                await load(options.first_rate, sweep_s)  # warms up
                eager = await load(options.first_rate, sweep_s)
                sweep = [eager, *[await load(step * eager.served, sweep_s) for step in STEPS]]
                best = max(sweep, key=lambda phase: phase.goodput).offered
                before = await load(best, options.seconds)
                rate = TIMES * before.goodput
                phases = {
                    manners: await load(rate, options.seconds, manners, lead_rate=best)
                    for manners in options.manners
                }
                after = await load(best, options.seconds)
                return report(sweep, [before, after], phases, options)


def report(
    sweep: Sequence[Phase],
    best: Sequence[Phase],
    phases: dict[str, Phase],
    options: argparse.Namespace,
) -> dict[str, Any]:
    goodput = fmean(phase.goodput for phase in best)
    tokens = fmean(phase.good_tokens for phase in best)
    named = {
        **{f"sweep {n}": phase for n, phase in enumerate(sweep)},
        "best": best[0], **phases, "best again": best[1],
    }  # fmt: skip
    rows = {name: phase.row() for name, phase in named.items()}
    columns = [*rows]
    print_table(
        f"overload, {options.pools}",
        ["", *columns],
        [[key, *(rows[name][key] for name in columns)] for key in rows[columns[0]]],
    )
    overloaded = {
        name: {
            "of_best": phase.goodput / goodput,
            "tokens_of_best": phase.good_tokens / tokens,
            "tokens_per_weight": phase.served_per_weight(WEIGHTS),
            "jain": jain(phase.served_per_weight(WEIGHTS)),
            "work": phase.work,
            "codes": phase.codes(),
            "memory": phase.memory,
            "cores": phase.cores,
            "rest": asdict(phase.rest),
        }
        for name, phase in phases.items()
    }
    for name, found in overloaded.items():
        print_table(
            f"clients that ask {name}: memory, MiB",
            ["", "start", "10 s", "end", "MiB/min"],
            [[process, *course.values()] for process, course in found["memory"].items()],
        )
        print_table(f"clients that ask {name}", ["", "value"], [
            [key, found[key]] for key in ("of_best", "tokens_of_best", "jain", "work", "rest")
        ])  # fmt: skip
    return {
        "pools": options.pools,
        "slo_s": [options.ttft, options.itl],
        "best_goodput": goodput,
        "rows": rows,
        "overloaded": overloaded,
    }


def config_of(options: argparse.Namespace, model: str) -> ClusterConfig:
    pools = [{"name": "decode", "role": "decode", "replicas": options.homes, "threads": 1}]
    if options.pools == "pd":
        pools.append(
            {"name": "prefill", "role": "prefill", "replicas": options.prefill, "threads": 1}
        )
    tenants = [{"name": n, "keys": [n], "weight": weight} for n, weight in WEIGHTS.items()]
    settings = [
        f"model={model}",
        "served_model_name=bench",
        f"dtype={options.dtype}",
        "router.port=0",
        "speculation.mode=off",
        f"pools={json.dumps(pools)}",
        f"router.tenants={json.dumps(tenants)}",
        f"router.slo={json.dumps({'ttft_ms': 1000 * options.ttft, 'itl_ms': 1000 * options.itl})}",
    ]
    return load_config(None, [*settings, *options.set])


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="triptych-") as folder:
        model = options.model
        if model == "tiny":
            model = str(tiny_llama(Path(folder) / "tiny", num_layers=TINY_LAYERS))
        elif model == "smollm2-135m":
            pull_model(model)
        result = uvloop.run(measure(config_of(options, model), options))
    finish(result, options.save)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.overload", description=__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="`tiny`: small layers of noise")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--pools", choices=["aggregated", "pd"], default="aggregated")
    parser.add_argument("--homes", type=int, default=2)
    parser.add_argument("--prefill", type=int, default=2, help="prefill workers of `pd`")
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload, of the best")
    parser.add_argument("--sweep-seconds", type=float, default=20.0, help="of each other load")
    parser.add_argument("--lead-seconds", type=float, default=6.0, help="of load before a phase")
    parser.add_argument("--first-rate", type=float, default=8.0, help="requests a second, too many")
    parser.add_argument("--prompt-tokens", type=int, default=64, help="median")
    parser.add_argument("--answer-tokens", type=int, default=12, help="median")
    parser.add_argument("--ttft", type=float, default=2.0, help="SLO, seconds")
    parser.add_argument("--itl", type=float, default=0.3, help="SLO, seconds, mean of a request")
    parser.add_argument(
        "--manners", nargs="*", choices=["once", "obedient", "impatient"], default=["once"]
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], help="config override, e.g. a.b=1")
    parser.add_argument("--save", type=Path, help="keep the result with machine and commit")
    return parser.parse_args()


if __name__ == "__main__":
    main()
