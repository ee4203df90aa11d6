"""A whole cluster with `device: cuda`: its kernels interpreted, or run by tests/gpu on a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.test_request import complete
from triptych.testing.checkpoints import tiny_llama
from triptych.testing.cluster import Cluster

pytest.importorskip("triton")

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="module")]

StartCluster = Callable[..., contextlib.AbstractAsyncContextManager[Cluster]]
PROMPT = [(7 * place) % 90 + 5 for place in range(20)]  # a block and a part of one


async def test_a_prompt_is_computed_and_handed_over_on_devices_as_on_cpus(
    start_cluster: StartCluster, tmp_path: Path
) -> None:
    model = tiny_llama(tmp_path, num_layers=1)
    said = {}
    for device in ("cuda", "cpu"):
        async with start_cluster(
            f"model={model}",
            f"device={device}",
            "dtype=float32",
            "kv.block_tokens=16",
            "kv.memory=1MiB",
            "transport.min_remote_tokens=16",
            "router.step_limit_s=120",
        ) as cluster:
            answer = await complete(
                cluster, prompt=PROMPT, max_tokens=3, ignore_eos=True, return_token_ids=True
            )
            moved = await cluster.metrics("decode-0")
            sparse = await complete(
                cluster,
                prompt=PROMPT,
                max_tokens=3,
                ignore_eos=True,
                return_token_ids=True,
                sparse_attention={"scale": 0},
            )
        said[device] = answer["choices"][0]["token_ids"]
        assert sparse["choices"][0]["token_ids"] == said[device], "a scale of 0 leaves out nothing"
        assert sparse["usage"]["sparse_attention"]["tiles"] > 0
        fetched = [value for (name, _), value in moved.items() if "kv_transfer_bytes" in name]
        assert sum(fetched) > 0, f"{device}: the prompt's KV came over a link"
    assert said["cuda"] == said["cpu"]
