"""Homes that hang: their calls are open, and nothing comes any more."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from router.link import HomeLost, Loss
from transport.registry import WorkerView
from triptych.errors import WorkerError

# Longer than a living worker takes to attach anew. The directory has waited for reports before.
_ABSENT_S = 1.0

Key = tuple[str, int]  # worker id, epoch


def key_of(view: WorkerView) -> Key:
    return view.worker_id, view.epoch


def is_stuck(view: WorkerView, step_limit_s: float) -> bool:
    """It reports, and its engine has been in one step for too long."""
    return view.step_s > step_limit_s


class HomeWatch:
    """Judges homes by what they report. A call that breaks tells that by itself."""

    def __init__(self, step_limit_s: float) -> None:
        self._step_limit_s = step_limit_s
        self._missed: dict[Key, float] = {}  # attached no more, since when

    def lost(
        self, open_at: Iterable[Key], workers: Sequence[WorkerView], now: float
    ) -> dict[Key, HomeLost]:
        """Which of the homes with open requests are to be given up at `now`, seconds."""
        views = {key_of(view): view for view in workers}
        homes = list(open_at)
        self._missed = {key: self._missed.get(key, now) for key in homes if key not in views}
        found = {
            key: HomeLost(WorkerError(f"{key[0]}: nothing was heard of it any more"), Loss.SILENT)
            for key, since in self._missed.items()
            if now - since >= _ABSENT_S
        }
        for key in homes:
            view = views.get(key)
            if view is not None and is_stuck(view, self._step_limit_s):
                error = WorkerError(f"{key[0]}: one step has taken {view.step_s:.1f} s so far")
                found[key] = HomeLost(error, Loss.STALLED)
        return found
