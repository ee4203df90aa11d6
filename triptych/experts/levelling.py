"""Moves that make the busiest workers of a group less busy.

A greedy descent. What counts is what the best split over the copies leaves each worker with
(`fluid`): homes send every expert's rows to the least busy of its copies, call by call, and come
close to that over some calls. Only units that live in the bottleneck alone can relieve it, so only
those are moved, and only to workers outside.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from triptych.experts.fluid import find_bottleneck, fluid_loads
from triptych.experts.pool_state import PoolState, keeps_domains
from triptych.experts.units import Bools, Floats, numbers

_UNITS, _TARGETS, _RETURNS = 6, 3, 3  # how many of each are looked at
_TRIED, _EFFORT = 6, 160  # actions that are judged exactly: at least, and times workers
_SETS = 4  # busiest sets of workers that the others are judged by
_STEPS = 20  # of a plan; what a round has no moves for, the next one finds again
_STEP = 0.005  # of a fair share: taking less from one worker is no progress
_EXTRA = 0.01  # of a fair share: what a further copy must be better than moving one


class Action(NamedTuple):
    """`unit` is prepared on `target`. `source`: where it retires then. `back`: another unit that
    retires on the target; with a source it is prepared there first, so that both change places.

    Units and workers are numbers in the tables of a `_Search`.
    """

    unit: int
    target: int
    source: int | None = None
    back: int | None = None

    @property
    def num_moves(self) -> int:
        return 1 if self.source is None or self.back is None else 2

    @property
    def adds_copy(self) -> bool:
        return self.source is None and self.back is None

    def apply(self, hosts: Bools) -> None:
        hosts[self.unit, self.target] = True
        if self.source is not None:
            hosts[self.unit, self.source] = False
        if self.back is not None:
            hosts[self.back, self.target] = False
            if self.source is not None:
                hosts[self.back, self.source] = True


def level_loads(state: PoolState) -> None:
    """Plans moves, always for the group that needs them most, while the round has some left."""
    groups = [_Search(state, group) for group in state.catalog.groups]
    queue = [(-search.excess, number) for number, search in enumerate(groups)]
    heapq.heapify(queue)
    while queue and -queue[0][0] > state.rules.gain and state.moves_left:
        _, number = heapq.heappop(queue)
        actions = _Search(state, groups[number].group).plan()
        for done, action in enumerate(actions):
            if action.num_moves > state.moves_left:
                return
            search = _Search(state, groups[number].group)
            if done and queue and search.excess < -queue[0][0] - state.rules.gain:
                heapq.heappush(queue, (-search.excess, number))  # others need it more by now
                break
            search.commit(action)


class _Search:
    """Tables of one group, to try things on: rows are its units, columns the workers that stay."""

    def __init__(self, state: PoolState, group: NDArray[np.intp]) -> None:
        self._state = state
        self.group = group
        self._columns = np.flatnonzero(state.staying)
        self._hosts = state.hosts[np.ix_(group, self._columns)]
        # What nobody who stays holds counts for nothing.
        self._loads = np.where(self._hosts.any(axis=1), state.loads[group], 0.0)
        self._sizes = state.catalog.sizes[group]
        self._room = state.room[self._columns]
        self._speeds = state.speeds[self._columns]
        self._domains = state.domains[self._columns]
        self._fair = float(self._loads.sum() / self._speeds.sum())

    @property
    def excess(self) -> float:
        """Of the busiest workers' load over a fair share, in fair shares."""
        if self._fair == 0:
            return 0.0
        return find_bottleneck(self._loads, self._hosts, self._speeds).load / self._fair - 1

    def plan(self) -> list[Action]:
        """Nothing, or actions that together take more than `gain` from the busiest, or all but half
        of it; more of them than the round has moves for only as far as it takes to know that.
        """
        gain, first, moves = self._state.rules.gain, self.excess, 0
        excess = first
        actions: list[Action] = []
        while len(actions) < _STEPS:
            enough = first - excess > gain and moves >= self._state.moves_left
            if enough or excess <= gain / 2:
                break
            action = self._best_action()
            if action is None:
                break
            before = self._hosts.copy()
            action.apply(self._hosts)
            self._room -= self._sizes @ (self._hosts.astype(np.int64) - before)
            actions.append(action)
            moves, excess = moves + action.num_moves, self.excess
        return actions if first - excess > gain or excess <= gain / 2 else []

    def commit(self, action: Action) -> None:
        """Writes the action down as moves."""
        unit, target, source, back = action

        def spot(unit: int | None, worker: int | None) -> tuple[int, int] | None:
            if unit is None or worker is None:
                return None
            return int(self.group[unit]), int(self._columns[worker])

        self._state.move(spot(unit, target), spot(unit, source) or spot(back, target))
        if action.num_moves == 2:
            self._state.move(spot(back, source), spot(back, target))

    def _best_action(self) -> Action | None:
        levels = fluid_loads(self._loads, self._hosts, self._speeds)
        actions = list(self._actions(levels))
        sets = {target: self._busy_sets(levels, target) for target in {a.target for a in actions}}
        actions.sort(key=lambda action: self._glance(action, sets[action.target]))
        best, least = None, self._unevenness(levels) - _STEP**2
        for action in actions[: max(_TRIED, _EFFORT // len(levels))]:
            hosts = self._hosts.copy()
            action.apply(hosts)
            after = fluid_loads(self._loads, hosts, self._speeds, floor=self._fair)
            value = self._unevenness(after)
            value += _EXTRA**2 * action.adds_copy + _STEP**2 * (action.num_moves - 1)
            if value < least:
                best, least = action, value
        return best

    def _unevenness(self, levels: Floats) -> float:
        """Squares, so that of two bottlenecks either one's relief counts. Every action lowers it:
        the same loads cannot lead back to a place where the pool has been.
        """
        return float((np.maximum(levels / self._fair - 1, 0) ** 2).sum())

    def _busy_sets(self, levels: Floats, target: int) -> tuple[Bools, Floats]:
        """[sets, workers] that may be a bottleneck when the target gets busier: those that are busy
        now, the target, and both together. And [sets] the load that lives in each alone.
        """
        busy = np.array([levels >= level for level in np.unique(levels)[::-1][:_SETS]])
        alone = np.arange(len(levels)) == target
        sets = np.concatenate([busy, busy | alone, alone[None]])
        return sets, ~(self._hosts[None] & ~sets[:, None]).any(axis=2) @ self._loads

    def _glance(self, action: Action, busy: tuple[Bools, Floats]) -> tuple[float, float]:
        """A lower bound on the busiest load behind the action, and on its unevenness."""
        sets, inside = busy
        units = [action.unit] if action.back is None else [action.unit, action.back]
        after = self._hosts.copy()
        action.apply(after)
        for unit in units:
            stays = ~(after[unit] & ~sets).any(axis=1)
            stayed = ~(self._hosts[unit] & ~sets).any(axis=1)
            inside = inside + self._loads[unit] * (stays.astype(float) - stayed)
        levels = inside / (sets @ self._speeds)
        return max(float(levels.max()), self._fair), self._unevenness(levels)

    def _actions(self, levels: Floats) -> Iterator[Action]:
        tight = find_bottleneck(self._loads, self._hosts, self._speeds).workers
        inside = np.flatnonzero(~(self._hosts & ~tight).any(axis=1) & self._hosts.any(axis=1))
        above = float(self._loads[inside].sum() - self._fair * self._speeds[tight].sum())
        outside = sorted(numbers(~tight), key=lambda worker: levels[worker])
        roomy = [w for w in outside if self._room[w] >= self._state.reserve + self._sizes.max()]
        targets = dict.fromkeys([*outside[:_TARGETS], *roomy[:_TARGETS]])
        for unit in self._nearest(inside, above):
            for target in targets:
                if not self._hosts[unit, target]:
                    yield from self._ways(unit, target, above)

    def _nearest(self, units: NDArray[np.intp], load: float) -> list[int]:
        """The hottest, and those of about this load."""
        hottest = units[np.argsort(-self._loads[units], kind="stable")][: _UNITS // 2]
        near = units[np.argsort(np.abs(self._loads[units] - load), kind="stable")][: _UNITS // 2]
        return list(dict.fromkeys([*hottest.tolist(), *near.tolist()]))

    def _ways(self, unit: int, target: int, above: float) -> Iterator[Action]:
        size, room = self._sizes[unit], self._room[target]
        held = np.flatnonzero(self._hosts[unit]).tolist()
        sources = [worker for worker in held if self._may_go(unit, worker, target)]
        if room - size >= self._state.reserve:
            yield from (Action(unit, target, source) for source in sources)
            yield Action(unit, target)
        if room < size:
            return
        yield from (Action(unit, target, back=extra) for extra in self._extras(target))
        for source in sources:
            for back in self._returns(target, source, self._loads[unit] - above):
                if self._room[source] + size >= self._sizes[back]:
                    yield Action(unit, target, source, back)

    def _extras(self, worker: int) -> list[int]:
        """The coldest units there that have more copies than they must."""
        copies = np.count_nonzero(self._hosts, axis=1)
        extras = np.flatnonzero(self._hosts[:, worker] & (copies > self._state.wanted))
        coldest = extras[np.argsort(self._loads[extras] / copies[extras], kind="stable")]
        return [unit for unit in coldest.tolist() if self._may_go(unit, worker)][:_RETURNS]

    def _returns(self, target: int, source: int, load: float) -> list[int]:
        """Units that could go from target to source: cold ones, and those of about this load."""
        units = np.flatnonzero(self._hosts[:, target] & ~self._hosts[:, source])
        coldest = units[np.argsort(self._loads[units], kind="stable")].tolist()
        near = units[np.argsort(np.abs(self._loads[units] - load), kind="stable")].tolist()
        cold = [unit for unit in coldest if self._may_go(unit, target, source)][:_RETURNS]
        alike = [unit for unit in near if self._may_go(unit, target, source)][:_RETURNS]
        return list(dict.fromkeys([*cold, *alike]))

    def _may_go(self, unit: int, source: int, target: int | None = None) -> bool:
        return keeps_domains(
            self._hosts[unit], self._domains, self._state.wanted, without=source, with_=target
        )
