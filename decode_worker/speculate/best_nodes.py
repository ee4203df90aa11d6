"""How many nodes a step should verify: survival top-M."""

from __future__ import annotations

from collections.abc import Sequence as Seq


def best_count(survivals: Seq[float], sure_tokens: int, seconds: Seq[float]) -> int:
    """The M that maximises (sure tokens + the M best survivals) / seconds[M].

    `survivals` fall; `seconds[M]` is the whole step, drafting included, in any unit, and may rise
    in steps, so all M are looked at. Of equals the smallest.
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
    if not count:
        return [[False] * len(own) for own in survivals]
    ranked = sorted((s for own in survivals for s in own), reverse=True)
    least = ranked[count - 1]
    ties = count - sum(s > least for s in ranked[:count])
    keep = []
    for own in survivals:
        kept = [s > least for s in own]
        if ties and least in own:
            for node, survival in enumerate(own):
                if survival == least and ties:
                    kept[node], ties = True, ties - 1
        keep.append(kept)
    return keep
