"""Feed-forward parts that answer later, without workers: computed on the spot."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.models.layers import LocalExperts
from triptych.models.model import Model
from triptych.models.units import may_leave
from triptych.testing.native_units import lower_unit, run_in_two_places
from triptych_kernels.cpu.native import Library


@dataclass(slots=True)
class Call:
    """What a lane sent."""

    layer: int
    rows: Tensor
    ids: Tensor | None
    sent: Tensor  # what the rows were then
    cells: Tensor | None = None  # None: on its way


class OnTheSpot:
    """Implements DistantExperts with the units of `model`, which is packed for this library, as
    workers with these units would answer.

    Answers come in an order drawn from `seed`, one or several at a time. Fails when a lane does
    what the seam does not allow.
    """

    def __init__(self, library: Library, model: Model, *, lanes: int = 1, seed: int = 0) -> None:
        assert isinstance(model.experts, LocalExperts)
        self.lanes = lanes
        self.steps: list[tuple[int, int]] = []  # rows and lanes of every forward
        self.most_away = 0  # lanes whose rows were away at the same time
        self.layers: set[int] = set()  # that rows were sent to
        self._library = library
        self._activation = model.config.activation
        self._cell_dtype = model.experts.cell_dtype
        self._units = [[lower_unit(unit) for unit in units] for units in model.experts.units]
        self._may_leave = [may_leave(model.config, layer) for layer in range(len(self._units))]
        self._random = random.Random(seed)
        self._calls: dict[int, Call] = {}

    def num_lanes(self, rows: int) -> int:
        assert rows > 0 and not self._calls
        return self.lanes

    def send(self, lane: int, layer: int, rows: Tensor, ids: Tensor | None) -> None:
        assert lane not in self._calls, "a lane is away once at a time"
        assert self._may_leave[layer] and rows.dtype == torch.float32 and rows.is_contiguous()
        assert ids is None or (ids.diff(dim=1) > 0).all(), "ids ascend"
        self._calls[lane] = Call(layer, rows, ids, rows.clone())
        self.layers.add(layer)
        self.most_away = max(self.most_away, len(self._calls))

    def returned(self) -> Sequence[int]:
        away = [lane for lane, call in self._calls.items() if call.cells is None]
        assert away, "nothing is on its way"
        chosen = self._random.sample(away, self._random.randint(1, len(away)))
        for lane in chosen:
            self._calls[lane].cells = self._compute(self._calls[lane])
        return chosen

    def cells(self, lane: int) -> Tensor:
        cells = self._calls[lane].cells
        assert cells is not None, "they are on their way"
        return cells

    def end(self, lane: int) -> None:
        call = self._calls.pop(lane)
        assert call.cells is not None and torch.equal(call.rows, call.sent), "rows must not change"

    def stepped(self, rows: int, lanes: int, attention_s: float, step_s: float) -> None:
        assert not self._calls and 0 <= attention_s <= step_s
        self.steps.append((rows, lanes))

    def _compute(self, call: Call) -> Tensor:
        dense = call.ids is None
        ids = torch.zeros(len(call.rows), 1, dtype=torch.int32) if call.ids is None else call.ids
        dtype = torch.float32 if dense else self._cell_dtype
        cells = torch.empty(ids.numel(), call.rows.shape[1], dtype=dtype)
        units = self._units[call.layer]
        run_in_two_places(self._library, units, self._activation, call.rows, ids, cells)
        return cells
