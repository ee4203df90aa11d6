"""How long answers become, from finished samples of the same problem (DAS, arXiv 2511.13841)."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import Counter, OrderedDict, deque
from collections.abc import Hashable, Iterable
from typing import Literal

Class = Literal["short", "medium", "long"]

OF_PROBLEM, OF_ALL = 32, 512  # lengths kept: a sliding window, policies drift
PROBLEMS = 1 << 14  # remembered; beyond, the one that was sampled longest ago goes
UNKNOWN = 256  # tokens expected of the very first answer


class Lengths:
    """By problem: any key; None: of no problem."""

    def __init__(self) -> None:
        self._problems: OrderedDict[Hashable, deque[int]] = OrderedDict()
        self._recent: deque[int] = deque(maxlen=OF_ALL)
        self._sorted: list[int] = []  # of `_recent`

    def __len__(self) -> int:
        """Problems remembered."""
        return len(self._problems)

    def finished(self, problem: Hashable | None, length: int) -> None:
        if len(self._recent) == OF_ALL:
            del self._sorted[bisect_right(self._sorted, self._recent[0]) - 1]
        self._recent.append(length)
        insort(self._sorted, length)
        if problem is not None:
            self._problems.setdefault(problem, deque(maxlen=OF_PROBLEM)).append(length)
            self._problems.move_to_end(problem)
            if len(self._problems) > PROBLEMS:
                self._problems.popitem(last=False)

    def class_of(self, length: int) -> Class:
        """By thirds of all lengths."""
        count = len(self._sorted)
        if bisect_right(self._sorted, length) * 3 > 2 * count:
            return "long"
        return "medium" if bisect_right(self._sorted, length) * 3 > count else "short"

    def likely_class(self, problem: Hashable | None, so_far: int) -> Class:
        """That most answers had which got at least this far; first its problem's, then all."""
        for lengths in self._known(problem):
            classes = Counter(self.class_of(length) for length in lengths if length > so_far)
            if classes:
                return classes.most_common(1)[0][0]
        return "long"  # longer than anything seen

    def expected_left(self, problem: Hashable | None, so_far: int) -> float:
        """Tokens still to come: the mean of those answers that got further."""
        for lengths in self._known(problem):
            longer = [length for length in lengths if length > so_far]
            if longer:
                return sum(longer) / len(longer) - so_far
        return float(max(UNKNOWN, so_far))  # as long again

    def _known(self, problem: Hashable | None) -> Iterable[Iterable[int]]:
        yield self._problems.get(problem, ())
        yield self._sorted
