"""Rules as the decode worker uses them: one sequence, one draft, one row of logits each."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import pytest
import torch
from torch import Tensor

from decode_worker.speculate.acceptance import AcceptanceRule, Equality, InLaw, Judged
from decode_worker.speculate.fixed import Fixed
from decode_worker.speculate.make import make_rule
from decode_worker.speculate.policy import StepLoad
from decode_worker.speculate.speculator import Speculator
from triptych.drafters.drafter import Ask, Hints, Verdict
from triptych.engine.draft import Draft, Law
from triptych.engine.rows import RowJob
from triptych.engine.sampler import Sampler
from triptych.engine.scheduler import Scheduler
from triptych.engine.sequence import Sequence
from triptych.kv.pool import BlockPool
from triptych.request import SamplingParams
from triptych.speculation_config import SpeculationConfig
from triptych_kernels.verification import block, rejection

VOCAB = 6
LAW = Law(torch.tensor([1, 2, 3], dtype=torch.int32), torch.tensor([0.5, 0.25, 0.25]))
CHAIN = Draft((1, 2, 3), laws=(LAW,) * 3, confidence=(0.5, 0.25, 0.25))
TREE = Draft((1, 2, 3, 1), parents=(-1, -1, 0, 1), laws=(LAW,) * 4)
IN_LAW = {"rejection": InLaw(rejection), "block": InLaw(block)}


@pytest.fixture(params=list(IN_LAW))
def rule(request: pytest.FixtureRequest) -> InLaw:
    return IN_LAW[request.param]


def job_of(draft: Draft, seed: int = 0, temperature: float = 1.0) -> RowJob:
    params = SamplingParams(seed=seed, max_tokens=20, temperature=temperature)
    sequence = Sequence("r", [4, 5, 4], b"", 16, params=params)
    return RowJob(sequence, 2, 3, draft)


def logits_of(jobs: Seq[RowJob], seed: int = 0) -> Tensor:
    rows = sum(job.num_wanted for job in jobs)
    return 2 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed))


def judged(rule: AcceptanceRule, jobs: Seq[RowJob], logits: Tensor) -> list[Judged]:
    return rule.judge(jobs, logits, Sampler(()))


def spread(rule: AcceptanceRule, draft: Draft, seeds: int = 300) -> list[Judged]:
    jobs = [job_of(draft, seed) for seed in range(seeds)]
    return judged(rule, jobs, logits_of(jobs[:1]).repeat(seeds, 1))


@pytest.mark.parametrize("draft", [Draft(()), CHAIN, TREE, Draft((1, 2, 3))], ids=str)
@pytest.mark.parametrize("seed", range(10))
def test_a_greedy_request_is_judged_by_equality(rule: InLaw, draft: Draft, seed: int) -> None:
    jobs = [job_of(draft, temperature=0.0), job_of(CHAIN, seed), job_of(draft, temperature=0.0)]
    logits = logits_of(jobs, seed)
    found, expected = judged(rule, jobs, logits), judged(Equality(), jobs, logits)
    assert (found[0], found[2]) == (expected[0], expected[2])


def test_what_is_told_are_the_right_nodes_and_one_token_more(rule: InLaw) -> None:
    for draft in (CHAIN, TREE):
        for path, tokens in spread(rule, draft):
            right = [draft.tokens[node] for node in path]
            assert [drawn.token_id for drawn in tokens[:-1]] == right
            assert [draft.parent(node) for node in path] == [-1, *path][:-1]


def test_a_judgement_depends_on_its_seed_and_draft_alone(rule: InLaw) -> None:
    jobs = [job_of(CHAIN, 1), job_of(TREE, 2), job_of(CHAIN, 3), job_of(Draft(()), 4)]
    logits = logits_of(jobs)
    rows = logits.split([job.num_wanted for job in jobs])
    together = judged(rule, jobs, logits)
    assert together == [judged(rule, [j], own)[0] for j, own in zip(jobs, rows, strict=True)]
    assert len({str(each) for each in spread(rule, CHAIN)}) > 5


def test_block_verification_leaves_trees_to_rejection_and_differs_on_chains() -> None:
    first, second = IN_LAW.values()
    assert spread(first, TREE) == spread(second, TREE)
    assert spread(first, CHAIN) != spread(second, CHAIN)


@pytest.mark.parametrize(
    "law",
    [
        Law(torch.tensor([2, 3]), torch.tensor([0.5, 0.5])),
        Law(torch.tensor([1, 2]), torch.tensor([0.5, 0.6])),
        Law(torch.tensor([1, VOCAB]), torch.tensor([0.5, 0.5])),
        Law(torch.tensor([1, 1]), torch.tensor([0.5, 0.5])),
        Law(torch.tensor([1, 2]), torch.tensor([1.5, -0.5])),
        Law(torch.tensor([], dtype=torch.int64), torch.tensor([])),
    ],
)
def test_a_law_that_cannot_be_one_is_no_law(law: Law, caplog: pytest.LogCaptureFixture) -> None:
    rule = InLaw(rejection)
    wrong = Draft((1,), laws=(law,), drafter="liar")
    assert spread(rule, wrong) == spread(rule, Draft((1,)))
    assert caplog.text.count("drafter liar states laws that it does not draw from") == 1


def test_a_broken_row_is_told(rule: InLaw) -> None:
    (found,) = judged(rule, [job_of(CHAIN)], torch.full((4, VOCAB), torch.nan))
    assert found.path == [] and found.tokens[0].broken


def test_who_chooses_nodes_loses_their_laws_and_who_counts_them_does_not() -> None:
    assert TREE.first(3).laws == (LAW,) * 3
    assert TREE.first(9) is TREE
    assert TREE.kept([True] * 4).laws == () and TREE.kept([True] * 4).tokens == TREE.tokens
    assert TREE.kept([True, False, True, True]).laws == ()


def test_the_configured_rule_is_used_where_anybody_drafts() -> None:
    assert isinstance(make_rule(SpeculationConfig()), Equality)
    assert isinstance(make_rule(SpeculationConfig(rule="rejection")), InLaw)
    assert isinstance(make_rule(SpeculationConfig(rule="block")), InLaw)
    assert isinstance(make_rule(SpeculationConfig(rule="block", mode="off")), Equality)


class Chains:
    """Always drafts the same."""

    name = "chains"

    def begin(self, sequence: Sequence, hints: Hints) -> None: ...

    def propose(self, asks: Seq[Ask]) -> list[Draft]:
        return [CHAIN.first(ask.max_nodes) for ask in asks]

    def observe(self, verdicts: Seq[Verdict]) -> None: ...

    def end(self, sequence: Sequence) -> None: ...


class Cutting(Fixed):
    """Keeps the likely tokens of those that were drawn."""

    def trim(self, load: StepLoad, drafts: Seq[Draft]) -> list[Draft]:
        return [draft.kept([share > 0.4 for share in draft.confidence]) for draft in drafts]


def drafted_under(rule: AcceptanceRule) -> Draft:
    scheduler = Scheduler(BlockPool(8), block_tokens=16, chunk_tokens=64, max_running=4)
    speculator = Speculator(
        scheduler,
        {"chains": Chains()},
        Cutting("chains", 8),
        max_model_len=100,
        vocab_size=VOCAB,
        rule=rule,
    )
    sequence = job_of(Draft(())).sequence
    speculator.begin(sequence)
    scheduler.add(sequence)
    (job,) = speculator.draft(scheduler.next_batch())
    return job.draft


def test_no_policy_cuts_a_draft_whose_laws_are_read() -> None:
    """Nor may it see such a draft: those that it would leave whole no longer have their laws."""
    assert drafted_under(InLaw(rejection)).laws == CHAIN.laws
    trimmed = drafted_under(Equality())
    assert trimmed.tokens == (1,) and trimmed.laws == ()
