"""Hidden states of the target on their way to drafters that read them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from collections.abc import Sequence as Seq

from torch import Tensor

from triptych.drafters.contained import Contained
from triptych.drafters.drafter import Verdict
from triptych.engine.rows import RowJob
from triptych.engine.sequence import Sequence
from triptych.models.taps import NO_STATES, StatesWanted, StateTap, pick_layers


class TapBus:
    """Copies in the forward, hands out when it is known which rows stay. Idle without readers."""

    def __init__(self, drafters: Contained) -> None:
        self._drafters = drafters
        layers = sorted({layer for taps in drafters.readers.values() for layer in taps})
        self.read_at_start = StatesWanted(tuple(layers), drafters.window) if layers else NO_STATES
        self._tap: StateTap | None = None  # of the forward under way
        self._jobs: Seq[RowJob] = ()
        self._readers: Mapping[str, Seq[int]] = {}  # of the forward under way

    def taps(
        self, jobs: Seq[RowJob], known: Collection[Sequence], asleep: Collection[str] = ()
    ) -> list[StateTap]:
        """For the forward of these jobs; `known`: sequences that somebody may draft for; `asleep`:
        readers that want nothing now.
        """
        self._tap, self._jobs = None, ()
        self._readers = {n: taps for n, taps in self._drafters.readers.items() if n not in asleep}
        if not self._readers or not any(job.sequence in known for job in jobs):
            return []
        self._jobs = jobs
        self._tap = StateTap(sorted({layer for taps in self._readers.values() for layer in taps}))
        return [self._tap]

    def hand_out(self, verdicts: Seq[Verdict], known: Collection[Sequence]) -> None:
        """After the step. Rows of nodes that were wrong are nobody's."""
        if self._tap is None or self._tap.states is None:
            return
        paths = {verdict.sequence: verdict.path for verdict in verdicts}
        states, layers = self._tap.states.flatten(1), self._tap.layers
        wanted = {name: pick_layers(states, layers, taps) for name, taps in self._readers.items()}
        row = 0
        for job in self._jobs:
            begin, row = row, row + job.num_rows
            if job.sequence in known:
                rows = _rows_that_stay(job, begin, paths)
                for name, kept in wanted.items():
                    self._drafters.feed(name, job.sequence, job.start, kept[rows])
        self._tap, self._jobs = None, ()

    def hand_in(self, sequence: Sequence, states: Tensor) -> None:
        """states [m, layers · H]: those of `read_at_start`, of the last rows of its prompt."""
        layers = self.read_at_start.layers
        start = sequence.num_given - len(states)
        for name, taps in self._drafters.readers.copy().items():
            self._drafters.feed(name, sequence, start, pick_layers(states, layers, taps))


def _rows_that_stay(
    job: RowJob, begin: int, paths: Mapping[Sequence, tuple[int, ...]]
) -> slice | list[int]:
    known = job.end - job.start
    path = paths.get(job.sequence, ())
    if not path or path == tuple(range(len(path))):
        return slice(begin, begin + known + len(path))
    return [*range(begin, begin + known), *(begin + known + node for node in path)]
