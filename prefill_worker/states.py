"""What the target knew at the end of a prompt, for homes whose drafters read it.

A draft head continues from the target's hidden states of the last rows (EAGLE-3, arXiv 2503.01840).
They are the target's own, so they fit any head: the home says which layers its heads read, and no
configuration of drafters has to be equal on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import torch
from torch import Tensor

from triptych.engine.rows import RowJob
from triptych.engine.sequence import Sequence
from triptych.models.taps import LayerTap, StatesWanted


@dataclass(slots=True)
class _Kept:
    wanted: StatesWanted
    end: int = 0  # row behind the last one kept
    parts: list[dict[int, Tensor]] = field(default_factory=list)  # by layer, forward by forward


class LastStates:
    """Of the prompts under way; on the loop's thread."""

    def __init__(self) -> None:
        self._kept: dict[Sequence, _Kept] = {}

    def want(self, sequence: Sequence, wanted: StatesWanted) -> None:
        if wanted.layers and wanted.rows:
            self._kept[sequence] = _Kept(wanted)

    def forget(self, sequence: Sequence) -> None:
        self._kept.pop(sequence, None)

    def taps(self, jobs: Seq[RowJob]) -> list[LayerTap]:
        """For the forward of these jobs; none when nobody asked for rows of it."""
        spans: list[tuple[slice, dict[int, Tensor], StatesWanted]] = []
        row = 0
        for job in jobs:
            kept = self._kept.get(job.sequence)
            if kept is not None:
                span = _open(kept, job, row)
                if span is not None:
                    spans.append((span, kept.parts[-1], kept.wanted))
            row += job.num_rows
        layers = sorted({layer for _, _, wanted in spans for layer in wanted.layers})

        def keep(layer: int, hidden: Tensor) -> None:
            for span, part, wanted in spans:
                if layer in wanted.layers:
                    part[layer] = hidden[span].bfloat16()

        return [LayerTap(layers, keep)] if layers else []

    def take(self, sequence: Sequence) -> Tensor | None:
        """bfloat16 [m, layers · H] of the last m rows, m up to what was wanted: rows that came from
        the prefix cache were not computed. None when nothing was wanted.
        """
        kept = self._kept.pop(sequence, None)
        if kept is None or not kept.parts:
            return None
        layers = [torch.cat([part[layer] for part in kept.parts]) for layer in kept.wanted.layers]
        return torch.cat(layers, dim=-1)[-kept.wanted.rows :]


def _open(kept: _Kept, job: RowJob, row: int) -> slice | None:
    """Rows of the forward that belong to the wanted ones; makes a place for them."""
    if job.start != kept.end:  # its first rows, or it was preempted and is computed again
        kept.parts.clear()
    kept.end = job.end
    begin = max(job.start, job.sequence.num_prompt - kept.wanted.rows)
    if begin >= job.end:
        return None
    kept.parts.append({})
    return slice(row + begin - job.start, row + job.num_rows)
