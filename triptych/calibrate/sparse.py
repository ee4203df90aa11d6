"""Finds the scale for a wanted sparsity: `triptych calibrate`.

For each length the scale is searched on the KV of a dense reading, where a trial costs a few steps.
Then every length is read anew, from its first token on, with the one scale that was found: those
readings are what is told, so what sparse layers do to each other is in them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from triptych.calibrate.long_text import JUDGED_ROWS, LongText, Reading, difference
from triptych.calibrate.search import one_scale, scale_for
from triptych.config import ClusterConfig
from triptych.engine.backend import choose_backend
from triptych.errors import ConfigError
from triptych.hub import resolve_model
from triptych.launch.machine import usable_cores
from triptych.models.load import load_model
from triptych.request import SparseAttention
from triptych.tokenizer import Tokenizer
from triptych_kernels.cpu.native import set_threads

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Length:
    """What a scale does to a text of so many tokens."""

    tokens: int
    scale: float  # of its own, for the wanted share
    prompt: float  # share of tiles left out while the text is read
    decode: float  # and by single tokens at its end
    omitted: float  # ε, the largest of any row and head
    same_token: float
    kl: float


@dataclass(frozen=True, slots=True)
class Calibration:
    wanted: float
    scale: float
    max_omitted: float | None  # None: any
    lengths: tuple[Length, ...]


def calibrate(
    config: ClusterConfig,
    text: str,
    wanted: float,
    lengths: Sequence[int],
    max_omitted: float | None,
    say: Say,
) -> Calibration:
    """`lengths` (): the model's context, or all of the text, a half and a quarter of it.

    Raises ModelError, or ConfigError that names the option.
    """
    threads = usable_cores()
    set_threads(threads)
    backend = choose_backend(config.dtype, config.kv.dtype, config.quant_group)
    if backend.kernels == "torch":
        raise ConfigError("sparse attention needs the native kernels, which cannot be had here")
    path = resolve_model(config.model)
    ids = Tokenizer.load(path).encode(text)
    model = load_model(path, dtype=backend.weights, group=backend.group, packer=backend.packer)
    if model.config.chooses:
        raise ConfigError("model: this one chooses by itself what it attends to")
    if model.config.delta is not None:
        raise ConfigError("model: this one attends in plain torch, which skips nothing")
    torch.set_num_threads(1)
    chosen = lengths_of(lengths, len(ids), model.config.max_model_len)
    texts = [LongText(model, backend, ids[:tokens], config.kv.block_tokens) for tokens in chosen]
    limit = math.inf if max_omitted is None else max_omitted
    own, dense = [], []
    with torch.inference_mode():
        for each in texts:
            say(f"{len(each)} tokens, dense")
            dense.append(each.read(None))
            share_at = partial(_trial, each, limit, say)
            own.append(scale_for(wanted, share_at, len(each)))
        scale = one_scale(own)
        sparse = SparseAttention(scale, limit)
        found = []
        for each, its_own, plain in zip(texts, own, dense, strict=True):
            say(f"{len(each)} tokens, scale {scale:g}")
            found.append(_told(len(each), its_own, plain, each.read(sparse)))
    return Calibration(wanted, scale, max_omitted, tuple(found))


def lengths_of(asked: Sequence[int], available: int, longest: int) -> list[int]:
    """Pure. Raises ConfigError naming --tokens or --text."""
    most = min(available, longest)
    if most < JUDGED_ROWS:
        raise ConfigError(f"--text: has {available} tokens, at least {JUDGED_ROWS} are needed")
    for tokens in asked:
        if not JUDGED_ROWS <= tokens <= most:
            limit = "the model's context" if most == longest else "what --text has"
            raise ConfigError(f"--tokens {tokens}: must be in {JUDGED_ROWS} to {most}, {limit}")
    found = asked or [part for part in (most // 4, most // 2, most) if part >= JUDGED_ROWS]
    return sorted(set(found))


def _trial(text: LongText, max_omitted: float, say: Say, scale: float) -> float:
    count = text.decode(SparseAttention(scale, max_omitted))
    say(f"{len(text)} tokens, scale {scale:.3g}: {count.share:.0%}")
    return count.share


def _told(tokens: int, scale: float, dense: Reading, sparse: Reading) -> Length:
    apart = difference(dense, sparse)
    return Length(
        tokens=tokens,
        scale=scale,
        prompt=sparse.prompt.share,
        decode=sparse.decode.share,
        omitted=max(sparse.prompt.omitted, sparse.decode.omitted),
        same_token=apart.same_token,
        kl=apart.kl,
    )
