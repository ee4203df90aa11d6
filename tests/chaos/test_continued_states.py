"""An answer of a model with states (linear attention) goes on when its home is killed: full blocks
are salvaged with the states in them, the rows behind them are computed again.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.chaos.test_continued_answers import (
    POOLS,
    StartCluster,
    body_of,
    busiest_home,
    calmly_told,
    continuations,
    salvaged_blocks,
    streaming,
)
from triptych.testing.checkpoints import served_checkpoint

pytestmark = pytest.mark.cluster


async def test_answers_with_states_hold_when_their_home_is_killed(
    start_cluster: StartCluster, tmp_path: Path
) -> None:
    model = f"model={served_checkpoint(tmp_path / 'served', 'qwen3_next')}"
    async with start_cluster(POOLS, model, "engine.chunk_tokens=64") as cluster:
        bodies = [body_of(kind) for kind in ("greedy", "sampled", "choices")]
        expected = [await calmly_told(cluster, body) for body in bodies]
        async with streaming(cluster, bodies) as running:
            victim = (await busiest_home(cluster))["worker_id"]
            os.kill(cluster.pid(victim), signal.SIGKILL)
        assert [task.result() for task in running] == expected
        assert (await continuations(cluster))["gone"] >= 1
        assert await salvaged_blocks(cluster, without=victim) > 0
        await cluster.until_at_rest(timeout_s=10)
