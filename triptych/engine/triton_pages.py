"""Rows that read chosen pages only, each KV head its own: drafts by sparse self-speculation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from triptych.engine.device_kv import DeviceKv
from triptych.engine.pages import PageRow
from triptych_kernels.triton.attention import AttentionShape, PagedKv, tiles_for
from triptych_kernels.triton.decode import paged_decode
from triptych_kernels.triton.prefill import rows_for


class PagesView:
    """Implements the models' RowsView."""

    def __init__(self, kv: DeviceKv, rows: Sequence[PageRow]) -> None:
        size, device = kv.layout.block_tokens, kv.device
        tables = [row.table.blocks(row.sequence) for row in rows]
        width = max(table.shape[2] for table in tables)
        filled = [np.pad(table, ((0, 0), (0, 0), (0, width - table.shape[2]))) for table in tables]
        # int32 [L, Hkv, B, P]
        self._tables = torch.from_numpy(np.stack(filled, axis=2)).to(device, torch.int32)
        lengths = [row.slot(size) + 1 for row in rows]
        self._lengths = torch.tensor(lengths, dtype=torch.int32, device=device)
        self._row_starts = torch.arange(len(rows) + 1, dtype=torch.int32, device=device)
        self._longest = max(lengths)
        self._kv = kv
        self.slots = torch.tensor(
            [row.sequence.blocks[row.position // size] * size + row.position % size for row in rows]
        ).to(device)

    def pool(self, layer: int) -> tuple[Tensor, Tensor]:
        return self._kv.keys(layer), self._kv.values(layer)

    def attend(self, layer: int, q: Tensor, shape: AttentionShape) -> Tensor:
        keys, values = self.pool(layer)
        tables = self._tables[layer]
        if shape.window is not None:  # all heads read the same, the last pages: see make_table
            return self._decode(q, PagedKv(keys, values, tables[0], self._lengths), shape)
        lengths = self._lengths.expand(len(tables), -1).contiguous()
        return self._decode(q, PagedKv(keys, values, tables, lengths), shape)

    def _decode(self, q: Tensor, kv: PagedKv, shape: AttentionShape) -> Tensor:
        tile = rows_for(tiles_for(q.dtype, q.shape[2]))
        return paged_decode(
            q,
            kv,
            self._row_starts,
            shape,
            max_rows=1,
            max_length=self._longest,
            block_rows=tile,
        ).out
