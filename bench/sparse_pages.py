"""What would page selection read of a context, what would it lose, and could it tell?

Quest (arXiv 2406.10774) keeps the smallest and largest value of each channel of a page's keys; from
these follows a bound of q·k for every key of the page. A row attends to the first page (attention
sinks), the most recent ones and those with the highest bounds, each KV head its own. The same bound
says how much of the softmax unread pages can hold: a certificate like BLASST's.

In float32 by torch, on the query of the last position: shares and errors, no times. A choice
depends on nothing but the row's own query and the keys that it sees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from bench.captured import Captured
from triptych.testing.skipped_tiles import widest_distance

BUDGETS = (0.05, 0.125, 0.25, 0.5, 1.0)  # shares of the pages
RECENT = 2  # pages, the row's own one included
_ROUNDING = 1e-4


@dataclass(frozen=True, slots=True)
class Reading:
    """One row over chosen pages."""

    out: Tensor  # [Hq, D]
    omitted: Tensor  # [Hq]; ε: unread pages weigh at most so much, over what was read


def page_bounds(query: Tensor, keys: Tensor, page: int) -> Tensor:
    """query [Hq, D], keys [n, Hkv, D] → what no q·k of a page exceeds, [Hq, pages]."""
    group = query.shape[0] // keys.shape[1]
    low, high = (
        torch.stack([part(run, dim=0) for run in keys.split(page)])  # [pages, Hkv, D]
        for part in (torch.amin, torch.amax)
    )
    low, high = (side.repeat_interleave(group, dim=1) for side in (low, high))
    return torch.maximum(query * low, query * high).sum(dim=-1).T


def chosen_pages(bounds: Tensor, kv_heads: int, count: int) -> Tensor:
    """bounds [Hq, pages] → bool [Hkv, pages]: `count` pages, the first and RECENT last among them.

    The heads of a KV head share a choice: a page is worth what it is worth to the keenest of them.
    Of equals the earlier page is chosen.
    """
    pages = bounds.shape[1]
    count = min(max(count, 1 + RECENT), pages)
    worth = bounds.unflatten(0, (kv_heads, -1)).amax(dim=1)
    worth[:, 0] = math.inf
    worth[:, -RECENT:] = math.inf
    best = worth.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return torch.zeros_like(worth, dtype=torch.bool).scatter_(1, best, True)


def read_pages(
    query: Tensor, keys: Tensor, values: Tensor, chosen: Tensor, bounds: Tensor, page: int
) -> Reading:
    """chosen: bool [Hkv, pages]; bounds as of `page_bounds`."""
    (length, kv_heads), scale = keys.shape[:2], keys.shape[-1] ** -0.5
    group = query.shape[0] // kv_heads
    mine = chosen.repeat_interleave(group, dim=0)
    seen = mine.repeat_interleave(page, dim=1)[:, :length]
    logits = torch.einsum("hd,nhd->hn", query, keys.repeat_interleave(group, dim=1)) * scale
    logits = logits.masked_fill(~seen, -math.inf)
    tokens = torch.tensor([min(page, length - at) for at in range(0, length, page)])
    kept = logits.logsumexp(dim=1, keepdim=True)
    unread = ((bounds * scale - kept).exp() * tokens).masked_fill(mine, 0.0).sum(dim=1)
    weights = logits.softmax(dim=1)
    return Reading(
        torch.einsum("hn,nhd->hd", weights, values.repeat_interleave(group, dim=1)), unread
    )


@dataclass(frozen=True, slots=True)
class Part:
    """One layer with one budget."""

    error: Tensor  # [Hq], over the largest distance of two values
    promised: Tensor  # [Hq], no error is more
    read: float  # share of the pages


@dataclass(frozen=True, slots=True)
class PagesCell:
    """One length and budget; the worst of all layers and heads, and the usual one."""

    tokens: int
    budget: float
    read: float  # share of the pages
    error: float  # over the largest distance of two values
    median_error: float
    certificate: float  # ε / (1 + ε) of the median head: 1 says nothing
    holds: bool


def measure_pages(found: Captured, length: int, page: int) -> list[PagesCell]:
    """The last row of each layer over so many tokens, with each budget."""
    parts: dict[float, list[Part]] = {budget: [] for budget in BUDGETS}
    for queries, all_keys, all_values in zip(found.queries, found.keys, found.values, strict=True):
        query = queries[length - 1].float()
        keys, values = (part[:length].float() for part in (all_keys, all_values))
        bounds = page_bounds(query, keys, page)
        every = torch.ones(keys.shape[1], bounds.shape[1], dtype=torch.bool)
        whole = read_pages(query, keys, values, every, bounds, page).out
        widest = widest_distance(values).repeat_interleave(len(query) // keys.shape[1])
        for budget, of_budget in parts.items():
            chosen = chosen_pages(bounds, keys.shape[1], round(budget * bounds.shape[1]))
            some = read_pages(query, keys, values, chosen, bounds, page)
            error = (whole - some.out).norm(dim=-1) / widest
            of_budget.append(Part(error, 1 - 1 / (1 + some.omitted), float(chosen.float().mean())))
    return [_cell(length, budget, of_budget) for budget, of_budget in parts.items()]


def _cell(length: int, budget: float, parts: Sequence[Part]) -> PagesCell:
    error, promised = (
        torch.cat(heads) for heads in zip(*((p.error, p.promised) for p in parts), strict=True)
    )
    return PagesCell(
        length,
        budget,
        fmean(part.read for part in parts),
        float(error.max()),
        float(error.median()),
        float(promised.median()),
        bool((error <= promised + _ROUNDING).all()),
    )


def table_rows(cells: Sequence[PagesCell]) -> list[tuple[float | bool, ...]]:
    return [
        (c.tokens, c.budget, c.read, c.error, c.median_error, c.certificate, c.holds) for c in cells
    ]
