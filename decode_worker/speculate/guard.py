"""Does speculation pay as it goes? The outer loop of the automatic mode (Cascade, 2506.20675).

The tables believe that a plan pays; this measures it: utility = (tokens per sequence and step) /
(seconds, in plain steps). For a fair comparison plain steps are interleaved, the fewer the more
speculation brings: a plain step costs most where the answer is clear. If utility is below 1,
speculation is off for a while, and each time that it fails again for twice as long.
"""

from __future__ import annotations

WINDOW = 2  # plain steps in a row
REFRESH = 0.006  # share of the time that plain steps may cost
LEAST, MOST = 16, 192  # speculative steps between two windows
FADE = 0.98  # of a comparison, per step
SOON, SURE = 16.0, 40.0  # steps compared before a bad, and a merely poor, utility counts
FIRST_BREAK, LAST_BREAK = 32, 256  # steps without speculation
CHANGED = 1.25  # times the utility believed when it was switched off: worth another look


class Guard:
    def __init__(self) -> None:
        self.breaks = 0  # how often it was switched off
        self._break = FIRST_BREAK
        self._off_for = 0  # steps left
        self._off_believed = 0.0
        self._window = 0  # plain steps left
        self._since = 0  # speculative steps since the last plain one
        self._clear()

    def _clear(self) -> None:
        self._tokens = self._seconds = self._weight = 0.0

    @property
    def utility(self) -> float:
        """As measured; 1 if nothing was."""
        return self._tokens / self._seconds if self._seconds else 1.0

    @property
    def is_off(self) -> bool:
        return self._off_for > 0

    @property
    def break_steps(self) -> int:
        """How long the next break will be."""
        return self._break

    def allows(self, plain_known: bool) -> bool:
        """May this step speculate? Ask once per step."""
        if self._off_for:
            self._off_for -= 1
            return False
        if self._window:
            self._window -= 1
            return False
        if self._since >= (self._interval() if plain_known else LEAST):
            self._since, self._window = 0, WINDOW - 1
            return False
        return True

    def hears(self, believed: float) -> None:
        """Drafts of a step that may not speculate promise a utility of so much."""
        if self._off_for and believed >= self._off_believed * CHANGED:
            self._off_for = 0

    def counts(self, nodes: int) -> None:
        """A step verified so many. Plain steps that come by themselves spare a window."""
        self._since = self._since + 1 if nodes else 0

    def _interval(self) -> int:
        lost = WINDOW * (1 - 1 / max(self.utility, 1.0))
        return int(min(max(lost / REFRESH, LEAST), MOST))

    def observe(self, tokens: float, seconds: float, believed: float) -> None:
        """A speculative step near a plain one brought so many tokens per sequence.

        `seconds`: its time, drafting included, in plain steps.
        """
        self._tokens = self._tokens * FADE + tokens
        self._seconds = self._seconds * FADE + seconds
        self._weight = self._weight * FADE + 1
        if self._weight >= SURE:
            if self.utility < 1:
                self._switch_off(believed)
            elif self.utility > 1.02:
                self._break = FIRST_BREAK
        elif self._weight >= SOON and self.utility < 0.95:
            self._switch_off(believed)

    def _switch_off(self, believed: float) -> None:
        self.breaks += 1
        self._off_for, self._off_believed = self._break, believed
        self._break = min(2 * self._break, LAST_BREAK)
        self._since = 0
        self._clear()
