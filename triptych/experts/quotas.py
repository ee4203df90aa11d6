"""How many units of a group each worker takes, before it is said which."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from triptych.experts.units import Bools, Floats


def fill_evenly(total: float, weights: Floats, caps: Floats) -> Floats:
    """Shares of `total` in proportion to `weights`, none above its cap; less if caps are low."""
    shares = np.zeros(len(caps))
    open_ = caps > 0
    while open_.any() and total > 0:
        level = total / weights[open_].sum()
        full = open_ & (caps <= level * weights)
        if not full.any():
            shares[open_] = level * weights[open_]
            break
        shares[full] = caps[full]
        total -= float(caps[full].sum())
        open_ &= ~full
    return shares


def share_out(
    least: int,
    copies: int,
    num_units: int,
    speeds: Floats,
    room: Floats,
    hard: Floats,
    domains: Bools,
) -> NDArray[np.int64]:
    """[workers] how many of `copies` copies of `num_units` units each worker takes.

    By speed within `room` [workers] (fractions of units; what fairness to other groups leaves).
    A domain has use for one copy of each unit and takes more only when there are not enough
    domains. Rounded so that nobody exceeds `hard`. The sum is smaller than `copies` if it must; up
    to `least` rather somebody takes more than its room.
    """
    room = np.minimum(room, num_units)
    most = np.minimum(hard, num_units)
    wanted = fill_evenly(copies, speeds @ domains, np.minimum(room @ domains, num_units))
    shares = np.zeros(len(speeds))
    for domain in range(domains.shape[1]):
        members = domains[:, domain]
        shares[members] = fill_evenly(wanted[domain], speeds[members], room[members])
    shares += fill_evenly(copies - shares.sum(), speeds, room - shares)
    quotas = np.floor(shares + 1e-9).astype(np.int64)
    for limits, enough in ((np.minimum(most, np.ceil(room - 1e-9)), copies), (most, least)):
        for _ in range(enough - int(quotas.sum())):
            short = np.where(quotas < limits, shares - quotas, -np.inf)
            if short.max() == -np.inf:
                break
            quotas[np.argmax(short)] += 1
    return quotas
