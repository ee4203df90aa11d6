"""What one tenant may ask for, whatever the cluster has room for. Pure: told the time."""

from __future__ import annotations

import math
from collections.abc import Mapping

from router.admission.ask import Turned
from router.admission.bucket import TokenBucket
from triptych.admission_config import TenantConfig

_TOKEN_BURST_S = 10.0


class TenantLimits:
    """Rates and concurrency of one tenant, and how they are told to it."""

    def __init__(self, tenant: TenantConfig) -> None:
        self._max_concurrent = tenant.max_concurrent
        self._requests = _bucket(tenant.requests_per_s, tenant.request_burst, 1.0)
        self._tokens = _bucket(tenant.tokens_per_s, tenant.token_burst, _TOKEN_BURST_S)
        self._open = 0
        self._mean_s = 1.0  # life of a request

    def check(self, cost: float, now: float) -> Turned | None:
        """Of a new request that may cost so many tokens; None: let it in, with `enter`."""
        if self._max_concurrent is not None and self._open >= self._max_concurrent:
            message = f"{self._open} requests of this API key are open, which is its limit"
            return Turned("max_concurrent", message, self._mean_s / self._open)
        if self._requests is not None and (wait_s := self._requests.wait_s(1, now)):
            message = f"over this API key's limit of {self._requests.rate:g} requests per second"
            return Turned("requests_per_s", message, wait_s)
        if self._tokens is not None and (wait_s := self._tokens.wait_s(cost, now)):
            message = f"over this API key's limit of {self._tokens.rate:g} tokens per second"
            return Turned("tokens_per_s", message, wait_s)
        return None

    def enter(self, cost: float, now: float) -> None:
        self._open += 1
        if self._requests is not None:
            self._requests.take(1, now)
        if self._tokens is not None:
            self._tokens.take(cost, now)

    def leave(self, difference: float, lived_s: float, now: float) -> None:
        """It cost so much more (or less) than was said when it entered."""
        self._open -= 1
        self._mean_s += (lived_s - self._mean_s) / 8
        if self._tokens is not None:
            self._tokens.take(difference, now)

    def headers(self, now: float) -> dict[str, str]:
        """OpenAI's, for the limits there are."""
        return {
            name: value
            for kind, bucket in (("requests", self._requests), ("tokens", self._tokens))
            if bucket is not None
            for name, value in _told(kind, bucket, now).items()
        }


def _bucket(rate: float | None, burst: float | None, burst_s: float) -> TokenBucket | None:
    return None if rate is None else TokenBucket(rate, burst or max(1.0, burst_s * rate))


def _told(kind: str, bucket: TokenBucket, now: float) -> Mapping[str, str]:
    return {
        f"x-ratelimit-limit-{kind}": str(math.floor(bucket.burst)),
        f"x-ratelimit-remaining-{kind}": str(max(0, math.floor(bucket.level(now)))),
        f"x-ratelimit-reset-{kind}": duration(bucket.full_in_s(now)),
    }


def duration(seconds: float) -> str:
    """As OpenAI spells it: "20ms", "1.5s", "6m0s"."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < 60:
        return f"{math.ceil(seconds * 10) / 10:g}s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s"
