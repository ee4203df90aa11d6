"""Is this worker alive, and is it ready? For whoever starts, restarts or counts it.

Liveness knows nothing of peers and nothing of a drain: a restart must help. Readiness is what the
routers would say.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_BEAT_S = 1.0
_SILENCE_S = 60.0  # of the event loop; far more than the longest stall of a busy worker
_HANGING_STEPS = 4  # routers go round a worker at the limit; a restart is for what never ends


class Vitals:
    """`live` and `ready` say what is wrong, "" when nothing is; from any thread. `step_s`: age of
    the engine's step under way. `step_limit_s`: where routers take the worker for hanging.
    """

    def __init__(self, step_s: Callable[[], float], step_limit_s: float) -> None:
        self.draining = False
        self._step_s = step_s
        self._longest_s = _HANGING_STEPS * step_limit_s
        self._beat_at = time.monotonic()
        self._routers: set[str] = set()  # attached to

    async def beat(self) -> None:
        """Runs on the event loop for as long as the worker does."""
        while True:
            self._beat_at = time.monotonic()
            await asyncio.sleep(_BEAT_S)

    def attached(self, router: str, attached: bool) -> None:
        if attached:
            self._routers.add(router)
        else:
            self._routers.discard(router)

    def live(self) -> str:
        silence_s = time.monotonic() - self._beat_at
        if silence_s > _SILENCE_S:
            return f"the event loop has not run for {silence_s:.0f} s"
        step_s = self._step_s()
        if step_s > self._longest_s:
            return f"the engine is in one step for {step_s:.0f} s, the limit is {self._longest_s:g}"
        return ""

    def ready(self) -> str:
        if self.draining:
            return "draining"
        return "" if self._routers else "attached to no router"
