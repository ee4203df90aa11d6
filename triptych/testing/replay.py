"""How far a drafter gets on a known text, without a model.

Drafts are verified by equality, so the rounds that a drafter needs for an answer follow from the
answer's text alone. Exact: the engine would take the same number.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from triptych.drafters.drafter import Ask, Drafter, Hints, Verdict
from triptych.engine.draft import ROOT, Draft
from triptych.engine.sequence import Sequence

_NO_HINTS = Hints()


@dataclass(slots=True)
class Replay:
    """Of one answer, or of several: they add up."""

    rounds: int = 0  # verified steps
    tokens: int = 0  # of output
    drafted: int = 0  # nodes
    accepted: int = 0  # of them

    @property
    def tokens_per_round(self) -> float:
        """1 without any draft."""
        return self.tokens / self.rounds if self.rounds else 1.0

    def __add__(self, other: Replay) -> Replay:
        return Replay(
            self.rounds + other.rounds,
            self.tokens + other.tokens,
            self.drafted + other.drafted,
            self.accepted + other.accepted,
        )


def replay(
    drafter: Drafter,
    prompt: Seq[int],
    output: Seq[int],
    *,
    max_nodes: int = 8,
    hints: Hints = _NO_HINTS,
) -> Replay:
    """Walks through the output as a decode worker would draw it."""
    sequence = Sequence("replay", list(prompt), root=b"", block_tokens=16)
    drafter.begin(sequence, hints)
    total = Replay()
    while total.tokens < len(output):
        (draft,) = drafter.propose([Ask(sequence, max_nodes)])
        assert len(draft) <= max_nodes, f"{drafter.name} drafted {len(draft)} of {max_nodes} nodes"
        left = output[total.tokens :]
        path = right_path(draft, left)
        new_tokens = tuple(left[: len(path) + 1])
        for token in new_tokens:
            sequence.append(token)
        drafter.observe([Verdict(sequence, draft, path, new_tokens)])
        total += Replay(1, len(new_tokens), len(draft), len(path))
    drafter.end(sequence)
    return total


def right_path(draft: Draft, truth: Seq[int]) -> tuple[int, ...]:
    """The draft's nodes that the text goes along, from the root down."""
    path: list[int] = []
    for node, token in enumerate(draft.tokens):
        below = path[-1] if path else ROOT
        if draft.parent(node) == below and len(path) < len(truth) and token == truth[len(path)]:
            path.append(node)
    return tuple(path)
