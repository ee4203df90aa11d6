"""What do copies, the choice among them and moves gain when some experts are liked more?

    python -m bench.expert_balance                          (a minute)

Rows choose experts by a Zipf law. Homes take their micro-batches through the layers of a step; FFN
workers of simulated speed serve shards one after the other: so much per shard, per expert whose
weights are read, and per row. Routes are drawn, the choice of copies is that of
`triptych.experts.dispatch`, moves are those of `triptych.experts.balance`, from what was counted,
and take their time; only the clock is simulated. In between the favourites change, bit by bit.
Balance (max/mean): over some dozens of calls, time that the busiest worker works over the mean.

Where layers have different favourites (`_mixed`), a static placement loses less: while one worker
is late with one layer, the others are busy with other micro-batches' layers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, geometric_mean

from bench.expert_pool import Outcome, Policy, Setting, simulate
from bench.report import finish, print_table
from triptych.experts.dispatch import Piece

DEFAULT_SETTING = Setting()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=Setting.calls)
    parser.add_argument("--orders", type=int, default=4, help="orders of favourites")
    parser.add_argument("--save", type=Path, help="keep the result in this file")
    args = parser.parse_args(argv)
    results: dict[str, object] = {}
    base = Setting(calls=args.calls)
    for name, setting in {
        "": base,
        "_mixed": replace(base, alike=False),
        "_uneven": replace(base, speeds=(1.0, 1.0, 0.7, 0.5)),
    }.items():
        outcomes = [_orders(setting, policy, args.orders) for policy in POLICIES]
        _show(setting, outcomes)
        found = summary(outcomes[0], outcomes[-1])
        results |= {key + name: value for key, value in found.items()}
    finish(results, args.save)


def compare(setting: Setting = DEFAULT_SETTING, orders: int = 4) -> dict[str, float]:
    """{"speedup", "max_over_mean", …} of balancing against the static even placement."""
    return summary(*(_orders(setting, policy, orders) for policy in (POLICIES[0], POLICIES[-1])))


def summary(static: Sequence[Outcome], ours: Sequence[Outcome]) -> dict[str, float]:
    """Of runs with the same orders of favourites."""
    gains = [a.rows_per_s / b.rows_per_s for a, b in zip(ours, static, strict=True)]
    return {
        "speedup": round(geometric_mean(gains), 3),
        "least_speedup": round(min(gains), 3),
        "max_over_mean": round(fmean(max(run.before, run.after) for run in ours), 4),
        "max_over_mean_drifting": round(fmean(run.during for run in ours), 4),
        "static_max_over_mean": round(fmean(run.before for run in static), 4),
    }


def _orders(setting: Setting, policy: Policy, orders: int) -> list[Outcome]:
    return [simulate(replace(setting, seed=setting.seed + n), policy) for n in range(orders)]


def any_copy(
    counts: Sequence[int],
    hosts: Sequence[Sequence[int]],
    outstanding: Sequence[float],
    speeds: Sequence[float],
) -> list[Piece]:
    """All copies of an expert share its rows evenly, whoever is busy."""
    pieces = []
    for expert, rows in enumerate(counts):
        cuts = [rows * n // max(1, len(hosts[expert])) for n in range(len(hosts[expert]) + 1)]
        for worker, first, end in zip(hosts[expert], cuts, cuts[1:], strict=False):
            if end > first:
                pieces.append(Piece(expert, worker, first, end - first))
    return pieces


POLICIES = (
    Policy("static, 1 copy", copies=1, even=True),
    Policy("2 copies, shared evenly", copies=2, choose=any_copy),
    Policy("2 copies, least busy", copies=2),
    Policy("1 copy and room for 4, moves", copies=1, extra=4, moves=True),
    Policy("2 copies and room for 4, moves", copies=2, extra=4, moves=True),
)


def _show(setting: Setting, outcomes: Sequence[Sequence[Outcome]]) -> None:
    def mean(pick: Callable[[Outcome], float], runs: Sequence[Outcome]) -> str:
        return f"{fmean(map(pick, runs)):.3f}"

    rows = [
        (
            runs[0].name,
            f"{fmean(run.rows_per_s for run in runs):.0f}",
            f"{summary(outcomes[0], runs)['speedup']:.2f}",
            mean(lambda run: run.before, runs),
            mean(lambda run: run.layers, runs),
            mean(lambda run: run.during, runs),
            mean(lambda run: run.after, runs),
            f"{fmean(run.moves for run in runs):.0f}",
        )
        for runs in outcomes
    ]
    columns = ("policy", "rows/s", "gain", "max/mean", "in a layer", "drifting", "after", "moves")
    favourites = "the same" if setting.alike else "different"
    title = f"workers of speed {setting.speeds}, {favourites} favourites in all layers"
    print_table(title, columns, rows)


if __name__ == "__main__":
    main()
