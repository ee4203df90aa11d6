"""Jobs that begin with the same blocks are read once for all, and get the bits they get alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from triptych.kv.layout import KvLayout
from triptych.testing.native_kernels import KvPool, Rows, attend, libraries, threads

LIBRARIES = libraries()
pytestmark = pytest.mark.skipif(not LIBRARIES, reason="no native kernels here")

KV_HEADS, GROUP, DIM = 2, 3, 64
SPLIT = 1024


class Family:
    """Prompts that share their first `prefix` positions and go on differently."""

    def __init__(self, dtype: str, prefix: int, tails: Sequence[int], size: int = 32) -> None:
        self.library = LIBRARIES[0]
        layout = KvLayout(1, KV_HEADS, DIM, size, dtype)
        dice = torch.Generator().manual_seed(prefix + len(tails))
        shared = prefix // size
        own = [layout.blocks_for(prefix + tail) - shared for tail in tails]
        order = torch.randperm(shared + sum(own), generator=dice).int()
        self.pool = KvPool(self.library, layout, len(order))
        begin = self._random(prefix, dice)
        self.jobs: list[Rows] = []
        at = shared
        for tail, count in zip(tails, own, strict=True):
            blocks = torch.cat([order[:shared], order[at : at + count]])
            at += count
            for keys, start in ((begin, 0), (self._random(tail, dice), prefix)):
                self.pool.put(blocks, start, *keys)
            queries = torch.randn(tail, KV_HEADS * GROUP, DIM, generator=dice)
            self.jobs.append(Rows(queries, prefix, blocks))
        self.prefix = prefix

    def attend(self, jobs: Sequence[Rows], **how: float | Tensor) -> list[Tensor]:
        return attend(self.library, self.pool.cache, jobs, scale=DIM**-0.5, **how)

    def last(self, count: int) -> list[Rows]:
        """The last rows of each."""
        return [job.part(len(job.queries) - count, len(job.queries)) for job in self.jobs]

    def together(self, jobs: Sequence[Rows], shared: int | None = None) -> list[Rows]:
        slots = self.prefix if shared is None else shared
        return [replace(job, bundle=1, shared=slots) for job in jobs]

    def _random(self, length: int, dice: torch.Generator) -> tuple[Tensor, Tensor]:
        keys, values = torch.randn(2, length, KV_HEADS, DIM, generator=dice)
        return keys, values


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("dtype", "prefix"),
    list(itertools.product(["float32", "bfloat16", "int8"], [128, 896, 1024, 1504, 2304])),
    ids=str,
)
@pytest.mark.parametrize("count", [1, 3])
def test_sharing_shows_in_no_bit(dtype: str, prefix: int, count: int) -> None:
    family = Family(dtype, prefix, [5, 40, 3, 700, 130, 9, 1100])
    jobs = family.last(count)
    alone = [family.attend([job])[0] for job in jobs]
    for number in (1, 2):
        with threads(family.library, number):
            assert same(family.attend(family.together(jobs)), alone)
    assert same(family.attend(family.together(jobs, 128)), alone)


@pytest.mark.parametrize("size", [16, 32, 128])
def test_no_size_of_blocks_shows(size: int) -> None:
    family = Family("bfloat16", 1280, [4, 33, 260], size)
    jobs = family.last(2)
    assert same(family.attend(family.together(jobs)), family.attend(jobs))


def test_a_softcap_and_sinks_are_the_same_shared() -> None:
    family = Family("float32", 1152, [4, 33, 260])
    jobs = family.last(1)
    sinks = torch.linspace(-2, 2, KV_HEADS * GROUP)
    for how in ({"softcap": 9.0}, {"sinks": sinks}):
        assert same(family.attend(family.together(jobs), **how), family.attend(jobs, **how))


def test_a_window_is_read_by_each_job_itself() -> None:
    family = Family("float32", 1152, [4, 33, 260])
    jobs = family.last(2)
    alone = family.attend(jobs, window=700)
    assert same(family.attend(family.together(jobs), window=700), alone)


def test_trees_share_what_stands_before_them() -> None:
    family = Family("float32", 1152, [9, 9, 9])
    parents = [-1, 0, 1, 0, 3, -1, 5, 2, 7]
    jobs = [replace(job, parents=parents) for job in family.jobs]
    assert same(family.attend(family.together(jobs)), family.attend(jobs))


def test_strangers_and_sparse_jobs_stand_beside_a_bundle() -> None:
    family = Family("bfloat16", 1152, [4, 33, 260, 12, 50])
    jobs = family.last(1)
    sparse = [job.skipping(64.0) for job in family.last(1)[3:]]
    dense = family.together(jobs[:3])
    alone = [family.attend([job])[0] for job in [*jobs[:3], *sparse]]
    mixed = [dense[0], family.together(sparse[:1])[0], dense[1], sparse[1], dense[2]]
    found = family.attend(mixed)
    assert same([found[0], found[2], found[4], found[1], found[3]], alone)


def test_two_bundles_in_one_call_do_not_mix() -> None:
    first = Family("float32", 1152, [4, 33])
    jobs = first.last(1)
    pairs = [replace(job, bundle=2, shared=256) for job in jobs]
    assert same(first.attend([*first.together(jobs), *pairs]), first.attend([*jobs, *jobs]))
