"""The rendered chart, executed: each pod in namespaces of its own, by triptych.testing.kubelet."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.chart import Life, live
from tests.chart.conftest import Rendered
from tests.chart.installed import BODY, NEEDS_NAMESPACES, TINY, VOLUME, installed, open_to_all

pytestmark = NEEDS_NAMESPACES
SETTINGS = (*TINY, VOLUME, "config.drain_s=20", "config.router.replicas=2")


@pytest.fixture
async def life(rendered: Rendered, tiny_model: Path, tmp_path: Path) -> Life:
    first = rendered(None, *SETTINGS).manifests
    second = rendered(None, *SETTINGS, "config.engine.max_running=32").manifests
    weights = open_to_all(tiny_model, tmp_path / "weights")
    async with installed([], tmp_path / "state", {"weights": weights}) as cluster:
        return await live(cluster, first, second, BODY)


async def test_a_release_answers_survives_a_dead_pod_and_an_upgrade_and_leaves_nothing(
    life: Life,
) -> None:
    assert len(life.answer) > 400, life.answer
    assert life.doctor.rstrip().endswith("healthy")
    assert life.after_kill == life.answer
    assert life.continued == 1
    assert life.during_upgrade > 0
    assert life.wrong == []
    assert life.ended_badly == []
    assert life.left_over == []
