"""How near does the grouped matmul of experts come to the machine's limits?

    python -m bench.engine_experts

Rows meet in E experts, as many in each. The least time is the larger of: the weights of these
experts, once, at the speed of memory; all products at the speed of matmul. Both speeds are measured
around every figure; where others use the machine they change from moment to moment, and shares
above 100 % happen. "one by one" is the time of the same experts called one after another, over that
of one call. More weights are held than caches have room for, and visited in turn.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch

from bench.engine_roofline import Rates
from bench.probe import Limits, measure_limits, typical
from bench.report import finish, print_table
from triptych.launch.machine import usable_cores
from triptych.testing.native_units import RowShard, Unit, random_unit, shard_array
from triptych_kernels.cpu.experts import NativeExperts
from triptych_kernels.cpu.native import native, set_threads

_REPEATS = 7


@dataclass(frozen=True, slots=True)
class Row:
    """One call: `rows` rows in each of `experts` experts."""

    dtype: str
    experts: int
    rows: int
    gb_s: float  # of weights
    tflop_s: float
    roofline: float  # 0-1: the least time over the time taken
    one_by_one: float


class Units:
    """Experts of random weights, all rows bfloat16."""

    def __init__(self, dtype: str, hidden: int, inner: int, count: int) -> None:
        library = native()
        assert library is not None, "there is nothing to measure without native kernels"
        self._dtype, self._hidden, self._inner = dtype, hidden, inner
        units: list[Unit] = [random_unit(library, dtype, hidden, inner) for _ in range(count)]
        self._experts = NativeExperts(library, dict(enumerate(units)), "silu")
        self._bytes = units[0][0].nbytes + units[0][1].nbytes
        self._count, self._next = count, 0

    def measure(self, experts: int, rows: int) -> tuple[float, float]:
        """Seconds of one call, and of a call for each expert."""
        together = [self._shards(experts, rows, alone=False) for _ in range(2)]
        alone = [self._shards(experts, rows, alone=True) for _ in range(2)]
        found: list[list[float]] = [[], []]
        for repeat in range(_REPEATS):
            for times, work in zip(found, (together, alone), strict=True):
                times.append(self._seconds(work[repeat % 2], experts))
        return median(found[0]), median(found[1])

    def row(self, experts: int, rows: int, seconds: tuple[float, float], rates: Rates) -> Row:
        num_bytes = experts * self._bytes
        flops = experts * rows * 6 * self._hidden * self._inner
        return Row(
            self._dtype,
            experts,
            rows,
            gb_s=num_bytes / seconds[0] / 1e9,
            tflop_s=flops / seconds[0] / 1e12,
            roofline=rates.least_seconds(num_bytes, flops) / seconds[0],
            one_by_one=seconds[1] / seconds[0],
        )

    def _shards(self, experts: int, rows: int, *, alone: bool) -> Callable[[int], None]:
        """A call of experts [first, first + experts), for any `first`."""
        x = torch.randn(rows, self._hidden)
        calls: dict[int, list[RowShard]] = {}
        for first in range(0, self._count, experts):
            wanted = torch.arange(first, first + experts)
            groups = wanted.split(1) if alone else [wanted]
            calls[first] = [self._shard(x, group) for group in groups]
        arrays = {
            first: [shard_array([shard]) for shard in shards] for first, shards in calls.items()
        }

        def work(first: int) -> None:
            assert calls, "they own what the structs point to"
            for array in arrays[first]:
                self._experts.run(*array)

        return work

    def _shard(self, x: torch.Tensor, experts: torch.Tensor) -> RowShard:
        cells = torch.stack(
            [torch.arange(len(x)).repeat(len(experts)), experts.repeat_interleave(len(x))]
        ).to(torch.int32)
        out = torch.empty(cells.shape[1], self._hidden, dtype=torch.bfloat16)
        return RowShard(x, cells, out, row_type="bfloat16")

    def _seconds(self, work: Callable[[int], None], experts: int) -> float:
        first, self._next = self._next, (self._next + experts) % self._count
        first = first // experts * experts
        began = time.perf_counter()
        work(first)
        return time.perf_counter() - began


def read_plan(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtypes", default="bfloat16,int8/32,int4/32")
    parser.add_argument("--experts", default="8,16,32,64", help="divisors of the largest")
    parser.add_argument("--rows", default="1,4,16,64", help="in each expert")
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--inner", type=int, default=768)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--save", type=Path, help="keep the result in this file")
    return parser.parse_args(arguments)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    plan = read_plan()
    set_threads(plan.threads)
    limits: list[Limits] = [measure_limits(plan.threads)]
    rows: list[Row] = []
    for dtype in plan.dtypes.split(","):
        units = Units(dtype, plan.hidden, plan.inner, max(numbers(plan.experts)))
        for cell in itertools.product(numbers(plan.experts), numbers(plan.rows)):
            seconds = units.measure(*cell)
            limits.append(measure_limits(plan.threads))
            rows.append(units.row(*cell, seconds, rates_of(typical(limits[-2:]))))
    report(rows, typical(limits), plan)


def rates_of(limits: Limits) -> Rates:
    return Rates(limits.read_gb_s, max(limits.bfloat16_tflop_s, limits.tile_tflop_s))


def report(rows: Sequence[Row], limits: Limits, plan: argparse.Namespace) -> None:
    title = (
        f"Experts {plan.hidden} × {plan.inner}, {plan.threads} threads; memory "
        f"{limits.read_gb_s:.1f} GB/s, matmul {rates_of(limits).tflop_s:.2f} TFLOP/s"
    )
    columns = ("dtype", "experts", "rows in each", "GB/s", "TFLOP/s", "of the limit", "one by one")
    lines = [
        (
            row.dtype,
            row.experts,
            row.rows,
            row.gb_s,
            row.tflop_s,
            f"{row.roofline:.0%}",
            f"{row.one_by_one:.2f}×",
        )
        for row in rows
    ]
    print_table(title, columns, lines)
    result = {"rows": [asdict(row) for row in rows], "limits": asdict(limits)}
    finish({**result, "hidden": plan.hidden, "inner": plan.inner}, plan.save)


if __name__ == "__main__":
    main()
