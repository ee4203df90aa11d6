"""Where weights come from: tensors by their Hugging Face name, whatever the file format.

`WeightSource` is the seam, one implementation per format; `GridSource` is what a format adds that
stores quantised weights, `StackSource` what one adds that can read a part of a tensor.
`CheckedSource` is how model building reads any of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Protocol, runtime_checkable

from torch import Tensor

from triptych.errors import ModelError
from triptych_kernels.quant import Affine

Progress = Callable[[int, int], None]  # (tensors done, tensors in all)

_UNQUANTISED = 16.0  # bits per weight

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


@runtime_checkable
class GridSource(WeightSource, Protocol):
    """A checkpoint that may hold quantised matrices."""

    @property
    def small(self) -> bool:
        """Whether most weights of the layers are stored in about 5 bits or fewer."""

    def stored_bits(self, name: str) -> float:
        """Per weight, scales included."""

    def read_affine(self, name: str) -> Affine | None:
        """The matrix on the grid that it is stored on; None where that is no `Affine`."""


@runtime_checkable
class StackSource(WeightSource, Protocol):
    """A checkpoint that may hold one tensor [n, …] of all experts of a layer."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Without reading the tensor."""

    def read_entry(self, name: str, entry: int) -> Tensor:
        """tensor[entry], of which no other bytes are read. As `read` otherwise."""


class CheckedSource:
    """Reads with every shape checked. Counts what was read and warns of what was not."""

    def __init__(self, source: WeightSource, progress: Progress | None = None) -> None:
        self._source = source
        self._grids = source if isinstance(source, GridSource) else None
        self._stacks = source if isinstance(source, StackSource) else None
        self._progress = progress
        self._unread = {name for name in source.names() if not name.endswith(".inv_freq")}
        self._total = len(self._unread)
        self.small = self._grids is not None and self._grids.small

    @property
    def origin(self) -> str:
        return self._source.origin

    def has(self, name: str) -> bool:
        return name in self._source.names()

    def stored_bits(self, name: str) -> float:
        self._require(name)
        return _UNQUANTISED if self._grids is None else self._grids.stored_bits(name)

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Raises ModelError when it is missing or of another shape."""
        self._require(name)
        tensor = self._source.read(name)
        self._check(name, tuple(tensor.shape), shape)
        return tensor

    def read_entry(self, name: str, stack: tuple[int, int], shape: tuple[int, ...]) -> Tensor:
        """Entry i of n, `stack`, of a tensor [n, *shape]; reads nothing else of it.

        Raises ModelError as `read` does, and where the format has no such tensors.
        """
        self._require(name)
        if self._stacks is None:
            raise ModelError(f"{self.origin}: stacked experts are not supported in this format")
        entry, count = stack
        self._check(name, self._stacks.shape(name), (count, *shape))
        return self._stacks.read_entry(name, entry)

    def read_affine(self, name: str, shape: tuple[int, ...]) -> Affine | None:
        """Raises ModelError when it is missing or of another shape."""
        self._require(name)
        affine = None if self._grids is None else self._grids.read_affine(name)
        if affine is not None:
            self._check(name, affine.shape, shape)
        return affine

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
            _log.warning("%s: %d unused tensors: %s", self.origin, len(names), shown)

    def _require(self, name: str) -> None:
        if not self.has(name):
            raise ModelError(f"{self.origin}: tensor {name!r} is missing")

    def _check(self, name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
        if found != wanted:
            raise ModelError(
                f"{self.origin}: tensor {name!r} has shape {list(found)}, "
                f"the configuration says {list(wanted)}"
            )
        self._unread.discard(name)
        if self._progress is not None:
            self._progress(self._total - len(self._unread), self._total)
