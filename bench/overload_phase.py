"""One load that a live cluster was given, and what is to be said of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.open_loop import Asked, Attempt
from bench.overload_watch import Rest
from bench.report import quantile


@dataclass(frozen=True, slots=True)
class Slo:
    ttft_s: float
    itl_s: float

    def kept(self, attempt: Attempt) -> bool:
        return attempt.whole and attempt.ttft_s <= self.ttft_s and attempt.itl_s <= self.itl_s


@dataclass(frozen=True, slots=True)
class Window:
    """What ends in it is counted, whenever it was sent, so that neither the filling of an idle
    cluster nor its emptying is. Times are perf_counter seconds."""

    begins: float
    ends: float

    @property
    def seconds(self) -> float:
        return self.ends - self.begins

    def has(self, attempt: Attempt) -> bool:
        return self.begins <= attempt.ended_at < self.ends


@dataclass(frozen=True, slots=True)
class Phase:
    """A load, and its answers."""

    offered: float  # requests per second
    window: Window
    asked: Sequence[Asked]
    slo: Slo
    cores: dict[str, float]
    memory: dict[str, dict[str, float]]
    work: dict[str, float]  # rows computed, by worker
    rest: Rest

    @property
    def seconds(self) -> float:
        return self.window.seconds

    @property
    def attempts(self) -> list[Attempt]:
        every = (attempt for each in self.asked for attempt in each.attempts)
        return [attempt for attempt in every if self.window.has(attempt)]

    @property
    def goodput(self) -> float:
        """Requests per second."""
        return sum(map(self.slo.kept, self.attempts)) / self.seconds

    @property
    def good_tokens(self) -> float:
        """Per second, prompt and answer."""
        return sum(self._tokens(each) for each in self.asked if self._good(each)) / self.seconds

    @property
    def served(self) -> float:
        """Requests per second that were answered, in time or not."""
        return sum(attempt.whole for attempt in self.attempts) / self.seconds

    def served_per_weight(self, weights: Mapping[str, float]) -> list[float]:
        """Tokens of each tenant's answered requests over its weight; the largest is 1."""
        served: Counter[str] = Counter()
        for each in self.asked:
            if each.attempts and each.attempts[-1].whole and self.window.has(each.attempts[-1]):
                served[each.plan.tenant] += self._tokens(each)
        shares = [served[name] / weight for name, weight in weights.items()]
        return [share / (max(shares) or 1.0) for share in shares]

    def row(self) -> dict[str, Any]:
        """For the table."""
        done = [attempt for attempt in self.attempts if attempt.whole]
        turned = [attempt for attempt in self.attempts if attempt.status == 429]
        refused_s = [attempt.ended_at - attempt.sent_at for attempt in turned]
        return {
            "offered": self.offered,
            "goodput": self.goodput,
            "good_tokens": self.good_tokens,
            "attempts_s": len(self.attempts) / self.seconds,
            "served": len(done),
            "late": sum(attempt.ttft_s > self.slo.ttft_s for attempt in done),
            "slow": sum(attempt.itl_s > self.slo.itl_s for attempt in done),
            "share_429": len(turned) / max(1, len(self.attempts)),
            "ttft_p50_s": quantile([a.ttft_s for a in done], 50),
            "ttft_p99_s": quantile([a.ttft_s for a in done], 99),
            "itl_p50_s": quantile([a.itl_s for a in done], 50),
            "refusal_p50_s": quantile(refused_s, 50),
            "refusal_p99_s": quantile(refused_s, 99),
            "retry_after_p50_s": quantile([a.retry_after_s for a in turned], 50),
            "retry_after_max_s": max((a.retry_after_s for a in turned), default=0.0),
            "unanswered": sum(
                not each.attempts or not each.attempts[-1].status for each in self.asked
            ),
            "client_late_p99_s": quantile([each.late_s for each in self.asked], 99),
            "client_cores": self.cores["client"],
            "router_cores": self.cores["router"],
        }

    def codes(self) -> dict[str, int]:
        """Why attempts were not answered, or not whole."""
        found = Counter(a.code or f"status {a.status}" for a in self.attempts if not a.whole)
        return dict(found.most_common())

    def _good(self, each: Asked) -> bool:
        return any(self.window.has(a) and self.slo.kept(a) for a in each.attempts)

    def _tokens(self, each: Asked) -> int:
        return len(each.plan.prompt) + each.attempts[-1].tokens


def jain(shares: Sequence[float]) -> float:
    """Jain's index of fairness: 1 when all are equal, 1/n when one has everything."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 0.0
