"""Does admission keep goodput up when far more is asked than can be served, and share it fairly?

    python -m bench.admission [--seconds 60] [--save NAME]

In made-up time: the router's real gate before simulated workers (bench/admission_cluster.py). First
the best goodput that the same cluster sustains without admission is searched for; then one, two
and three times that rate are asked for, with and without admission. Goodput: requests per second
whose first token came within the SLO and whose tokens kept their pace. Four tenants of unequal
weights ask for the same; in a second run one of them floods and the others keep within their
shares.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.admission_cluster import Cluster, Request
from bench.report import finish, print_table
from triptych.admission_config import TenantConfig

RESULTS = Path(__file__).parent / "results"
WORKERS = 2
SLO = (2.0, 0.1)  # seconds to the first token, between tokens
WEIGHTS = {"gold": 4.0, "silver": 2.0, "bronze": 1.0, "flood": 1.0}
EVEN = dict.fromkeys(WEIGHTS, 1.0)
FLOOD = {"gold": 0.1, "silver": 0.1, "bronze": 0.05}  # of the capacity; the flood asks for the rest
RATES = range(4, 41, 2)  # requests per second to try
STORM_LOADS = (0.1, 0.25, 0.5)  # times the capacity, before and behind it
WINDOW_S = 10.0  # in which nobody may get nothing
WARM_S = 5.0  # of which nothing is judged: the predictor begins with nothing


@dataclass(frozen=True, slots=True)
class Run:
    requests: Sequence[Request]
    cluster: Cluster
    seconds: float

    @property
    def judged(self) -> list[Request]:
        return [r for r in self.requests if WARM_S <= r.arrived < self.seconds]

    @property
    def good(self) -> list[Request]:
        return [request for request in self.judged if request.good(*SLO)]

    @property
    def goodput(self) -> float:
        return len(self.good) / (self.seconds - WARM_S)

    @property
    def good_tokens(self) -> float:
        """Tokens per second of the good requests, prompt and answer."""
        return sum(request.tokens for request in self.good) / (self.seconds - WARM_S)

    def share_kept(self, tenant: str) -> float:
        """Of a tenant's requests, those that were good."""
        mine = [request for request in self.judged if request.tenant == tenant]
        return sum(request.good(*SLO) for request in mine) / max(1, len(mine))

    def served_tokens(self) -> dict[str, int]:
        """By tenant, of requests that went to workers."""
        served: Counter[str] = Counter()
        for request in self.judged:
            if request.went_at is not None:
                served[request.tenant] += request.tokens
        return dict(served)

    def starved(self) -> list[str]:
        """Tenants of whom nothing went to a worker in some window in which they asked."""
        found = set()
        for start in range(int(WARM_S), int(self.seconds - WINDOW_S) + 1, int(WINDOW_S)):
            end = start + WINDOW_S
            asked = {r.tenant for r in self.requests if start <= r.arrived < end}
            went = {r.tenant for r in self.requests if start <= (r.went_at or -1) < end}
            found |= asked - went
        return sorted(found)


def arrivals(rates: Mapping[str, float], seconds: float, seed: int) -> list[Request]:
    """Poisson arrivals by tenant; prompts and answers of log-normal length."""
    found = []
    for tenant, rate in rates.items():
        draw = random.Random(f"{seed} {tenant}")
        now = draw.expovariate(rate)
        while now < seconds:
            prompt = min(8000, max(16, int(draw.lognormvariate(6.4, 0.8))))
            answer = min(1000, max(4, int(draw.lognormvariate(4.6, 0.6))))
            found.append(Request(tenant, now, prompt, answer))
            now += draw.expovariate(rate)
    return sorted(found, key=lambda request: request.arrived)


def simulate(
    rates: Mapping[str, float],
    seconds: float,
    *,
    admission: bool,
    seed: int = 1,
    retry_s: float | None = None,
) -> Run:
    """`retry_s`: until who was turned away asks again; None: never."""
    requests = arrivals(rates, seconds, seed)
    return play(requests, seconds, admission=admission, retry_s=retry_s)


def play(
    requests: Sequence[Request],
    seconds: float,
    *,
    admission: bool,
    slowness: Callable[[float], float] = lambda now: 1.0,
    retry_s: float | None = None,
) -> Run:
    """`slowness`: how many times as long a step takes that begins at that time."""
    tenants = [TenantConfig(name=n, keys=(n,), weight=w) for n, w in WEIGHTS.items()]
    slo = SLO if admission else None
    cluster = Cluster(WORKERS, tenants, slo, slowness=slowness, retry_s=retry_s)
    cluster.run(requests, seconds + 60)  # what began in time may end
    return Run(requests, cluster, seconds)


def kept_after_storm(rate: float, storm: float) -> float:
    """Ten seconds of `storm` requests a second before workers that take 60 times as long, in the
    midst of `rate`: of the requests from 10 s after it until 20 s, those that were good.
    """
    calm = arrivals(spread(EVEN, rate), 40.0, seed=1)
    burst = [r for r in arrivals(spread(EVEN, storm), 20.0, seed=2) if r.arrived >= 10]
    requests = sorted([*calm, *burst], key=lambda request: request.arrived)
    play(requests, 40.0, admission=True, slowness=lambda now: 60.0 if 10 <= now < 20 else 1.0)
    after = [request for request in requests if request.arrived >= 30]
    return sum(request.good(*SLO) for request in after) / len(after)


def best_sustained(seconds: float) -> tuple[int, Run]:
    """The rate with the most goodput without admission, and its run."""
    runs = {rate: simulate(spread(EVEN, rate), seconds, admission=False) for rate in RATES}
    return max(runs.items(), key=lambda item: item[1].goodput)


def spread(shares: Mapping[str, float], rate: float) -> dict[str, float]:
    total = sum(shares.values())
    return {tenant: rate * share / total for tenant, share in shares.items()}


def unfairness(run: Run) -> float:
    """The largest relative distance of a tenant's tokens from what its weight buys."""
    served = run.served_tokens()
    total = sum(served.values())
    due = {name: total * weight / sum(WEIGHTS.values()) for name, weight in WEIGHTS.items()}
    return max(abs(served.get(name, 0) / due[name] - 1) for name in WEIGHTS)


def main() -> None:
    options = _options()
    rate, best = best_sustained(options.seconds)
    rows: list[dict[str, Any]] = []
    for times in (1, 2, 3):
        for admission in (False, True):
            run = simulate(spread(EVEN, times * rate), options.seconds, admission=admission)
            rows.append(
                {
                    "load": times,
                    "admission": admission,
                    "goodput": run.goodput,
                    "of_best": run.goodput / best.goodput,
                    "tokens_of_best": run.good_tokens / best.good_tokens,
                    "unfairness": unfairness(run) if times > 1 else "",  # nobody had to share
                    "starved": run.starved() if admission else [],
                    "peak_queued": run.cluster.peak_queued or run.cluster.peak_waiting,
                    "turned_away": sum(r.turned is not None for r in run.judged),
                    "late": sum(r.turned is None and not r.good(*SLO) for r in run.judged),
                }
            )
    print_table("equal demand, weights 4:2:1:1", list(rows[0]), [list(r.values()) for r in rows])
    flood = flooded(rate, options.seconds)
    print_table(
        "one tenant floods, 3 times the capacity: requests within the SLO",
        ["tenant", "with admission", "without"],
        [[name, *kept] for name, kept in flood.items()],
    )
    storm = {times: kept_after_storm(rate * times, 3 * rate) for times in STORM_LOADS}
    print_table(
        "10 s after a storm: requests within the SLO",
        ["load", "kept"],
        [[times, kept] for times, kept in storm.items()],
    )
    impatient = simulate(spread(EVEN, 3 * rate), options.seconds, admission=True, retry_s=0.05)
    result = {
        "after_storm": storm,
        "impatient_of_best": impatient.goodput / best.goodput,
        "slo_s": SLO,
        "best_rate": rate,
        "best_goodput": best.goodput,
        "rows": rows,
        "flood": flood,
    }
    finish(result, RESULTS / f"{options.save}.json" if options.save else None)


def flooded(rate: float, seconds: float) -> dict[str, tuple[float, float]]:
    """By tenant: the share of requests within the SLO with and without admission."""
    rates = {name: share * rate for name, share in FLOOD.items()}
    rates["flood"] = 3 * rate - sum(rates.values())
    runs = [simulate(rates, seconds, admission=admission) for admission in (True, False)]
    return {name: (runs[0].share_kept(name), runs[1].share_kept(name)) for name in rates}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.admission", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="simulated, per run")
    parser.add_argument("--save", help="name of a file in bench/results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
