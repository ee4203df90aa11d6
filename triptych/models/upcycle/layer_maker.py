"""One layer's router and experts, out of its dense FFN."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.models.upcycle.probe import Ffn
from triptych.models.upcycle.recipe import Recipe
from triptych.models.upcycle.routers import expert_shares, popular_router
from triptych.models.upcycle.split import (
    divide_neurons,
    fit_scale,
    missed_output,
    size_router,
)

_BLOCK = 32
_ROUTER, _PARTS, _NOISE = 0, 1, 2  # what random numbers are for


@dataclass(frozen=True, slots=True)
class Fit:
    """What is made from rows."""

    router: Tensor  # [E, H]
    scale: float  # split: of `down` of every part


@dataclass(frozen=True, slots=True)
class MadeLayer:
    """A mixture that stands for a dense FFN. Tensors are float32."""

    ffn: Ffn
    parts: Tensor | None  # split: [I], the expert of each neuron
    fit: Fit
    shares: Tensor  # [E], of the trial's rows how many choose each expert
    error: float  # split: `missed_output` of the trial


def expert_size(recipe: Recipe, inner: int) -> int:
    """Neurons of an expert. Parts are filled up with zeros to whole blocks, which kernels want."""
    if recipe.how != "split":
        return inner
    return -(-inner // (recipe.num_experts * _BLOCK)) * _BLOCK


def make_layer(recipe: Recipe, layer: int, ffn: Ffn, rows: Tensor, inner: Tensor) -> MadeLayer:
    """rows [T, H]: the sample at the FFN's input; inner [T, I]: `ffn.inner_rows` of it.

    The router is fitted to all rows; `shares` and `error` are of a trial on a quarter of them with
    a router fitted to the others.
    """
    parts = None
    if recipe.how == "split":
        source = recipe.generator(layer, _PARTS)
        parts = divide_neurons(ffn.gate, recipe.num_experts, source)
    held = torch.arange(len(rows)) % 4 == 3
    trial = _fit(recipe, layer, ffn, parts, rows[~held], inner[~held])
    logits = rows[held] @ trial.router.T
    error = 0.0
    if parts is not None and not recipe.is_exact_split:
        error = missed_output(inner[held], ffn, parts, logits, recipe.top_k, trial.scale)
    fit = _fit(recipe, layer, ffn, parts, rows, inner)
    return MadeLayer(ffn, parts, fit, expert_shares(logits, recipe.top_k), error)


def make_experts(recipe: Recipe, layer: int, made: MadeLayer) -> Iterator[Ffn]:
    """One after the other, so that only one is in memory."""
    for expert in range(recipe.num_experts):
        if made.parts is not None:
            yield _part(made, made.parts == expert, expert_size(recipe, len(made.parts)))
        elif recipe.how == "perturbed":
            yield _perturbed(made.ffn, recipe, layer, expert)
        else:
            yield made.ffn


def _fit(
    recipe: Recipe, layer: int, ffn: Ffn, parts: Tensor | None, rows: Tensor, inner: Tensor
) -> Fit:
    num_experts, top_k = recipe.num_experts, recipe.top_k
    if recipe.is_exact_split:
        return Fit(torch.zeros(num_experts, rows.shape[1]), float(num_experts))
    if parts is not None and recipe.router == "auto":
        router = size_router(rows, inner, ffn, parts, num_experts)
    else:
        skew = recipe.skew if recipe.router == "skewed" else 0.0
        source = recipe.generator(layer, _ROUTER)
        router = popular_router(rows, num_experts, top_k, skew, source)
    if parts is None:
        return Fit(router, 1.0)
    return Fit(router, fit_scale(inner, ffn, parts, rows @ router.T, top_k))


def _part(made: MadeLayer, mine: Tensor, size: int) -> Ffn:
    gate, up, down = made.ffn.gate[mine], made.ffn.up[mine], made.ffn.down[:, mine] * made.fit.scale
    missing = size - len(gate)
    if missing:
        empty = gate.new_zeros(missing, gate.shape[1])
        gate, up = torch.cat([gate, empty]), torch.cat([up, empty])
        down = torch.cat([down, empty.T], 1)
    return Ffn(gate, up, down)


def _perturbed(ffn: Ffn, recipe: Recipe, layer: int, expert: int) -> Ffn:
    def noisy(index: int, matrix: Tensor) -> Tensor:
        source = recipe.generator(layer, _NOISE, expert, index)
        noise = torch.randn(matrix.shape, generator=source)
        return noise.mul_(recipe.noise * matrix.square().mean().sqrt()).add_(matrix)

    return Ffn(*(noisy(index, matrix) for index, matrix in enumerate(ffn)))
