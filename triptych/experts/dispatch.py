"""Which worker gets which rows of one call: the rule that homes follow.

One copy per expert and call, that of the least busy worker: an expert's weights are read once,
which is what decoding pays for (JANUS, arXiv 2512.13525). Only an expert that alone would keep a
worker busy for longer than the others need for all the rest is cut in pieces over its copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

_CUT = 0.25  # of a fair share of the call: an expert with more rows is cut, if it has copies
_PIECE = 0.25  # of a fair share: size of the pieces
_FEW_ROWS = 16  # smaller pieces save no time: weights cost as much to read for one row
_SECOND_THOUGHTS = 2  # per worker: pieces that are taken from the busiest afterwards


class Piece(NamedTuple):
    """Rows [first, first + rows) of those that want the expert go to the worker."""

    expert: int
    worker: int
    first: int
    rows: int


def choose_workers(
    counts: Sequence[int],
    hosts: Sequence[Sequence[int]],
    outstanding: Sequence[float],
    speeds: Sequence[float],
) -> list[Piece]:
    """Pieces that cover the rows of one call, each expert's in order.

    counts[e]: rows that want expert e. hosts[e]: the workers that may have them, at least one
    where there are rows. outstanding[w]: rows (of cells) that this home has sent to worker w and
    not got back. speeds[w]: relative.

    Experts with most rows choose first; the worker that would be done earliest gets them. Ties go
    round with the expert's number, so that homes that know nothing yet do not all pick the same.
    Then the busiest worker gives pieces away as long as that helps. Over many calls the rows of
    workers come within some per cent of the best that copies allow (`fluid`).
    """
    busy = [rows / speed for rows, speed in zip(outstanding, speeds, strict=True)]
    parts = _cut(counts, hosts, sum(counts) / len(speeds))
    chosen = [_earliest(part, hosts[part[1]], busy, speeds) for part in parts]
    for _ in range(_SECOND_THOUGHTS * len(speeds)):
        if not _relieve(parts, chosen, hosts, busy, speeds):
            break
    pieces: dict[tuple[int, int], list[Piece]] = {}
    for (rows, expert, first), worker in zip(parts, chosen, strict=True):
        pieces.setdefault((expert, worker), []).append(Piece(expert, worker, first, rows))
    return [piece for group in pieces.values() for piece in _join(group)]


_Part: TypeAlias = tuple[int, int, int]  # rows, expert, first


def _cut(counts: Sequence[int], hosts: Sequence[Sequence[int]], fair: float) -> list[_Part]:
    """What is not divided any further, the largest first."""
    size = max(_FEW_ROWS, int(_PIECE * fair))
    limit = max(_CUT * fair, _FEW_ROWS)
    parts: list[_Part] = []
    for expert, rows in enumerate(counts):
        if rows > limit and len(hosts[expert]) > 1:
            parts += [(min(size, rows - at), expert, at) for at in range(0, rows, size)]
        elif rows:
            parts.append((rows, expert, 0))
    parts.sort(key=lambda part: (-part[0], part[1], part[2]))
    return parts


def _earliest(
    part: _Part, options: Sequence[int], busy: list[float], speeds: Sequence[float]
) -> int:
    """The worker that gets it; it is that much busier then."""
    rows, expert, _ = part
    count = len(options)
    worker = options[expert % count]
    least = busy[worker] + rows / speeds[worker]
    for step in range(1, count):
        other = options[(expert + step) % count]
        done = busy[other] + rows / speeds[other]
        if done < least:
            worker, least = other, done
    busy[worker] = least
    return worker


def _relieve(
    parts: list[_Part],
    chosen: list[int],
    hosts: Sequence[Sequence[int]],
    busy: list[float],
    speeds: Sequence[float],
) -> bool:
    """Moves the part of the busiest worker that relieves it most; whether there was one."""
    worst = max(range(len(busy)), key=lambda worker: busy[worker])
    least, found, target = busy[worst], -1, -1
    for number, (rows, expert, _) in enumerate(parts):
        if chosen[number] != worst:
            continue
        left = busy[worst] - rows / speeds[worst]
        for other in hosts[expert]:
            after = max(left, busy[other] + rows / speeds[other])
            if other != worst and after < least:
                least, found, target = after, number, other
    if found < 0:
        return False
    rows = parts[found][0]
    busy[worst] -= rows / speeds[worst]
    busy[target] += rows / speeds[target]
    chosen[found] = target
    return True


def _join(pieces: list[Piece]) -> list[Piece]:
    """Neighbouring rows of an expert on one worker are one piece."""
    pieces.sort(key=lambda piece: piece.first)
    joined = [pieces[0]]
    for piece in pieces[1:]:
        last = joined[-1]
        if last.first + last.rows == piece.first:
            joined[-1] = last._replace(rows=last.rows + piece.rows)
        else:
            joined.append(piece)
    return joined
