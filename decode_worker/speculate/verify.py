"""What of a draft is right. Pure."""

from __future__ import annotations

from collections import defaultdict
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


def right_path(draft: Draft, drawn: Seq[int]) -> list[int]:
    """Nodes that are right, from the root down. `drawn`: the tokens at the spots of the draft.

    A node is right if its parent is and it is the token drawn there: the noise of a draw depends on
    request, position and token alone, so it is the one that plain decoding would have emitted.
    """
    children = defaultdict[int, list[int]](list)
    for node in range(len(draft)):
        children[draft.parent(node)].append(node)
    path, at = list[int](), ROOT
    while right := [child for child in children[at] if draft.tokens[child] == drawn[at + 1]]:
        at = right[0]
        path.append(at)
    return path


def moves_of(path: Seq[int], end: int) -> list[tuple[int, int]]:
    """Slots from and to which the KV of right nodes goes, so that they follow row `end`."""
    return [(end + node, end + place) for place, node in enumerate(path) if node != place]
