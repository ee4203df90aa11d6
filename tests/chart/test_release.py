"""The rendered chart, executed: each pod in namespaces of its own, by triptych.testing.kubelet."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from bench.chart import Life, live, this_image
from tests.chart.conftest import Rendered
from tests.chart.helm import NAMESPACE
from triptych.testing.hosts import why_not
from triptych.testing.kubelet.cluster import LocalCluster

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(why_not() is not None, reason=f"no namespaces: {why_not()}"),
]

TINY = (
    'model.volume={"persistentVolumeClaim": {"claimName": "weights"}}',
    "config.model=/models",
    "config.served_model_name=tiny",
    "config.kv.memory=16MiB",
    "config.drain_s=20",
    "config.router.replicas=2",
)
QUESTION = {"role": "user", "content": "What is a triptych? " * 8}
BODY: dict[str, Any] = {
    "model": "tiny",
    "messages": [QUESTION],
    "seed": 7,
    "ignore_eos": True,
    "max_tokens": 2000,  # so many that a report tells of it before it is done
}


@pytest.fixture
def weights(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model as a volume that any user may read."""
    copy = shutil.copytree(tiny_model, tmp_path / "weights")
    for path in (copy, *copy.iterdir()):
        path.chmod(stat.S_IMODE(path.stat().st_mode) | (0o755 if path.is_dir() else 0o644))
    return copy


@pytest.fixture
async def life(rendered: Rendered, weights: Path, tmp_path: Path) -> Life:
    first = rendered(None, *TINY).manifests
    second = rendered(None, *TINY, "config.engine.max_running=32").manifests
    state = tmp_path / "state"
    state.mkdir()
    async with LocalCluster.create(
        this_image(), state, namespace=NAMESPACE, claims={"weights": weights}
    ) as cluster:
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
