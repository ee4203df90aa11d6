"""A remote drafter drafts what it would draft at home, and is never waited for when it cannot."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from triptych.drafters.drafter import Ask, Hints, Verdict
from triptych.drafters.ngram import NgramDrafter
from triptych.drafters.suffix import SuffixDrafter
from triptych.engine.draft import NO_DRAFT, Draft
from triptych.engine.sequence import Sequence
from triptych.testing.cluster import eventually
from triptych.testing.drafters import Gated
from triptych.testing.replay import replay


def text(seed: int, length: int = 160) -> list[int]:
    """Repeats itself, so that there is something to draft."""
    return random.Random(seed).choices(range(4), k=length)


def sequence_of(tokens: list[int]) -> Sequence:
    return Sequence("talk", list(tokens), root=b"", block_tokens=16)


def draft_for(remote: Any, sequence: Sequence, nodes: int = 4) -> Draft:
    (draft,) = remote.drafter.propose([Ask(sequence, nodes)])
    return draft


def commit(remote: Any, sequence: Sequence, *tokens: int, draft: Draft = NO_DRAFT) -> None:
    sequence.tokens.extend(tokens)
    remote.drafter.observe([Verdict(sequence, draft, (), tokens)])


@pytest.mark.parametrize("kind", [NgramDrafter, SuffixDrafter])
async def test_its_drafts_are_those_of_the_same_drafter_at_home(house, address, kind):
    server, _ = await house.serve(address, kind())
    remote = house.call(server.address)
    await remote.connected()
    answer = text(1)
    away = await asyncio.to_thread(replay, remote.drafter, answer[:60], answer[60:])
    assert away == replay(kind(), answer[:60], answer[60:])
    assert set(remote.outcomes) == {"in-time"}


async def test_several_sequences_are_asked_for_in_one_go_and_answered_in_order(house, address):
    server, _ = await house.serve(address, NgramDrafter())
    remote = house.call(server.address)
    await remote.connected()
    sequences = [sequence_of([n, n + 1, n + 2, n + 3, 99, n, n + 1]) for n in (10, 20, 30)]
    for sequence in sequences:
        remote.drafter.begin(sequence, Hints())
    asks = [Ask(sequence, 2) for sequence in reversed(sequences)]
    drafts = await asyncio.to_thread(remote.drafter.propose, asks)
    assert [draft.tokens for draft in drafts] == [(32, 33), (22, 23), (12, 13)]


async def test_a_draft_worker_that_comes_back_is_told_everything_again(house, socket_dir: Path):
    address = f"unix:{socket_dir}/draft.sock"
    server, _ = await house.serve(address, NgramDrafter())
    remote = house.call(address)
    await remote.connected()
    sequence = sequence_of([1, 2, 3, 4, 9, 1, 2])
    remote.drafter.begin(sequence, Hints())
    assert (await asyncio.to_thread(draft_for, remote, sequence, 2)).tokens == (3, 4)
    await server.stop(0.0)

    async def is_away() -> bool:
        return remote.link.session == 0

    await eventually(is_away, timeout_s=30)
    sequence.append(3)
    assert await asyncio.to_thread(draft_for, remote, sequence) == NO_DRAFT
    await house.serve(address, NgramDrafter())
    await remote.connected()
    assert (await asyncio.to_thread(draft_for, remote, sequence, 2)).tokens == (4, 9)
    assert remote.outcomes["disconnected"] == 1


async def test_a_worker_that_drafts_for_another_model_is_refused_and_says_so(
    house, address, caplog
):
    server, _ = await house.serve(address, NgramDrafter(), target="another model")
    remote = house.call(server.address)

    async def refused() -> bool:
        return remote.metrics.remote_refused.labels("remote")._value.get() == 1

    await eventually(refused, timeout_s=30)
    assert "drafts are for another model, not for model" in caplog.text
    sequence = sequence_of([1, 2, 1, 2, 1])
    remote.drafter.begin(sequence, Hints())
    assert await asyncio.to_thread(draft_for, remote, sequence) == NO_DRAFT


async def test_a_late_draft_is_not_waited_for_and_its_end_is_used(house, address):
    gated = Gated(NgramDrafter())
    server, _ = await house.serve(address, gated)
    remote = house.call(server.address, wait_s=0.01)
    await remote.connected()
    sequence = sequence_of([1, 2, 3, 4, 5, 6, 1, 2])
    remote.drafter.begin(sequence, Hints())
    assert await asyncio.to_thread(draft_for, remote, sequence, 4) == NO_DRAFT
    commit(remote, sequence, 3)  # as the draft under way says
    gated.gate.set()

    async def used() -> tuple[int, ...]:
        draft = await asyncio.to_thread(draft_for, remote, sequence, 4)
        return draft.tokens or None

    assert await eventually(used, timeout_s=30) == (4, 5, 6)
    assert remote.outcomes["late"] == 1 and remote.outcomes["timeout"] >= 1


async def test_a_late_draft_that_was_wrong_is_dropped(house, address):
    gated = Gated(NgramDrafter())
    server, _ = await house.serve(address, gated)
    remote = house.call(server.address, wait_s=0.01)
    await remote.connected()
    sequence = sequence_of([1, 2, 3, 4, 5, 6, 5, 8, 7, 1, 2])
    remote.drafter.begin(sequence, Hints())
    assert await asyncio.to_thread(draft_for, remote, sequence, 4) == NO_DRAFT
    commit(remote, sequence, 5, 8)
    gated.gate.set()

    async def used() -> tuple[int, ...]:
        draft = await asyncio.to_thread(draft_for, remote, sequence, 2)
        return draft.tokens or None

    assert await eventually(used, timeout_s=30) == (7, 1)
    assert remote.outcomes["stale"] == 1 and remote.outcomes["late"] == 0


async def test_a_sequence_that_the_draft_worker_dropped_is_told_again(house, address):
    server, loop = await house.serve(address, NgramDrafter(), max_tokens=64)
    remote = house.call(server.address)
    await remote.connected()
    first, second = sequence_of([1, 2, 3, 4, 5] * 10), sequence_of(text(2, 50))
    for sequence in (first, second):
        remote.drafter.begin(sequence, Hints())
        await asyncio.to_thread(draft_for, remote, sequence)
    assert len(loop.contexts) == 1 and loop.contexts.num_tokens == 50
    commit(remote, first, 1)
    await asyncio.to_thread(draft_for, remote, first)  # lost; or told again already
    draft = await asyncio.to_thread(draft_for, remote, first)
    assert draft.tokens == (2, 3, 4, 5) and remote.outcomes["lost"] == 1


async def test_nothing_is_kept_of_sequences_and_calls_that_ended(house, address):
    server, loop = await house.serve(address, NgramDrafter())
    remote, other = house.call(server.address), house.call(server.address)
    for caller in (remote, other):
        await caller.connected()
        for seed in (1, 2):
            sequence = sequence_of(text(seed))
            caller.drafter.begin(sequence, Hints())
            await asyncio.to_thread(draft_for, caller, sequence)
        caller.drafter.end(sequence)
    await other.link.close()

    async def one_left() -> bool:
        return len(loop.contexts) == 1 and loop.contexts.num_tokens == len(text(1))

    await eventually(one_left, timeout_s=30)


@pytest.mark.parametrize("trouble", [0.2, 0.6, 1.0])
async def test_whatever_is_lost_late_doubled_or_garbled_the_text_comes_out(house, address, trouble):
    server, _ = await house.serve(address, NgramDrafter())
    remote = house.call(server.address, wait_s=0.005, trouble=trouble)
    await remote.connected()
    answer = text(3, 300)
    done = await asyncio.to_thread(replay, remote.drafter, answer[:60], answer[60:])
    assert done.tokens == 240
