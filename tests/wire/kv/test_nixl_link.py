"""The transport processes of the nixl link."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import numpy as np
import psutil
import pytest

from transport.kv import nixl
from transport.kv.base import LinkUnusable, PeerGone
from transport.kv.links import PeerLinks
from transport.kv.nixl import NixlLink
from transport.kv.nixl_agent import REMEDY, library_present
from transport.kv.region import Region, RegionShape
from triptych.testing.kv_pools import fill_pool, whole_blocks

SHAPE = RegionShape(block_bytes=4096, num_blocks=8)
WAIT_S = 20.0

MakePool = Callable[[RegionShape], Region]

needs_library = pytest.mark.skipif(not library_present(), reason=REMEDY)


@pytest.fixture
def source(make_pool: MakePool) -> Region:
    region = make_pool(SHAPE)
    fill_pool(region, seed=1)
    return region


def test_without_the_library_the_error_tells_what_to_install(
    monkeypatch: pytest.MonkeyPatch, source: Region
) -> None:
    monkeypatch.setattr(nixl, "library_present", lambda: False)

    with pytest.raises(LinkUnusable, match=r"pip install 'triptych-runtime\[nixl\]'"):
        NixlLink().serve(source)


@needs_library
def test_a_library_that_finds_no_transport_is_unusable(
    monkeypatch: pytest.MonkeyPatch, source: Region
) -> None:
    monkeypatch.setenv("UCX_TLS", "self")

    with pytest.raises(LinkUnusable, match="NIXL"):
        NixlLink().serve(source)


@needs_library
def test_a_transport_process_that_died_is_replaced(source: Region, make_pool: MakePool) -> None:
    home = make_pool(SHAPE)
    with closing(NixlLink().serve(source)) as served:
        old = served.endpoint
        assert served.endpoint == old
        [process] = psutil.Process().children()
        with closing(NixlLink().connect(old, home)) as session:
            process.kill()
            psutil.wait_procs([process], timeout=WAIT_S)
            with pytest.raises(PeerGone):
                session.start(whole_blocks([1], [2], SHAPE.block_bytes)).wait(WAIT_S)

        assert served.endpoint != old
        with closing(NixlLink().connect(served.endpoint, home)) as session:
            session.start(whole_blocks([1], [2], SHAPE.block_bytes)).wait(WAIT_S)
    assert np.array_equal(home.blocks[2], source.blocks[1])


@needs_library
def test_a_fence_fails_the_neighbours_of_a_fetch(source: Region, make_pool: MakePool) -> None:
    with (
        closing(NixlLink().serve(source)) as served,
        closing(NixlLink().connect(served.endpoint, make_pool(SHAPE))) as session,
    ):
        assert session.end()

        with pytest.raises(PeerGone):
            session.start(whole_blocks([1], [2], SHAPE.block_bytes)).wait(WAIT_S)
        assert not session.alive


@needs_library
def test_where_rdma_is_required_no_other_path_of_nixl_is_taken(
    source: Region, make_pool: MakePool
) -> None:
    with closing(NixlLink().serve(source)) as served:
        endpoints = {"nixl": served.endpoint}
        free = PeerLinks([NixlLink()], endpoints, make_pool(SHAPE))
        path = free.session("nixl").path
        free.close()
        if path == "nixl:rdma":
            pytest.skip("this machine has RDMA")

        peer = PeerLinks([NixlLink()], endpoints, make_pool(SHAPE), require="nixl:rdma")
        with pytest.raises(LinkUnusable, match=f"it takes {path}, nixl:rdma is required"):
            peer.session("nixl")
        assert peer.reasons().keys() == {"nixl"}
