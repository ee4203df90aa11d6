"""Laws of lengths and kinds of hardware that plans are judged on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bench.afd_stations import Array, Draw
from triptych.plan.inputs import PlanInputs, parse_inputs


def constant(length: int) -> Draw:
    return lambda random, size: (_geometric(random, 1000, size), np.full(size, float(length)))


def geometric(prompt: float, output: float) -> Draw:
    return lambda random, size: (
        _geometric(random, prompt, size),
        _geometric(random, output, size),
    )


def uniform(low: int, high: int) -> Draw:
    return lambda random, size: (
        _geometric(random, 1000, size),
        random.integers(low, high + 1, size).astype(np.float64),
    )


def lognormal(mean: float, sigma: float) -> Draw:
    return lambda random, size: (
        _geometric(random, 1000, size),
        np.maximum(1, np.rint(random.lognormal(np.log(mean) - sigma**2 / 2, sigma, size))),
    )


def two_kinds(random: np.random.Generator, size: int) -> tuple[Array, Array]:
    """Chats, and a fifth of documents that get short answers."""
    documents = random.random(size) < 0.2
    prompts = np.where(documents, _geometric(random, 6000, size), _geometric(random, 300, size))
    outputs = np.where(documents, _geometric(random, 80, size), _geometric(random, 400, size))
    return prompts, outputs


def _geometric(random: np.random.Generator, mean: float, size: int) -> Array:
    return random.geometric(1 / mean, size).astype(np.float64)


LAWS: Mapping[str, Draw] = {
    "constant 500": constant(500),
    "geometric 200/300": geometric(200, 300),
    "geometric 1000/500": geometric(1000, 500),
    "uniform 100-900": uniform(100, 900),
    "lognormal 0.6": lognormal(500, 0.6),
    "lognormal 1": lognormal(500, 1.0),
    "chats, documents": two_kinds,
}

_MODEL = {"layers": 24, "hidden": 4096, "kv_bytes": 50_000, "expert_bytes": "10MB"}
_COSTS = {
    "attention_token_us": 0.004,
    "attention_base_us": 40,
    "ffn_cell_us": 0.4,
    "ffn_base_us": 40,
    "link_gbs": 50,
    "ffn_link_gbs": 100,
    "link_base_us": 10,
}
_DEVICES = {"attention_memory": "12GB", "ffn_memory": "40GB", "max_attention": 12, "max_ffn": 4}
HARDWARE: Mapping[str, dict[str, Any]] = {
    "mixture": {"model": {"experts": 32, "top_k": 4}, "costs": {"expert_us": 6}},
    "mixture, 25 ms": {
        "model": {"experts": 32, "top_k": 4},
        "costs": {"expert_us": 6},
        "goals": {"tpot_ms": 25},
    },
    "slow links": {
        "model": {"experts": 32, "top_k": 4},
        "costs": {"expert_us": 6, "link_gbs": 12.5, "ffn_link_gbs": 12.5},
        "wire": {"returns": "sum"},
    },
    "dense": {"costs": {"ffn_cell_us": 1.2, "expert_us": 80}},
    "cheap FFN, drafts": {
        "model": {"experts": 64, "top_k": 6},
        "costs": {"expert_us": 4, "attention_row_us": 0.3},
        "devices": {"ffn_price": 0.4},
        "goals": {"draft_tokens": 3, "tokens_per_step": 2.2, "copies": 1},
    },
}


def make_inputs(hardware: str) -> PlanInputs:
    given = HARDWARE[hardware]
    base: dict[str, dict[str, Any]] = {"model": _MODEL, "costs": _COSTS, "devices": _DEVICES}
    return parse_inputs(
        {name: {**base.get(name, {}), **given.get(name, {})} for name in {**base, **given}}
    )
