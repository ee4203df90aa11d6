"""What a model whose layers keep states (linear attention) asks of a worker's settings."""

from __future__ import annotations

from triptych.config import ClusterConfig
from triptych.engine.backend import Backend
from triptych.errors import ConfigError
from triptych.models.config import ModelConfig
from triptych.speculation_config import SpeculationConfig


def check_settings(config: ClusterConfig, backend: Backend, model: ModelConfig) -> None:
    """Raises ConfigError for what does not go together with states, with the remedy."""
    if model.delta is None:
        return
    if backend.kv == "int8":
        raise ConfigError(
            f"kv.dtype: {model.architecture} attends in plain torch, which reads no int8: set "
            "bfloat16 or float32"
        )
    if config.remote_experts:
        raise ConfigError(
            f"experts.run: {model.architecture} computes all its experts itself: set "
            "experts.run: local"
        )
    speculation_beside(model, config.speculation)


def speculation_beside(model: ModelConfig, wanted: SpeculationConfig) -> SpeculationConfig:
    """What was wanted, or no drafts where nobody asked for any and the model cannot verify them.

    Raises ConfigError where somebody did ask. Pure.
    """
    if model.delta is None or wanted.mode == "off":
        return wanted
    default = SpeculationConfig()  # workers get the whole configuration: who wrote what is lost
    if (wanted.mode, wanted.drafters) != (default.mode, default.drafters):
        raise ConfigError(
            f"speculation: {model.architecture} keeps states, which cannot take a draft back: set "
            "speculation.mode: off"
        )
    return wanted.model_copy(update={"mode": "off"})
