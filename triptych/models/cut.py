"""How a step's rows are cut into micro-batches. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

# KV positions that cost as much attention time as a row costs otherwise (projections, norms).
_POSITIONS_OF_ROW = 1024
MIN_ROWS = 16  # of a piece of a job: a tile costs the same with fewer


class JobSize(NamedTuple):
    """What matters of a job here."""

    rows: int
    end: int  # position behind its last row
    whole: bool  # must not be cut


class Piece(NamedTuple):
    """Rows [first, end) of job `job`, counted from its first."""

    job: int
    first: int
    end: int


def cut_jobs(jobs: Sequence[JobSize], lanes: int) -> list[list[Piece]]:
    """The jobs' rows in order, in at most `lanes` runs of about equal cost, none of them empty.

    Long prompt chunks are cut in multiples of 16 rows. A piece that goes on where the run before
    ends must be computed behind it: it sees that one's KV.
    """
    total = sum(_cost(job, job.rows) for job in jobs)
    runs, run, spent, limit = list[list[Piece]](), list[Piece](), 0.0, total / lanes
    for index, job in enumerate(jobs):
        first = 0
        while first < job.rows:
            rows = _fitting(job, job.rows - first, limit - spent, last=len(runs) + 1 == lanes)
            if rows == 0 and run:
                runs.append(run)
                run = []
                # Where the runs before took too much, an even part of what they left.
                left = lanes - len(runs)
                limit = max(total * (len(runs) + 1) / lanes, spent + (total - spent) / left)
                continue
            rows = rows or _least(job, job.rows - first)
            begun = run.pop().first if run and run[-1].job == index else first
            run.append(Piece(index, begun, first + rows))
            first += rows
            spent += _cost(job, rows)
    return [*runs, run] if run else runs


def _cost(job: JobSize, rows: int) -> float:
    return rows * (1 + job.end / _POSITIONS_OF_ROW)


def _fitting(job: JobSize, rows: int, room: float, *, last: bool) -> int:
    """Of the next `rows` rows of a job, how many belong into a run that has this room."""
    whole = _cost(job, rows)
    if last or whole <= room:
        return rows
    fit = int(rows * max(0.0, room) / whole) // MIN_ROWS * MIN_ROWS
    if job.whole or not fit or rows - fit < MIN_ROWS:  # on the side where more of it lies
        return rows if 2 * room >= whole else 0
    return fit


def _least(job: JobSize, rows: int) -> int:
    """Of the next `rows` rows of a job, how many go together at least."""
    return rows if job.whole or rows < 2 * MIN_ROWS else MIN_ROWS
