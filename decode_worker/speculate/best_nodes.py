"""How many nodes a step should verify: survival top-M."""

from __future__ import annotations

from collections.abc import Sequence as Seq


def best_count(survivals: Seq[float], sure_tokens: int, seconds: Seq[float]) -> int:
    """The M that maximises (sure tokens + the M best survivals) / seconds[M].

    `survivals` fall; `seconds[M]` is the whole step, drafting included, and may rise in steps, so
    all M are looked at. Of equals the smallest.
    """
    tokens = float(sure_tokens)
    best, best_rate = 0, tokens / seconds[0]
    for count, survival in enumerate(survivals, 1):
        tokens += survival
        rate = tokens / seconds[count]
        if rate > best_rate:
            best, best_rate = count, rate
    return best


def keep_best(survivals: Seq[Seq[float]], count: int) -> list[list[bool]]:
    """The `count` best nodes of all drafts. Closed under parents.

    A node survives at most as often as its parent and comes behind it; ties go to who comes first.
    """
    ranked = sorted(
        ((-s, which, node) for which, own in enumerate(survivals) for node, s in enumerate(own))
    )
    keep = [[False] * len(own) for own in survivals]
    for _, which, node in ranked[:count]:
        keep[which][node] = True
    return keep
