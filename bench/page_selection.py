"""Does decoding get faster by reading some pages only, and how many tokens stay what they are?

    python -m bench.page_selection --save

Speed: steps of one sequence of the default model, dense and with each budget in turn, medians. KV
is made up, for how much a budget reads does not depend on it, so contexts may be longer than the
model's own. `bound`: a dense step over one with next to no context, as if leaving out were free.

Quality: the last rows of a text, this project's documents, as an answer's, over a prompt that was
read densely: how often the most probable next token is the dense one's. Whole answers drift apart
sooner: a token that differs changes all that follow.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch

from bench.captured import documents
from bench.kernels import native_or_exit
from bench.report import finish, print_table
from triptych.calibrate.long_text import compute
from triptych.engine.backend import Backend, choose_backend
from triptych.engine.rows import RowJob
from triptych.engine.runner import Runner, make_runner
from triptych.engine.sequence import Sequence as Tokens
from triptych.engine.storage import KvStorage, plain_storage
from triptych.hub import pull_model
from triptych.models.load import load_model
from triptych.models.model import Model
from triptych.request import PageBudget, SparseAttention
from triptych.testing.native_kernels import threads
from triptych.tokenizer import Tokenizer
from triptych.worker.boot import kv_layout

RESULTS = Path(__file__).parent / "results"
BLOCK_TOKENS = 32
_WARM = 2
_JUDGED = 256  # rows


@dataclass(frozen=True, slots=True)
class Speed:
    tokens: int
    budget: int
    read: float  # share of the pages
    dense_ms: float
    ms: float
    speedup: float
    bound: float


@dataclass(frozen=True, slots=True)
class Quality:
    tokens: int
    budget: int
    read: float
    same_token: float
    kl: float  # of the dense distribution from the other one, in nats


def make_up(storage: KvStorage) -> None:
    dice = torch.Generator().manual_seed(1)
    for layer in range(storage.layout.num_layers):
        for pool in storage.pools(layer):
            pool.copy_(torch.randn(pool.shape, generator=dice))


def sequence_of(ids: Sequence[int], blocks: list[int], budget: int, answer: int) -> Tokens:
    """budget 0: dense."""
    sparse = SparseAttention(pages=PageBudget(tokens=budget)) if budget else None
    return Tokens(
        "bench", list(ids), b"", BLOCK_TOKENS, blocks=blocks, sparse=sparse, num_answered=answer
    )


def share_read(sequence: Tokens) -> float:
    """Of the pages of rows that chose; 1: they had no need to."""
    tiles = sequence.tiles
    return tiles.pages_read / tiles.pages if tiles.pages else 1.0


def step(runner: Runner, sequence: Tokens, position: int) -> float:
    began = time.perf_counter()
    runner.logits(runner.forward([RowJob(sequence, position, position + 1)]))
    return time.perf_counter() - began


def speeds(
    model: Model, backend: Backend, tokens: int, budgets: Sequence[int], rounds: int
) -> list[Speed]:
    """Every setting writes the row behind the context anew, in turn."""
    layout = kv_layout(model.config, BLOCK_TOKENS, backend.kv)
    count = layout.blocks_for(tokens + 1)
    storage = plain_storage(layout, count)
    make_up(storage)
    runner, blocks = make_runner(model, storage), list(range(count))
    ids = [100] * (tokens + 1)
    of = {budget: sequence_of(ids, blocks, budget, 1) for budget in (0, *budgets)}
    times: dict[int, list[float]] = {budget: [] for budget in (-1, *of)}
    for number in range(_WARM + rounds):
        taken = {budget: step(runner, sequence, tokens) for budget, sequence in of.items()}
        taken[-1] = step(runner, of[0], 31)  # next to no context
        for budget, seconds in taken.items():
            if number >= _WARM:
                times[budget].append(seconds)
    ms = {budget: median(found) * 1e3 for budget, found in times.items()}
    return [
        Speed(
            tokens,
            budget,
            share_read(of[budget]),
            ms[0],
            ms[budget],
            ms[0] / ms[budget],
            ms[0] / ms[-1],
        )
        for budget in budgets
    ]


def qualities(
    model: Model, backend: Backend, ids: list[int], budgets: Sequence[int]
) -> list[Quality]:
    layout = kv_layout(model.config, BLOCK_TOKENS, backend.kv)
    count = layout.blocks_for(len(ids))
    runner, blocks = make_runner(model, plain_storage(layout, count)), list(range(count))
    judged, found = len(ids) - _JUDGED, {}
    compute(runner, sequence_of(ids, blocks, 0, _JUDGED), 0, judged)
    for budget in (0, *budgets):
        sequence = sequence_of(ids, blocks, budget, _JUDGED)
        hidden = runner.forward_all([RowJob(sequence, judged, len(ids))])
        logprobs = torch.log_softmax(runner.logits(hidden), dim=-1)
        found[budget] = logprobs, share_read(sequence)
    dense, _ = found[0]
    rows = []
    for budget in budgets:
        sparse, read = found[budget]
        same = (dense.argmax(-1) == sparse.argmax(-1)).double().mean()
        kl = (dense.exp() * (dense - sparse)).sum(-1).clamp_min(0).double().mean()
        rows.append(Quality(len(ids), budget, read, float(same), float(kl)))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="int4")
    parser.add_argument("--kv", choices=["float32", "bfloat16", "int8"], default="float32")
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 16384, 32768])
    parser.add_argument("--budgets", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--text", type=int, default=4096, help="tokens of the text; 0: no quality")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args(argv)
    library = native_or_exit()
    backend, path = choose_backend(args.dtype, args.kv), pull_model(args.model)
    model = load_model(path, dtype=backend.weights, group=backend.group, packer=backend.packer)
    with torch.inference_mode(), threads(library, args.threads):
        fast = [
            cell
            for tokens in args.tokens
            for cell in speeds(model, backend, tokens, args.budgets, args.rounds)
        ]
        good = []
        if args.text:
            ids = Tokenizer.load(path).encode(documents())[: args.text]
            good = qualities(model, backend, ids, args.budgets)
    report(fast, good, RESULTS / "page_selection.json" if args.save else None)
    return 0


def report(fast: Sequence[Speed], good: Sequence[Quality], save: Path | None) -> None:
    tables = {
        "Decode steps that read pages against dense ones": [asdict(cell) for cell in fast],
        "Next tokens against dense attention": [asdict(cell) for cell in good],
    }
    for title, rows in tables.items():
        if rows:
            print_table(title, list(rows[0]), [list(row.values()) for row in rows])
    speed, quality = tables.values()
    finish({"speed": speed, "quality": quality}, save)


if __name__ == "__main__":
    sys.exit(main())
