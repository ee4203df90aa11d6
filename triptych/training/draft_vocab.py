"""Which tokens a head can draft: those that the target writes most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor

from triptych.training.corpus import Text


def choose_draft_vocab(texts: Iterable[Text], size: int, vocab_size: int) -> Tensor:
    """Ids int64 [min(size, vocab_size)], ascending: the most frequent in answers, then in prompts,
    then the first ones, which in most vocabularies are the shortest.
    """
    in_answers, in_prompts = Counter[int](), Counter[int]()
    for text in texts:
        in_answers.update(text.answer)
        in_prompts.update(text.prompt)
    order = [
        *(token for token, _ in in_answers.most_common()),
        *(token for token, _ in in_prompts.most_common()),
        *range(vocab_size),
    ]
    chosen = list(dict.fromkeys(order))[: min(size, vocab_size)]
    return torch.tensor(sorted(chosen))
