"""Clusters of real processes that serve a tiny model; and how Triton kernels run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from triptych.config import load_config
from triptych.testing.checkpoints import tiny_llama
from triptych.testing.cluster import Cluster, running_cluster

# Here, because it must be said before anything imports triton: its kernels are interpreted on the
# CPU, unless tests/gpu runs them on a GPU.
if os.environ.get("TRIPTYCH_TRITON_DEVICE", "cpu") == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

StartCluster = Callable[..., contextlib.AbstractAsyncContextManager[Cluster]]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny-model")
    tiny_llama(path)
    return path


@pytest.fixture(scope="session")
def start_cluster(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> StartCluster:
    """`async with start_cluster("a.b=1", …) as cluster`: one prefill and one decode worker."""

    @contextlib.asynccontextmanager
    async def start(*overrides: str) -> AsyncIterator[Cluster]:
        config = load_config(
            None,
            [
                f"model={tiny_model}",
                "served_model_name=tiny",
                "router.port=0",
                "router.placement=least-loaded",  # a prompt is handed over whenever it can be
                "kv.memory=16MiB",
                "drain_s=10",
                *overrides,
            ],
        )
        async with running_cluster(config, tmp_path_factory.mktemp("run")) as cluster:
            yield cluster

    return start


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(start_cluster: StartCluster) -> AsyncIterator[Cluster]:
    """One prefill and one decode worker, shm with tcp behind it."""
    async with start_cluster("engine.chunk_tokens=64") as running:
        yield running
