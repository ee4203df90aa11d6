"""How a step's rows are cut into micro-batches."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from triptych.models.cut import JobSize, cut_jobs

SIZES = st.builds(
    lambda rows, before, whole: JobSize(rows, before + rows, whole),
    st.one_of(st.integers(1, 20), st.integers(1, 600)),
    st.integers(0, 9000),
    st.booleans(),
)


@given(st.lists(SIZES, min_size=1, max_size=12), st.integers(1, 8))
@example([JobSize(1, 1, False)], 8)
@example([JobSize(17, 17, False)] * 3, 3)
def test_runs_hold_all_rows_in_order_and_each_of_them_some(jobs: list[JobSize], lanes: int) -> None:
    runs = cut_jobs(jobs, lanes)
    assert 1 <= len(runs) <= lanes and all(runs)
    pieces = [piece for run in runs for piece in run]
    rows = [(job, row) for job, first, end in pieces for row in range(first, end)]
    assert rows == [(job, row) for job, size in enumerate(jobs) for row in range(size.rows)]


@given(st.lists(SIZES, min_size=1, max_size=12), st.integers(1, 8))
def test_trees_stay_whole_and_chunks_are_cut_in_tiles(jobs: list[JobSize], lanes: int) -> None:
    for run in cut_jobs(jobs, lanes):
        assert len({piece.job for piece in run}) == len(run), "a job is in a run once"
        for job, first, end in run:
            size = jobs[job]
            if (first, end) != (0, size.rows):
                assert not size.whole
                assert first % 16 == 0 and (end % 16 == 0 or end == size.rows)
                assert end - first >= 16


@given(st.lists(SIZES, min_size=1, max_size=12), st.integers(1, 8))
def test_no_run_is_much_dearer_than_an_even_share(jobs: list[JobSize], lanes: int) -> None:
    def cost(job: JobSize, rows: int) -> float:
        return rows * (1 + job.end / 1024)

    even = sum(cost(job, job.rows) for job in jobs) / lanes
    # What cannot be cut: a tree, or two tiles of a chunk. Half of one may lie on the wrong side at
    # either end of a run.
    lump = max(cost(job, job.rows if job.whole else min(job.rows, 32)) for job in jobs)
    for run in cut_jobs(jobs, lanes):
        spent = sum(cost(jobs[job], end - first) for job, first, end in run)
        assert spent <= even + lump + 1e-6


def test_a_tree_that_is_a_run_of_its_own_leaves_the_others_an_even_part() -> None:
    runs = cut_jobs([JobSize(300, 300, True), JobSize(96, 96, False)], 4)
    assert [[(piece.job, piece.end - piece.first) for piece in run] for run in runs] == [
        [(0, 300)],
        [(1, 32)],
        [(1, 32)],
        [(1, 32)],
    ]


def test_decode_rows_are_dealt_evenly() -> None:
    runs = cut_jobs([JobSize(1, 500, False)] * 12, 3)
    assert [len(run) for run in runs] == [4, 4, 4]


def test_a_long_context_counts_for_many_rows() -> None:
    runs = cut_jobs([JobSize(1, 60_000, False), *[JobSize(1, 100, False)] * 40], 2)
    assert [len(run) for run in runs] == [1, 40]


def test_a_long_prompt_chunk_is_cut_in_the_middle() -> None:
    [[first], [second]] = cut_jobs([JobSize(512, 512, False)], 2)
    assert (first.first, first.end, second.first, second.end) == (0, 256, 256, 512)
