"""Workers on the nodes of a Ray cluster, of which one dies."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("ray")

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

# Ray listens on all of a machine's addresses; in a network namespace there is the loopback alone.
ALONE = ["unshare", "--net", "--map-root-user", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


def namespace() -> list[str]:
    missing = [tool for tool in ("unshare", "ip") if shutil.which(tool) is None]
    if missing or subprocess.run([*ALONE, "true"], capture_output=True).returncode != 0:
        pytest.skip(f"Ray would listen on all addresses: no network namespaces here {missing}")
    return ALONE


def test_a_stream_survives_the_death_of_a_ray_node_and_ray_sees_none_of_its_tokens() -> None:
    """Three nodes; see bench/ray_nodes.py for what is done and looked at."""
    command = [sys.executable, "-m", "bench.ray_nodes", "--model", "tiny", "--tokens", "400"]
    done = subprocess.run([*namespace(), *command], capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-2000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["lost"], "a home's node was killed under the stream"
    assert seen["same_text"]
    assert seen["driver_has_ray"] and seen["processes_with_ray"] == 0
    assert seen["left_running"] == []
