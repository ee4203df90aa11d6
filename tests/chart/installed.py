"""Releases of tiny models, executed by triptych.testing.kubelet."""

from __future__ import annotations

import contextlib
import shutil
import stat
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.chart import this_image
from tests.chart.helm import NAMESPACE, Manifest
from triptych.testing.hosts import why_not
from triptych.testing.kubelet.cluster import LocalCluster

NEEDS_NAMESPACES = [
    pytest.mark.cluster,
    pytest.mark.skipif(why_not() is not None, reason=f"no namespaces: {why_not()}"),
]
TINY = ("config.model=/models", "config.served_model_name=tiny", "config.kv.memory=16MiB")
VOLUME = 'model.volume={"persistentVolumeClaim": {"claimName": "weights"}}'
BODY: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "What is a triptych? " * 8}],
    "seed": 7,
    "ignore_eos": True,
    "max_tokens": 800,
}
READY_S = 300.0  # so long may a release take on a busy machine


def open_to_all(model: Path, copy: Path) -> Path:
    """A model as a volume that any user may read."""
    shutil.copytree(model, copy)
    for path in (copy, *copy.iterdir()):
        path.chmod(stat.S_IMODE(path.stat().st_mode) | (0o755 if path.is_dir() else 0o644))
    return copy


def installed(
    manifests: Sequence[Manifest], state: Path, claims: Mapping[str, Path]
) -> contextlib.AbstractAsyncContextManager[LocalCluster]:
    """The release once all its pods are ready. `state`: a new folder; `claims`: as volumes."""
    state.mkdir()
    cluster = LocalCluster.create(this_image(), state, namespace=NAMESPACE, claims=claims)
    return _installed(manifests, cluster)


@contextlib.asynccontextmanager
async def _installed(
    manifests: Sequence[Manifest],
    empty: contextlib.AbstractAsyncContextManager[LocalCluster],
) -> AsyncIterator[LocalCluster]:
    async with empty as cluster:
        await cluster.apply(manifests)
        await cluster.until_settled(READY_S)
        yield cluster
