"""A plan with all that one should know before believing it."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from triptych.plan.afd import Plan, best_plans, ffn_bandwidth_floor
from triptych.plan.colocated import Colocated, best_colocated
from triptych.plan.inputs import PlanInputs
from triptych.plan.lengths import SlotLoad, slowest_of

_SKEWED = 1.0  # skewness of a device's load from which no normal law describes the fullest one
_VAGUE = 0.05  # relative standard error of theta


@dataclass(frozen=True, slots=True)
class Answer:
    plan: Plan
    near: tuple[Plan, ...]  # within 1 % of the best score, best first
    colocated: Colocated | None  # the same number of devices without a split; None: impossible
    load: SlotLoad
    floor_gbs: float  # below it the link is slower than a compute-bound FFN
    link_gbs: float
    notes: tuple[str, ...]  # what speaks against the plan, or against believing it

    @property
    def split_pays(self) -> bool:
        return self.colocated is None or self.plan.score > self.colocated.score


def find_answer(inputs: PlanInputs, load: SlotLoad) -> Answer:
    """Raises ConfigError naming the limit when no plan is possible."""
    plan, *near = best_plans(inputs, load)
    colocated = best_colocated(inputs, load, plan.attention + plan.ffn)
    floor = ffn_bandwidth_floor(inputs, plan.ffn)
    return Answer(
        plan=plan,
        near=tuple(near),
        colocated=colocated,
        load=load,
        floor_gbs=floor,
        link_gbs=inputs.costs.ffn_link_gbs,
        notes=tuple(_notes(inputs, load, plan, colocated, floor)),
    )


def _notes(
    inputs: PlanInputs, load: SlotLoad, plan: Plan, colocated: Colocated | None, floor: float
) -> list[str]:
    notes = []
    if colocated is not None and colocated.score >= plan.score:
        gain = colocated.score / plan.score - 1
        notes.append(
            f"do not split: {colocated.devices} devices that do both ({colocated.way}) make "
            f"{gain:.0%} more per price"
        )
    link = inputs.costs.ffn_link_gbs
    if link < floor:
        notes.append(
            f"dead zone: FFN links of {link:.3g} GB/s are below the floor of {floor:.3g} GB/s: a "
            "compute-bound FFN waits for them, however many devices it has"
        )
    skew = load.skew / sqrt(plan.slots)
    if skew > _SKEWED and plan.attention > 1:
        share = sqrt(plan.slots) * load.nu * slowest_of(plan.attention) / (plan.slots * load.theta)
        notes.append(
            f"heavy tails: how much fuller the fullest attention device is ({share:.0%} assumed) "
            "is not to be trusted; simulate before buying"
        )
    if load.error > _VAGUE:
        notes.append(f"the trace is short: tokens per slot are uncertain by {load.error:.0%}")
    if plan.attention == inputs.devices.max_attention:
        notes.append(
            "as many attention devices as allowed; raise devices.max_attention to see more"
        )
    if plan.ffn == inputs.devices.max_ffn:
        notes.append("FFN devices at their limit; raise devices.max_ffn to see more")
    return notes
