"""What an operator reads of speculation is what happened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry

from decode_worker.speculate.fixed import Fixed
from decode_worker.speculate.tally import Tally, depth_of
from triptych.drafters.drafter import Verdict
from triptych.engine.draft import Draft
from triptych.engine.sequence import Sequence
from triptych.obs.speculation import SpeculationMetrics
from triptych.request import SamplingParams
from triptych.testing.drafters import Oracle


def test_drafts_of_a_run_are_counted_by_drafter_and_in_each_sequence(
    make_home: Callable[..., Any],
) -> None:
    params = SamplingParams(seed=0, max_tokens=30, temperature=0.0, ignore_eos=True)
    home = make_home()
    home.submit([5, 6, 7], params)
    (plain,) = home.run()
    oracle = Oracle({((5, 6, 7), 0): plain}, spoils=3)
    home = make_home(drafters={"oracle": oracle}, policy=Fixed("oracle", 4))
    registry = CollectorRegistry()
    home.loop._speculator._tally = Tally(SpeculationMetrics(registry))
    sequence = home.submit([5, 6, 7], params)
    assert home.run() == [plain]
    count = sequence.drafts["oracle"]
    assert count.accepted == sequence.num_accepted and count.drafted == sequence.num_drafted
    assert 0 < count.rounds <= sequence.num_rounds and sequence.draft_seconds > 0
    labels = {"drafter": "oracle", "handoff": "home"}
    for name, wanted in (
        ("triptych_draft_rounds_total", count.rounds),
        ("triptych_drafted_tokens_total", count.drafted),
        ("triptych_accepted_tokens_total", count.accepted),
    ):
        assert registry.get_sample_value(name, labels) == wanted
    verified = {"drafter": "oracle", "decision": "verified"}
    assert registry.get_sample_value("triptych_draft_decisions_total", verified) == count.rounds
    assert registry.get_sample_value("triptych_verify_seconds_total") > 0


def test_acceptance_is_told_by_position_and_by_hand_off() -> None:
    registry = CollectorRegistry()
    tally = Tally(SpeculationMetrics(registry))
    sequence = Sequence("far", [1], root=b"", block_tokens=16)
    sequence.prefilled_remotely = True
    chain = Draft(tuple(range(12)), drafter="suffix")
    tally.verified([Verdict(sequence, chain, tuple(range(10)), tuple(range(11)))], 0.1)
    tally.verified([Verdict(sequence, chain.first(2), (), (7,))], 0.1)
    tally.step_ends(idle=True)

    def at(kind: str, position: str) -> float | None:
        labels = {"drafter": "suffix", "position": position}
        return registry.get_sample_value(f"triptych_draft_position_{kind}_total", labels)

    assert [at("drafted", p) for p in ("1", "2", "3", "8", "9+")] == [2, 2, 1, 1, 4]
    assert [at("accepted", p) for p in ("1", "2", "3", "8", "9+")] == [1, 1, 1, 1, 2]
    remote = {"drafter": "suffix", "handoff": "remote"}
    assert registry.get_sample_value("triptych_accepted_tokens_total", remote) == 10
    lengths = registry.get_sample_value(
        "triptych_acceptance_length_tokens_sum", {"drafter": "suffix"}
    )
    assert lengths == 12


def test_a_tree_is_as_deep_as_its_longest_path() -> None:
    assert depth_of(Draft((1, 2, 3, 4), parents=(-1, -1, 1, 2))) == 3
