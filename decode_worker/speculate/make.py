"""From the configuration to drafters and a policy."""

from __future__ import annotations

from collections.abc import Callable

from decode_worker.speculate.dice import Dice
from decode_worker.speculate.fixed import Fixed
from decode_worker.speculate.policy import BudgetPolicy
from decode_worker.speculate.speculator import Speculator
from decode_worker.speculate.table import Table
from decode_worker.speculate.utility import Utility
from triptych.drafters.drafter import Drafter
from triptych.drafters.make import make_drafter
from triptych.errors import ConfigError
from triptych.obs.speculation import SpeculationMetrics
from triptych.speculation_config import DrafterConfig, RemoteConfig, SpeculationConfig
from triptych.worker.boot import EngineParts

MakeRemote = Callable[[RemoteConfig], Drafter]


def make_speculator(
    config: SpeculationConfig,
    parts: EngineParts,
    metrics: SpeculationMetrics | None = None,
    remote: MakeRemote | None = None,
) -> Speculator:
    """metrics None: nobody reads them; remote None: nobody drafts elsewhere."""
    policy = _policy(config)
    if metrics is not None and isinstance(policy, Utility):
        metrics.utility.set_function(lambda: policy.guard.utility)
        metrics.breaks.set_function(lambda: policy.guard.breaks)
    drafters = () if policy is None else config.drafters
    return Speculator(
        parts.scheduler,
        {drafter.kind: _drafter(drafter, remote or _nowhere) for drafter in drafters},
        policy,
        max_model_len=parts.max_model_len,
        vocab_size=parts.model.config.vocab_size,
        max_nodes=config.max_nodes,
        metrics=metrics,
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


def _drafter(config: DrafterConfig, remote: MakeRemote) -> Drafter:
    return remote(config) if isinstance(config, RemoteConfig) else make_drafter(config)


def _nowhere(config: RemoteConfig) -> Drafter:
    raise ConfigError("speculation.drafters: a remote drafter needs a decode worker's process")
