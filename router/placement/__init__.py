"""Which home and which prefill worker a request gets. Values in, a value out.

A policy is one function of the `PlacementPolicy` shape. It sees what the workers last reported and
what this router has sent them since: reports are up to a quarter of a second old, a burst of
requests is faster.
"""

from __future__ import annotations

from collections.abc import Mapping

from router.placement.candidates import homes
from router.placement.least_cost import predicted
from router.placement.prefix import block_cost, cache_aware
from router.placement.request import (
    DEFAULT_SLO,
    Placement,
    PlacementPolicy,
    PlacementRequest,
    Prediction,
    Sent,
    Slo,
    objectives,
)
from router.placement.simple import least_loaded, power_of_two, round_robin
from triptych.config import PlacementName

POLICIES: Mapping[PlacementName, PlacementPolicy] = {
    "predicted": predicted,
    "least-loaded": least_loaded,
    "power-of-two": power_of_two,
    "round-robin": round_robin,
    "cache-aware": cache_aware,
    "block-cost": block_cost,
}

__all__ = [
    "DEFAULT_SLO",
    "POLICIES",
    "Placement",
    "PlacementPolicy",
    "PlacementRequest",
    "Prediction",
    "Sent",
    "Slo",
    "homes",
    "objectives",
]
