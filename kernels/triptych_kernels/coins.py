"""Counter-based chance beside the noise of draws: streams by purpose, coins by position.

Rules that are lossless in law only need chance of several kinds, and none may be used twice: a coin
that decides over a token must know nothing of how the token was drawn. So a request's seed becomes
one seed per purpose. All are functions of it, so a stream that is continued elsewhere goes on.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

from triptych_kernels.sampling import noise_key

_NO_POSITION = 1 << 63  # from here on: no token is that far behind


class Purpose(IntEnum):
    """What a stream is for. The seed itself belongs to plain draws and to who drafts as they do.

    Coins of drafts and nodes are those of the round's first position, one per node, not those of
    the nodes' positions: a rule may look at nodes that it does not take, and what it has seen is no
    chance for the next round.
    """

    DRAFT = 1  # draws of drafters that state their laws
    ACCEPT = 2  # whether a node is right
    EMIT = 3  # the token behind the last right node


def stream(seed: int, purpose: Purpose) -> int:
    """The seed of a request's chance for one purpose; also for `gumbel_noise`."""
    return noise_key(seed, _NO_POSITION + purpose)


def coins(seed: int, position: int, count: int) -> Tensor:
    """Uniform numbers in (0, 1), float64 [count], the n-th a function of (seed, position, n)."""
    key = noise_key(seed, position)
    # 52 bits and a half: the greatest is 1 − 2⁻⁵³, and times any total less than that total.
    bits = [noise_key(key, number) >> 12 for number in range(count)]
    return (torch.tensor(bits, dtype=torch.float64) + 0.5) * 2.0**-52
