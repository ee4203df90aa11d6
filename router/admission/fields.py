"""What a request says about its own admission, checked against what its tenant may ask for."""

from __future__ import annotations

import re
from collections.abc import Mapping

from router.admission.ask import Ask
from router.schema import MAX_DEADLINE_MS, GenerationBody
from triptych.admission_config import TenantConfig
from triptych.errors import RequestError
from triptych.request import SparseAttention

DEADLINE_HEADER = "X-Request-Deadline-Ms"
_LENGTH = re.compile(r"[0-9]{1,12}")

_SALT, _SPARSE_SALT = "tenant:", "sparse:"


def ask_of(
    headers: Mapping[str, str],
    body: GenerationBody,
    tenant: TenantConfig,
    *,
    prompt_tokens: int,
    max_tokens: int,
    prompts: int,
    arrived: float,
    longest_s: float,
) -> Ask:
    """`arrived`: time.monotonic(). Raises RequestError naming the field."""
    limits_ms = [longest_s * 1000, _header_ms(headers), body.deadline_ms]
    return Ask(
        tenant=tenant.name,
        prompt_tokens=prompt_tokens,
        max_tokens=max_tokens,
        sequences=prompts * body.choices,
        prompts=prompts,
        arrived=arrived,
        priority=priority_of(tenant, body.priority),
        deadline=arrived + min(limit for limit in limits_ms if limit is not None) / 1000,
        body_bytes=body_bytes(headers),
    )


def body_bytes(headers: Mapping[str, str]) -> int:
    """As the head declares them; 0: it does not."""
    declared = headers.get("content-length", "")
    return int(declared) if _LENGTH.fullmatch(declared) else 0


def salt_of(tenant: TenantConfig, asked: str, sparse: SparseAttention | None = None) -> str:
    """The cache salt of a request: an isolated tenant's differs from everybody else's, and so does
    that of KV which sparse attention made.

    Raises RequestError where a caller's own salt would pass for one of the router's.
    """
    if sparse is not None:
        return f"{_SPARSE_SALT}{sparse.identity}:{salt_of(tenant, asked)}"
    if tenant.isolate:
        return f"{_SALT}{tenant.name}:{asked}"
    if asked.startswith((_SALT, _SPARSE_SALT)):
        raise RequestError(
            f"cache_salt: salts that begin with {_SALT!r} or {_SPARSE_SALT!r} are the router's; "
            "choose another one",
            param="cache_salt",
        )
    return asked


def priority_of(tenant: TenantConfig, asked: int | None) -> int:
    """Raises RequestError outside of the tenant's bounds. Left out: 0, or the bound next to it."""
    low, high = tenant.min_priority, tenant.max_priority
    if asked is None:
        return max(low or 0, 0) if high is None else min(max(low or 0, 0), high)
    if (low is not None and asked < low) or (high is not None and asked > high):
        bounds = f"{'-inf' if low is None else low} to {'inf' if high is None else high}"
        raise RequestError(
            f"priority: this API key may use {bounds}, where lower is sooner; not {asked}",
            param="priority",
        )
    return asked


def _header_ms(headers: Mapping[str, str]) -> float | None:
    given = headers.get(DEADLINE_HEADER)
    if given is None:
        return None
    try:
        milliseconds = float(given)
    except ValueError:
        milliseconds = 0.0
    if not 0 < milliseconds <= MAX_DEADLINE_MS:  # NaN is not
        raise RequestError(
            f"{DEADLINE_HEADER}: {given[:100]!r} should be milliseconds from now, "
            f"more than 0 and at most {MAX_DEADLINE_MS}",
            param=DEADLINE_HEADER,
        )
    return milliseconds
