"""What model building reads with: tensors as they are, matrices packed once in the wanted dtype."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from triptych.errors import ModelError
from triptych.models.sources import CheckedSource
from triptych.models.storage import QuantReport, QuantTally, WeightDtype, kept_bits
from triptych_kernels.packer import LinearLike, Packer, TableLike
from triptych_kernels.quant import Affine, join, promote, quantise, relative_error

_BITS = {"int8": 8, "int4": 4}

_log = logging.getLogger(__name__)


class WeightReader:
    """Reads a source for one model. Matrices are kept in `dtype`, all other tensors in float32.

    `group`: of weights that are quantised here; what is stored on grids keeps its own.
    """

    def __init__(
        self, source: CheckedSource, dtype: WeightDtype, group: int, packer: Packer
    ) -> None:
        self._source = source
        self._bits = _BITS.get(dtype)
        self._group = group
        self._packer = packer
        self._tally = QuantTally()
        # Where joined weights are put together; packers copy, so it serves for all.
        self._scratch = torch.empty(0, dtype=torch.bfloat16 if dtype == "bfloat16" else None)

    def has(self, name: str) -> bool:
        return self._source.has(name)

    def tensor(self, name: str, *shape: int) -> Tensor:
        """float32, contiguous, own memory. Raises ModelError when missing or of another shape."""
        return self._source.read(name, shape).to(torch.float32, copy=True).contiguous()

    def linear(
        self,
        names: Sequence[str],
        in_features: int,
        out_features: Sequence[int],
        *,
        bias: bool,
        head: bool = False,
    ) -> LinearLike:
        """Projections of the same input as one: `names` without .weight / .bias, outputs joined."""
        weights = [f"{name}.weight" for name in names]
        matrix = self._matrix(weights, in_features, out_features, head)
        biases = None
        if bias:
            parts = zip(names, out_features, strict=True)
            biases = torch.cat([self.tensor(f"{name}.bias", rows) for name, rows in parts])
        if isinstance(matrix, Affine):
            return self._packer.affine(matrix, biases)
        return self._packer.dense(matrix, biases)

    def table(self, name: str, rows: int, columns: int) -> TableLike:
        """An embedding that is not also the head; `name` without .weight."""
        return self._packer.embedding(self._matrix([f"{name}.weight"], columns, [rows], True))

    def skip(self, *prefixes: str) -> None:
        """These tensors are somebody else's business."""
        self._source.skip(*prefixes)

    def finish(self) -> QuantReport | None:
        """Full progress, a warning of unused tensors; what quantising did, None without it."""
        self._source.finish()
        if self._bits is None:
            return None
        report = self._tally.report()
        _log.info("%s: %s", self._source.origin, report)
        return report

    def _matrix(
        self, names: Sequence[str], columns: int, rows: Sequence[int], head: bool
    ) -> Tensor | Affine:
        shapes = [(count, columns) for count in rows]
        if self._bits is None:
            return self._dense(names, shapes)
        bits = [
            kept_bits(
                self._bits, self._source.stored_bits(name), small_file=self._source.small, head=head
            )
            for name in names
        ]
        return self._affine(names, shapes, bits)

    def _dense(self, names: Sequence[str], shapes: Sequence[tuple[int, int]]) -> Tensor:
        columns, sizes = shapes[0][1], [rows for rows, _ in shapes]
        needed = sum(sizes) * columns
        if self._scratch.numel() < needed:
            self._scratch = self._scratch.new_empty(needed)
        matrix = self._scratch[:needed].view(-1, columns)
        start = 0
        for name, shape in zip(names, shapes, strict=True):
            matrix[start : start + shape[0]].copy_(self._source.read(name, shape))
            start += shape[0]
        return matrix

    def _affine(
        self, names: Sequence[str], shapes: Sequence[tuple[int, int]], wanted: Sequence[int]
    ) -> Affine:
        """As stored where that has at most the wanted bits, else quantised; all in one format."""
        parts = [
            self._stored(name, shape, bits)
            for name, shape, bits in zip(names, shapes, wanted, strict=True)
        ]
        # The joined matrix has the finest format among its parts: those quantised here may use it.
        bits = max(wanted)
        group = min([self._group, *(part.group for part in parts if part is not None)])
        done = []
        for name, shape, part in zip(names, shapes, parts, strict=True):
            if part is None:
                done.append(self._quantised(name, shape, bits, group))
                continue
            self._tally.native += (part.bits, part.group) == (bits, group)
            self._tally.promoted += (part.bits, part.group) != (bits, group)
            done.append(promote(part, bits, group))
        joined = join(done)
        self._tally.keep(joined)
        return joined

    def _stored(self, name: str, shape: tuple[int, int], bits: int) -> Affine | None:
        stored = self._source.read_affine(name, shape)
        return stored if stored is not None and stored.bits <= bits else None

    def _quantised(self, name: str, shape: tuple[int, int], bits: int, group: int) -> Affine:
        weight = self._source.read(name, shape)
        try:
            affine = quantise(weight, bits, group)
        except ValueError as error:
            raise ModelError(
                f"{self._source.origin}: tensor {name!r}: {error}; the file is damaged: "
                "get it again"
            ) from error
        self._tally.errors[name] = relative_error(weight, affine)
        return affine
