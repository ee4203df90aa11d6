"""In which types rows and cells travel."""

from __future__ import annotations

from triptych.models.storage import WeightDtype
from triptych_kernels.wire_rows import RowType


def row_type(rows: str, weights: WeightDtype) -> RowType:
    """`rows` as configured. Exact rows are what the kernels would round them to anyway."""
    if rows == "int8":
        return "int8"
    if rows == "fp8":
        return "fp8"
    return "float32" if weights == "float32" else "bfloat16"


def cell_type(weights: WeightDtype, *, dense: bool) -> RowType:
    """What mixtures add up, here or there, is rounded like this; a dense FFN's rows are not."""
    return "float32" if dense or weights == "float32" else "bfloat16"
