"""The trace-replay simulator, on small traces that are made here."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from bench.replay_cache import Beliefs, BlockCache
from bench.replay_cluster import Cluster, Outcome, Simulation
from bench.replay_ideal import placed_hit_ratio
from bench.replay_timing import MACHINES, Machine, fitted_machine, steps_s, steps_until
from bench.replay_trace import BLOCK_TOKENS, Recorded, load_trace, pooled_hit_ratio
from bench.router_replay import judge
from router.placement import POLICIES, Slo
from router.placement.least_cost import EPSILON

MACHINE = MACHINES["70b-a800"]
SLO = Slo(ttft_s=10.0, itl_s=0.1)
CLUSTER = Cluster(MACHINE, prefill=3, decode=2, cache_blocks=400, slo=SLO)


def conversations(count: int, rate: float, seed: int = 1) -> list[Recorded]:
    """Chats whose turns each begin with all that was said before; a fifth share a long prefix."""
    drawn, now, fresh = random.Random(seed), 0.0, 10_000
    chats: list[list[int]] = []
    trace = []
    for _ in range(count):
        now += drawn.expovariate(rate)
        if not chats or drawn.random() < 0.4:
            chats.append(list(range(20)) if drawn.random() < 0.2 else [])
        chat = drawn.choice(chats[-30:])
        added = drawn.randint(1, 12)
        chat += range(fresh, fresh + added)
        fresh += added
        prompt = len(chat) * BLOCK_TOKENS - drawn.randint(0, BLOCK_TOKENS - 1)
        trace.append(Recorded(now, prompt, drawn.randint(1, 300), tuple(chat)))
        if len(chat) > 100:
            chat.clear()
    return trace


def run(policy: str, trace: list[Recorded], cluster: Cluster = CLUSTER) -> Outcome:
    return Simulation(cluster, POLICIES[policy]).run(trace)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_request_ends_once_and_no_worker_holds_more_than_fits(policy: str) -> None:
    trace = conversations(150, rate=2.0)
    outcome = run(policy, trace)
    ended = [*outcome.jobs, *outcome.refused, *outcome.too_long]
    assert sorted(job.number for job in ended) == list(range(len(trace)))
    assert outcome.most_used <= CLUSTER.cache_blocks
    for job in outcome.jobs:
        assert job.arrived < job.first_at <= job.finished_at
        assert 0 <= job.cached < job.prompt


def test_a_crowded_home_makes_requests_wait_for_room() -> None:
    tight = Cluster(MACHINE, prefill=3, decode=1, cache_blocks=130, slo=SLO)
    trace = conversations(120, rate=2.0)
    outcome, roomy = run("round-robin", trace, tight), run("round-robin", trace)
    assert len(outcome.jobs) + len(outcome.too_long) == len(trace)
    assert outcome.most_used > 0.9 * 130
    assert max(j.first_at - j.arrived for j in outcome.jobs) > max(
        j.first_at - j.arrived for j in roomy.jobs
    )


def test_a_request_too_long_for_any_worker_is_told_apart() -> None:
    huge = Recorded(0.0, 401 * BLOCK_TOKENS, 10, tuple(range(401)))
    assert [job.number for job in run("predicted", [huge]).too_long] == [0]


def test_the_same_trace_gives_the_same_outcome() -> None:
    trace = conversations(120, rate=2.0)
    rows = [judge("t", trace, CLUSTER, 0.0, 1.0, "predicted", True) for _ in range(2)]
    assert rows[0] == rows[1]


def test_an_idle_cluster_takes_as_long_as_its_machine() -> None:
    request = Recorded(0.0, 8 * BLOCK_TOKENS, 101, tuple(range(8)))
    [job] = run("least-loaded", [request]).jobs
    prompt_s = MACHINE.prompt_s(request.prompt, 0)
    first_s = job.first_at - job.arrived
    step_s = MACHINE.step_s(1, context=request.prompt)
    fetch_s = MACHINE.fetch_s(MACHINE.chunk_tokens)
    assert first_s == pytest.approx(prompt_s + fetch_s + step_s + 2 * CLUSTER.rpc_s)
    last_s = MACHINE.step_s(1, context=request.prompt + 100)
    assert 100 * step_s < job.finished_at - job.first_at < 100 * last_s


def test_steps_of_a_batch_in_bulk_take_as_long_as_one_by_one() -> None:
    one_by_one = sum(0.02 + 0.001 * step for step in range(37))
    assert steps_s(37, 0.02, 0.001) == pytest.approx(one_by_one)
    assert steps_until(one_by_one, 0.02, 0.001) == 37
    assert steps_until(one_by_one + 1e-6, 0.02, 0.001) == 38
    assert steps_until(0.0, 0.02, 0.001) == 1


def test_a_second_turn_is_found_where_the_first_was_computed() -> None:
    first = Recorded(0.0, 10 * BLOCK_TOKENS, 5, tuple(range(10)))
    second = Recorded(30.0, 12 * BLOCK_TOKENS, 5, tuple(range(12)))
    [_, job] = run("predicted", [first, second]).jobs
    assert job.cached == 10 * BLOCK_TOKENS


def test_predicted_beats_blind_policies_on_a_busy_trace() -> None:
    trace = conversations(300, rate=8.0)
    met = {
        policy: judge("t", trace, CLUSTER, 0.0, 1.0, policy, False).met
        for policy in ("predicted", "round-robin", "power-of-two")
    }
    assert met["predicted"] > max(met["round-robin"], met["power-of-two"])


def test_refusing_what_would_come_too_late_serves_more_in_time() -> None:
    trace = conversations(400, rate=12.0)
    plain, refusing = (judge("t", trace, CLUSTER, 0.0, 1.0, "predicted", r) for r in (False, True))
    assert refusing.met > plain.met
    assert refusing.refused > 0


def test_no_prefill_worker_stays_above_the_bound_for_longer_than_its_own_queue() -> None:
    """Above the bound a worker gets nothing: the time that it stays there is its own work."""
    outcome = run("predicted", conversations(400, rate=4.0))
    largest_s = MACHINE.prompt_s(120 * BLOCK_TOKENS, 0)
    above = [0.0] * CLUSTER.prefill
    for queues in outcome.queues:
        bound = max((1 + EPSILON) * sum(queues) / len(queues), SLO.ttft_s) + largest_s
        for worker, left_s in enumerate(queues):
            above[worker] = above[worker] + CLUSTER.report_s if left_s > bound else 0.0
            assert above[worker] <= bound


def test_cached_blocks_give_way_to_requests_and_never_the_other_way() -> None:
    told: list[tuple[list[int], list[int]]] = []
    cache = BlockCache(4, lambda stored, evicted: told.append((list(stored), list(evicted))))
    assert cache.take([1, 2, 3])
    cache.commit([1, 2, 3])
    assert not cache.take([4, 5])
    cache.give([1, 2, 3])
    assert cache.take([4, 5])
    assert told == [([1, 2, 3], []), ([], [3])]  # the tail of a prompt goes first
    assert cache.count_cached([1, 2, 3]) == 2


def test_the_ideal_hit_ratio_falls_with_the_cache_and_clairvoyance_helps() -> None:
    trace = conversations(200, rate=1.0)
    infinite, large, small = (pooled_hit_ratio(trace, size) for size in (None, 600, 100))
    assert infinite >= large > small
    assert infinite >= pooled_hit_ratio(trace, 100, "clairvoyant") >= small


def test_a_placement_that_knows_the_trace_comes_near_the_pooled_cache_and_never_above_belady() -> (
    None
):
    trace = conversations(200, rate=1.0)
    placed = placed_hit_ratio(trace, workers=4, capacity=150)
    assert placed <= pooled_hit_ratio(trace, 600, "clairvoyant")
    assert placed > 0.9 * pooled_hit_ratio(trace, 600)
    assert placed_hit_ratio(trace, 1, 600) == pytest.approx(pooled_hit_ratio(trace, 600))


def test_what_a_home_lends_is_not_computed_by_the_prefill_worker_that_it_asks() -> None:
    """Round-robin sends the second turn to another prefill worker, and to the first one's home."""
    cluster = Cluster(MACHINE, prefill=2, decode=1, cache_blocks=400, slo=SLO)
    first = Recorded(0.0, 10 * BLOCK_TOKENS, 5, tuple(range(10)))
    second = Recorded(30.0, 12 * BLOCK_TOKENS, 5, tuple(range(12)))
    one, two = run("round-robin", [first, second], cluster).jobs
    assert one.computed_by != two.computed_by
    assert two.cached == 10 * BLOCK_TOKENS


def test_what_is_queued_for_is_evicted_last() -> None:
    cache = BlockCache(4, lambda stored, evicted: None)
    for blocks in ([1, 2], [3, 4]):
        cache.take(blocks)
        cache.commit(blocks)
        cache.give(blocks)
    cache.touch([1, 2, 9])
    assert cache.take([5, 6])
    assert (cache.count_cached([1, 2]), cache.count_cached([3, 4])) == (2, 0)


def test_what_is_expected_counts_as_held_until_it_is_computed() -> None:
    beliefs = Beliefs(["p0", "p1"])
    beliefs.expect(1, [1, 2])
    assert {name: hit.blocks for name, hit in beliefs.hits([1, 2, 3]).items()} == {"p1": 2}
    assert not beliefs.told([1, 2, 3])
    beliefs.hear(1, [1], [])
    beliefs.expect_no_more(1, [1, 2])
    assert beliefs.told([1, 2, 3]) == {"p1": 1}


def test_both_formats_of_traces_are_read(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 2000, "input_length": 600, "output_length": 7, "hash_ids": [0, 2]},
        {"timestamp": 1000, "input_length": 512, "output_length": 5, "hash_ids": [0]},
    ]
    mooncake = tmp_path / "trace.jsonl"
    mooncake.write_text("\n".join(map(json.dumps, rows)))
    assert load_trace(mooncake)[1] == Recorded(2.0, 600, 7, (0, 2))
    azure = tmp_path / "trace.csv"
    azure.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:48.1805900,1030,1\n"
    )
    first, second = load_trace(azure)
    assert (second.at, second.prompt, len(second.blocks)) == (1.5, 1030, 3)
    assert not set(first.blocks) & set(second.blocks)


def test_a_broken_trace_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 3}\n')
    with pytest.raises(SystemExit, match=r"trace\.jsonl:1: not a Mooncake request"):
        load_trace(path)


def test_constants_can_come_from_a_measured_engine(tmp_path: Path) -> None:
    path = tmp_path / "engine.json"
    rows = [
        {"phase": "decode", "dtype": "bfloat16", "batch": 1, "tokens_s": 50.0},
        {"phase": "decode", "dtype": "bfloat16", "batch": 16, "tokens_s": 400.0},
        {"phase": "prefill", "dtype": "bfloat16", "tokens": 512, "tokens_s": 4000.0},
        {"phase": "prefill", "dtype": "bfloat16", "tokens": 2048, "tokens_s": 3000.0},
    ]
    path.write_text(json.dumps({"rows": rows}))
    machine: Machine = fitted_machine(path)
    assert machine.step_s(1) == pytest.approx(0.02)
    assert machine.prompt_s(512, 0) == pytest.approx(512 / 4000, rel=0.01)
    assert machine.prompt_s(2048, 0) == pytest.approx(2048 / 3000, rel=0.01)
