"""Where a worker is told to be, and where it says it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from triptych.errors import ConfigError
from triptych.worker.args import WorkerArgs, parse_worker_args

CONFIG = """
speculation: {drafters: [{kind: remote, pool: draft}]}
pools: [{name: decode, role: decode}, {name: draft, role: draft}]
"""


@pytest.fixture
def args(tmp_path: Path):
    (tmp_path / "config.yaml").write_text(CONFIG)

    def parse(*options: str) -> WorkerArgs:
        where = ("--config", str(tmp_path / "config.yaml"), "--run-dir", str(tmp_path))
        return parse_worker_args("decode", [*where, "--pool", "decode", "--id", "d", *options])

    return parse


def test_a_worker_without_an_address_meets_its_cluster_in_the_run_directory(args, tmp_path):
    alone = args()
    assert alone.listen == f"unix:{tmp_path}/d.sock"
    assert (alone.kv_host, alone.metrics_host, alone.metrics_port) == ("127.0.0.1",) * 2 + (0,)


@pytest.mark.parametrize(
    ("host", "listen"), [("10.0.0.7", "10.0.0.7:7000"), ("fd00::7", "[fd00::7]:7000")]
)
def test_one_address_is_that_of_calls_kv_and_metrics(args, host: str, listen: str):
    pod = args("--host", host, "--port", "7000", "--metrics-port", "9090")
    assert pod.listen == listen
    assert (pod.kv_host, pod.metrics_host, pod.metrics_port) == (host, host, 9090)


def test_kv_may_take_a_network_interface_of_its_own(args):
    assert args("--host", "10.0.0.7", "--kv-host", "lo").kv_host == "127.0.0.1"


def test_draft_workers_elsewhere_are_named_by_pool(args):
    pod = args("--peer", "draft=a:7000", "--peer", "draft=b:7000")
    assert pod.peers == {"draft": ["a:7000", "b:7000"]}


@pytest.mark.parametrize("peer", ["draft", "drafts=a:7000"])
def test_a_peer_of_no_pool_is_refused(args, peer: str):
    with pytest.raises(ConfigError, match="draft"):
        args("--peer", peer)
