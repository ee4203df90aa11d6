"""Does attention get faster by what it leaves out, and is its certificate true?

    python -m bench.sparse --tokens 4096 8192 16384 --save

Our own kernel with sparse attention (BLASST) against our own dense kernel, on the same keys, values
and queries, in turn, medians over layers and rounds. `captured`: of the default model over this
project's documents, up to the model's own context. `peaks`: made up, a share of the tiles with keys
that queries like and a sink at the front; any length. Random keys alone would prove nothing: their
softmax is flat, and nothing can be left out.

Dense attention does two products of equal size, and what is left out saves the second one and its
values' bytes: of a share s the bound is 2 / (2 − s). `error` is the largest distance of a result
from the dense one over the largest distance of two values of that head, `certificate` what the
kernel promised of the same row and head.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import geometric_mean, median

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bench.captured import Captured, capture
from bench.kernels import native_or_exit
from bench.report import finish, print_table
from bench.sparse_pages import PagesCell, measure_pages, table_rows
from triptych.kv.layout import KvLayout
from triptych.testing.native_kernels import KvPool, Rows, attend, threads
from triptych.testing.skipped_tiles import widest_distance
from triptych_kernels.cpu.native import Library

RESULTS = Path(__file__).parent / "results"
SCALES = (0.0, 4.0, 32.0, 128.0, 512.0, 2048.0)
PHASES = {"decode": 1, "prefill": 256}  # rows at the end of the context
_BLOCK_TOKENS = 32
_TILE = 128


@dataclass(frozen=True, slots=True)
class Layers:
    """Keys and values of some layers in a pool, and queries of their last rows."""

    name: str
    pool: KvPool
    blocks: Tensor
    queries: Sequence[Tensor]  # by layer, float32 [rows, Hq, D]
    length: int

    def rows(self, layer: int, count: int) -> Rows:
        return Rows(self.queries[layer][-count:].contiguous(), self.length - count, self.blocks)


def put_in_pool(library: Library, name: str, found: Captured, length: int, dtype: str) -> Layers:
    kv_heads, dim = found.keys[0].shape[1:]
    layout = KvLayout(len(found.keys), kv_heads, dim, _BLOCK_TOKENS, dtype)
    count = layout.blocks_for(length)
    pool = KvPool(library, layout, count)
    blocks = torch.randperm(count, generator=torch.Generator().manual_seed(1)).int()
    for layer, (keys, values) in enumerate(zip(found.keys, found.values, strict=True)):
        pool.put(blocks, 0, keys[:length], values[:length], layer=layer)
    queries = [queries[:length][-max(PHASES.values()) :].float() for queries in found.queries]
    return Layers(name, pool, blocks, queries, length)


def peaks(length: int, liked: float, like: Captured) -> Captured:
    """Random numbers in the shape of `like`; a share `liked` of the tiles matters."""
    dice = torch.Generator().manual_seed(length)
    tiles = -(-length // _TILE)
    found: tuple[list[Tensor], ...] = ([], [], [])
    for keys in like.keys[:4]:
        mine = torch.rand(tiles, generator=dice) < liked
        mine[0] = True
        strength = torch.where(mine, 1.5, 0.05).repeat_interleave(_TILE)[:length, None, None]
        shape = (length, *keys.shape[1:])
        found[0].append(torch.randn(shape, generator=dice) * strength)
        found[1].append(torch.randn(shape, generator=dice))
        found[2].append(torch.randn(length, *like.queries[0].shape[1:], generator=dice) * 3.0)
    return Captured(*found)


@dataclass(frozen=True, slots=True)
class Cell:
    """One phase, length and scale."""

    name: str
    phase: str
    tokens: int
    scale: float
    skipped: float
    speedup: float
    error: float
    certificate: float
    holds: bool

    @property
    def bound(self) -> float:
        return 2 / (2 - self.skipped)


def measure(library: Library, layers: Layers, phase: str, scale: float, rounds: int) -> Cell:
    """Dense and sparse in turn on every layer, so that no call finds its keys in a cache."""
    count, shape = PHASES[phase], layers.pool.layout
    factor = shape.head_dim**-0.5
    times: dict[str, list[float]] = {"dense": [], "sparse": []}
    tiles = skipped = 0
    worst = (0.0, 0.0)
    holds = True
    for number in range(rounds):
        for layer in range(len(layers.queries)):
            dense = layers.rows(layer, count)
            sparse = dense.skipping(scale)
            order = [("dense", dense), ("sparse", sparse)]
            found = {}
            for name, job in order[:: 1 if number % 2 else -1]:
                began = time.perf_counter()
                (found[name],) = attend(
                    library, layers.pool.cache, [job], scale=factor, layer=layer
                )
                times[name].append(time.perf_counter() - began)
            if number:
                continue
            assert sparse.skip is not None
            tiles += sparse.skip.count.tiles
            skipped += sparse.skip.count.skipped
            pair, true = compare(
                layers, layer, found["dense"], found["sparse"], sparse.skip.omitted
            )
            holds &= true
            worst = max(worst, pair, key=lambda pair: pair[0])
    size = len(layers.queries)
    dense_s, sparse_s = (
        sum(median(found[layer::size]) for layer in range(size)) for found in times.values()
    )
    share = skipped / max(1, tiles)
    return Cell(layers.name, phase, layers.length, scale, share, dense_s / sparse_s, *worst, holds)


def compare(
    layers: Layers, layer: int, dense: Tensor, sparse: Tensor, omitted: Tensor
) -> tuple[tuple[float, float], bool]:
    """((error, certificate) where the error is largest, whether all hold up to rounding)."""
    _, values = layers.pool.read(layers.blocks, layers.length, layer=layer)
    group = dense.shape[1] // values.shape[1]
    widest = widest_distance(values).repeat_interleave(group)
    error = (dense - sparse).norm(dim=-1) / widest
    promised = omitted / (1 + omitted)
    at = int(error.argmax())
    holds = bool((error <= promised + 2e-3).all())  # bfloat16 weights are rounded
    return (float(error.flatten()[at]), float(promised.flatten()[at])), holds


def weak_peer(layers: Layers, count: int, rounds: int) -> float:
    """Seconds of torch's attention in bfloat16 on the last layer, keys and values ready for it."""
    layer = len(layers.queries) - 1
    keys, values = layers.pool.read(layers.blocks, layers.length, layer=layer)
    rows = layers.queries[layer][-count:]
    group = rows.shape[1] // keys.shape[1]
    q = rows.bfloat16().transpose(0, 1)[None]
    k, v = (part.bfloat16().transpose(0, 1)[None].contiguous() for part in (keys, values))
    position = torch.arange(layers.length - count, layers.length)[:, None]
    mask = torch.arange(layers.length) <= position
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=group > 1)
        times.append(time.perf_counter() - began)
    return median(times)


def workloads(
    library: Library, lengths: Sequence[int], dtype: str, found: Captured
) -> Iterator[Layers]:
    for length in lengths:
        if length <= len(found.keys[0]):
            yield put_in_pool(library, "captured", found, length, dtype)
        for liked in (0.5, 0.1):
            name = f"peaks {liked:.0%}"
            yield put_in_pool(library, name, peaks(length, liked, found), length, dtype)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 8192, 16384, 32768, 65536])
    parser.add_argument("--scales", type=float, nargs="+", default=list(SCALES))
    parser.add_argument("--kv", choices=["float32", "bfloat16", "int8"], default="bfloat16")
    parser.add_argument("--layers", type=int, default=6, help="of the model, evenly spaced")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args(argv)
    library = native_or_exit()
    found = capture(args.model, max(args.tokens), args.layers)
    cells: list[Cell] = []
    weak: list[tuple[str, int, float]] = []
    with torch.inference_mode(), threads(library, args.threads):
        for layers in workloads(library, args.tokens, args.kv, found):
            for phase in PHASES:
                for scale in args.scales:
                    cells.append(measure(library, layers, phase, scale, args.rounds))
                    print(f"{cells[-1]}", file=sys.stderr)
            if layers.name == "captured":
                weak.append(("decode", layers.length, weak_peer(layers, 1, args.rounds)))
        pages = [
            cell
            for length in args.tokens
            if length <= len(found.keys[0])
            for cell in measure_pages(found, length, _BLOCK_TOKENS)
        ]
    report(cells, weak, pages, RESULTS / "sparse.json" if args.save else None)
    return 0 if all(cell.holds for cell in (*cells, *pages)) else 1


def report(
    cells: Sequence[Cell],
    weak: Sequence[tuple[str, int, float]],
    pages: Sequence[PagesCell],
    save: Path | None,
) -> None:
    print_table(
        "Sparse attention against our own dense attention",
        ["input", "phase", "tokens", "scale", "skipped", "speed-up", "of bound", "error", "bound"],
        [
            (
                cell.name, cell.phase, cell.tokens, cell.scale, cell.skipped, cell.speedup,
                cell.speedup / cell.bound, cell.error, cell.certificate,
            )
            for cell in cells
        ],
    )  # fmt: skip
    for phase, tokens, seconds in weak:
        print(f"torch attention (weak), {phase} over {tokens}: {seconds * 1e3:.2f} ms a layer")
    print_table(
        "Decode pages: chosen by Quest's bounds (torch, captured, no times)",
        ["tokens", "budget", "read", "error", "median error", "median bound", "holds"],
        table_rows(pages),
    )
    sparse = [cell for cell in cells if cell.skipped > 0]
    free = [cell.speedup for cell in cells if cell.scale == 0]
    print(
        f"certificate kept in {sum(cell.holds for cell in cells)} of {len(cells)} cells; "
        f"threshold 0 runs at {geometric_mean(free):.3f} of dense"
        if free
        else ""
    )
    keys = ("phase", "tokens", "skipped", "speedup", "bound", "error", "certificate")
    rows = [
        {key: getattr(cell, key) for key in keys} | {"input": cell.name, "scale": cell.scale}
        for cell in cells
    ]
    finish({"rows": rows, "decode_pages": [asdict(cell) for cell in pages], "of_bound": {
        phase: geometric_mean([c.speedup / c.bound for c in sparse if c.phase == phase])
        for phase in PHASES if any(c.phase == phase for c in sparse)
    }}, save)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
