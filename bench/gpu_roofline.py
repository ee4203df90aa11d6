"""How near attention in Triton comes to what the GPU allows: `python -m bench.gpu_roofline`.

A row's least time is the larger of bytes ÷ bandwidth and FLOPs ÷ matmul rate, both measured on the
same GPU in the same minute: bandwidth by copying 1 GiB, the rate by a bfloat16 matmul of 8192³.
Bytes are keys and values of all positions, once, less the values that skipping did not read; FLOPs
are 4 × D per query head, row and position that it sees. Beside it stands plain decoding of the same
context: skipping among tiles of which three quarters lie far below the rest (random keys alone are
no such workload), and the verification of eight rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.report import finish, print_table

if TYPE_CHECKING:  # without a GPU triton need not be there
    from triptych_kernels.triton.attention import Attended, AttentionShape, PagedKv

HEADS, KV_HEADS, DIM, PAGE = 32, 8, 128, 16


@dataclass(frozen=True, slots=True)
class Work:
    name: str
    num_bytes: float
    flops: float
    run: Callable[[], Attended]
    compared: str = ""  # the row that this one should beat, or equal


@dataclass(frozen=True, slots=True)
class Size:
    batch: int
    length: int
    rows: int


def works(device: torch.device, contexts: list[int], prompt: int) -> Iterator[Work]:
    for length in contexts:
        batch = max(1, 131072 // length)
        yield from decode_works(device, Size(batch, length, 1))
        yield verify_work(device, Size(batch, length, 8))
    yield prefill_work(device, Size(1, prompt, prompt))


def decode_works(device: torch.device, size: Size) -> Iterator[Work]:
    from triptych_kernels.triton.attention import Skipping
    from triptych_kernels.triton.decode import paged_decode

    q, kv, starts, shape = inputs(device, size, cold=0.75)
    name = f"decode, {size.batch} × {size.length}"
    for threshold in (None, 0.0, 1e-3):
        skipping = None
        if threshold is not None:
            skipping = Skipping(torch.full((size.batch,), threshold, device=device))

        def run(skipping: Skipping | None = skipping) -> Attended:
            return paged_decode(
                q, kv, starts, shape, max_rows=1, max_length=size.length, skipping=skipping
            )

        share = 1.0
        if threshold:
            share = 1 - values_skipped(run()) / 2  # keys are read all the same
        extra = "" if threshold is None else f", threshold {threshold:g}"
        compared = "" if threshold is None else name
        yield Work(name + extra, share * kv_bytes(size), flops(size), run, compared)


def verify_work(device: torch.device, size: Size) -> Work:
    from triptych_kernels.triton.decode import paged_decode

    q, kv, starts, shape = inputs(device, size)
    name = f"verify {size.rows} rows, {size.batch} × {size.length}"

    def run() -> Attended:
        return paged_decode(
            q, kv, starts, shape, max_rows=size.rows, max_length=size.length, block_rows=64
        )

    compared = f"decode, {size.batch} × {size.length}"
    return Work(name, kv_bytes(size), flops(size), run, compared)


def prefill_work(device: torch.device, size: Size) -> Work:
    from triptych_kernels.triton.prefill import paged_prefill

    q, kv, starts, shape = inputs(device, size)

    def run() -> Attended:
        return paged_prefill(q, kv, starts, shape, max_rows=size.rows)

    return Work(f"prefill, {size.length}", kv_bytes(size), flops(size) / 2, run)


def inputs(
    device: torch.device, size: Size, cold: float = 0.0
) -> tuple[Tensor, PagedKv, Tensor, AttentionShape]:
    """Queries, KV, row starts and shape. cold: share of tiles whose keys nobody looks at."""
    from triptych_kernels.triton.attention import AttentionShape, PagedKv

    pages = -(-size.length // PAGE)
    blocks = torch.randperm(size.batch * pages, device=device).int()
    pool = torch.randn(
        size.batch * pages, 2, PAGE, KV_HEADS, DIM, device=device, dtype=torch.bfloat16
    )
    tables = blocks.view(size.batch, pages)
    tiles = torch.rand(size.batch, -(-pages // 4), device=device) < cold
    tiles[:, 0] = tiles[:, -1] = False
    quiet = tables[tiles.repeat_interleave(4, dim=1)[:, :pages]].long()
    pool[quiet, 0] *= 0.01
    lengths = torch.full((size.batch,), size.length, dtype=torch.int32, device=device)
    kv = PagedKv(pool[:, 0], pool[:, 1], tables, lengths)
    rows = size.batch * size.rows
    q = torch.randn(rows, HEADS, DIM, device=device, dtype=torch.bfloat16)
    starts = torch.arange(0, rows + 1, size.rows, dtype=torch.int32, device=device)
    return q * (4.0 if cold else 1.0), kv, starts, AttentionShape(DIM**-0.5)


def kv_bytes(size: Size) -> float:
    return size.batch * size.length * 2 * KV_HEADS * DIM * 2


def flops(size: Size) -> float:
    return size.batch * size.rows * size.length * 4 * HEADS * DIM


def values_skipped(attended: Attended) -> float:
    """Share of tiles whose values were not read."""
    assert attended.counts is not None, "only skipping counts"
    tiles, unweighed = attended.counts.sum((0, 1)).tolist()
    return float(unweighed / tiles)


def rates() -> tuple[float, float]:
    """Bytes and FLOPs per second."""
    from triton.testing import do_bench

    pool = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    to = torch.empty_like(pool)
    copy_ms = do_bench(lambda: to.copy_(pool), return_mode="median")
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    product_ms = do_bench(lambda: a @ a, return_mode="median")
    return 2 * pool.nbytes / (copy_ms / 1e3), 2 * 8192**3 / (product_ms / 1e3)


def measure(contexts: list[int], prompt: int) -> dict[str, object]:
    from triton.testing import do_bench

    bandwidth, rate = rates()
    taken: dict[str, float] = {}
    rows = []
    for work in works(torch.device("cuda"), contexts, prompt):
        seconds = taken[work.name] = do_bench(work.run, return_mode="median") / 1e3
        least = max(work.num_bytes / bandwidth, work.flops / rate)
        ratio = taken[work.compared] / seconds if work.compared else 1.0
        rows.append((work.name, seconds * 1e6, 100 * least / seconds, ratio))
    print_table(
        f"attention on {torch.cuda.get_device_name()}",
        ["work", "µs", "% of the limit", "× dense decode"],
        rows,
    )
    return {
        "gpu": torch.cuda.get_device_name(),
        "bandwidth_gb_s": bandwidth / 1e9,
        "tflop_s": rate / 1e12,
        "rows": [dict(zip(("work", "us", "percent", "ratio"), row, strict=True)) for row in rows],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contexts", type=int, nargs="+", default=[8192, 32768, 131072])
    parser.add_argument("--prompt", type=int, default=8192)
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("No GPU: torch sees no CUDA device, so nothing was measured.")
        finish({"gpu": None, "rows": []})
        return
    finish(measure(args.contexts, args.prompt), args.save)


if __name__ == "__main__":
    main()
