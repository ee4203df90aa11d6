"""What drafting costs, by drafter."""

from __future__ import annotations

from decode_worker.speculate.costs import SIZES, size_of
from decode_worker.speculate.recent import Recent

FEW = 8  # samples; the first drafts for a sequence read its prompt in, which is not what one costs


class DraftCosts:
    """Seconds of a `propose` by (sequences, nodes of each)."""

    def __init__(self) -> None:
        self._step = 0
        self._cells: dict[str, dict[tuple[int, int], Recent]] = {}
        self._known: dict[tuple[str, int, int], float] = {}  # answers, until something is learned

    def learn(self, drafter: str, sequences: int, nodes_each: int, seconds: float) -> None:
        """It was asked for that many nodes, or for fewer of some sequences."""
        self._step += 1
        key = size_of(sequences), size_of(nodes_each)
        cells = self._cells.setdefault(drafter, {})
        cells.setdefault(key, Recent()).add(seconds, self._step)
        self._known = {k: s for k, s in self._known.items() if k[0] != drafter}

    def knows(self, drafter: str) -> bool:
        """The first ask reads a prompt in, only the second says what an ask costs."""
        return self.count(drafter) >= 2

    def most_at_once(self, drafter: str) -> int:
        """Sequences that it drafted for in one ask; a bucket's upper end."""
        cells = self._cells.get(drafter, {})
        return SIZES[max(sequences for sequences, _ in cells)] if cells else 0

    def count(self, drafter: str) -> int:
        """Samples of its last few sizes."""
        return sum(map(len, self._cells.get(drafter, {}).values()))

    def seconds(self, drafter: str, sequences: int, nodes_each: int) -> float:
        """0 if it never drafted. Unseen sizes: as if costs went with the nodes and grew with the
        root of the sequences: who guesses low soon measures.
        """
        key = drafter, size_of(sequences), size_of(nodes_each)
        if key not in self._known:
            self._known[key] = self._estimate(*key)
        return self._known[key]

    def _estimate(self, drafter: str, sequences: int, nodes: int) -> float:
        cells = self._cells.get(drafter, {})
        cell = cells.get((sequences, nodes))
        if cell is not None and len(cell) >= FEW:
            return cell.median
        return min(
            (
                (cell.median if len(cell) >= FEW else cell.least)
                * max(1.0, SIZES[sequences] / SIZES[at_sequences]) ** 0.5
                * SIZES[nodes]
                / SIZES[at_nodes]
                for (at_sequences, at_nodes), cell in cells.items()
            ),
            default=0.0,
        )
