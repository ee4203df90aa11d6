"""Where weights come from: tensors by their Hugging Face name, whatever the file format.

`WeightSource` is the seam, one implementation per format. `WeightReader` is what model building
uses: it checks every shape, converts once, and tells progress.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import torch
from torch import Tensor

from triptych.errors import ModelError
from triptych_kernels import Linear

Progress = Callable[[int, int], None]  # (tensors done, tensors in all)

_log = logging.getLogger(__name__)


class WeightSource(Protocol):
    """An open checkpoint. Names are Hugging Face's, e.g. `model.layers.0.mlp.down_proj.weight`."""

    @property
    def origin(self) -> str:
        """The file or directory, for messages."""

    def names(self) -> Collection[str]: ...

    def read(self, name: str) -> Tensor:
        """The tensor as the model computes with it: dequantised, in Hugging Face's row order.

        Any floating dtype; may be a view of a read-only mapping, so it must not be written to.
        Raises ModelError naming file and tensor.
        """


class WeightReader:
    """Reads a source for one model, in one dtype."""

    def __init__(
        self, source: WeightSource, dtype: torch.dtype, progress: Progress | None = None
    ) -> None:
        self._source = source
        self._dtype = dtype
        self._progress = progress
        # Where joined weights are put together; Linear keeps a packed copy, so it serves for all.
        self._scratch = torch.empty(0, dtype=dtype)
        self._unread = {name for name in source.names() if not name.endswith(".inv_freq")}
        self._total = len(self._unread)

    def has(self, name: str) -> bool:
        return name in self._source.names()

    def tensor(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Contiguous, own memory. Raises ModelError when it is missing or of another shape."""
        return self._read(name, shape).to(dtype or self._dtype, copy=True).contiguous()

    def linear(
        self, names: Sequence[str], in_features: int, out_features: Sequence[int], *, bias: bool
    ) -> Linear:
        """Projections of the same input as one: `names` without .weight / .bias, outputs joined."""
        rows = sum(out_features)
        if self._scratch.numel() < rows * in_features:
            self._scratch = torch.empty(rows * in_features, dtype=self._dtype)
        weight = self._scratch[: rows * in_features].view(rows, in_features)
        self._read_rows(weight, [f"{name}.weight" for name in names], out_features)
        if not bias:
            return Linear(weight)
        biases = torch.empty(rows, dtype=self._dtype)
        self._read_rows(biases, [f"{name}.bias" for name in names], out_features)
        return Linear(weight, biases)

    def skip(self, *prefixes: str) -> None:
        """These tensors are somebody else's business."""
        self._unread = {name for name in self._unread if not name.startswith(prefixes)}

    def finish(self) -> None:
        """Reports full progress and warns of tensors that nothing asked for."""
        if self._progress is not None:
            self._progress(self._total, self._total)
        if self._unread:
            names = sorted(self._unread)
            shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
            _log.warning("%s: %d unused tensors: %s", self._source.origin, len(names), shown)

    def _read_rows(self, target: Tensor, names: Sequence[str], sizes: Sequence[int]) -> None:
        for name, rows in zip(names, target.split(list(sizes)), strict=True):  # type: ignore[no-untyped-call]
            rows.copy_(self._read(name, tuple(rows.shape)))

    def _read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if not self.has(name):
            raise ModelError(f"{self._source.origin}: tensor {name!r} is missing")
        tensor = self._source.read(name)
        if tuple(tensor.shape) != shape:
            raise ModelError(
                f"{self._source.origin}: tensor {name!r} has shape {list(tensor.shape)}, "
                f"the configuration says {list(shape)}"
            )
        self._unread.discard(name)
        if self._progress is not None:
            self._progress(self._total - len(self._unread), self._total)
        return tensor
