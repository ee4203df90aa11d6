"""Does the calculator choose well, and does the law of micro-batches hold?

    python -m bench.afd_simulation                          (a few minutes)

The calculator behind `triptych plan afd` picks devices, sequences and micro-batches from formulas.
Here every plan is simulated, event by event, for several laws of lengths on several kinds of
hardware, and the chosen one compared with the best one found. A chosen plan that would miss the
latency goal in the simulation is given fewer sequences, as its operator would. The second table
compares periods of layers with `triptych.experts.pipeline`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.afd_stations import Array, Draw, Stations, World, run_steps
from bench.afd_workloads import HARDWARE, LAWS, make_inputs
from bench.report import finish, print_table
from triptych.experts.pipeline import jittered_period, period
from triptych.plan.afd import best_plans
from triptych.plan.inputs import PlanInputs
from triptych.plan.lengths import load_of_trace

SAMPLES = 96  # steps that a mean is taken of
TRACE = 200_000  # requests that the calculator sees
PARTS = (1.0, 0.8, 0.6)  # of the most sequences that the goal allows


class Shape(NamedTuple):
    attention: int
    ffn: int
    slots: int
    micro_batches: int


@dataclass(frozen=True)
class Case:
    """What came out for one law on one hardware."""

    law: str
    hardware: str
    chosen: Shape
    best: Shape
    gap: float  # of the best score that the chosen plan misses
    error: float  # of the predicted throughput of the chosen plan, relative


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save", type=Path, help="keep the result in this file")
    args = parser.parse_args(argv)
    cases = [judge(law, hardware, args.seed) for hardware, law in product(HARDWARE, LAWS)]
    columns = ("lengths", "hardware", "chosen", "best", "lost %", "throughput predicted")
    print_table(
        "the calculator against event simulation (A+F × slots, micro-batches)",
        columns,
        [
            (
                case.law,
                case.hardware,
                _text(case.chosen),
                _text(case.best),
                f"{100 * case.gap:.2f}",
                f"{100 * case.error:+.1f} %",
            )
            for case in cases
        ],
    )
    periods = list(judge_periods(args.seed))
    print_table(
        "periods of a layer, T_a = T_e = 1", ("T_c", "cv", "m", "law", "simulated"), periods
    )
    gaps = [case.gap for case in cases]
    finish(
        {
            "workloads": len(cases),
            "worst_gap": round(max(gaps), 4),
            "mean_gap": round(float(np.mean(gaps)), 4),
            "worst_throughput_error": round(max(abs(case.error) for case in cases), 4),
            "worst_period_error": round(max(abs(p[3] / p[4] - 1) for p in periods), 4),
        },
        args.save,
    )


def judge(law: str, hardware: str, seed: int) -> Case:
    inputs = make_inputs(hardware)
    prompts, outputs = LAWS[law](np.random.default_rng(seed + 1), TRACE)
    load = load_of_trace(list(zip(prompts.astype(int), outputs.astype(int), strict=True)))
    plan = best_plans(inputs, load)[0]
    chosen = Shape(plan.attention, plan.ffn, plan.slots, plan.micro_batches)
    trial = _Trial(inputs, LAWS[law], _most_slots(inputs, load.theta, load.nu), seed)
    kept = trial.fit(chosen)
    scores = {shape: trial.score(shape) for shape in trial.shapes()}
    best = max(scores, key=lambda shape: scores[shape])
    gap = max(0.0, 1 - trial.score(kept) / scores[best])
    throughput = 1e3 * chosen.attention * chosen.slots / trial.tpot(chosen)
    return Case(law, hardware, chosen, best, gap, plan.throughput / throughput - 1)


class _Trial:
    """All plans of a workload, simulated at most once."""

    def __init__(self, inputs: PlanInputs, draw: Draw, most: int, seed: int) -> None:
        devices = inputs.devices
        self._inputs, self._most = inputs, most
        self._world = World(inputs, draw, devices.max_attention * most, SAMPLES, seed)
        self._known: dict[Shape, float] = {}

    def tpot(self, shape: Shape) -> float:
        if shape not in self._known:
            self._known[shape] = self._world.tpot_ms(*shape)
        return self._known[shape]

    def score(self, shape: Shape) -> float:
        devices = self._inputs.devices
        price = shape.attention * devices.attention_price + shape.ffn * devices.ffn_price
        return shape.attention * shape.slots / self.tpot(shape) / price if shape.slots else 0.0

    def fit(self, shape: Shape) -> Shape:
        """With as many slots as the goal allows, at most those it has."""
        goal = self._inputs.goals.tpot_ms
        if goal is None or self.tpot(shape) <= goal:
            return shape
        low, high = 0, shape.slots - 1
        while low < high:
            middle = (low + high + 1) // 2
            good = self.tpot(shape._replace(slots=middle)) <= goal
            low, high = (middle, high) if good else (low, middle - 1)
        return shape._replace(slots=low)

    def shapes(self) -> Iterator[Shape]:
        devices, model = self._inputs.devices, self._inputs.model
        whole = model.layers * model.experts * model.expert_bytes * self._inputs.goals.copies
        for attention, ffn, count in product(
            range(1, devices.max_attention + 1), range(1, devices.max_ffn + 1), (1, 2, 3, 4)
        ):
            if ffn < self._inputs.goals.copies or ffn * devices.ffn_memory < whole:
                continue
            most = self.fit(Shape(attention, ffn, self._most, count))
            for part in PARTS:
                yield most._replace(slots=int(most.slots * part))


def _most_slots(inputs: PlanInputs, mean: float, deviation: float) -> int:
    """Whose KV fits, two deviations above the mean included."""
    room = (inputs.devices.attention_memory - inputs.model.attention_bytes) / inputs.model.kv_bytes
    slots = 1
    while (slots + 1) * mean + 2 * deviation * (slots + 1) ** 0.5 <= room:
        slots += 1
    return min(slots, inputs.devices.max_slots)


def judge_periods(seed: int) -> Iterator[tuple[float, float, int, float, float]]:
    """(T_c, cv, m, period by the law, simulated period)."""
    random = np.random.default_rng(seed)
    layers, runs = 400, 24
    for link, cv, count in product((0.2, 0.4, 0.9), (0.0, 0.1, 0.25, 0.5), (1, 2, 3, 4)):
        sigma = np.sqrt(np.log(1 + cv**2))

        def service(sigma: float = sigma) -> Array:
            return random.lognormal(-(sigma**2) / 2, sigma, (runs, 1))

        stations = Stations(service, service, link, link, link, link)
        # The difference: without what filling and emptying the pipeline takes.
        long, short = (run_steps(stations, n, count).mean() for n in (2 * layers, layers))
        law = jittered_period(count, 1, 1, link, cv) if cv else period(count, 1, 1, link)
        yield link, cv, count, law, float(long - short) / layers


def _text(shape: Shape) -> str:
    return f"{shape.attention}+{shape.ffn} × {shape.slots}, {shape.micro_batches}"


if __name__ == "__main__":
    main()
