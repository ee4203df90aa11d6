"""A policy for proofs: any budget, any trim. No answer may depend on it."""

from __future__ import annotations

import random
from collections.abc import Sequence as Seq

from decode_worker.speculate.fixed import Unlearned
from decode_worker.speculate.policy import Budget, StepLoad
from triptych.engine.draft import Draft


class Dice(Unlearned):
    """Throws for every draft who makes it and how long it is, for every node whether it stays."""

    def __init__(self, most: int, seed: int = 0) -> None:
        self._most = most
        self._random = random.Random(seed)

    def plan(self, load: StepLoad) -> list[Budget]:
        return [
            Budget(self._random.choice(candidate.drafters), self._random.randint(0, self._most))
            if candidate.drafters
            else Budget()
            for candidate in load.candidates
        ]

    def trim(self, load: StepLoad, drafts: Seq[Draft]) -> list[Draft]:
        return [draft.kept([self._random.random() < 0.9 for _ in draft.tokens]) for draft in drafts]
