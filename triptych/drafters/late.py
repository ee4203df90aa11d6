"""What a draft is still good for when its sequence has grown meanwhile. Pure."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import replace

from triptych.engine.draft import NO_DRAFT, ROOT, Draft


def behind(draft: Draft, tokens: Seq[int]) -> Draft:
    """The nodes below the path of `tokens`, which followed the draft's root; none if the tokens
    went another way. So a late draft is not lost where it was right.
    """
    at = ROOT
    for token in tokens:
        nodes = range(at + 1, len(draft))
        at = next((n for n in nodes if draft.parent(n) == at and draft.tokens[n] == token), ROOT)
        if at == ROOT:
            return NO_DRAFT
    return _below(draft, at) if tokens else draft


def _below(draft: Draft, top: int) -> Draft:
    place = {top: ROOT}
    for node in range(top + 1, len(draft)):
        if draft.parent(node) in place:
            place[node] = len(place) - 1
    nodes = list(place)[1:]
    chain = draft.parents is None
    return replace(
        draft,
        tokens=tuple(draft.tokens[node] for node in nodes),
        parents=None if chain else tuple(place[draft.parent(node)] for node in nodes),
        confidence=tuple(draft.confidence[node] for node in nodes) if draft.confidence else (),
    )
