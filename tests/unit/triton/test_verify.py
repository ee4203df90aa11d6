"""Drafts judged by Triton are judged as by the torch reference, token for token."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from triptych_kernels import sampling as reference_sampling
from triptych_kernels import verification
from triptych_kernels.sampling import Draw
from triptych_kernels.triton import filters, laws, verify
from triptych_kernels.triton.laws import laws_of
from triptych_kernels.triton.verify import NO_NODE, ROOT, Drafts, Verdict

CHAIN = (-1, 0, 1)
TREE = (-1, -1, 0, 0, 1, 1, -1)
VOCAB = 50
DRAFTS = 8


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (filters, laws, verify):
        monkeypatch.setattr(module, "TILE", 32)


class Case(NamedTuple):
    drafts: Drafts
    targets: list[Draw]
    proposals: list[Draw]
    coins: Tensor
    last_coins: Tensor

    def judge(
        self, rule: Callable[..., Verdict], device: torch.device, *, one_hot: bool
    ) -> Verdict:
        target, proposal = (
            laws_of(filters.rows_of([d._replace(logits=d.logits.to(device)) for d in draws]))
            for draws in (self.targets, self.proposals)
        )
        drafts = Drafts(self.drafts.parents.to(device), self.drafts.tokens.to(device))
        coins, last = self.coins.to(device), self.last_coins.to(device)
        verdict = rule(drafts, target, None if one_hot else proposal, coins, last)
        return Verdict(*(x.cpu() for x in (verdict.path, verdict.count, verdict.tokens)))

    def by_reference(
        self, rule: verification.Verify, parents: tuple[int, ...], *, one_hot: bool
    ) -> tuple[Tensor, Tensor]:
        """The last right node of each draft, and the token behind it."""
        count, nodes = self.drafts.tokens.shape
        targets, proposals = (
            torch.stack([reference_sampling.token_law(draw) for draw in draws])
            for draws in (self.targets, self.proposals)
        )
        tokens = self.drafts.tokens.long()
        q = proposals.view(count, nodes, -1)
        q = verification.one_hot(tokens, VOCAB) if one_hot else q
        drafted = verification.Round(parents, tokens, targets.view(count, nodes + 1, -1), q)
        stop = rule(drafted, self.coins)
        return stop.node, verification.sample(stop.law, self.last_coins)


def random_case(parents: tuple[int, ...]) -> Case:
    """Drafts whose laws are like the targets', so that some of each length are right."""
    chance = torch.Generator().manual_seed(len(parents))
    nodes = len(parents)
    logits = 2 * torch.randn(DRAFTS, nodes + 1, VOCAB, generator=chance)
    near = logits[:, [parent + 1 for parent in parents]]
    near = near + 0.7 * torch.randn(near.shape, generator=chance)
    targets = [Draw(row, 0.8, min_p=0.01) for row in logits.flatten(0, 1)]
    proposals = [Draw(row, 1.1) for row in near.flatten(0, 1)]
    laws = torch.stack([reference_sampling.token_law(draw) for draw in proposals])
    tokens = torch.multinomial(laws, 1, generator=chance).view(DRAFTS, nodes).int()
    coins = torch.rand(DRAFTS, nodes + 1, generator=chance, dtype=torch.float64)
    drafts = Drafts(torch.tensor([parents] * DRAFTS, dtype=torch.int32), tokens)
    return Case(drafts, targets, proposals, coins[:, :-1].contiguous(), coins[:, -1].contiguous())


def last_nodes(verdict: Verdict) -> Tensor:
    last = verdict.path.gather(1, (verdict.count - 1).clamp(min=0)[:, None].long())[:, 0]
    return torch.where(verdict.count > 0, last, -1).long()


def last_tokens(verdict: Verdict) -> Tensor:
    return verdict.tokens.gather(1, verdict.count[:, None].long())[:, 0].long()


@pytest.mark.parametrize("one_hot", [False, True], ids=["laws", "one_hot"])
@pytest.mark.parametrize(
    ("name", "parents"), [("rejection", CHAIN), ("rejection", TREE), ("block", CHAIN)]
)
def test_rules_stop_where_the_reference_stops_and_draw_its_token(
    name: str, parents: tuple[int, ...], one_hot: bool, device: torch.device
) -> None:
    case = random_case(parents)
    verdict = case.judge(getattr(verify, name), device, one_hot=one_hot)
    node, token = case.by_reference(getattr(verification, name), parents, one_hot=one_hot)
    assert torch.equal(last_nodes(verdict), node)
    assert torch.equal(last_tokens(verdict), token)
    assert 0 < int(verdict.count.sum()) < DRAFTS * len(parents), "some are right, and not all"
    rows = zip(verdict.path, verdict.count, verdict.tokens, case.drafts.tokens, strict=True)
    for path, count, tokens, drafted in rows:
        assert torch.equal(tokens[:count], drafted[path[:count].long()])
        assert (path[count:] == -1).all() and (tokens[count + 1 :] == -1).all()


@pytest.mark.parametrize("rule", [verify.rejection, verify.block])
def test_a_rule_judges_a_draft_the_same_alone_filled_up_and_among_others(
    rule: Callable[..., Verdict], device: torch.device
) -> None:
    case = random_case(CHAIN)
    together = case.judge(rule, device, one_hot=False)
    at, nodes = 3, len(CHAIN)
    drafts, (coins, last) = case.drafts, (case.coins[at : at + 1], case.last_coins[at : at + 1])
    targets = case.targets[at * (nodes + 1) : (at + 1) * (nodes + 1)]
    proposals = case.proposals[at * nodes : (at + 1) * nodes]
    fill = torch.full((1, 1), NO_NODE, dtype=torch.int32)
    filled = Case(
        Drafts(
            torch.cat([drafts.parents[at : at + 1], fill], 1),
            torch.cat([drafts.tokens[at : at + 1], torch.zeros_like(fill)], 1),
        ),
        [*targets, targets[0]],
        [*proposals, proposals[0]],
        torch.cat([coins, torch.zeros(1, 1, dtype=torch.float64)], 1),
        last,
    )
    verdict = filled.judge(rule, device, one_hot=False)
    assert torch.equal(verdict.tokens[0, :-1], together.tokens[at])


@pytest.mark.parametrize("rule", [verify.rejection, verify.block])
def test_a_draft_from_the_targets_own_laws_is_right_to_its_end(
    rule: Callable[..., Verdict], device: torch.device
) -> None:
    case = random_case(CHAIN)
    own = [case.targets[n * 4 + t] for n in range(DRAFTS) for t in range(3)]
    laws = torch.stack([reference_sampling.token_law(draw) for draw in own])
    tokens = laws.argmax(-1).view(DRAFTS, 3).int()
    case = case._replace(proposals=own, drafts=Drafts(case.drafts.parents, tokens))
    assert case.judge(rule, device, one_hot=False).count.tolist() == [3] * DRAFTS


def test_equality_walks_along_drawn_tokens(device: torch.device) -> None:
    """Trees and chains, a shorter draft filled up, equal siblings, nothing right, no nodes."""
    parents = torch.tensor(
        [
            [ROOT, 0, 1, NO_NODE],
            [ROOT, ROOT, 0, 1],
            [ROOT, ROOT, 1, 0],  # equal siblings: the first is walked
            [ROOT, 0, 1, 2],
            [NO_NODE, NO_NODE, NO_NODE, NO_NODE],
        ],
        dtype=torch.int32,
    )
    tokens = torch.tensor(
        [[5, 6, 7, 0], [5, 6, 7, 8], [5, 5, 7, 7], [9, 6, 7, 8], [0, 0, 0, 0]], dtype=torch.int32
    )
    drawn = torch.tensor(
        [[5, 6, 3, 4, 0], [6, 1, 8, 2, 4], [5, 7, 1, 1, 2], [5, 6, 7, 8, 1], [4, 0, 0, 0, 0]],
        dtype=torch.int32,
    )
    verdict = verify.equality(Drafts(parents.to(device), tokens.to(device)), drawn.to(device))
    assert verdict.count.tolist() == [2, 2, 2, 0, 0]
    assert verdict.path.tolist()[:3] == [[0, 1, -1, -1], [1, 3, -1, -1], [0, 3, -1, -1]]
    assert verdict.tokens.tolist() == [
        [5, 6, 3, -1, -1],
        [6, 8, 4, -1, -1],
        [5, 7, 2, -1, -1],
        [5, -1, -1, -1, -1],
        [4, -1, -1, -1, -1],
    ]


def test_a_row_without_any_logit_ends_in_no_token(device: torch.device) -> None:
    case = random_case(CHAIN)
    nothing = [Draw(torch.full((VOCAB,), -torch.inf), 0.8) for _ in case.targets]
    verdict = case._replace(targets=nothing).judge(verify.rejection, device, one_hot=False)
    assert verdict.tokens[:, 0].tolist() == [-1] * DRAFTS
