"""Rows as they travel, against the plain torch of those that stay."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
import torch
from torch import Tensor

from transport.rows.exchange import Exchange, ExchangeShape
from transport.rows.library import RowsLibrary, SegmentShape
from transport.rows.segment import Doorbell
from triptych.testing.rows_by_hand import HandSegment, make_pair
from triptych_kernels.wire_rows import RowType, quantise_rows


def send(library: RowsLibrary, x: Tensor, row_type: RowType) -> tuple[np.ndarray, np.ndarray]:
    """What lies in the slot: bytes [rows, …] and scales."""
    rows, hidden = x.shape
    shape = SegmentShape(hidden, row_type, "bfloat16", 1, rows, rows)
    with closing(Doorbell(library)) as bell:
        room = ExchangeShape(1, 1, 1, hidden, 1, 1, rows, row_type=row_type)
        with closing(Exchange(library, room, bell)) as exchange:
            segment, mirror = make_pair(library, shape, bell, bell)
            exchange.add_worker(0, segment)
            exchange.tables[:] = 0
            ids = np.zeros((rows, 1), np.int32)
            assert exchange.begin(0, 0, x.data_ptr(), rows, ids.ctypes.data, 1) == 0
            memory = HandSegment(library, mirror.fd, shape)
            sent = memory.rows[0].copy(), memory.scales[0].copy()
            segment.close()
            mirror.close()
            return sent


def numbers(hidden: int) -> Tensor:
    torch.manual_seed(3)
    x = torch.randn(6, hidden) * torch.tensor([1e-20, 1e-3, 1.0, 300.0, 1e20, 0.0])[:, None]
    x[0, :3] = torch.tensor([0.0, -0.0, 2e-38])[:hidden]
    return x


@pytest.mark.parametrize("row_type", ["float32", "bfloat16", "int8", "fp8"])
@pytest.mark.parametrize("hidden", [1, 17, 24, 128, 300])
def test_rows_travel_as_the_local_path_rounds_them(
    library: RowsLibrary, row_type: RowType, hidden: int
) -> None:
    x = numbers(hidden)
    rows, scales = quantise_rows(x, row_type)
    sent, sent_scales = send(library, x, row_type)
    assert sent.tobytes() == rows.view(torch.uint8).numpy().tobytes()
    if scales is not None:
        assert sent_scales.tobytes() == scales.numpy().tobytes()


@pytest.mark.parametrize("row_type", ["float32", "bfloat16", "int8", "fp8"])
def test_many_rows_are_rounded_like_few(library: RowsLibrary, row_type: RowType) -> None:
    x = numbers(40).repeat(20, 1)
    rows, _ = quantise_rows(x, row_type)
    sent, _ = send(library, x, row_type)
    assert sent.tobytes() == rows.view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("row_type", ["int8", "fp8"])
def test_what_is_not_finite_is_not_hidden(library: RowsLibrary, row_type: RowType) -> None:
    x = torch.ones(3, 128)
    x[1, 5], x[2, 7] = float("nan"), float("inf")
    _, scales = send(library, x, row_type)
    assert np.isfinite(scales).tolist() == [True, False, False]
