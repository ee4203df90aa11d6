"""What of a draft is right. Pure."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from triptych.engine.draft import ROOT, Draft
from triptych.engine.sampler import Spot
from triptych.engine.sequence import Sequence


def spots_of(sequence: Sequence, draft: Draft) -> list[Spot]:
    """Where tokens are drawn to verify a draft: behind the sequence, then behind each node."""
    paths: list[tuple[int, ...]] = []
    for node, token in enumerate(draft.tokens):
        parent = draft.parent(node)
        paths.append((*paths[parent], token) if parent != ROOT else (token,))
    return [Spot(sequence), *(Spot(sequence, path) for path in paths)]


class Walk:
    """Along the nodes of a draft that are right, from the root down.

    A node is right if its parent is and it is the token drawn there: the noise of a draw depends on
    request, position and token alone, so it is the one that plain decoding would have emitted.
    """

    __slots__ = ("_children", "_first", "drawn", "path", "row", "spot")

    def __init__(self, sequence: Sequence, draft: Draft, first_row: int) -> None:
        """`first_row`: of logits, the root's; those of the nodes follow."""
        self._first = first_row
        self._children = _children_of(draft)
        self.path: list[int] = []
        self.drawn: list[tuple[int, int, Spot]] = []  # tokens, their rows of logits, their spots
        self.spot, self.row = Spot(sequence), first_row  # where the next token is drawn

    def take(self, token: int) -> bool:
        """The token drawn at `spot`; False: there is no node for it, the walk is over."""
        self.drawn.append((token, self.row, self.spot))
        at = self.path[-1] if self.path else ROOT
        node = self._children.get((at, token))
        if node is None:
            return False
        self.path.append(node)
        self.row = self._first + 1 + node
        self.spot = Spot(self.spot.sequence, (*self.spot.path, token))
        return True


def _children_of(draft: Draft) -> dict[tuple[int, int], int]:
    """By parent and token; of equal ones the first."""
    children: dict[tuple[int, int], int] = {}
    for node, token in enumerate(draft.tokens):
        children.setdefault((draft.parent(node), token), node)
    return children


def moves_of(path: Seq[int], end: int) -> list[tuple[int, int]]:
    """Slots from and to which the KV of right nodes goes, so that they follow row `end`."""
    return [(end + node, end + place) for place, node in enumerate(path) if node != place]
