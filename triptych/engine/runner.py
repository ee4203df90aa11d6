"""Who computes row jobs: the seam between the engine's loops and the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from triptych.engine.device_kv import DeviceKv
from triptych.engine.native_runner import NativeRunner
from triptych.engine.pages import PageRow, PageScores
from triptych.engine.reference_runner import ReferenceRunner
from triptych.engine.rows import RowJob
from triptych.engine.storage import KvStorage
from triptych.models.model import Model
from triptych.models.taps import Tap


class Runner(Protocol):
    """A model and its KV memory. One forward at a time."""

    @property
    def model(self) -> Model: ...

    @property
    def device(self) -> torch.device:
        """Where hidden states and logits are; those that are given may be on the CPU, too."""

    def forward(self, jobs: Sequence[RowJob], taps: Sequence[Tap] = ()) -> Tensor:
        """Computes all rows and writes their KV.

        Returns the final-norm hidden states of all wanted rows (see RowJob) [R, H] float32, in
        job order. A tap sees the rows of all jobs, job after job.
        """

    def forward_all(self, jobs: Sequence[RowJob], taps: Sequence[Tap] = ()) -> Tensor:
        """The same, with the hidden states of all rows [M, H], job after job."""

    def forward_hidden(self, jobs: Sequence[RowJob], hidden: Tensor) -> Tensor:
        """The layers alone, for rows that are no tokens: hidden [M, H] float32, job after job →
        [M, H], the residual stream behind the last layer. It may be the same memory.
        """

    def final_norm(self, hidden: Tensor) -> Tensor:
        """hidden [R, H] of `forward_hidden` → [R, H], as `logits` wants it."""

    def score_pages(self, scores: PageScores) -> None:
        """The next forward fills them in, if it computes wanted rows of their sequence."""

    def forward_pages(self, rows: Sequence[PageRow]) -> Tensor:
        """Rows that read some pages only, at most one of a sequence; writes their KV.

        Returns final-norm hidden states [R, H] float32.
        """

    def move_kv(self, blocks: Sequence[int], moves: Sequence[tuple[int, int]]) -> None:
        """Copies KV from one slot of a sequence's blocks to another, in all layers, in order."""

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [R, H] → float32 [R, V], valid until the next call."""


def make_runner(model: Model, storage: KvStorage | DeviceKv, *, graphs: bool = True) -> Runner:
    """Triton's kernels where the KV is in a device's memory; the native ones where the model's
    weights are packed for them; else plain torch. `graphs`: see TritonRunner.
    """
    if isinstance(storage, DeviceKv):
        # Here, for a machine without triton must not notice it.
        from triptych.engine.triton_runner import TritonRunner

        return TritonRunner(model, storage, graphs=graphs)
    if model.config.delta is not None:  # no native kernel takes rows into a state
        return ReferenceRunner(model, storage)
    return NativeRunner(model, storage) if model.is_native else ReferenceRunner(model, storage)
