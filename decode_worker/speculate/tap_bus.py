"""Hidden states of the target on their way to drafters that read them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from triptych.drafters.contained import Contained
from triptych.drafters.drafter import Verdict
from triptych.engine.rows import RowJob
from triptych.engine.sequence import Sequence
from triptych.models.taps import NO_STATES, LayerTap, StatesWanted, pick_layers


class TapBus:
    """Copies in the forward, hands out when it is known which rows stay. Idle without readers."""

    def __init__(self, drafters: Contained) -> None:
        self._drafters = drafters
        layers = sorted({layer for taps in drafters.readers.values() for layer in taps})
        self.read_at_start = StatesWanted(tuple(layers), drafters.window) if layers else NO_STATES
        self._kept: dict[int, Tensor] = {}
        self._jobs: Seq[RowJob] = ()
        self._readers: Mapping[str, Seq[int]] = {}  # of the forward under way

    def taps(
        self, jobs: Seq[RowJob], known: Collection[Sequence], asleep: Collection[str] = ()
    ) -> list[LayerTap]:
        """For the forward of these jobs; `known`: sequences that somebody may draft for; `asleep`:
        readers that want nothing now.
        """
        self._kept, self._jobs = {}, ()
        self._readers = {n: taps for n, taps in self._drafters.readers.items() if n not in asleep}
        if not self._readers or not any(job.sequence in known for job in jobs):
            return []
        self._jobs = jobs
        layers = sorted({layer for taps in self._readers.values() for layer in taps})
        return [LayerTap(layers, self._keep)]

    def hand_out(self, verdicts: Seq[Verdict], known: Collection[Sequence]) -> None:
        """After the step. Rows of nodes that were wrong are nobody's."""
        if not self._kept:
            return
        paths = {verdict.sequence: verdict.path for verdict in verdicts}
        wanted = {
            name: torch.cat([self._kept[layer] for layer in layers], dim=-1)
            for name, layers in self._readers.items()
        }
        row = 0
        for job in self._jobs:
            begin, row = row, row + job.num_rows
            if job.sequence in known:
                rows = _rows_that_stay(job, begin, paths)
                for name, kept in wanted.items():
                    self._drafters.feed(name, job.sequence, job.start, kept[rows])
        self._kept, self._jobs = {}, ()

    def hand_in(self, sequence: Sequence, states: Tensor) -> None:
        """states [m, layers · H]: those of `read_at_start`, of the last rows of its prompt."""
        layers = self.read_at_start.layers
        start = sequence.num_prompt - len(states)
        for name, taps in self._drafters.readers.copy().items():
            self._drafters.feed(name, sequence, start, pick_layers(states, layers, taps))

    def _keep(self, layer: int, hidden: Tensor) -> None:
        self._kept[layer] = hidden.bfloat16()


def _rows_that_stay(
    job: RowJob, begin: int, paths: Mapping[Sequence, tuple[int, ...]]
) -> slice | list[int]:
    known = job.end - job.start
    path = paths.get(job.sequence, ())
    if not path or path == tuple(range(len(path))):
        return slice(begin, begin + known + len(path))
    return [*range(begin, begin + known), *(begin + known + node for node in path)]
