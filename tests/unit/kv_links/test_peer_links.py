"""All paths to one peer: order of taste, reopening, giving up, refusing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from transport.kv.base import BlockRead, KvSource, LinkUnusable, PeerGone, Transfer
from transport.kv.links import MAX_ATTEMPTS, PeerLinks, make_links
from transport.kv.paths import link_of, takes
from transport.kv.region import Region, RegionShape


class FakeSession:
    def __init__(self, path: str) -> None:
        self.path = path
        self.alive = True
        self.closed = False

    def start(self, reads: Sequence[BlockRead]) -> Transfer:
        raise AssertionError("nobody fetches here")

    def close(self) -> None:
        self.closed = True


class FakeLink:
    """Connects as often as asked, or fails with `error`."""

    def __init__(self, name: str, path: str | None = None) -> None:
        self.name = name
        self.path = path or name
        self.error: Exception | None = None
        self.sessions: list[FakeSession] = []
        self.attempts = 0

    def serve(self, region: Region) -> KvSource:
        raise AssertionError("nobody serves here")

    def connect(self, endpoint: str, region: Region) -> FakeSession:
        assert endpoint == f"to {self.name}"
        self.attempts += 1
        if self.error is not None:
            raise self.error
        self.sessions.append(FakeSession(self.path))
        return self.sessions[-1]


@pytest.fixture
def region() -> Iterator[Region]:
    with closing(Region.create(RegionShape(block_bytes=64, num_blocks=2))) as region:
        yield region


def endpoints(*links: FakeLink) -> dict[str, str]:
    return {link.name: f"to {link.name}" for link in links}


def test_links_come_in_order_of_taste(region: Region) -> None:
    fast, slow = FakeLink("fast"), FakeLink("slow")

    assert PeerLinks([fast, slow], endpoints(slow, fast), region).usable() == ["fast", "slow"]
    assert PeerLinks([slow, fast], endpoints(slow, fast), region).usable() == ["slow", "fast"]


def test_a_link_that_the_peer_does_not_serve_is_left_out(region: Region) -> None:
    fast, slow = FakeLink("fast"), FakeLink("slow")
    peer = PeerLinks([fast, slow], endpoints(slow), region)

    assert peer.usable() == ["slow"]
    assert peer.reasons() == {"fast": "the peer does not serve it"}
    with pytest.raises(LinkUnusable, match="does not serve"):
        peer.session("fast")


def test_a_session_is_opened_once_and_kept(region: Region) -> None:
    link = FakeLink("fast")
    peer = PeerLinks([link], endpoints(link), region)
    assert link.attempts == 0

    assert peer.session("fast") is peer.session("fast")
    assert link.attempts == 1


def test_a_session_that_died_is_replaced(region: Region) -> None:
    link = FakeLink("fast")
    peer = PeerLinks([link], endpoints(link), region)
    first = peer.session("fast")

    link.sessions[0].alive = False

    assert peer.session("fast") is not first
    assert link.sessions[0].closed


def test_an_unusable_link_is_not_tried_again(region: Region) -> None:
    fast, slow = FakeLink("fast"), FakeLink("slow")
    peer = PeerLinks([fast, slow], endpoints(fast, slow), region)
    fast.error = LinkUnusable("another host")

    for _ in range(2):
        with pytest.raises(LinkUnusable, match="another host"):
            peer.session("fast")

    assert fast.attempts == 1
    assert peer.usable() == ["slow"]
    assert peer.reasons() == {"fast": "another host"}


def test_a_peer_that_went_away_is_tried_a_few_times(region: Region) -> None:
    link = FakeLink("fast")
    peer = PeerLinks([link], endpoints(link), region)
    link.error = PeerGone("nobody listens")

    for _ in range(MAX_ATTEMPTS):
        assert peer.usable() == ["fast"]
        with pytest.raises(PeerGone):
            peer.session("fast")

    assert peer.usable() == []
    with pytest.raises(LinkUnusable, match="nobody listens"):
        peer.session("fast")
    assert link.attempts == MAX_ATTEMPTS


def test_success_forgets_earlier_failures(region: Region) -> None:
    link = FakeLink("fast")
    peer = PeerLinks([link], endpoints(link), region)
    for _ in range(MAX_ATTEMPTS + 1):
        link.error = PeerGone("nobody listens")
        with pytest.raises(PeerGone):
            peer.session("fast")
        link.error = None
        peer.session("fast")
        link.sessions[-1].alive = False

    assert peer.usable() == ["fast"]


def test_a_required_link_leaves_no_other(region: Region) -> None:
    fast, slow = FakeLink("fast"), FakeLink("slow")
    peer = PeerLinks([fast, slow], endpoints(fast, slow), region, require="slow")

    assert peer.usable() == ["slow"]
    with pytest.raises(LinkUnusable, match="slow is required"):
        peer.session("fast")


def test_a_required_link_that_fails_is_an_error_with_all_reasons(region: Region) -> None:
    fast, slow = FakeLink("fast"), FakeLink("slow")
    peer = PeerLinks([fast, slow], endpoints(fast, slow), region, require="fast")
    fast.error = LinkUnusable("no such device")

    with pytest.raises(LinkUnusable, match="no such device"):
        peer.session("fast")
    with pytest.raises(LinkUnusable, match="fast: no such device") as error:
        peer.usable()
    assert "slow: fast is required" in str(error.value)


def test_a_required_path_is_compared_with_the_proven_one(region: Region) -> None:
    link = FakeLink("nixl", path="nixl:tcp")
    peer = PeerLinks([link], endpoints(link), region, require="nixl:rdma")

    with pytest.raises(LinkUnusable, match="takes nixl:tcp, nixl:rdma is required"):
        peer.session("nixl")

    assert link.sessions[0].closed


def test_closing_ends_every_session(region: Region) -> None:
    fast, slow = FakeLink("fast"), FakeLink("slow")
    peer = PeerLinks([fast, slow], endpoints(fast, slow), region)
    peer.session("fast")

    peer.close()

    assert fast.sessions[0].closed
    assert peer.usable() == []
    with pytest.raises(LinkUnusable, match="closed"):
        peer.session("slow")


def test_a_path_satisfies_its_link_and_itself() -> None:
    assert takes("shm", "shm")
    assert takes("nixl:cma", "nixl")
    assert takes("nixl:rdma", "nixl:rdma")
    assert not takes("nixl:cma", "nixl:rdma")
    assert not takes("nixl", "nixl:rdma")
    assert not takes("shmoo", "shm")
    assert [link_of(path) for path in ("shm", "nixl:rdma")] == ["shm", "nixl"]


def test_links_are_made_by_name(tmp_path: Path) -> None:
    links = make_links(["tcp", "nixl", "shm"], tmp_path)

    assert [link.name for link in links] == ["tcp", "nixl", "shm"]
    with pytest.raises(ValueError, match="'ucx'; there are shm, tcp and nixl"):
        make_links(["ucx"], tmp_path)
