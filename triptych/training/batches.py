"""Texts and the target's states as tensors, rows aligned to what each should predict."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from triptych.training.corpus import Text
from triptych.training.teacher import States, Vocabulary

_POOL = 32  # batches whose texts are sorted by length together, so that little is padding


class Batch(NamedTuple):
    """B texts, R rows each. Row t: what is known at position t, and token t+1; it should predict
    token t+2, of which the target thought `final`.
    """

    embedded: Tensor  # float32 [B, R, H]: token t+1
    taps: Tensor  # bfloat16 [B, R, taps · H]: position t
    final: Tensor  # bfloat16 [B, R, H]: position t+1
    labels: Tensor  # int64 [B, R]: token t+2
    counts: Tensor  # bool [B, R]: that token is part of an answer

    def first_row(self, passes: int) -> int:
        """No row before it counts, nor does one of the next `passes`."""
        return max(0, int(self.counts.any(0).int().argmax()) - passes)

    def rows_from(self, first: int) -> Batch:
        return Batch(*(part[:, first:] for part in self))


def batches(texts: Sequence[Text], rows: int, dice: random.Random) -> Iterator[list[Text]]:
    """All texts once, at random, in groups of some `rows` rows, padding included."""
    order = list(texts)
    dice.shuffle(order)
    groups: list[list[Text]] = []
    size = max(1, _POOL * rows // max(1, _mean_length(order)))
    for begin in range(0, len(order), size):
        group: list[Text] = []
        for text in sorted(order[begin : begin + size], key=_shape):
            longest = max((len(text.tokens), *(len(other.tokens) for other in group)))
            if (len(group) + 1) * longest > rows and group:
                groups.append(group)
                group = []
            group.append(text)
        if group:
            groups.append(group)
    dice.shuffle(groups)
    yield from groups


def usable(text: Text, max_tokens: int) -> Text | None:
    """Cut to `max_tokens`; None when too little of an answer is left to learn from."""
    answer = text.answer[: max(0, max_tokens - len(text.prompt))]
    return Text(text.prompt, answer) if len(answer) >= 4 else None


class StatesSource(Protocol):
    """A teacher, or what keeps its states."""

    vocabulary: Vocabulary

    def states(self, texts: Sequence[Sequence[int]]) -> list[States]: ...


def collate(texts: Sequence[Text], teacher: StatesSource) -> Batch:
    states = teacher.states([text.tokens for text in texts])
    vocabulary = teacher.vocabulary
    parts = [_rows_of(text, vocabulary, own) for text, own in zip(texts, states, strict=True)]
    return Batch(*(pad_sequence(list(part), batch_first=True) for part in zip(*parts, strict=True)))


def _rows_of(text: Text, vocabulary: Vocabulary, states: States) -> Batch:
    tokens = torch.tensor(text.tokens)
    places = torch.arange(2, len(tokens))
    return Batch(
        vocabulary.embedded(tokens[1:-1]),
        states.taps[:-2],
        states.final[1:-1],
        tokens[2:],
        places >= len(text.prompt),
    )


def _shape(text: Text) -> tuple[int, int]:
    """Alike in where the answer begins, which saves most, and in length."""
    return len(text.prompt) // 48, len(text.tokens)


def _mean_length(texts: Sequence[Text]) -> int:
    return sum(len(text.tokens) for text in texts) // max(1, len(texts))
