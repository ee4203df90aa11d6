"""What speculation does and what it brings, as Prometheus metrics of a decode or draft worker."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

POSITIONS = (*(str(position) for position in range(1, 9)), "9+")

_ROUND_TOKENS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 17, 25, 33)


class DrafterMetrics:
    """Whether drafters work. Kept by whoever calls them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.failures = Counter(
            "triptych_drafter_failures_total",
            "Errors of a drafter by what it was asked to do; the first one switches it off",
            ["drafter", "verb"],
            registry=registry,
        )
        self.enabled = Gauge(
            "triptych_drafter_enabled",
            "1: may be asked; 0: switched off after a failure, until the worker starts again",
            ["drafter"],
            registry=registry,
        )


class SpeculationMetrics:
    """What became of drafts, on decode workers. Units are in the names.

    `handoff` tells where a sequence's prompt was computed (home, remote): acceptance that is lower
    behind a remote prefill means that a drafter misses what the prefill worker saw.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.drafters = DrafterMetrics(registry)
        self.decisions = Counter(
            "triptych_draft_decisions_total",
            "Tokens about to be drawn, by what was done: off (no draft wanted; no drafter), empty "
            "(the drafter had none), trimmed (not worth verifying; probes too), verified",
            ["drafter", "decision"],
            registry=registry,
        )
        self.rounds = Counter(
            "triptych_draft_rounds_total",
            "Drafts that were verified",
            ["drafter", "handoff"],
            registry=registry,
        )
        self.drafted = Counter(
            "triptych_drafted_tokens_total",
            "Nodes of the drafts that were verified",
            ["drafter", "handoff"],
            registry=registry,
        )
        self.accepted = Counter(
            "triptych_accepted_tokens_total",
            "Nodes that were right",
            ["drafter", "handoff"],
            registry=registry,
        )
        self.acceptance_length = Histogram(
            "triptych_acceptance_length_tokens",
            "Tokens that a verified draft brought, the one that plain decoding brings included",
            ["drafter"],
            buckets=_ROUND_TOKENS,
            registry=registry,
        )
        self.drafted_at = Counter(
            "triptych_draft_position_drafted_total",
            "Verified drafts that reach a position behind the last token; 9+: all beyond the 8th",
            ["drafter", "position"],
            registry=registry,
        )
        self.accepted_at = Counter(
            "triptych_draft_position_accepted_total",
            "Those whose node at the position was right",
            ["drafter", "position"],
            registry=registry,
        )
        self.draft_seconds = Counter(
            "triptych_draft_seconds_total",
            "Time that steps spent on drafting, waiting for remote drafters included",
            ["drafter"],
            registry=registry,
        )
        self.verify_seconds = Counter(
            "triptych_verify_seconds_total",
            "Time of the rest of the steps that verified a draft",
            registry=registry,
        )
        self.utility = Gauge(
            "triptych_speculation_utility",
            "Tokens per sequence and step over the cost of a step in plain ones, as measured by "
            "the policy; 1: speculation brings nothing; NaN: the policy does not measure",
            registry=registry,
        )
        self.utility.set(float("nan"))
        self.breaks = Gauge(
            "triptych_speculation_breaks",
            "How often the policy has switched speculation off because it did not pay",
            registry=registry,
        )
        self.remote = Counter(
            "triptych_remote_drafts_total",
            "Drafts that a remote drafter was asked for: in-time, late (its end could still be "
            "used), stale (no more use), timeout (not waited for any longer), lost (told in full "
            "again), garbled, disconnected (not asked)",
            ["drafter", "outcome"],
            registry=registry,
        )
        self.remote_connected = Gauge(
            "triptych_remote_drafter_connected",
            "1: a draft worker answers",
            ["drafter"],
            registry=registry,
        )
        self.remote_refused = Counter(
            "triptych_remote_drafter_refusals_total",
            "Draft workers that serve another model or lack the drafter",
            ["drafter"],
            registry=registry,
        )
