"""Processes whose worker id a newer process has taken: they may try to come back, and must not."""

from __future__ import annotations

from collections import OrderedDict

_MOST = 4096  # a process that was replaced so long ago is dead


class Replaced:
    """The latest ones: a worker that is restarted for ever would fill any list."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._found: OrderedDict[tuple[str, int], None] = OrderedDict()  # oldest first

    def __len__(self) -> int:
        return len(self._found)

    def __contains__(self, process: tuple[str, int]) -> bool:
        """`process`: worker id and epoch. One that keeps trying is not forgotten."""
        if process not in self._found:
            return False
        self._found.move_to_end(process)
        return True

    def add(self, worker_id: str, epoch: int) -> None:
        self._found[worker_id, epoch] = None
        self._found.move_to_end((worker_id, epoch))
        while len(self._found) > self._most:
            self._found.popitem(last=False)
