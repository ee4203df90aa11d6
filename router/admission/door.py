"""Who can be turned away by a request's head alone: its key, and how long its body is.

Reading a body, checking and tokenising it costs several times what it costs to say no. Where
clients ask again and again, that is what a router without this spends its time on, instead of on
the streams it has admitted.

Two judgements, both the gate's own. What would be turned away even with a prompt of one token is
turned away: that is certain. Else the prompt is estimated by the body's length. An estimate that
nobody checks could turn a tenant away for ever; so one request now and then goes in all the same,
and whatever becomes of it, its body tells how long prompts are.

Pure: told the time, of one monotonic clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from router.admission.ask import Ask, Turned
from router.admission.gate import Gate

_CHECK_S = 0.25  # between estimates of one tenant that are checked
_RATE = 1 / 8  # weight of a new observation


@dataclass(slots=True)
class _Habits:
    """Of one tenant, as far as they are known."""

    tokens_per_byte: float = 0.0  # of a body
    soonest: int = 0  # priority that it asked for
    checked_at: float = -math.inf


class Door:
    """Before the gate."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._habits: dict[str, _Habits] = {}

    def refusal(self, tenant: str, body_bytes: int, now: float) -> Turned | None:
        """None: read what it asks for. `body_bytes`: 0 where the head does not say."""
        habits = self._of(tenant)
        certain = self._gate.refusal(_ask(tenant, 1, habits, now), now)
        if certain is not None:
            return certain
        prompt_tokens = round(body_bytes * habits.tokens_per_byte)
        if prompt_tokens <= 1:
            return None
        likely = self._gate.refusal(_ask(tenant, prompt_tokens, habits, now), now)
        if likely is not None and now - habits.checked_at >= _CHECK_S:
            habits.checked_at = now
            return None
        return likely

    def learn(self, ask: Ask) -> None:
        """A request whose body was read, whatever becomes of it."""
        habits = self._of(ask.tenant)
        habits.soonest = min(habits.soonest, ask.priority)
        if ask.body_bytes:
            ratio = ask.prompt_tokens / ask.body_bytes
            known = habits.tokens_per_byte or ratio
            habits.tokens_per_byte = known + (ratio - known) * _RATE

    def _of(self, tenant: str) -> _Habits:
        return self._habits.setdefault(tenant, _Habits())


def _ask(tenant: str, prompt_tokens: int, habits: _Habits, now: float) -> Ask:
    """The least that such a request can be: one short answer, as urgent as any before."""
    return Ask(tenant, prompt_tokens, 1, 1, now, priority=habits.soonest)
