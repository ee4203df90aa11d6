"""An FFN's neurons divided among experts of equal size.

Neurons with similar gates go together (balanced k-means on the rows of the gate: parameter
clustering of MoEfication, Zhang et al. 2022, arXiv 2110.01786, section 3.2), so that a row finds
most of what matters to it in few experts.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize, one_hot

from triptych.models.upcycle.probe import Ffn
from triptych.models.upcycle.routers import regress

_ROUNDS = 12
_RIDGE = 0.5
# Logits this small order the experts and leave all weights near 1 / top_k.
_LOGIT_SCALE = 0.02
_TINY = 1e-30


def divide_neurons(gate: Tensor, num_parts: int, source: torch.Generator) -> Tensor:
    """gate [I, H] → [I], the part of each neuron; no part has more than ⌈I / num_parts⌉."""
    points = normalize(gate, dim=1)
    centres = points[torch.randperm(len(points), generator=source)[:num_parts]]
    parts = torch.empty(0, dtype=torch.int64)
    for _ in range(_ROUNDS):
        before, parts = parts, _fill_evenly(points @ centres.T)
        if torch.equal(before, parts):
            break
        centres = normalize(one_hot(parts, num_parts).T.float() @ points, dim=1)
    return parts


def _fill_evenly(closeness: Tensor) -> Tensor:
    """[I, N] → [I]; who has most to lose chooses first."""
    count, num_parts = closeness.shape
    ranked, choices = closeness.sort(1, descending=True)
    order = (ranked[:, 0] - ranked[:, min(1, num_parts - 1)]).argsort(descending=True)
    # The first parts hold one neuron more where they do not come out even.
    room = [count // num_parts + (part < count % num_parts) for part in range(num_parts)]
    found = [0] * count
    for neuron, wanted in zip(order.tolist(), choices[order].tolist(), strict=True):
        part = next(part for part in wanted if room[part])
        room[part] -= 1
        found[neuron] = part
    return torch.tensor(found)


def size_router(rows: Tensor, inner: Tensor, ffn: Ffn, parts: Tensor, num_parts: int) -> Tensor:
    """[N, H]; its logits order the parts by how much they add to a row's output, as far as that
    follows from the row. rows [T, H], inner [T, I]: a sample.
    """
    sizes = [
        linear(inner[:, parts == part], ffn.down[:, parts == part]).square().sum(1)
        for part in range(num_parts)
    ]
    return regress(rows, torch.stack(sizes, 1).clamp_min(_TINY).log(), _RIDGE) * _LOGIT_SCALE


def fit_scale(inner: Tensor, ffn: Ffn, parts: Tensor, logits: Tensor, top_k: int) -> float:
    """The factor that brings scale × Σ weight × part nearest to the dense output (least squares).

    About top_k where the others add next to nothing, about the number of parts where the chosen
    ones are as good as any.
    """
    found, dense = _both_outputs(inner, ffn, parts, logits, top_k)
    return float((found * dense).sum() / found.square().sum().clamp_min(_TINY))


def missed_output(
    inner: Tensor, ffn: Ffn, parts: Tensor, logits: Tensor, top_k: int, scale: float
) -> float:
    """|scale × Σ weight × part − dense output|² over |dense output|², of all rows."""
    found, dense = _both_outputs(inner, ffn, parts, logits, top_k)
    missed = (scale * found - dense).square().sum()
    return float(missed / dense.square().sum().clamp_min(_TINY))


def _both_outputs(
    inner: Tensor, ffn: Ffn, parts: Tensor, logits: Tensor, top_k: int
) -> tuple[Tensor, Tensor]:
    """[T, H] of the chosen parts, weighted as a Mixtral does, and of the dense FFN."""
    best, chosen = logits.topk(top_k, dim=1)
    weights = torch.zeros_like(logits).scatter_(1, chosen, best.softmax(1))
    return linear(inner * weights[:, parts], ffn.down), linear(inner, ffn.down)
