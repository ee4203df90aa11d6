"""From the configuration to drafters and a policy."""

from __future__ import annotations

from decode_worker.speculate.acceptance import AcceptanceRule, Equality, InLaw
from decode_worker.speculate.dice import Dice
from decode_worker.speculate.fixed import Fixed
from decode_worker.speculate.policy import BudgetPolicy
from decode_worker.speculate.speculator import Speculator
from decode_worker.speculate.table import Table
from decode_worker.speculate.utility import Utility
from triptych.drafters.drafter import Drafter
from triptych.drafters.ngram import NgramDrafter
from triptych.drafters.suffix import SuffixDrafter, SuffixOptions
from triptych.speculation_config import DrafterConfig, NgramConfig, SpeculationConfig
from triptych.worker.boot import EngineParts
from triptych_kernels.verification import block, rejection


def make_speculator(config: SpeculationConfig, parts: EngineParts) -> Speculator:
    policy = _policy(config)
    drafters = () if policy is None else config.drafters
    return Speculator(
        parts.scheduler,
        {drafter.kind: _drafter(drafter) for drafter in drafters},
        policy,
        max_model_len=parts.max_model_len,
        vocab_size=parts.model.config.vocab_size,
        max_nodes=config.max_nodes,
        rule=make_rule(config),
    )


def make_rule(config: SpeculationConfig) -> AcceptanceRule:
    """Where nobody drafts, equality is plain decoding at its plain price."""
    if config.mode == "off" or config.rule == "equality":
        return Equality()
    return InLaw(rejection if config.rule == "rejection" else block)


def _policy(config: SpeculationConfig) -> BudgetPolicy | None:
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
            return Utility()


def _drafter(config: DrafterConfig) -> Drafter:
    if isinstance(config, NgramConfig):
        return NgramDrafter(config.min_n, config.max_n)
    return SuffixDrafter(
        SuffixOptions(depth=config.depth, min_prob=config.min_prob, tree=config.trees)
    )
