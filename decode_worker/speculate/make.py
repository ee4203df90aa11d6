"""From the configuration to drafters and a policy."""

from __future__ import annotations

from decode_worker.speculate.acceptance import AcceptanceRule, Equality, InLaw
from decode_worker.speculate.dice import Dice
from decode_worker.speculate.fixed import Fixed
from decode_worker.speculate.length_aware import LengthAware
from decode_worker.speculate.make_drafter import DrafterMaker, MakeRemote
from decode_worker.speculate.policy import BudgetPolicy
from decode_worker.speculate.speculator import Speculator
from decode_worker.speculate.table import Table
from decode_worker.speculate.utility import Utility
from triptych.drafters.drafter import Drafter
from triptych.engine.sampler import Sampler
from triptych.obs.speculation import SpeculationMetrics
from triptych.speculation_config import SpeculationConfig
from triptych.worker.boot import EngineParts
from triptych.worker.on_states import speculation_beside
from triptych_kernels.verification import block, rejection


def make_speculator(
    config: SpeculationConfig,
    parts: EngineParts,
    sampler: Sampler,
    metrics: SpeculationMetrics | None = None,
    remote: MakeRemote | None = None,
) -> Speculator:
    """sampler: what draws the target's tokens, so that drafts are drawn alike; metrics None: nobody
    reads them; remote None: nobody drafts elsewhere.
    """
    config = speculation_beside(parts.model.config, config)
    make = DrafterMaker(parts, sampler, remote)
    wanted = () if config.mode == "off" else config.drafters
    drafters: dict[str, Drafter] = {drafter.kind: make(drafter) for drafter in wanted}
    policy = _policy(config, may_sleep=not make.teachers)  # a head that learns sees everything
    if metrics is not None and isinstance(policy, Utility):
        metrics.utility.set_function(lambda: policy.guard.utility)
        metrics.breaks.set_function(lambda: policy.guard.breaks)
    return Speculator(
        parts.scheduler,
        drafters,
        policy,
        max_model_len=parts.max_model_len,
        vocab_size=parts.model.config.vocab_size,
        max_nodes=config.max_nodes,
        rule=make_rule(config),
        metrics=metrics,
        teachers=make.teachers,
    )


def make_rule(config: SpeculationConfig) -> AcceptanceRule:
    """Where nobody drafts, equality is plain decoding at its plain price."""
    if config.mode == "off" or config.rule == "equality":
        return Equality()
    return InLaw(rejection if config.rule == "rejection" else block)


def _policy(config: SpeculationConfig, *, may_sleep: bool) -> BudgetPolicy | None:
    match config.mode:
        case "off":
            return None
        case "fixed":
            return Fixed(config.drafters[0].kind, config.max_nodes)
        case "table":
            return Table(config.drafters[0].kind, config.nodes_from)
        case "dice":
            return Dice(config.max_nodes)
        case "auto":
            return Utility(may_sleep=may_sleep)
        case "length_aware":
            return LengthAware(Utility(may_sleep=may_sleep))
