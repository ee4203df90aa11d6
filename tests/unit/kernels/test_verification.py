"""Whether rules emit the law of plain sampling, to three tokens: the right do, the wrong do not.

Random tables p and q over four tokens that depend on the whole history; drafts of depth two; the
joint law of three emitted tokens against the exact one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from decode_worker.speculate.verify import Walk
from triptych.engine.draft import Draft
from triptych.engine.sequence import Sequence as TokenSequence
from triptych_kernels.sampling import noise_of_bits
from triptych_kernels.verification import (
    Round,
    Stop,
    Verify,
    block,
    one_hot,
    rejection,
    sample,
    single_coin,
    without,
)

VOCAB, DEPTH, EMITTED, RUNS = 4, 2, 3, 200_000
LEAST_P = 1e-4  # of a right rule's chi-square
CHAIN = (-1, 0)
TREE = (-1, -1, 0, 0, 1, 1)


class World(NamedTuple):
    p: Tensor  # [histories, VOCAB]; history 0 is empty
    q: Tensor

    @staticmethod
    def random() -> World:
        histories = sum(VOCAB**length for length in range(EMITTED + DEPTH))
        chance = torch.Generator().manual_seed(5)
        p, q = torch.randn(2, histories, VOCAB, generator=chance)
        return World(p.softmax(-1), (0.6 * p + q).softmax(-1))


WORLD = World.random()


def behind(history: Tensor, token: Tensor) -> Tensor:
    return history * VOCAB + token + 1


class Runs(NamedTuple):
    """Where each of some runs stands at the start of a round."""

    history: Tensor  # [N]
    bits: Tensor  # [N, DEPTH + 1, VOCAB] int64, of the noise of the next positions
    chance: torch.Generator

    def coins(self, *shape: int) -> Tensor:
        size = (len(self.history), *shape)
        return torch.rand(size, generator=self.chance, dtype=torch.float64)

    def only(self, which: Tensor) -> Runs:
        return Runs(self.history[which], self.bits[which], self.chance)


Texts = tuple[Tensor, Tensor]  # new tokens [N, DEPTH + 1], how many count [N]
Play = Callable[[Runs], Texts]
Drafter = Callable[[Runs, Sequence[int]], Round]


def drafted(
    runs: Runs,
    parents: Sequence[int],
    choose: Callable[[Tensor, int, int], tuple[Tensor, Tensor]],
) -> Round:
    """`choose` tells token [N] and stated law [N, VOCAB] from q [N, VOCAB], node and depth."""
    histories, depths = [runs.history], [0]
    tokens, laws = [], list[Tensor]()
    for node, parent in enumerate(parents):
        depths.append(depths[parent + 1] + 1)
        token, law = choose(WORLD.q[histories[parent + 1]], node, depths[-1])
        histories.append(behind(histories[parent + 1], token))
        tokens.append(token)
        laws.append(law)
    size = len(runs.history)
    return Round(
        parents,
        torch.stack(tokens, 1) if tokens else torch.zeros(size, 0, dtype=torch.int64),
        WORLD.p[torch.stack(histories, 1)],
        torch.stack(laws, 1) if laws else torch.zeros(size, 0, VOCAB),
    )


def sampled(runs: Runs, parents: Sequence[int]) -> Round:
    return drafted(runs, parents, lambda q, node, depth: (sample(q, runs.coins()), q))


def sampled_without_replacement(runs: Runs, parents: Sequence[int]) -> Round:
    elder: dict[int, tuple[Tensor, Tensor]] = {}

    def choose(q: Tensor, node: int, depth: int) -> tuple[Tensor, Tensor]:
        law = without(*elder[parents[node]]) if parents[node] in elder else q
        token = sample(law, runs.coins())
        elder[parents[node]] = law, token
        return token, law

    return drafted(runs, parents, choose)


def likeliest(runs: Runs, parents: Sequence[int]) -> Round:
    """The best children of every node, as fixed text."""

    def choose(q: Tensor, node: int, depth: int) -> tuple[Tensor, Tensor]:
        rank = parents[:node].count(parents[node])
        token = q.topk(rank + 1).indices[:, rank]
        return token, one_hot(token, VOCAB)

    return drafted(runs, parents, choose)


def coupled(runs: Runs, noise: Tensor, parents: Sequence[int]) -> Round:
    """The best children under the noise that the target draws with."""

    def choose(q: Tensor, node: int, depth: int) -> tuple[Tensor, Tensor]:
        rank = parents[:node].count(parents[node])
        token = (q.log() + noise[:, depth - 1]).topk(rank + 1).indices[:, rank]
        return token, q

    return drafted(runs, parents, choose)


def with_laws(drafted: Round, laws: Tensor) -> Round:
    return drafted._replace(drafts=laws)


def as_fixed_text(drafter: Drafter) -> Drafter:
    def draft(runs: Runs, parents: Sequence[int]) -> Round:
        made = drafter(runs, parents)
        return with_laws(made, one_hot(made.tokens, VOCAB))

    return draft


def claiming_softmax(runs: Runs, parents: Sequence[int]) -> Round:
    made = likeliest(runs, parents)
    return with_laws(made, sampled_laws(runs, made))


def sampled_laws(runs: Runs, made: Round) -> Tensor:
    histories = [runs.history]
    for node, parent in enumerate(made.parents):
        histories.append(behind(histories[parent + 1], made.tokens[:, node]))
    return torch.stack([WORLD.q[histories[parent + 1]] for parent in made.parents], 1)


def equal_siblings(runs: Runs, parents: Sequence[int]) -> Round:
    return drafted(runs, parents, lambda q, node, depth: (q.argmax(-1), q))


def texts(made: Round, stop: Stop, last: Tensor) -> Texts:
    tokens = torch.zeros(len(last), DEPTH + 1, dtype=torch.int64)
    count = torch.zeros_like(last)
    draft = Draft((0,) * len(made.parents), tuple(made.parents))
    for node in range(-1, len(made.parents)):
        path = draft.path(node)
        here = stop.node == node
        for place, right in enumerate(path):
            tokens[:, place] = torch.where(here, made.tokens[:, right], tokens[:, place])
        tokens[:, len(path)] = torch.where(here, last, tokens[:, len(path)])
        count[here] = len(path) + 1
    return tokens, count


def played(verify: Verify, drafter: Drafter, parents: Sequence[int] = CHAIN) -> Play:
    def play(runs: Runs) -> Texts:
        made = drafter(runs, parents)
        stop = verify(made, runs.coins(len(parents)))
        return texts(made, stop, sample(stop.law, runs.coins()))

    return play


def with_single_coins(drafter: Drafter, threshold: float = 1.0) -> Play:
    def play(runs: Runs) -> Texts:
        made = drafter(runs, TREE)
        stop = single_coin(made, threshold * runs.coins(len(TREE) + 1))
        return texts(made, stop, sample(stop.law, runs.coins()))

    return play


def with_one_uniform_for_draft_and_coin(runs: Runs) -> Texts:
    coins = runs.coins(DEPTH)
    made = drafted(runs, CHAIN, lambda q, node, depth: (sample(q, coins[:, node]), q))
    stop = rejection(made, coins)
    return texts(made, stop, sample(stop.law, runs.coins()))


@cache
def right_tokens() -> Tensor:
    """Whether a drafted token [VOCAB] is right where one [VOCAB] is drawn, as `Equality` says."""
    sequence = TokenSequence("", [0], b"", 16)
    right = [
        Walk(sequence, Draft((one,)), 0).take(other)
        for one in range(VOCAB)
        for other in range(VOCAB)
    ]
    return torch.tensor(right).view(VOCAB, VOCAB)


def coupled_equality(runs: Runs, parents: tuple[int, ...]) -> Texts:
    """Behind every node the token is drawn under its position's noise."""
    noise = noise_of_bits(runs.bits)
    made = coupled(runs, noise, parents)
    draft = Draft((0,) * len(parents), parents)
    depths = [0, *draft.depths()]
    drawn = (made.targets.log() + noise[:, depths]).argmax(-1)
    node = torch.full_like(runs.history, -1)
    for child, parent in enumerate(parents):
        right = right_tokens()[made.tokens[:, child], drawn[:, parent + 1]]
        node = torch.where((node == parent) & right, child, node)
    last = drawn.gather(1, node[:, None] + 1)[:, 0]
    return texts(made, Stop(node, made.targets[:, 0]), last)


LIKELY = 0.4


def cut_by(judge: Callable[[Runs, Round], Tensor], laws: str) -> Play:
    """Chains that end before the first node that `judge` [N, T] calls unlikely.

    laws: "kept"; "dropped"; "dropped where cut".
    """

    def play(runs: Runs) -> Texts:
        made = sampled(runs, CHAIN)
        length = judge(runs, made).long().cumprod(-1).sum(-1)
        tokens = torch.zeros(len(length), DEPTH + 1, dtype=torch.int64)
        count = torch.zeros_like(length)
        for size in range(DEPTH + 1):
            here = length == size
            own = runs.only(here)
            fixed = laws == "dropped" or (laws == "dropped where cut" and size < DEPTH)
            short = Round(
                CHAIN[:size],
                made.tokens[here, :size],
                made.targets[here, : size + 1],
                one_hot(made.tokens[here, :size], VOCAB) if fixed else made.drafts[here, :size],
            )
            stop = rejection(short, own.coins(size))
            tokens[here], count[here] = texts(short, stop, sample(stop.law, own.coins()))
        return tokens, count

    return play


def likely_once_drawn(runs: Runs, made: Round) -> Tensor:
    return made.drafts.gather(2, made.tokens[..., None])[..., 0] > LIKELY


def likely_before_the_draw(runs: Runs, made: Round) -> Tensor:
    return made.drafts.amax(-1) > LIKELY


class Result(NamedTuple):
    p_value: float
    tokens_per_round: float


def result_of(play: Play) -> Result:
    chance = torch.Generator().manual_seed(11)
    bits = torch.randint(1 << 24, (RUNS, EMITTED + DEPTH, VOCAB), generator=chance)
    history = torch.zeros(RUNS, dtype=torch.int64)
    length = torch.zeros(RUNS, dtype=torch.int64)
    rounds = emitted = 0
    while len(left := (length < EMITTED).nonzero()[:, 0]):
        places = length[left, None] + torch.arange(DEPTH + 1)
        tokens, count = play(Runs(history[left], bits[left[:, None], places], chance))
        rounds, emitted = rounds + len(left), emitted + int(count.sum())
        for place in range(DEPTH + 1):
            grows = (place < count) & (length[left] < EMITTED)
            own = left[grows]
            history[own] = behind(history[own], tokens[grows, place])
            length[own] += 1
    return Result(p_value_of(history), emitted / rounds)


def p_value_of(history: Tensor) -> float:
    """Of Pearson's chi-square with 63 degrees of freedom."""
    law, cells = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    for _ in range(EMITTED):
        law = (law[:, None] * WORLD.p[cells].double()).flatten()
        cells = behind(cells[:, None], torch.arange(VOCAB)).flatten()
    seen = torch.bincount(history - cells[0], minlength=len(cells))
    expected = law * len(history)
    chi_square = ((seen - expected) ** 2 / expected).sum()
    freedom = torch.tensor(len(cells) - 1, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom / 2, chi_square / 2))


RIGHT: dict[str, Play] = {
    "plain sampling": played(rejection, sampled, ()),
    "A: sampled chains with their laws": played(rejection, sampled),
    "B: likeliest chains": played(rejection, likeliest),
    "B: sampled chains as fixed text": played(rejection, as_fixed_text(sampled)),
    "C: sampled chains with their laws": played(block, sampled),
    "C: likeliest chains": played(block, likeliest),
    "D: two children with replacement": played(rejection, sampled, TREE),
    "D: two children without replacement": played(rejection, sampled_without_replacement, TREE),
    "B: the two likeliest children in sequence": played(rejection, likeliest, TREE),
    "B: equal siblings in sequence": played(rejection, as_fixed_text(equal_siblings), TREE),
    "E: the two likeliest children": with_single_coins(likeliest),
    "F: chains under shared noise": lambda runs: coupled_equality(runs, CHAIN),
    "F: trees under shared noise": lambda runs: coupled_equality(runs, TREE),
    "A: cut before the draw": cut_by(likely_before_the_draw, "kept"),
    "B: cut once drawn, all as fixed text": cut_by(likely_once_drawn, "dropped"),
}
WRONG: dict[str, Play] = {
    "likeliest tokens that claim to be sampled": played(rejection, claiming_softmax),
    "the same under block verification": played(block, claiming_softmax),
    "one uniform for draft and coin": with_one_uniform_for_draft_and_coin,
    "cut once drawn, with laws": cut_by(likely_once_drawn, "kept"),
    "cut once drawn, without laws where it was cut": cut_by(likely_once_drawn, "dropped where cut"),
    "E with equal siblings": with_single_coins(equal_siblings),
    "E that accepts from 0.8 of a coin on": with_single_coins(likeliest, threshold=0.8),
}


@cache
def known_result(name: str) -> Result:
    return result_of((RIGHT | WRONG)[name])


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_rule_emits_the_law_of_plain_sampling(name: str) -> None:
    assert known_result(name).p_value > LEAST_P


@pytest.mark.parametrize("name", WRONG)
def test_the_experiment_sees_that_a_wrong_rule_is_wrong(name: str) -> None:
    assert known_result(name).p_value < 1e-9


def test_rules_that_know_more_accept_more() -> None:
    fixed, chain, whole, tree = (
        known_result(name).tokens_per_round
        for name in (
            "B: sampled chains as fixed text",
            "A: sampled chains with their laws",
            "C: sampled chains with their laws",
            "D: two children without replacement",
        )
    )
    assert fixed < chain < whole < tree


@pytest.mark.parametrize("verify", [rejection, block])
def test_what_the_target_never_says_is_never_right(verify: Verify) -> None:
    """Not even with a coin of 0, nor if the drafter claims that it could not have drawn it."""
    target, draft = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.0, 0.5, 0.5])
    made = Round((-1,), torch.tensor([[0]]), target.expand(1, 2, 3), draft[None, None])
    node, law = verify(made, torch.zeros(1, 1))
    assert int(node) == -1 and int(sample(law, torch.tensor([0.5]))) == 1


@pytest.mark.parametrize("verify", [rejection, block])
def test_where_both_models_agree_everything_is_right(verify: Verify) -> None:
    law = torch.tensor([0.25, 0.75])
    made = Round(CHAIN, torch.tensor([[1, 0]]), law.expand(1, 3, 2), law.expand(1, 2, 2))
    coins = torch.full((1, 2), 1.0 - 2.0**-53, dtype=torch.float64)
    assert int(verify(made, coins).node) == 1


def test_a_coin_picks_no_token_without_mass() -> None:
    law = torch.tensor([0.0, 0.1, 0.0, 0.2, 0.0])
    coins = torch.tensor([2.0**-53, 0.3, 0.34, 1.0 - 2.0**-53], dtype=torch.float64)
    assert sample(law.expand(4, 5), coins).tolist() == [1, 1, 3, 3]
    assert int(sample(torch.zeros(5), torch.tensor(0.5))) == -1
