"""Where the states of layers without KV lie: in the blocks of their sequence.

A block holds a layer's state as it is behind the last of its tokens that is computed, so a full one
holds it at its end, for whoever goes on from there. Whoever moves, shares or keeps blocks moves,
shares and keeps states, and need not know.
"""

from __future__ import annotations

import torch
from torch import Tensor

from triptych.engine.rows import RowJob
from triptych.engine.storage import LayerStates
from triptych.models.seams import DeltaRows


def take_in(
    states: LayerStates, job: RowJob, rows: DeltaRows, begin: int, block_tokens: int
) -> Tensor:
    """Of the job's rows, which stand at `begin` in the batch: into the states of its blocks
    → float32 [rows, Hv, Dv].

    A state cannot forget what it took in: a job begins exactly behind the last one, or where a
    block does. Raises RuntimeError where it does not.
    """
    assert not job.draft and not job.first_block, "states know no drafts and no windows"
    state, history = _before(states, job, block_tokens)
    values, start = [], job.start
    while start < job.end:
        end = min(job.end, (start // block_tokens + 1) * block_tokens)
        part = slice(begin + start - job.start, begin + end - job.start)
        values.append(
            rows.rule(
                rows.mixed[part],
                rows.decay[part],
                rows.beta[part],
                rows.conv,
                state,
                history,
                rows.sizes.key_heads,
            )
        )
        block = job.sequence.blocks[start // block_tokens]
        states.state[block], states.history[block], states.taken[block] = state, history, end
        start = end
    return torch.cat(values)


def _before(states: LayerStates, job: RowJob, block_tokens: int) -> tuple[Tensor, Tensor]:
    """Copies of state and history as they are before the job's first row."""
    if job.start == 0:
        return torch.zeros_like(states.state[0]), torch.zeros_like(states.history[0])
    block = job.sequence.blocks[(job.start - 1) // block_tokens]
    taken = int(states.taken[block])
    if taken != job.start:
        raise RuntimeError(
            f"block {block} holds the state behind {taken} tokens of {job.sequence.request_id}, "
            f"wanted is that behind {job.start}"
        )
    return states.state[block].clone(), states.history[block].clone()
