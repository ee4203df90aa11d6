"""Drawing tokens natively: the twins of `triptych_kernels.sampling`, equal to the bit."""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from triptych_kernels import sampling as reference
from triptych_kernels.cpu.native import Library, native
from triptych_kernels.sampling import GREEDY_BELOW, Draw, DrawTokens, TokenLaw

# `TkDraw` of sampling.h: logits, seed, position, top_p, 1/temperature, log min_p, top_k, unused.
_ROW = struct.Struct("=QQQdffii")
_MASK64 = (1 << 64) - 1
_MAX_TOP_K = (1 << 31) - 1


@functools.cache
def best_draw_tokens() -> DrawTokens:
    """The native function where there is one, the torch reference elsewhere."""
    library = native()
    return reference.draw_tokens if library is None else NativeSampling(library).draw_tokens


@functools.cache
def best_token_law() -> TokenLaw:
    library = native()
    return reference.token_law if library is None else NativeSampling(library).token_law


class NativeSampling:
    """The sampling functions of one library."""

    def __init__(self, library: Library) -> None:
        int32, uint64, pointer = ctypes.c_int, ctypes.c_uint64, ctypes.c_void_p
        self._draw = library.bind("tk_draw_tokens", None, pointer, int32, int32, pointer)
        self._kept = library.bind("tk_kept_tokens", int32, pointer, int32, pointer)
        self._noise = library.bind("tk_token_noise", None, uint64, uint64, pointer, int32, pointer)
        self._noise_of = library.bind("tk_noise_of_bits", None, ctypes.c_uint32, int32, pointer)

    def draw_tokens(self, draws: Sequence[Draw]) -> list[int]:
        """A token for each row, or NO_TOKEN, in one native call. All rows are equally long, in the
        CPU's memory, and contiguous.
        """
        if not draws:
            return []
        vocab_size = draws[0].logits.shape[0]
        rows = b"".join([_pack_row(draw, vocab_size) for draw in draws])
        tokens = (ctypes.c_int32 * len(draws))()
        self._draw(rows, len(draws), vocab_size, tokens)
        return list(tokens)

    def kept_tokens(self, draw: Draw) -> Tensor:
        """The ids [n] int64, ascending, that the filters leave; for a positive temperature."""
        vocab_size = draw.logits.shape[0]
        tokens = torch.empty(vocab_size, dtype=torch.int32)
        count = self._kept(_pack_row(draw, vocab_size), vocab_size, tokens.data_ptr())
        return tokens[:count].long().sort().values

    def token_law(self, draw: Draw) -> Tensor:
        """The reference's but for rounding; the same tokens have a probability."""
        plain = draw.top_k <= 0 and draw.top_p >= 1.0 and draw.min_p <= 0.0
        if plain or draw.temperature < GREEDY_BELOW or draw.logits.isposinf().any():
            return reference.token_law(draw)
        kept = self.kept_tokens(draw)
        law = torch.zeros_like(draw.logits)
        law[kept] = (draw.logits[kept] * reference.inverse_temperature(draw.temperature)).softmax(0)
        return law

    def token_noise(self, seed: int, position: int, token_ids: Tensor) -> Tensor:
        assert token_ids.dtype == torch.int64 and token_ids.is_contiguous(), "ids are int64"
        noise = torch.empty(len(token_ids))
        ids = token_ids.data_ptr()
        self._noise(seed & _MASK64, position, ids, len(token_ids), noise.data_ptr())
        return noise

    def noise_of_bits(self, first: int, count: int) -> Tensor:
        """The noise [count] float32 of the bits first, first + 1, …"""
        noise = torch.empty(count)
        self._noise_of(first, count, noise.data_ptr())
        return noise


def _pack_row(draw: Draw, vocab_size: int) -> bytes:
    logits, temperature, top_k, top_p, min_p, seed, position = draw
    assert logits.dtype == torch.float32 and logits.is_cpu, "logits are float32 on the CPU"
    assert logits.shape == (vocab_size,) and logits.is_contiguous(), "rows are equally long"
    inverse = 0.0
    if temperature >= GREEDY_BELOW:
        inverse = reference.inverse_temperature(temperature)
    return _ROW.pack(
        logits.data_ptr(),
        seed & _MASK64,
        position,
        top_p,
        inverse,
        reference.min_p_log(min_p),
        min(top_k, _MAX_TOP_K),
        0,
    )
