"""What does a decode step gain when its sequences begin with the same KV, bits included?

    python -m bench.shared_prefix --save

Our own runner with shared reading against the same runner without, in turn, on the same memory: the
default model's weights, random keys and values, and in each sequence a few tokens of its own behind
the common prefix. `attention`: the kernel alone, all layers of the model one after the other.
`step`: a forward of all layers, logits and a greedy draw, with what it takes to find out what is
shared. `same bits`: of the kernel's results in every layer, and of the step's logits.

`of limit`: the least time that attention could take over the time it took. It is the larger of the
prefix's bytes once, and every sequence's own, over the read bandwidth, and its multiply-adds over
the rate of float32 matmul. `nothing shared`: the same lengths with blocks of each sequence's own.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from bench.kernels import native_or_exit
from bench.probe import matmul_rate, read_rate
from bench.report import finish, print_table
from triptych.engine.backend import choose_backend
from triptych.engine.native_runner import NativeRunner
from triptych.engine.rows import RowJob
from triptych.engine.sampler import Sampler, Spot
from triptych.engine.sequence import Sequence as Tokens
from triptych.engine.shared_prefix import TILE_TOKENS
from triptych.engine.storage import KvStorage, plain_storage
from triptych.hub import pull_model
from triptych.kv.layout import ITEM_BYTES
from triptych.models.load import load_model
from triptych.models.model import Model
from triptych.request import SamplingParams
from triptych.testing.native_kernels import Rows, attend, cache_struct
from triptych.worker.boot import kv_layout
from triptych_kernels.cpu.native import Library, set_threads

RESULTS = Path(__file__).parent / "results"
BLOCK_TOKENS = 32
_GREEDY = SamplingParams(seed=0, max_tokens=1 << 30, temperature=0.0, ignore_eos=True)


@dataclass(frozen=True, slots=True)
class Limits:
    bytes_s: float
    flop_s: float


Arms = dict[str, list[float]]  # seconds by arm: alone, shared


@dataclass(frozen=True, slots=True)
class Cell:
    """Medians of one number of requests behind one prefix, 0: each has tokens of its own only."""

    dtype: str
    requests: int
    prefix: int
    length: int
    attention_s: tuple[float, float]  # of all layers: alone, shared
    step_s: tuple[float, float]
    same: bool
    least_s: float

    @property
    def attention_gain(self) -> float:
        return self.attention_s[0] / self.attention_s[1]

    @property
    def step_gain(self) -> float:
        return self.step_s[0] / self.step_s[1]


class Setting:
    """A model and sequences in its KV pool, which is full of random numbers."""

    def __init__(self, model: Model, kv: str, requests: int, prefix: int, length: int) -> None:
        """`length` tokens each, `prefix` of them in the same blocks."""
        self.model = model
        self.layout = kv_layout(model.config, BLOCK_TOKENS, kv)
        common, all_blocks = prefix // BLOCK_TOKENS, self.layout.blocks_for(length)
        count = common + requests * (all_blocks - common)
        self.storage = plain_storage(self.layout, count)
        _fill(self.storage)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(1)).tolist()
        own = torch.tensor(order[common:]).view(requests, -1).tolist()
        self.sequences = [
            _sequence(number, length, [*order[:common], *blocks])
            for number, blocks in enumerate(own)
        ]
        self.runner = NativeRunner(model, self.storage)
        self.sampler = Sampler(())
        self.prefix, self.length = prefix, length

    def step(self, share: bool) -> Tensor:
        """One more token for every sequence, not kept; logits [R, V]."""
        self.runner.share = share
        jobs = [RowJob(one, self.length - 1, self.length) for one in self.sequences]
        logits = self.runner.logits(self.runner.forward(jobs))
        self.sampler.draw(logits, [Spot(one) for one in self.sequences])
        return logits

    def rows(self) -> list[Rows]:
        config = self.model.config
        return [
            Rows(
                torch.randn(1, config.num_heads, config.head_dim),
                self.length - 1,
                torch.tensor(one.blocks, dtype=torch.int32),
            )
            for one in self.sequences
        ]


def _fill(storage: KvStorage) -> None:
    for layer in range(storage.layout.num_layers):
        for half in (storage.keys(layer), storage.values(layer)):
            half.copy_(torch.randn(half.shape))


def _sequence(number: int, length: int, blocks: list[int]) -> Tokens:
    tokens = [3 + (number + place) % 997 for place in range(length)]
    return Tokens(f"{number}", tokens, b"", BLOCK_TOKENS, _GREEDY, blocks=blocks)


def measure(setting: Setting, library: Library, rounds: int) -> tuple[Arms, Arms, bool]:
    """(attention, step, whether all bits were the same)."""
    same = True
    attention, step = Arms(alone=[], shared=[]), Arms(alone=[], shared=[])
    alone = setting.rows()
    shared = [replace(rows, bundle=1, shared=_whole_tiles(setting.prefix)) for rows in alone]
    for number in range(rounds + 1):  # the first one warms up
        kinds: list[tuple[Arms, Callable[[bool], list[Tensor]]]] = [
            (attention, lambda share: _all_layers(setting, library, shared if share else alone)),
            (step, lambda share: [setting.step(share).clone()]),
        ]
        for arms, run in kinds:
            found = {}
            for name in list(arms)[:: 1 if number % 2 else -1]:
                began = time.perf_counter()
                found[name] = run(name == "shared")
                if number:
                    arms[name].append(time.perf_counter() - began)
            same &= all(map(torch.equal, *found.values()))
    return attention, step, same


def _whole_tiles(slots: int) -> int:
    return slots // TILE_TOKENS * TILE_TOKENS


def _all_layers(setting: Setting, library: Library, rows: list[Rows]) -> list[Tensor]:
    cache = cache_struct(setting.layout, setting.storage.address)
    scale, found = setting.model.config.attention_scale, list[Tensor]()
    for layer in range(setting.layout.num_layers):
        found += attend(library, cache, rows, scale=scale, layer=layer)
    return found


def least_seconds(setting: Setting, limits: Limits) -> float:
    """Of attention in all layers."""
    config, layout = setting.model.config, setting.layout
    requests = len(setting.sequences)
    positions = setting.prefix + requests * (setting.length - setting.prefix)
    token_bytes = 2 * layout.num_kv_heads * layout.head_dim * ITEM_BYTES[layout.dtype]
    flops = 4 * config.num_heads * config.head_dim * requests * setting.length
    return layout.num_layers * max(
        positions * token_bytes / limits.bytes_s,
        flops / limits.flop_s,
    )


def cells(args: argparse.Namespace, library: Library, limits: Limits) -> Iterator[Cell]:
    path = pull_model(args.model)
    for dtype in args.dtypes:
        backend = choose_backend(dtype, "auto")
        model = load_model(path, dtype=backend.weights, packer=backend.packer)
        shapes = [(count, prefix, prefix) for count in args.requests for prefix in args.prefix]
        shapes.append((max(args.requests), 0, min(args.prefix)))
        for requests, prefix, behind in shapes:
            setting = Setting(model, backend.kv, requests, prefix, behind + args.own)
            attention, step, same = measure(setting, library, args.rounds)
            pair = [(median(arms["alone"]), median(arms["shared"])) for arms in (attention, step)]
            least = least_seconds(setting, limits)
            yield Cell(dtype, requests, prefix, setting.length, pair[0], pair[1], same, least)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "int4"])
    parser.add_argument("--requests", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--prefix", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--own", type=int, default=64, help="tokens of each behind the prefix")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args(argv)
    library = native_or_exit()
    torch.set_num_threads(args.threads)
    limits = Limits(read_rate(args.threads), matmul_rate(torch.float32))
    torch.set_num_threads(1)
    set_threads(args.threads)
    found: list[Cell] = []
    with torch.inference_mode():
        for cell in cells(args, library, limits):
            print(cell, file=sys.stderr)
            found.append(cell)
    report(found, limits, RESULTS / "shared_prefix.json" if args.save else None)
    return 0 if all(cell.same for cell in found) else 1


def report(found: Sequence[Cell], limits: Limits, save: Path | None) -> None:
    print_table(
        "Decode with a shared prefix against the same step without sharing",
        ["weights", "requests", "prefix", "attention, ms", "shared", "speed-up", "of limit",
         "step, ms", "shared", "speed-up", "same bits"],
        [
            (
                cell.dtype, cell.requests, cell.prefix or f"none ({cell.length})",
                *(1e3 * s for s in cell.attention_s), cell.attention_gain,
                cell.least_s / cell.attention_s[1], *(1e3 * s for s in cell.step_s),
                cell.step_gain, "yes" if cell.same else "NO",
            )
            for cell in found
        ],
    )  # fmt: skip
    keys = ("dtype", "requests", "prefix", "length", "attention_s", "attention_gain", "step_s",
            "step_gain", "same", "least_s")  # fmt: skip
    rows = [{key: getattr(cell, key) for key in keys} for cell in found]
    finish({"rows": rows, "limits": asdict(limits)}, save)


if __name__ == "__main__":
    sys.exit(main())
