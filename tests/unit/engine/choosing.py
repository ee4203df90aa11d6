"""Long prompts for models that choose what they attend to, and the rows that come out of them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence as Items
from typing import Any

import torch
from torch import Tensor

from triptych.engine.rows import RowJob
from triptych.engine.runner import Runner, make_runner
from triptych.engine.sequence import Sequence
from triptych.engine.storage import KvStorage, plain_storage
from triptych.models.model import Model
from triptych.request import SamplingParams
from triptych.testing.compute_modes import MODES
from triptych.worker.boot import kv_layout

SOME_MODES = ("torch", "float32", "bfloat16", "int4", "int8 KV")
SIZES = {"vocab_size": 256, "max_position_embeddings": 2048}
LENGTH, BLOCK_TOKENS = 1100, 16  # two splits of a native kernel, and a tile that is not full


def runner_of(model: Model, mode: str) -> Runner:
    layout = kv_layout(model.config, BLOCK_TOKENS, MODES[mode][1])
    return make_runner(model, plain_storage(layout, layout.blocks_for(LENGTH)))


def prompt(length: int = LENGTH) -> Sequence:
    tokens = torch.randint(3, 250, (length,), generator=torch.Generator().manual_seed(7)).tolist()
    blocks = list(range(-(-length // BLOCK_TOKENS)))[::-1]
    return Sequence("a", tokens, b"root", BLOCK_TOKENS, blocks=blocks)


def rows_in_chunks(runner: Runner, sequence: Sequence, cuts: Items[int] = ()) -> Tensor:
    edges = itertools.pairwise([0, *cuts, len(sequence.tokens)])
    return torch.cat([runner.forward_all([RowJob(sequence, *edge)]).clone() for edge in edges])


def prompts() -> list[list[int]]:
    draw = random.Random(2)
    shared = [draw.randrange(3, 250) for _ in range(70)]
    own = [[draw.randrange(3, 250) for _ in range(n)] for n in (5, 23, 33, 300)]
    return [*own, shared, [*shared, 7, 8]]


def answers(home: Any) -> list[list[int]]:
    for index, tokens in enumerate(prompts()):
        temperature = 0.0 if index % 3 == 0 else 0.9
        params = SamplingParams(seed=index, max_tokens=20, temperature=temperature, ignore_eos=True)
        home.submit(tokens, params)
    return home.run()[-len(prompts()) :]


def bytes_of(storage: KvStorage) -> Any:
    return storage._layers.reshape(storage.num_blocks, -1).numpy()
