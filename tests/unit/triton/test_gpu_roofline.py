"""What the GPU benchmark would time does run, and says what it costs."""

from __future__ import annotations

import pytest
import torch

from bench import gpu_roofline
from bench.gpu_roofline import decode_works, prefill_work, values_skipped, verify_work


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_roofline, "HEADS", 2)
    monkeypatch.setattr(gpu_roofline, "KV_HEADS", 1)
    torch.manual_seed(0)


def test_every_work_runs(device: torch.device) -> None:
    size = gpu_roofline.Size(1, 640, 1)
    dense, never, some = decode_works(device, size)
    assert torch.equal(dense.run().out, never.run().out)
    assert values_skipped(never.run()) == 0 < values_skipped(some.run())
    assert some.num_bytes < dense.num_bytes == 640 * 2 * 128 * 2
    rows = verify_work(device, gpu_roofline.Size(1, 40, 8))
    assert rows.run().out.shape == (8, 2, 128) and rows.flops == 8 * 40 * 4 * 2 * 128
    assert prefill_work(device, gpu_roofline.Size(1, 20, 20)).run().out.isfinite().all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu_roofline"])
    gpu_roofline.main()
    assert capsys.readouterr().out.startswith("No GPU")
