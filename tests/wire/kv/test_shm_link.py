"""Where the shm link works and where it says why not."""

from __future__ import annotations

import json
import mmap
import os
import socket
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from transport.kv.base import LinkUnusable, PeerGone
from transport.kv.region import Region, RegionShape
from transport.kv.shm import ShmLink
from transport.kv.unix_sockets import connect_to
from triptych.testing.kv_pools import fill_pool, whole_blocks

SHAPE = RegionShape(block_bytes=4096, num_blocks=8)
WAIT_S = 20.0

MakePool = Callable[[RegionShape], Region]


@pytest.fixture
def source(make_pool: MakePool) -> Region:
    region = make_pool(SHAPE)
    fill_pool(region, seed=1)
    return region


def test_a_source_on_another_host_is_unusable(
    source: Region, tmp_path: Path, make_pool: MakePool
) -> None:
    with closing(ShmLink(tmp_path).serve(source)) as served:
        elsewhere = json.dumps({**json.loads(served.endpoint), "boot_id": "another"})
        with pytest.raises(LinkUnusable, match="another host"):
            ShmLink(tmp_path).connect(elsewhere, make_pool(SHAPE))


def test_a_run_directory_that_we_do_not_share_is_unusable(
    source: Region, tmp_path: Path, make_pool: MakePool
) -> None:
    with closing(ShmLink(tmp_path).serve(source)) as served:
        fields = json.loads(served.endpoint)
        unseen = json.dumps({**fields, "socket": str(tmp_path / "not-here" / "kv.sock")})
        with pytest.raises(LinkUnusable, match="cannot reach"):
            ShmLink(tmp_path).connect(unseen, make_pool(SHAPE))


def test_another_pool_behind_the_same_path_is_unusable(
    source: Region, tmp_path: Path, make_pool: MakePool
) -> None:
    with closing(ShmLink(tmp_path).serve(source)) as served:
        other = json.dumps({**json.loads(served.endpoint), "pool": "another"})
        with pytest.raises(LinkUnusable, match="another pool"):
            ShmLink(tmp_path).connect(other, make_pool(SHAPE))


def test_the_socket_of_a_killed_source_means_gone_and_is_swept_away(
    source: Region, tmp_path: Path, make_pool: MakePool
) -> None:
    path = tmp_path / "kv-dead.sock"
    with closing(ShmLink(tmp_path).serve(source)) as served:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
            dead.listen()
        stale = json.dumps({**json.loads(served.endpoint), "socket": str(path)})
        with pytest.raises(PeerGone, match="nobody listens"):
            ShmLink(tmp_path).connect(stale, make_pool(SHAPE))

        with closing(ShmLink(tmp_path).serve(source)):
            assert not path.exists()
            assert len(list(tmp_path.iterdir())) == 2
    assert not list(tmp_path.iterdir())


def test_a_run_directory_that_does_not_exist_is_unusable(source: Region, tmp_path: Path) -> None:
    with pytest.raises(LinkUnusable, match="cannot listen on"):
        ShmLink(tmp_path / "missing").serve(source)


def test_a_long_run_directory_works(source: Region, tmp_path: Path, make_pool: MakePool) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    home = make_pool(SHAPE)

    with (
        closing(ShmLink(deep).serve(source)) as served,
        closing(ShmLink(deep).connect(served.endpoint, home)) as session,
    ):
        session.start(whole_blocks([1], [2], SHAPE.block_bytes)).wait(WAIT_S)

    assert np.array_equal(home.blocks[2], source.blocks[1])


def test_only_our_user_may_connect(source: Region, tmp_path: Path) -> None:
    with closing(ShmLink(tmp_path).serve(source)):
        [path] = tmp_path.iterdir()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_home_cannot_write_into_the_source(source: Region, tmp_path: Path) -> None:
    with closing(ShmLink(tmp_path).serve(source)) as served:
        with connect_to(Path(json.loads(served.endpoint)["socket"])) as home:
            _, [descriptor], _, _ = socket.recv_fds(home, 1, 1)
        try:
            with pytest.raises(PermissionError):
                mmap.mmap(descriptor, SHAPE.total_bytes, mmap.MAP_SHARED, mmap.PROT_WRITE)
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.pwrite(descriptor, b"x", 0)
        finally:
            os.close(descriptor)


def test_a_fetch_after_the_source_stopped_serving_is_refused(
    source: Region, tmp_path: Path, make_pool: MakePool
) -> None:
    served = ShmLink(tmp_path).serve(source)
    with closing(ShmLink(tmp_path).connect(served.endpoint, make_pool(SHAPE))) as session:
        assert session.alive
        served.close()
        assert not session.alive
        with pytest.raises(PeerGone):
            session.start(whole_blocks([1], [2], SHAPE.block_bytes)).wait(WAIT_S)
