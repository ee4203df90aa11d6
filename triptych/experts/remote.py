"""The feed-forward half of a model, run by a pool of FFN workers.

Rows go out in lanes (micro-batches) and come back, whatever happens to workers: the exchange sees
to it that each cell counts once, and sends what came back unanswered to other hosts of the unit;
this module tells it who they are, whom to give up, and computes what nobody else can.

The ladder for rows that do not come back: another worker that hosts the unit, at once when theirs
is gone, and by deadline when it is slow; the same ones again, with more time, where all have
refused; this home itself, which reads the unit from the checkpoint. Each rung is counted.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transport.rows.exchange import Exchange, Overdue
from transport.rows.segment import Segment
from triptych.experts.home import HomeUnits
from triptych.experts.hosts import Hosts
from triptych.experts.message_meter import MessageMeter
from triptych.experts.patience import Patience
from triptych.experts.tempo import StepTimes, Tempo
from triptych.experts.unit_map import UnitMap
from triptych.experts.units import Unit
from triptych.obs.experts import ExpertTally

log = logging.getLogger(__name__)

_LOOK_US = 20_000  # between looks at what has no event: who is still late, whether a pool comes
_LAST_COPY = 10  # deadlines that a worker gets when nobody else hosts its units
_TRIES = 3  # of workers that have refused, each with twice as much time as before


@dataclass(slots=True)
class Sent:
    """What a lane sent; kept for whoever has to compute it again."""

    layer: int
    rows: Tensor  # [M, H] float32
    top_k: int
    dense: bool
    tries: int = 0  # of workers that have refused


class RemoteExperts:
    """Implements DistantExperts. Everything on the loop's thread, except `post`."""

    def __init__(
        self,
        exchange: Exchange,
        units: UnitMap,
        home: HomeUnits,
        tempo: Tempo,
        patience: Patience,
        *,
        muster_s: float = 0.0,
    ) -> None:
        """muster_s: how long the first rows may wait until the pool hosts everything."""
        self.units = units
        self.tally = ExpertTally()
        self._exchange = exchange
        self._hosts = Hosts(exchange.tables)
        self._messages = MessageMeter(exchange.stats)
        self._home = home
        self.tempo = tempo
        self._num_layers = sum(count > 0 for count in units.per_layer)
        self._patience = patience
        self._slots: dict[int, int] = {}  # by worker's number: messages that may be there
        self._sent: dict[int, Sent] = {}  # by lane, what is away
        self._parked: set[int] = set()  # lanes with cells that no worker can take
        self._late = False  # somebody's deadline has passed
        self._deadline_us = 0  # of rows sent from now on; 0: to be set anew
        self._changes: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake: Callable[[], None] = self.take_changes
        self._muster_s = muster_s
        self._muster_until: float | None = None  # None: nothing was wanted yet

    # ---- from any thread -----------------------------------------------------------------------

    def post(self, change: Callable[[], None]) -> None:
        """Runs `change` on the loop's thread, in the middle of a forward if one waits."""
        self._changes.put(change)
        self._exchange.ring()
        self._wake()

    def run_on(self, wake: Callable[[], None]) -> None:
        """`wake` makes an idle loop's thread call `take_changes`. Without a thread, before and
        after, changes are run by whoever posts them.
        """
        self._wake = wake

    @property
    def rows_sent(self) -> NDArray[np.uint64]:
        """[layers, units] since the process began."""
        return self._exchange.counts

    # ---- changes: called by what was posted ----------------------------------------------------

    def admit(self, number: int, segment: Segment) -> None:
        """Worker `number` may be sent rows as soon as it offers units. Raises RowsUnusable."""
        self._exchange.add_worker(number, segment)
        self._slots[number] = segment.shape.slots

    def offer(self, number: int, units: NDArray[np.bool_]) -> None:
        """The units that it hosts from now on. No row sent from here on contradicts it."""
        self._hosts.offer(number, units)
        self._deadline_us = 0
        self.tally.workers = len(self._hosts.numbers)
        self._look_around()

    def dismiss(self, number: int) -> None:
        """It is gone: nothing it may still write is read, and what it had is sent to others."""
        self._hosts.forget(number)
        self.tally.lost += int(self._exchange.stats[number]["pending"])
        self._exchange.drop_worker(number)
        self.tally.workers = len(self._hosts.numbers)

    # ---- DistantExperts ------------------------------------------------------------------------

    def num_lanes(self, rows: int) -> int:
        self.take_changes()
        self._forgive()
        return self.tempo.num_lanes(rows)

    def send(self, lane: int, layer: int, rows: Tensor, ids: Tensor | None) -> None:
        k = 1 if ids is None else ids.shape[1]
        self._set_deadline(self._patience.deadline_us(len(rows)))
        self._sent[lane] = Sent(layer, rows, k, dense=ids is None)
        address = None if ids is None else ids.data_ptr()
        if self._exchange.begin(lane, layer, rows.data_ptr(), len(rows), address, k):
            self._parked.add(lane)

    def returned(self) -> Sequence[int]:
        while True:
            if self._parked:
                self._help()
            wake = self._exchange.wait(_LOOK_US)
            if wake.rung:
                self.take_changes()
            self._parked |= set(_lanes_of(wake.parked))
            self._late |= wake.overdue
            if wake.done:
                return _lanes_of(wake.done)
            if self._late:
                self._chase()

    def cells(self, lane: int) -> Tensor:
        dense = self._sent[lane].dense
        cells = torch.from_numpy(self._exchange.cells_array(lane, dense=dense))
        return cells if cells.dtype == torch.float32 else cells.view(torch.bfloat16)

    def end(self, lane: int) -> None:
        self._exchange.end(lane)
        del self._sent[lane]
        self._parked.discard(lane)

    def stepped(self, rows: int, lanes: int, attention_s: float, step_s: float) -> None:
        messages = self._messages.step()
        if messages is not None:
            self._patience.learn(rows // lanes, messages.round_trip)
            step = StepTimes(rows, lanes, self._num_layers, attention_s, step_s, messages)
            self.tempo.learn(step)
        self.tally.count_step(lanes, attention_s, step_s)

    # ---- the ladder ----------------------------------------------------------------------------

    def take_changes(self) -> None:
        """What other threads posted; then whatever can be sent now is."""
        changed = False
        while not self._changes.empty():
            self._changes.get()()
            changed = True
        if changed:
            self._parked = {lane for lane in self._sent if self._exchange.issue(lane)}

    def _set_deadline(self, deadline_us: int) -> None:
        """For rows sent from now on: small messages come back sooner than large ones."""
        if deadline_us != self._deadline_us:
            self._deadline_us = deadline_us
            for number in self._hosts.numbers:
                self._exchange.set_deadline(number, deadline_us)

    def _chase(self) -> None:
        """Takes rows away from workers that are late, if somebody else can be asked for them. Until
        those have answered everything they are asked only for what nobody else hosts.
        """
        late = self._exchange.overdue()
        abandoned = [shard for shard in late if self._give_up(shard)]
        self._late = bool(late)
        if abandoned:  # rows of other lanes may wait for a slot there
            self._parked |= {
                lane for lane in self._sent if self._exchange.issue(lane, forgiving=False)
            }

    def _give_up(self, shard: Overdue) -> bool:
        """Whether this message was given up. The last copy of a unit gets more time."""
        sent = self._sent[shard.lane]
        replaceable = self._hosts.is_replaceable(shard.worker, sent.layer)
        if not replaceable:
            patience_us = _LAST_COPY * self._patience.deadline_us(len(sent.rows))
            if shard.age_us < patience_us:
                return False
        if not self._exchange.abandon(shard.shard):
            return False
        self.tally.late += 1
        if replaceable and not self._is_full(shard.worker):
            self._hosts.rest(shard.worker)
        else:
            self._hosts.give_up(shard.worker)
        return True

    def _is_full(self, worker: int) -> bool:
        """Of messages that were given up: there is no room for what only this worker hosts."""
        return int(self._exchange.stats[worker]["quarantined"]) >= self._slots[worker]

    def _forgive(self) -> None:
        """Whoever has answered everything, late as it was, is asked again."""
        for number in self._hosts.resting | self._hosts.given_up:
            stats = self._exchange.stats[number]
            if not stats["quarantined"] and not stats["pending"]:
                self._hosts.wake(number)
                self._look_around()

    def _look_around(self) -> None:
        """Where all units are hosted nobody waits for the pool, and none is kept here."""
        if self._hosts.num_hosted == sum(self.units.per_layer):
            self._muster_until = 0.0
            self._home.release()

    def _help(self) -> None:
        """For rows that no worker may be asked for, or that all have refused."""
        if self._is_mustering():
            return
        for lane in list(self._parked):
            sent = self._sent[lane]
            if sent.tries < _TRIES:
                sent.tries += 1
                self._set_deadline(self._patience.deadline_us(len(sent.rows)) << sent.tries)
                self._exchange.issue(lane)
            self._compute_missing(lane, sent)
        self._parked.clear()

    def _is_mustering(self) -> bool:
        """When this process starts the pool may not be there yet."""
        now = time.monotonic()
        if self._muster_until is None:
            self._muster_until = now + self._muster_s
            if self._muster_s:
                log.info("waiting for FFN workers", extra={"fields": {"limit_s": self._muster_s}})
        return now < self._muster_until

    def _compute_missing(self, lane: int, sent: Sent) -> None:
        """Here, what nobody hosts."""
        missing = self._exchange.missing(lane)
        for expert in np.unique(missing[:, 1]).tolist():
            cells = missing[missing[:, 1] == expert, 0]
            rows = sent.rows[torch.from_numpy(cells // sent.top_k)]
            results = self._home.compute(Unit(sent.layer, expert), rows)
            self._exchange.fill(lane, cells, results.data_ptr())
            self.tally.rows_at_home += len(cells)


def _lanes_of(mask: int) -> list[int]:
    return [lane for lane in range(mask.bit_length()) if mask >> lane & 1]
