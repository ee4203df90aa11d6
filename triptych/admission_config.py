"""The `router.tenants`, `router.slo` and `router.admission` sections of the configuration."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

DEFAULT_TENANT = "default"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TenantConfig(_Frozen):
    """Who shares the cluster with others, how much of it they get, and how fast they may ask.

    The tenant `default` has `router.api_keys`, or everybody where there are no keys at all.
    """

    name: str = Field(pattern=r"^[a-z0-9]([-_.a-z0-9]{0,62}[a-z0-9])?$")
    keys: tuple[str, ...] = ()
    key_file: Path | None = Field(None, description="one API key a line; # begins a comment")
    weight: float = Field(1.0, gt=0, le=1e6, description="share of the tokens under contention")
    min_priority: int | None = Field(None, description="the soonest it may ask for")
    max_priority: int | None = None
    requests_per_s: float | None = Field(None, gt=0)
    request_burst: float | None = Field(None, ge=1, description="default: one second's, 1 at least")
    tokens_per_s: float | None = Field(None, gt=0, description="prompt and answer")
    token_burst: float | None = Field(None, ge=1, description="default: ten seconds' worth")
    max_concurrent: int | None = Field(None, ge=1, description="requests, waiting ones included")
    isolate: bool = Field(False, description="share no cached prefix with other tenants")

    @model_validator(mode="after")
    def _check(self) -> TenantConfig:
        where = f"tenant {self.name!r}"
        if "" in self.keys:
            raise ValueError(f"keys: {where} has an empty key, which would let everybody in")
        if not self.keys and self.key_file is None and self.name != DEFAULT_TENANT:
            raise ValueError(f"keys: {where} needs keys or a key_file, else nobody can be it")
        low, high = self.min_priority, self.max_priority
        if low is not None and high is not None and low > high:
            raise ValueError(f"min_priority: {low} of {where} is more than max_priority, {high}")
        for burst, rate in (("request_burst", "requests_per_s"), ("token_burst", "tokens_per_s")):
            if getattr(self, burst) is not None and getattr(self, rate) is None:
                raise ValueError(f"{burst}: {where} has no {rate} for it to go with")
        return self


class SloConfig(_Frozen):
    """What an answer must keep to be worth computing. Left out: nothing is turned away for it, and
    placement weighs by five seconds and a tenth.
    """

    ttft_ms: float | None = Field(None, gt=0, description="body read to first token")
    itl_ms: float | None = Field(None, gt=0, description="mean time between tokens")


class AdmissionConfig(_Frozen):
    """What waits at the router, and how much the workers get at a time."""

    max_queued: int = Field(1024, ge=1, description="requests; more get a 429")
    max_queued_tokens: int = Field(8 << 20, ge=1, description="prompt tokens; more get a 429")
    prefill_tokens: int = Field(
        0, ge=0, description="prompt tokens under way per prefilling worker; 0: eight steps' worth"
    )
    aging_s: float = Field(
        30.0, gt=0, description="one step of priority is worth so long a wait; nobody starves"
    )


def check_tenants(tenants: tuple[TenantConfig, ...], api_keys: tuple[str, ...]) -> None:
    """Raises ValueError for what two tenants cannot share."""
    names = [tenant.name for tenant in tenants]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"tenants: two are named {name!r}")
    owners = dict.fromkeys(api_keys, DEFAULT_TENANT)
    for tenant in tenants:
        for key in tenant.keys:
            owner = owners.setdefault(key, tenant.name)
            if owner != tenant.name:
                raise ValueError(f"tenants: {owner!r} and {tenant.name!r} have a key in common")
