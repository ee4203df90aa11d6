"""What admission knows of a request, and what it says when it turns one away."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from router.errors import Refusal
from triptych.errors import CapacityError

Reason = Literal[
    "requests_per_s",
    "tokens_per_s",
    "max_concurrent",
    "queue_full",
    "ttft_slo",
    "deadline",
    "no_workers",
]

# The limits of a tenant, and the codes that say so: OpenAI's where it has one.
_OF_A_TENANT: dict[Reason, str] = {
    "requests_per_s": "rate_limit_exceeded",
    "tokens_per_s": "rate_limit_exceeded",
    "max_concurrent": "concurrency_limit_exceeded",
}


@dataclass(frozen=True, slots=True)
class Ask:
    """One HTTP request. Times are seconds of one monotonic clock."""

    tenant: str
    prompt_tokens: int  # of all its prompts
    max_tokens: int  # of one choice
    sequences: int  # prompts times n
    arrived: float
    prompts: int = 1
    priority: int = 0  # lower is sooner
    deadline: float = math.inf  # the whole answer is worth nothing later
    body_bytes: int = 0  # that it came in; 0: it did not say how many


@dataclass(frozen=True, slots=True)
class Turned:
    """A refusal as a value: the caller raises it where there is somebody to tell."""

    reason: Reason
    message: str
    retry_after_s: float

    def error(self, headers: Mapping[str, str]) -> CapacityError:
        """`headers`: what the answer tells of the tenant's limits."""
        if self.reason == "no_workers":
            return CapacityError(self.message)
        return Refusal(
            self.message,
            type="rate_limit_error" if self.reason in _OF_A_TENANT else "overloaded_error",
            code=_OF_A_TENANT.get(self.reason, self.reason),
            retry_after_s=self.retry_after_s,
            headers=headers,
        )
