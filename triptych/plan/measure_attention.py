"""How long a layer takes at home: everything but its units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triptych.engine.backend import Backend
from triptych.engine.rows import RowJob
from triptych.engine.runner import Runner, make_runner
from triptych.engine.sequence import Sequence as Tokens
from triptych.engine.storage import KvStorage
from triptych.errors import ModelError
from triptych.kv.layout import KvLayout
from triptych.models.load import load_config, load_model
from triptych.request import SamplingParams

_SHAPES = ((1, 64), (1, 2048), (8, 128), (8, 1024), (32, 64), (32, 512))  # rows, tokens of each
_TURNS = 9  # steps of each, the first of which only warm up
_WARM = 2


@dataclass(frozen=True, slots=True)
class AttentionTimes:
    """Of a layer: seconds behind `tokens` cached tokens in all, for `rows` rows."""

    hidden: int
    tokens: NDArray[np.float64]
    rows: NDArray[np.float64]
    seconds: NDArray[np.float64]


class NoUnits:
    """DistantExperts that answer nothing but zeros, at once; keeps what the home's part took."""

    def __init__(self, hidden: int, top_k: int, cell_dtype: torch.dtype) -> None:
        self._shape = top_k, hidden
        self._dtype = cell_dtype
        self._away: dict[int, int] = {}  # rows by lane
        self.attention_s = 0.0  # of the last step

    def num_lanes(self, rows: int) -> int:
        return 1

    def send(self, lane: int, layer: int, rows: Tensor, ids: Tensor | None) -> None:
        self._away[lane] = len(rows)

    def returned(self) -> Sequence[int]:
        return list(self._away)

    def cells(self, lane: int) -> Tensor:
        top_k, hidden = self._shape
        return torch.zeros(self._away[lane] * top_k, hidden, dtype=self._dtype)

    def end(self, lane: int) -> None:
        del self._away[lane]

    def stepped(self, rows: int, lanes: int, attention_s: float, step_s: float) -> None:
        self.attention_s = attention_s


def time_attention(path: Path, backend: Backend, block_tokens: int) -> AttentionTimes:
    """Raises ModelError."""
    config = load_config(path)
    if config.delta is not None:
        raise ModelError(
            f"{path}: {config.architecture} computes all its experts itself: there is nothing to "
            "plan, set experts.run: local"
        )
    top_k = 1 if config.moe is None else config.moe.routing.top_k
    single = config.moe is None or backend.weights == "float32"
    units = NoUnits(config.hidden_size, top_k, torch.float32 if single else torch.bfloat16)
    model = load_model(
        path, dtype=backend.weights, group=backend.group, packer=backend.packer, distant=units
    )
    layout = KvLayout(
        num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        block_tokens=block_tokens,
        dtype=backend.kv,
        index_dim=config.index_dim,
    )
    shapes = [(rows, min(tokens, config.max_model_len - 1)) for rows, tokens in _SHAPES]
    blocks = max(rows * layout.blocks_for(tokens + 1) for rows, tokens in shapes)
    memory = np.zeros((blocks, layout.block_bytes), np.uint8)
    runner = make_runner(model, KvStorage(layout, memory))
    seconds = [_time(runner, units, layout, *shape) for shape in shapes]
    return AttentionTimes(
        config.hidden_size,
        np.array([rows * tokens for rows, tokens in shapes], float),
        np.array([rows for rows, _ in shapes], float),
        np.array(seconds) / config.num_layers,
    )


def _time(runner: Runner, units: NoUnits, layout: KvLayout, rows: int, tokens: int) -> float:
    """Median seconds of a decode step of `rows` sequences behind `tokens` tokens each."""
    params = SamplingParams(seed=1, max_tokens=1, temperature=0.0)
    size, jobs = layout.blocks_for(tokens + 1), []
    for number in range(rows):
        sequence = Tokens(str(number), [1] * (tokens + 1), b"", layout.block_tokens, params)
        sequence.blocks = list(range(number * size, (number + 1) * size))
        jobs.append(RowJob(sequence, tokens, tokens + 1))
    took = []
    for _ in range(_TURNS):
        runner.forward(jobs)
        took.append(units.attention_s)
    return median(took[_WARM:])
