"""An engine's pace without an engine: steps by the clock, each with one token for every request.

The same for workers that speak HTTP and for homes that speak gRPC, so that what is compared behind
them is the routers and nothing else.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

STEP_S = 0.01
PREFILL_S = 0.01  # of any prompt, however long

# What every worker answers, from the beginning, as long as the request allows.
ANSWER = (
    "The mill stands where the river turns south, and in spring the water reaches its second "
    "step. Whoever comes by boat sees the wheel first, then the two chimneys, then the orchard "
    "behind. Flour from here went down to the coast for three hundred years; the books in the "
    "loft tell how many sacks, for whom, and at what price. Since the new bridge was built nobody "
    "stops, but the stones are dressed every autumn, and the miller's daughter still opens the "
    "gate at five in the morning, because the fish have learned to wait for it. She says that a "
    "river keeps its habits longer than people do, and that one should not take this from it "
    "without a reason."
)


@dataclass(slots=True, eq=False)
class Run:
    """A request in the batch."""

    num_tokens: int
    starts_at: float  # loop time: its prompt is computed
    say: Callable[[int], None]  # told the number of each token, from 0 on
    said: int = 0


class PacedEngine:
    """One worker's. Steps are at whole multiples of STEP_S, also when they come late."""

    def __init__(self) -> None:
        self._running: list[Run] = []
        self._begun = asyncio.Event()

    @property
    def num_running(self) -> int:
        return len(self._running)

    def begin(self, num_tokens: int, say: Callable[[int], None]) -> Run:
        starts_at = asyncio.get_running_loop().time() + PREFILL_S
        run = Run(num_tokens, starts_at, say)
        self._running.append(run)
        self._begun.set()
        return run

    def leave(self, run: Run) -> None:
        """Its client has gone."""
        if run in self._running:
            self._running.remove(run)

    async def steps(self) -> None:
        """Until cancelled."""
        clock = asyncio.get_running_loop().time
        step_at = 0.0
        while True:
            await self._begun.wait()
            # A timer may end a little early: the same step must not come twice.
            step_at = max(step_at + STEP_S, STEP_S * (math.floor(clock() / STEP_S) + 1))
            await asyncio.sleep(step_at - clock())
            self.step(clock())

    def step(self, now: float) -> None:
        """At loop time `now`."""
        for run in self._running.copy():
            if run.starts_at <= now:
                run.said += 1
                run.say(run.said - 1)
                if run.said == run.num_tokens:
                    self._running.remove(run)
        if not self._running:
            self._begun.clear()
