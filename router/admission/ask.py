"""What admission knows of a request, and what it says when it turns one away."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
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


@dataclass(frozen=True, slots=True)
class Turned:
    """A refusal as a value: the caller raises it where there is somebody to tell."""

    reason: Reason
    message: str
    retry_after_s: float
    headers: Mapping[str, str] = field(default_factory=dict)

    def error(self) -> CapacityError:
        if self.reason == "no_workers":
            return CapacityError(self.message)
        tenants_own = self.reason in ("requests_per_s", "tokens_per_s", "max_concurrent")
        return Refusal(
            self.message,
            type="rate_limit_error" if tenants_own else "overloaded_error",
            code="rate_limit_exceeded" if tenants_own else self.reason,
            retry_after_s=self.retry_after_s,
            headers=self.headers,
        )
