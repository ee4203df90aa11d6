"""Which nodes of a draft are right, for rules that keep the target's law but not its draws.

Pure functions over tensors, many drafts of one shape at once. Each takes uniform coins, decides how
far a draft is right and leaves the law of the token behind it. That token and the right ones
together follow the law p of plain sampling, whatever was drafted, if

* every token was drawn from the q that is stated for it (fixed text: from a one-hot q), with chance
  that nothing here sees, and no node was left out after its token was known;
* no coin decides twice.

A: Leviathan et al. 2023 (arXiv 2211.17192), Chen et al. 2023 (arXiv 2302.01318). C: Sun et al. 2024
(arXiv 2403.10444). D: SpecInfer, Miao et al. 2023 (arXiv 2305.09781).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from triptych_kernels.sampling import NO_TOKEN

_TINY = torch.finfo(torch.float32).tiny


class Round(NamedTuple):
    """N drafts of T nodes, and what two models say of V tokens."""

    parents: Sequence[int]  # [T], parents[i] < i, −1: the sequence itself; siblings as drawn
    tokens: Tensor  # [N, T] int64
    targets: Tensor  # [N, T + 1, V] float: p behind the sequence, then behind each node
    drafts: Tensor  # [N, T, V] float: q of each node, what it was drawn from


class Stop(NamedTuple):
    """Where N drafts stop being right."""

    node: Tensor  # [N] int64, the last right node, −1: none
    law: Tensor  # [N, V] float, of the token behind it; its sum may be anything


Verify = Callable[[Round, Tensor], Stop]


def rejection(drafted: Round, coins: Tensor) -> Stop:
    """Multi-draft rejection along a tree (D): a chain with q is A, a one-hot q is B.

    coins [N, T], one per node. Behind a right node its children are tried in order: one is right
    with probability min(1, r / q) of its token, where r is p at first; behind a wrong one r becomes
    the normalised part of r above q. What is left when none was right is the law.
    """
    parents, tokens, targets, drafts = drafted
    node = torch.full(targets.shape[:1], -1)
    law = targets[:, 0]
    for child, parent in enumerate(parents):
        asked = node == parent
        if not asked.any():
            continue
        q = drafts[:, child]
        r_token, q_token = (_at(x, tokens[:, child]) for x in (law, q))
        right = asked & (coins[:, child] * q_token < r_token)
        node = torch.where(right, child, node)
        law = _choose(asked & ~right, residual(law, q), law)
        law = _choose(right, targets[:, child + 1], law)
    return Stop(node, law)


def block(drafted: Round, coins: Tensor) -> Stop:
    """Block verification (C) of chains: as many right tokens as A on average, or more.

    coins [N, T]. A node is judged with those behind it in mind: the last node whose coin falls is
    right, and with it all before.
    """
    _, tokens, targets, drafts = drafted
    count = tokens.shape[1]
    node = torch.full(targets.shape[:1], -1)
    if not count:
        return Stop(node, targets[:, 0])
    law = residual(targets[:, 0], drafts[:, 0])
    share = torch.ones_like(targets[:, 0, 0])  # of the path's mass that may still be kept
    for at in range(count):
        p_token, q_token = (_at(x[:, at], tokens[:, at]) for x in (targets, drafts))
        share = (share * p_token / q_token.clamp(min=_TINY)).clamp(max=1.0)
        left, chance = targets[:, at + 1], share
        if at + 1 < count:
            left = (share[:, None] * left - drafts[:, at + 1]).clamp(min=0.0)
            rest = left.sum(-1)
            chance = torch.where(rest > 0, rest / (rest + 1.0 - share), 0.0)
        right = coins[:, at] < chance
        node = torch.where(right, at, node)
        law = _choose(right, left, law)
    return Stop(node, law)


def single_coin(drafted: Round, coins: Tensor) -> Stop:
    """One coin per family (E), for children that are fixed text and differ: B with fewer coins.

    coins [N, T + 1], for the children of the sequence, then of each node. The first child is right
    at which the sum of p over the children so far passes the coin. As in SGLang; the rules use
    `rejection`, which bears equal siblings too.
    """
    parents, tokens, targets, _ = drafted
    node = torch.full(targets.shape[:1], -1)
    law, passed = targets[:, 0], torch.zeros_like(targets[:, 0, 0])
    for child, parent in enumerate(parents):
        asked = node == parent
        passed = passed + torch.where(asked, _at(targets[:, parent + 1], tokens[:, child]), 0.0)
        right = asked & (coins[:, parent + 1] < passed)
        node = torch.where(right, child, node)
        law = _choose(asked & ~right, law.scatter(1, tokens[:, child : child + 1], 0.0), law)
        law = _choose(right, targets[:, child + 1], law)
        passed = torch.where(right, 0.0, passed)
    return Stop(node, law)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """What p has above q, normalised, [..., V]; p where rounding leaves nothing."""
    left = (p - q).clamp(min=0.0)
    total = left.sum(-1, keepdim=True)
    return torch.where(total > 0, left / total, p)


def without(law: Tensor, tokens: Tensor) -> Tensor:
    """law [N, V] of a next sibling, drawn without replacement behind tokens [N]."""
    left = law.scatter(1, tokens[:, None], 0.0)
    return left / left.sum(-1, keepdim=True)


def one_hot(tokens: Tensor, vocab_size: int) -> Tensor:
    """q of tokens [...] that nobody drew, [..., V] float32."""
    return torch.nn.functional.one_hot(tokens, vocab_size).float()


def sample(law: Tensor, coins: Tensor) -> Tensor:
    """The tokens [...] at which laws [..., V], of any sum, pass coins [...]; NO_TOKEN: all is 0."""
    mass = law.double().cumsum(-1)
    total = mass[..., -1]
    tokens = torch.searchsorted(mass, (coins * total)[..., None], right=True)[..., 0]
    return torch.where(total > 0, tokens, NO_TOKEN)


def _at(law: Tensor, tokens: Tensor) -> Tensor:
    """law [N, V] at tokens [N]."""
    return law.gather(1, tokens[:, None])[:, 0]


def _choose(which: Tensor, there: Tensor, here: Tensor) -> Tensor:
    """Rows [N, V] from `there` where which [N] says so."""
    return torch.where(which[:, None], there, here)
