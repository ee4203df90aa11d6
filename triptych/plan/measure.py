"""What an attention/FFN split costs on this machine: `triptych doctor --afd`.

Three things are timed apart, each through the code that serves: steps of the engine whose
feed-forward parts are left out, the units of one layer alone, and messages that nobody computes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from triptych.config import ClusterConfig
from triptych.engine.backend import choose_backend
from triptych.hub import resolve_model
from triptych.launch.machine import this_machine, usable_cores
from triptych.plan.measure_attention import AttentionTimes, time_attention
from triptych.plan.measure_ffn import FfnTimes, time_ffn
from triptych.plan.measure_link import LinkTimes, time_link
from triptych.plan.measured import Coefficients, Measured
from triptych_kernels.cpu.native import set_threads

Say = Callable[[str], None]


def measure_afd(config: ClusterConfig, say: Say = lambda text: None) -> Measured:
    """Takes about a minute. Raises ModelError, or ConfigError without native kernels."""
    threads = usable_cores()
    set_threads(threads)
    backend = choose_backend(config.dtype, config.kv.dtype, config.quant_group)
    path = resolve_model(config.model)
    say("timing attention")
    attention = time_attention(path, backend, config.kv.block_tokens)
    say("timing feed-forward units")
    ffn = time_ffn(path, backend)
    say("timing messages")
    link = time_link(config.experts.links[0], attention.hidden)
    device = f"{threads} threads, {' '.join(this_machine().cpu_features)}, {backend.identity}"
    return Measured(
        costs=coefficients(attention, ffn, link),
        model=config.served_name,
        attention_device=device,
        ffn_device=device,
    )


def coefficients(attention: AttentionTimes, ffn: FfnTimes, link: LinkTimes) -> Coefficients:
    """Least squares, nothing below zero. Pure."""
    token, row, base = fit(attention.seconds, attention.tokens, attention.rows)
    cell, _ = fit(ffn.row_seconds, ffn.rows)
    expert, ffn_base = fit(ffn.expert_seconds, ffn.experts)
    byte, link_base = fit(link.seconds, link.nbytes)
    gbs = 1e-9 / max(byte, 1e-15)
    return Coefficients(
        attention_token_us=1e6 * token,
        attention_row_us=1e6 * row,
        attention_base_us=1e6 * base,
        ffn_cell_us=1e6 * max(cell, 1e-12),
        expert_us=1e6 * expert,
        ffn_base_us=1e6 * ffn_base,
        link_gbs=gbs,
        ffn_link_gbs=gbs,
        link_base_us=1e6 * link_base,
    )


def fit(seconds: NDArray[np.float64], *causes: NDArray[np.float64]) -> list[float]:
    """Slope of each cause, and the base: relative errors count, so that small times do too."""
    table = np.stack([*causes, np.ones_like(seconds)], axis=1)
    active = list(range(table.shape[1]))
    while True:
        scaled = table[:, active] / seconds[:, None]
        found = np.linalg.lstsq(scaled, np.ones_like(seconds), rcond=None)[0]
        if (found >= 0).all() or len(active) == 1:
            break
        active.pop(int(np.argmin(found)))
    result = np.zeros(table.shape[1])
    result[active] = np.maximum(found, 0.0)
    return [float(value) for value in result]
