"""How much the workers may have under way, by what they last reported. Values in, values out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean, median

from router.admission.predictor import Line
from router.placement.candidates import usable
from transport.registry import WorkerView
from triptych.config import ClusterConfig

# Steps of prompt rows: what is at a worker is out of fairness's reach, but with fewer one worker
# runs dry while prompts of uneven length fill another (bench.admission: 0.94 of the goodput at 4).
_STEPS = 8
_REPORT_S = 0.5  # a report is no older than this


@dataclass(frozen=True, slots=True)
class Load:
    """What this router has under way."""

    prefill: float = 0.0  # prompt tokens without a first token
    sequences: int = 0
    pressing: float = 0.0  # as `prefill`, of each prompt what one worker may have at most


@dataclass(frozen=True, slots=True)
class Room:
    """What this router may have under way. One request may go beyond it: that keeps workers busy,
    and a large request cannot be overtaken for ever. But a large prompt fills one worker only, so
    it leaves the others' room to others.
    """

    prefill: float
    sequences: float
    kv_tokens: float  # free; prompts under way may not have got theirs yet
    next_steps: float = 0.0  # rows of prompts that the workers' next steps have: the least prefill
    pace: Line | None = None  # of prompts, as those who compute them measured it

    def limited(self, sequences: float) -> Room:
        return self if sequences >= self.sequences else replace(self, sequences=sequences)

    def in_time(self, prefill: float, seconds: float) -> Room:
        """With no more prompt tokens than are computed in time. All the same with `next_steps`, as
        far as these do not take longer than so many seconds by the workers' own measure.
        """
        steps = self.next_steps
        if self.pace is not None:
            steps = min(steps, self.pace.prefill_within(seconds))
        most = max(prefill, steps)
        return self if most >= self.prefill else replace(self, prefill=most)

    def takes_more(self, load: Load) -> bool:
        """A router with nothing under way may always try: a wrong report cannot stop it."""
        return load.sequences == 0 or (
            load.sequences < self.sequences
            and load.pressing < self.prefill
            and load.prefill < self.kv_tokens
        )


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What one worker may have under way."""

    prefill_tokens: int
    sequences: int
    itl_s: float = math.inf  # objective

    @classmethod
    def of(cls, config: ClusterConfig) -> WorkerLimits:
        decode = [config.engine_of(pool) for pool in config.pools if pool.role == "decode"]
        prefill = [config.engine_of(pool) for pool in config.pools if pool.role == "prefill"]
        chunk = max(engine.chunk_tokens for engine in prefill or decode)
        itl_ms = config.router.slo.itl_ms
        return cls(
            prefill_tokens=config.router.admission.prefill_tokens or _STEPS * chunk,
            sequences=max(engine.max_running for engine in decode),
            itl_s=math.inf if itl_ms is None else itl_ms / 1000,
        )

    def streams_of(self, home: WorkerView) -> float:
        """Sequences that may decode there while their tokens keep the objective."""
        cost = home.pace.decode
        if cost is None or self.itl_s == math.inf:
            return self.sequences
        step_s = self.itl_s * max(1.0, home.pace.tokens_per_step)
        one_s = cost.seconds(1, _kv_tokens(home) / max(1, home.running), steps=0)
        fit = max(0.0, step_s - cost.base_s) / max(one_s, 1e-9)
        return min(self.sequences, max(1.0, fit))


def room_of(
    model: str, workers: Sequence[WorkerView], limits: WorkerLimits, ours: Load
) -> Room | None:
    """None: no home takes requests.

    What workers report beyond `ours`, the most that this router had under way since, is other
    routers' and counts against the room.
    """
    homes = usable("decode", model, workers)
    if not homes:
        return None
    prefilling = usable("prefill", model, workers) or homes
    sequences = sum(view.running + view.waiting for view in homes)
    tokens = sum(view.queued_tokens for view in prefilling)
    return Room(
        prefill=len(prefilling) * limits.prefill_tokens - max(0.0, tokens - ours.prefill),
        sequences=sum(map(limits.streams_of, homes)) - max(0, sequences - ours.sequences),
        kv_tokens=sum(view.free_blocks * view.block_tokens for view in homes),
        next_steps=sum(view.pace.chunk_tokens for view in prefilling),
        pace=pace_of(prefilling),
    )


def pace_of(prefilling: Sequence[WorkerView]) -> Line | None:
    """What so many prompt tokens take that are spread over all of these workers, in steps with as
    many of them as fit beside what decodes there now. None: nobody has measured.

    Placement predicts for one worker with the same numbers (router/placement/predict.py); where a
    request will go is not known yet when it is admitted.
    """
    rates, fixed = [], []
    for view in prefilling:
        pace = view.pace
        if pace.prefill is not None and pace.chunk_tokens:
            streams_s = 0.0
            if pace.decode is not None:
                streams_s = pace.decode.seconds(view.running, _kv_tokens(view), steps=0)
            step_s = pace.prefill.seconds(pace.chunk_tokens, 0.0) + streams_s
            rates.append(pace.chunk_tokens / step_s)
            fixed.append(pace.prefill.base_s)
    if not rates:
        return None
    return Line(median(fixed), 1 / (mean(rates) * len(prefilling)))


def _kv_tokens(view: WorkerView) -> int:
    """That sequences there have, about: the cache's are among the free ones."""
    return max(0, view.num_blocks - view.free_blocks) * view.block_tokens


class RecentLoad:
    """The most that was under way while the reports at hand were made."""

    def __init__(self) -> None:
        self._since = 0.0
        self._current = Load()
        self._before = Load()

    def peak(self, load: Load, now: float) -> Load:
        """Including `load`, which is under way now."""
        if now - self._since > _REPORT_S:
            self._since, self._before, self._current = now, self._current, load
        self._current = _larger(self._current, load)
        return _larger(self._current, self._before)


def _larger(one: Load, other: Load) -> Load:
    if one == other:
        return one
    return Load(
        max(one.prefill, other.prefill),
        max(one.sequences, other.sequences),
        max(one.pressing, other.pressing),
    )
