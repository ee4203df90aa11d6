"""What model building reads with: tensors as they are, matrices packed once in the wanted dtype."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.errors import ModelError
from triptych.models.sources import CheckedSource
from triptych.models.storage import QuantReport, QuantTally, WeightDtype, kept_bits
from triptych_kernels import gated_delta
from triptych_kernels.fp8 import quantise_fp8
from triptych_kernels.packer import (
    DeltaPacker,
    DeltaRule,
    Fp8Packer,
    LinearLike,
    Packer,
    TableLike,
)
from triptych_kernels.quant import Affine, join, promote, quantise, relative_error

_BITS = {"int8": 8, "int4": 4}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Part:
    """A matrix [rows, K] or a bias [rows] of a checkpoint, and how it lies there."""

    name: str
    rows: int
    stack: tuple[int, int] | None = None  # it is entry i of n of a tensor [n, …]
    transposed: bool = False  # a matrix lies as [K, rows]
    interleaved: bool = False  # rows of gate and up lie in turn

    @property
    def label(self) -> str:
        """For reports."""
        return self.name if self.stack is None else f"{self.name}[{self.stack[0]}]"


def pick_rows(matrix: Tensor | Affine, order: Tensor) -> Tensor | Affine:
    """Rows of a matrix [N, K] in another order, int64; −1 is a row of zeros. Exact."""
    if isinstance(matrix, Tensor):
        return _pick(matrix, order)
    q, scale, low = (_pick(part, order) for part in (matrix.q, matrix.scale, matrix.low))
    return Affine(q, scale, low, matrix.bits, matrix.group)


class WeightReader:
    """Reads a source for one model. Matrices are kept in `dtype`, all other tensors in float32.

    `group`: of weights that are quantised here; what is stored on grids keeps its own.
    """

    def __init__(
        self, source: CheckedSource, dtype: WeightDtype, group: int, packer: Packer
    ) -> None:
        self._source = source
        self._dtype = dtype
        self._bits = _BITS.get(dtype)
        self._group = group
        self._packer = packer
        self._tally = QuantTally()
        # Where joined weights are put together; packers copy, so it serves for all.
        halves = dtype in ("bfloat16", "fp8")
        self._scratch = torch.empty(0, dtype=torch.bfloat16 if halves else None)

    @property
    def origin(self) -> str:
        """The file or directory, for messages."""
        return self._source.origin

    @property
    def cell_dtype(self) -> torch.dtype:
        """What experts answer in: float32 where the weights are, else bfloat16."""
        return torch.float32 if self._dtype == "float32" else torch.bfloat16

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
        gated: bool = False,
        exact: bool = False,
    ) -> LinearLike:
        """Projections of the same input as one: `names` without .weight / .bias, outputs joined.

        `exact`: kept in float32, whatever the others are kept in.
        """
        sizes = list(zip(names, out_features, strict=True))
        weights = [Part(f"{name}.weight", rows) for name, rows in sizes]
        biases = [Part(f"{name}.bias", rows) for name, rows in sizes] if bias else []
        return self.joined(weights, in_features, biases, head=head, gated=gated, exact=exact)

    def joined(
        self,
        weights: Sequence[Part],
        in_features: int,
        biases: Sequence[Part] = (),
        *,
        head: bool = False,
        gated: bool = False,
        exact: bool = False,
        order: Tensor | None = None,
    ) -> LinearLike:
        """Matrices of the same input one below the other, and as many biases or none.

        order [N] int64: the outputs that are kept, in this order; −1 is one that is zero.
        """
        fp8 = self._dtype == "fp8" and not (head or exact)
        matrix: Tensor | Affine
        if exact or fp8:  # out of float32, weights stored on fp8's grids stay on them
            matrix = torch.cat([self._read(part, in_features) for part in weights]).float()
        else:
            matrix = self._matrix(weights, in_features, head)
        bias = torch.cat([self._read(part).float() for part in biases]) if biases else None
        if order is not None:
            matrix = pick_rows(matrix, order)
            bias = None if bias is None else _pick(bias, order)
        if isinstance(matrix, Affine):
            return self._packer.affine(matrix, bias, gated=gated)
        if fp8:
            return self._in_fp8(weights, matrix, bias)
        return self._packer.dense(matrix, bias, gated=gated)

    def table(self, name: str, rows: int, columns: int) -> TableLike:
        """An embedding that is not also the head; `name` without .weight."""
        return self._packer.embedding(self._matrix([Part(f"{name}.weight", rows)], columns, True))

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

    def _read(self, part: Part, columns: int | None = None) -> Tensor:
        """A matrix [rows, columns], without `columns` a vector [rows]; any dtype and strides."""
        shape = (part.rows,) if columns is None else (part.rows, columns)
        stored = shape[::-1] if part.transposed else shape
        if part.stack is None:
            tensor = self._source.read(part.name, stored)
        else:
            tensor = self._source.read_entry(part.name, part.stack, stored)
        tensor = tensor.t() if part.transposed else tensor
        return torch.cat([tensor[::2], tensor[1::2]]) if part.interleaved else tensor

    def _matrix(self, parts: Sequence[Part], columns: int, head: bool) -> Tensor | Affine:
        if self._bits is None:
            return self._dense(parts, columns)
        bits = [
            kept_bits(
                self._bits,
                self._source.stored_bits(part.name),
                small_file=self._source.small,
                head=head,
            )
            for part in parts
        ]
        return self._affine(parts, columns, bits)

    @property
    def gated_delta(self) -> DeltaRule:
        """What computes gated delta layers where these weights are packed for."""
        return self._packer.gated_delta if isinstance(self._packer, DeltaPacker) else gated_delta

    def _in_fp8(self, parts: Sequence[Part], matrix: Tensor, bias: Tensor | None) -> LinearLike:
        if not isinstance(self._packer, Fp8Packer):
            raise ModelError(
                "dtype: fp8 is computed by device: cuda alone: set dtype: int8, or device: cuda"
            )
        try:
            packed = quantise_fp8(matrix)
        except ValueError as error:
            raise self._damaged([part.name for part in parts], error) from error
        return self._packer.fp8(packed, bias)

    def _damaged(self, names: Sequence[str], error: ValueError) -> ModelError:
        told = ", ".join(repr(name) for name in names)
        return ModelError(
            f"{self._source.origin}: tensor {told}: {error}; the file is damaged: get it again"
        )

    def _dense(self, parts: Sequence[Part], columns: int) -> Tensor:
        alone = self._read(parts[0], columns) if len(parts) == 1 else None
        if alone is not None and alone.dtype == self._scratch.dtype and alone.is_contiguous():
            return alone  # packed from where it lies
        needed = sum(part.rows for part in parts) * columns
        if self._scratch.numel() < needed:
            self._scratch = self._scratch.new_empty(needed)
        matrix = self._scratch[:needed].view(-1, columns)
        start = 0
        for part in parts:
            read = self._read(part, columns) if alone is None else alone
            matrix[start : start + part.rows].copy_(read)
            start += part.rows
        return matrix

    def _affine(self, parts: Sequence[Part], columns: int, wanted: Sequence[int]) -> Affine:
        """As stored where that has at most the wanted bits, else quantised; all in one format."""
        found = [
            self._stored(part, columns, bits) for part, bits in zip(parts, wanted, strict=True)
        ]
        # The joined matrix has the finest format among its parts: those quantised here may use it.
        bits = max(wanted)
        group = min([self._group, *(stored.group for stored in found if stored is not None)])
        done = []
        for part, stored in zip(parts, found, strict=True):
            if stored is None:
                done.append(self._quantised(part, columns, bits, group))
                continue
            self._tally.native += (stored.bits, stored.group) == (bits, group)
            self._tally.promoted += (stored.bits, stored.group) != (bits, group)
            done.append(promote(stored, bits, group))
        joined = join(done)
        self._tally.keep(joined)
        return joined

    def _stored(self, part: Part, columns: int, bits: int) -> Affine | None:
        if part.stack is not None or part.transposed or part.interleaved:
            return None
        stored = self._source.read_affine(part.name, (part.rows, columns))
        return stored if stored is not None and stored.bits <= bits else None

    def _quantised(self, part: Part, columns: int, bits: int, group: int) -> Affine:
        weight = self._read(part, columns).contiguous()
        try:
            affine = quantise(weight, bits, group)
        except ValueError as error:
            raise self._damaged([part.name], error) from error
        self._tally.errors[part.label] = relative_error(weight, affine)
        return affine


def _pick(rows: Tensor, order: Tensor) -> Tensor:
    picked = rows[order.clamp(min=0)]
    picked[order < 0] = 0
    return picked
