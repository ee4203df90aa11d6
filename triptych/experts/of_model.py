"""Which parts of a model may run elsewhere."""

from __future__ import annotations

from triptych.experts.unit_map import UnitMap
from triptych.models.config import ModelConfig
from triptych.models.units import may_leave, num_units


def unit_map(config: ModelConfig) -> UnitMap:
    layers = range(config.num_layers)
    return UnitMap(
        tuple(num_units(config, layer) if may_leave(config, layer) else 0 for layer in layers)
    )
