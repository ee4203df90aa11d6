"""The target writes its drafter's training texts."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from triptych.request import SamplingParams
from triptych.tokenizer import Tokenizer
from triptych.training.corpus import Corpus, Text
from triptych.training.offline import Answer, Ask, OfflineEngine
from triptych.training.self_prompts import UserTurn, about, opener

_PROMPT, _DOCUMENT, _ANSWER = "prompt", "document", "answer"
_OF_DOCUMENTS = 0.2  # share of the self-written prompts that begin with a document
# Served requests are greedy or sampled; a drafter should know both kinds of text.
_TEMPERATURES = (0.0, 0.0, 0.7, 1.0)


@dataclass(slots=True)
class Recipe:
    """Which asks make the texts. `given`: texts of users; when they are used up, or without any,
    the target writes prompts itself.
    """

    tokenizer: Tokenizer
    seed: int
    given: Sequence[str] = ()
    max_prompt: int = 512  # tokens of a text of a user
    max_answer: int = 256
    _ready: deque[Ask] = field(default_factory=deque)
    _turn: UserTurn = field(init=False)

    def __post_init__(self) -> None:
        """Raises ModelError when the model has no chat template that shows the user's text."""
        self._turn = UserTurn.of(self.tokenizer)

    def asks(self, begin_at: int) -> Iterator[Ask]:
        """Endless. `begin_at`: texts that exist already, so that a resumed run makes others."""
        number = begin_at
        for text in self.given[begin_at:]:
            number += 1
            yield self._answer_ask(self.tokenizer.encode(text, add_special_tokens=False))
        dice = random.Random(f"{self.seed}/{number}")
        while True:
            yield self._ready.popleft() if self._ready else self._first_ask(dice)

    def take(self, answer: Answer) -> Text | None:
        """A text when the answer was one to a whole prompt; else the next ask waits in `asks`."""
        ask, tokens = answer
        if ask.kind == _ANSWER:
            return Text(tuple(ask.prompt), tuple(tokens))
        dice = random.Random(ask.params.seed)
        written = [token for token in tokens if token not in self.tokenizer.eos_token_ids]
        if ask.kind == _DOCUMENT:
            prompt = about(self.tokenizer.decode(written), dice)
            written = self.tokenizer.encode(prompt, add_special_tokens=False)
        else:
            written = [*ask.prompt[len(self._turn.before) :], *written]
        if len(written) > 2:
            self._ready.append(self._answer_ask(written))
        return None

    def _first_ask(self, dice: random.Random) -> Ask:
        seed = dice.getrandbits(63)
        if dice.random() < _OF_DOCUMENTS:
            size = dice.randrange(64, self.max_prompt - 64)
            start = [self.tokenizer.bos_token_id or self._turn.before[0]]
            return Ask(start, SamplingParams(seed, size, top_p=0.95), _DOCUMENT)
        words = self.tokenizer.encode(opener(dice), add_special_tokens=False)
        params = SamplingParams(seed, self.max_prompt // 3, top_p=0.95)
        return Ask([*self._turn.before, *words], params, _PROMPT)

    def _answer_ask(self, written: Sequence[int]) -> Ask:
        prompt = [*self._turn.before, *written[: self.max_prompt], *self._turn.behind]
        dice = random.Random(f"{self.seed}/{prompt}")
        params = SamplingParams(
            dice.getrandbits(63), self.max_answer, temperature=dice.choice(_TEMPERATURES)
        )
        return Ask(prompt, params, _ANSWER)


def write_corpus(
    engine: OfflineEngine,
    recipe: Recipe,
    corpus: Corpus,
    answer_tokens: int,
    progress: Callable[[int], None],
) -> None:
    """Until the corpus holds so many tokens of answers; `progress` hears of its size. May be cut
    off at any moment and called again.
    """
    if corpus.num_answer_tokens >= answer_tokens:
        return
    for answer in engine.answers(recipe.asks(corpus.num_texts)):
        text = recipe.take(answer)
        if text is None:
            continue
        corpus.add(text)
        progress(corpus.num_answer_tokens)
        if corpus.num_answer_tokens >= answer_tokens:
            break
