"""From the configuration to drafters and a policy."""

from __future__ import annotations

from decode_worker.speculate.dice import Dice
from decode_worker.speculate.fixed import Fixed
from decode_worker.speculate.policy import BudgetPolicy
from decode_worker.speculate.speculator import Speculator
from decode_worker.speculate.table import Table
from decode_worker.speculate.utility import Utility
from triptych.drafters.drafter import Drafter
from triptych.drafters.ngram import NgramDrafter
from triptych.drafters.sparse_self import SparseDrafter, SparseOptions
from triptych.drafters.suffix import SuffixDrafter, SuffixOptions
from triptych.engine.sampler import Sampler
from triptych.speculation_config import (
    DrafterConfig,
    NgramConfig,
    SparseConfig,
    SpeculationConfig,
)
from triptych.worker.boot import EngineParts


def make_speculator(config: SpeculationConfig, parts: EngineParts) -> Speculator:
    policy = _policy(config)
    drafters = () if policy is None else config.drafters
    return Speculator(
        parts.scheduler,
        {drafter.kind: _drafter(drafter, parts) for drafter in drafters},
        policy,
        max_model_len=parts.max_model_len,
        vocab_size=parts.model.config.vocab_size,
        max_nodes=config.max_nodes,
    )


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


def _drafter(config: DrafterConfig, parts: EngineParts) -> Drafter:
    if isinstance(config, NgramConfig):
        return NgramDrafter(config.min_n, config.max_n)
    if isinstance(config, SparseConfig):
        sampler = Sampler(parts.model.config.eos_token_ids)
        options = SparseOptions(config.ratio, config.min_tokens)
        return SparseDrafter(parts.runner, sampler, options)
    return SuffixDrafter(
        SuffixOptions(depth=config.depth, min_prob=config.min_prob, tree=config.trees)
    )
