"""In how many bits each matrix is kept, and what that cost. Decides; reads and packs nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from triptych_kernels.quant import Affine

WeightDtype = Literal["float32", "bfloat16", "fp8", "int8", "int4"]

# Bits per weight, scales included, of the largest 4-bit and 5-bit formats (Q4_1, Q5_1).
_FOUR, _FIVE = 5.0, 6.0


@dataclass(frozen=True, slots=True)
class QuantReport:
    """What happened to the matrices of a model that is kept in int8 or int4."""

    native: int  # tensors taken as they were stored
    promoted: int  # tensors stored in a coarser format, kept in a finer one: the same weights
    requantised: int  # tensors rounded to new grids
    worst_error: float  # RMS of the rounding over RMS of the weights; 0 where nothing was rounded
    worst_tensor: str
    mean_error: float  # of the tensors that were rounded
    bits_per_weight: float  # of all matrices, scales included

    def __str__(self) -> str:
        text = (
            f"matrices: {self.native} as stored, {self.promoted} in a finer format, "
            f"{self.requantised} re-quantised, {self.bits_per_weight:.2f} bits per weight"
        )
        if not self.requantised:
            return text
        return (
            f"{text}; relative error of the re-quantised: mean {self.mean_error:.2%}, "
            f"worst {self.worst_error:.2%} ({self.worst_tensor})"
        )


@dataclass(slots=True)
class QuantTally:
    """Counts while a model is read."""

    native: int = 0
    promoted: int = 0
    errors: dict[str, float] = field(default_factory=dict)  # of re-quantised tensors, by name
    _bits: int = 0
    _weights: int = 0

    def keep(self, affine: Affine) -> None:
        """A matrix as it is finally kept."""
        self._bits += affine.packed_bits
        self._weights += affine.q.numel()

    def report(self) -> QuantReport:
        worst = max(self.errors, key=lambda name: self.errors[name], default="")
        return QuantReport(
            native=self.native,
            promoted=self.promoted,
            requantised=len(self.errors),
            worst_error=self.errors.get(worst, 0.0),
            worst_tensor=worst,
            mean_error=sum(self.errors.values()) / max(1, len(self.errors)),
            bits_per_weight=self._bits / max(1, self._weights),
        )


def kept_bits(wanted: int, stored: float, *, small_file: bool, head: bool) -> int:
    """4 or 8: what a matrix stored in `stored` bits per weight, scales included, is kept in.

    `wanted` is 4 or 8. Head and embedding always have 8. Under int4, what is stored finer keeps its
    precision if the whole file was made small (Q4_K_M keeps some matrices finer on purpose); files
    of 8 and 16 bits are what one asks int4 for.
    """
    if head or wanted == 8:
        return 8
    if stored <= _FOUR:
        return 4
    return 8 if small_file or stored <= _FIVE else 4


def is_small(matrices: Iterable[tuple[float, int]]) -> bool:
    """Whether most weights of the layers are stored small. matrices: (bits per weight, weights)."""
    small = total = 0
    for bits, weights in matrices:
        total += weights
        small += weights if bits <= _FIVE else 0
    return 2 * small > total
