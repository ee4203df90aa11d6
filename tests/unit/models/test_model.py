"""The seam between a model and its KV, and rows that do not meet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from triptych.models.load import load_model
from triptych.models.storage import WeightDtype
from triptych.models.taps import LayerTap
from triptych.testing.checkpoints import FAMILIES, WINDOW, edit_config, tiny_checkpoint, tiny_llama

DTYPES: tuple[WeightDtype, ...] = ("float32", "bfloat16", "int8", "int4")


class RowwiseKv:
    """Attends to nothing: hands each row's own query back, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, dict[str, Any]]] = []

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
        assert k.shape == v.shape and q.shape[0] == k.shape[0]
        self.asked.append((layer, how))
        return q


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_does_not_notice_its_neighbours(
    family: str, dtype: WeightDtype, tmp_path: Path
) -> None:
    model = load_model(tiny_checkpoint(tmp_path, family), dtype=dtype)
    ids, positions = torch.arange(64), torch.arange(64) * 3
    together = model.forward(ids, positions, RowwiseKv())
    alone = model.forward(ids[16:32], positions[16:32], RowwiseKv())
    assert torch.equal(together[16:32], alone)
    assert torch.equal(model.logits(together)[20:24], model.logits(together[20:24]))


def test_each_layer_asks_for_its_own_window_and_soft_cap(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, "gemma3")
    edit_config(tmp_path, attn_logit_softcapping=30.0)
    kv = RowwiseKv()
    model = load_model(tmp_path, dtype="float32")
    model.forward(torch.arange(16), torch.arange(16), kv)
    windows = [WINDOW] * 5 + [None, WINDOW]
    alike = {"scale": 24**-0.5, "softcap": 30.0, "sinks": None, "index": None}
    assert kv.asked == [
        (layer, {**alike, "window": window}) for layer, window in enumerate(windows)
    ]


def test_a_layer_is_reported_when_its_kv_is_written(tmp_path: Path) -> None:
    model, kv = load_model(tiny_llama(tmp_path), dtype="float32"), RowwiseKv()
    written: list[list[int]] = []
    model.forward(
        torch.arange(16),
        torch.arange(16),
        kv,
        taps=[LayerTap(range(3), lambda *_: written.append([asked for asked, _ in kv.asked]))],
    )
    assert written == [[0], [0, 1], [0, 1, 2]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_float32_in_every_dtype(dtype: WeightDtype, tmp_path: Path) -> None:
    model = load_model(tiny_checkpoint(tmp_path, "gemma3"), dtype=dtype)
    hidden = model.forward(torch.arange(16), torch.arange(16), RowwiseKv())
    assert hidden.dtype == torch.float32
    logits = model.logits(hidden[:3])
    assert logits.dtype == torch.float32 and logits.shape == (3, model.config.vocab_size)
    assert logits.abs().max() <= 20.0
