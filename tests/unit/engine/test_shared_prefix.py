"""Sequences that begin with the same blocks are found, and answer as if they stood alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from triptych.engine.native_runner import NativeRunner
from triptych.engine.shared_prefix import NOTHING, TILE_TOKENS, share_prefixes
from triptych.request import SamplingParams
from triptych_kernels.cpu.native import native

SIZE = 32
TILE_BLOCKS = TILE_TOKENS // SIZE


def table(*parts: tuple[int, int]) -> list[int]:
    """Blocks `first` … of so many tiles each."""
    return [first + n for first, tiles in parts for n in range(tiles * TILE_BLOCKS)]


def shared(tables: list[list[int]]) -> list[tuple[int, int]]:
    """(bundle, tiles) by job; all slots are known."""
    found = share_prefixes(tables, [len(each) * SIZE for each in tables], SIZE)
    return [(bundle, slots // TILE_TOKENS) for bundle, slots in found]


def test_jobs_with_the_same_first_blocks_are_one_bundle() -> None:
    ours = [table((0, 4), (100 * n, 2)) for n in (1, 2, 3)]
    found = shared([ours[0], table((900, 5)), ours[1], ours[2]])
    assert [tiles for _, tiles in found] == [4, 0, 4, 4]
    assert len({bundle for bundle, tiles in found if tiles}) == 1
    assert found[1] == NOTHING


def test_of_bundles_within_bundles_the_choice_saves_most() -> None:
    deep = [table((0, 2), (50, 20), (1000 + 100 * n, 1)) for n in range(2)]
    wide = [table((0, 2), (2000 + 100 * n, 1)) for n in range(2)]
    assert [tiles for _, tiles in shared([*deep, *wide])] == [22, 22, 0, 0]
    many = [table((0, 2), (2000 + 100 * n, 1)) for n in range(20)]
    assert {tiles for _, tiles in shared([*deep, *many])} == {2}


def test_what_is_not_computed_yet_or_less_than_a_tile_is_not_shared() -> None:
    tables = [table((0, 4)), table((0, 4))]
    assert share_prefixes(tables, [TILE_TOKENS - 1, 4 * TILE_TOKENS], SIZE) == [NOTHING, NOTHING]
    assert share_prefixes(tables, [0, 4 * TILE_TOKENS], SIZE) == [NOTHING, NOTHING]
    slots = [slots for _, slots in share_prefixes(tables, [3 * TILE_TOKENS + 40] * 2, SIZE)]
    assert slots == [3 * TILE_TOKENS] * 2


def test_any_order_of_the_jobs_finds_the_same_bundles() -> None:
    draw = random.Random(5)
    tables = [table((0, 3), (50 * (n % 3 + 1), 4), (1000 + 40 * n, 1)) for n in range(12)]
    wanted = shared(tables)
    order = draw.sample(range(12), 12)
    found = shared([tables[i] for i in order])
    assert [found[order.index(i)][1] for i in range(12)] == [tiles for _, tiles in wanted]
    for i in range(12):
        for j in range(12):
            together = found[order.index(i)][0] == found[order.index(j)][0]
            assert together == (wanted[i][0] == wanted[j][0])


@pytest.mark.skipif(native() is None, reason="no native kernels here")
def test_a_common_system_prompt_changes_no_token(
    make_home: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(8)
    system = [draw.randrange(3, 250) for _ in range(400)]
    prompts = [[*system, *(draw.randrange(3, 250) for _ in range(5 + 9 * n))] for n in range(6)]

    def answers() -> list[list[int]]:
        home = make_home(max_running=32)
        home.submit(prompts[0])
        home.run()  # the prefix cache has the system prompt now
        for number, prompt in enumerate(prompts):
            params = SamplingParams(
                seed=number, max_tokens=24, temperature=0.9 * (number % 2), ignore_eos=True
            )
            home.submit(prompt, params)
        found: list[list[int]] = home.run()
        return found

    bundles: list[int] = []

    def counted(tables: Any, known: Any, size: int) -> Any:
        found = share_prefixes(tables, known, size)
        bundles.append(max(bundle for bundle, _ in found))
        return found

    monkeypatch.setattr("triptych.engine.native_runner.share_prefixes", counted)
    together = answers()
    assert max(bundles) == 1, "they did share"
    original = NativeRunner.__init__
    monkeypatch.setattr(
        NativeRunner,
        "__init__",
        lambda self, model, storage: original(self, model, storage, share=False),
    )
    count = len(bundles)
    assert answers() == together
    assert len(bundles) == count, "and then they did not"
