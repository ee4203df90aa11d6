"""Drafters and budgets for tests: they know the answer, and misuse it."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq

from triptych.drafters.drafter import Ask, Drafter, Hints, Verdict
from triptych.engine.draft import NO_DRAFT, ROOT, Draft
from triptych.engine.sequence import Sequence

Answers = Mapping[tuple[tuple[int, ...], int], Seq[int]]  # by prompt and seed


class Oracle:
    """Drafts what will be drawn, wrong in every `spoils`th token or so, as chains or as trees."""

    name = "oracle"

    def __init__(self, answers: Answers, *, spoils: int = 4, trees: bool = False, vocab: int = 256):
        self._answers = answers
        self._spoils = spoils
        self._trees = trees
        self._vocab = vocab
        self._random = random.Random(7)
        self.known: set[Sequence] = set()
        self.num_accepted = 0
        self.num_rejected = 0

    def begin(self, sequence: Sequence, hints: Hints) -> None:
        self.known.add(sequence)

    def propose(self, asks: Seq[Ask]) -> list[Draft]:
        assert all(ask.sequence in self.known for ask in asks)
        return [self._draft(ask) for ask in asks]

    def observe(self, verdicts: Seq[Verdict]) -> None:
        for verdict in verdicts:
            new = list(verdict.new_tokens)
            assert verdict.sequence.tokens[-len(new) :] == new
            self.num_accepted += verdict.num_accepted
            self.num_rejected += len(verdict.draft) - verdict.num_accepted

    def end(self, sequence: Sequence) -> None:
        self.known.discard(sequence)

    def _draft(self, ask: Ask) -> Draft:
        sequence = ask.sequence
        assert sequence.params is not None
        prompt = tuple(sequence.tokens[: sequence.num_prompt])
        answer = self._answers[prompt, sequence.params.seed][sequence.num_output :]
        if not self._trees:
            return Draft(tuple(self._spoilt(token) for token in answer[: ask.max_nodes]))
        return self._tree(answer, ask.max_nodes)

    def _tree(self, answer: Seq[int], count: int) -> Draft:
        """The answer with wrong siblings, and tokens below them, on both sides of it."""
        tokens: list[int] = []
        parents: list[int] = []
        at = ROOT
        for token in answer:
            brothers = {self._random.randrange(self._vocab) for _ in range(2)} - {token}
            wrong = sorted(brothers)
            family = [*wrong[:1], token, *wrong[1:]]
            own = len(tokens) + family.index(token)
            parents += [at] * len(family)
            tokens += family
            if wrong:  # the right token's twin below a wrong one
                parents.append(len(tokens) - len(family) if family[0] != token else own)
                tokens.append(token)
            at = own
        return Draft(tuple(tokens), tuple(parents)).first(count) if tokens else NO_DRAFT

    def _spoilt(self, token: int) -> int:
        if self._random.randrange(self._spoils) == 0:
            return self._random.randrange(self._vocab)
        return token


class Failing(Oracle):
    """Knows the answer, and raises the `at`th time that it is asked to do `verb`."""

    name = "failing"

    def __init__(self, answers: Answers, verb: str = "propose", at: int = 1) -> None:
        super().__init__(answers)
        self._verb = verb
        self._at = at
        self.calls: list[str] = []

    def begin(self, sequence: Sequence, hints: Hints) -> None:
        self._call("begin")
        super().begin(sequence, hints)

    def propose(self, asks: Seq[Ask]) -> list[Draft]:
        self._call("propose")
        return super().propose(asks)

    def observe(self, verdicts: Seq[Verdict]) -> None:
        self._call("observe")
        super().observe(verdicts)

    def end(self, sequence: Sequence) -> None:
        self._call("end")
        super().end(sequence)

    def _call(self, verb: str) -> None:
        self.calls.append(verb)
        if verb == self._verb and self.calls.count(verb) == self._at:
            raise RuntimeError("a drafter that fails")


class Misshapen(Oracle):
    """Knows the answer; then `spoil` makes of its drafts what no drafter may return."""

    name = "misshapen"

    def __init__(self, answers: Answers, spoil: Callable[[list[Draft]], list[Draft]]) -> None:
        super().__init__(answers)
        self._spoil = spoil

    def propose(self, asks: Seq[Ask]) -> list[Draft]:
        return self._spoil(super().propose(asks))


class Gated:
    """Another drafter whose drafts are made when `gate` opens."""

    def __init__(self, drafter: Drafter) -> None:
        self.name = drafter.name
        self.gate = threading.Event()
        self.begin, self.observe, self.end = drafter.begin, drafter.observe, drafter.end
        self._drafter = drafter

    def propose(self, asks: Seq[Ask]) -> list[Draft]:
        assert self.gate.wait(60), "somebody opens the gate"
        return self._drafter.propose(asks)
