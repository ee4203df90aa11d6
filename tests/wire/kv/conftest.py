"""The same suite on every link: `link`, pools, and sources in this or in another process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from transport.kv.base import KvLink, KvSession
from transport.kv.links import make_links
from transport.kv.nixl_agent import REMEDY, library_present
from transport.kv.owner import PoolOwner
from transport.kv.region import Region, RegionShape
from triptych.testing.kv_pools import CANARY

MakePool = Callable[[RegionShape], Region]
MakeOwner = Callable[..., PoolOwner]
Connect = Callable[[str, Region], KvSession]


@pytest.fixture(scope="module", params=["shm", "tcp", "nixl", "nixl-over-tcp"])
def link_kind(request: pytest.FixtureRequest) -> Iterator[str]:
    kind: str = request.param
    if kind.startswith("nixl") and not library_present():
        pytest.skip(REMEDY)
    with pytest.MonkeyPatch.context() as monkeypatch:
        if kind == "nixl-over-tcp":
            monkeypatch.setenv("UCX_TLS", "tcp,self")  # read by the transport processes
        yield kind


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def link(link_kind: str, run_dir: Path) -> KvLink:
    [link] = make_links([link_kind.partition("-")[0]], run_dir)
    return link


@pytest.fixture
def owned() -> Iterator[ExitStack]:
    """What a test opened; closed last opened first, after the test."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def make_pool(owned: ExitStack) -> MakePool:
    """A home's pool, every byte a canary."""

    def make(shape: RegionShape) -> Region:
        region = owned.enter_context(closing(Region.create(shape)))
        region.blocks[:] = CANARY
        return region

    return make


@pytest.fixture
def make_owner(link: KvLink, run_dir: Path, owned: ExitStack) -> MakeOwner:
    """A source in a process of its own."""

    def make(shape: RegionShape, seed: int = 0) -> PoolOwner:
        return owned.enter_context(PoolOwner(link.name, shape, run_dir, seed=seed))

    return make


@pytest.fixture
def connect(link: KvLink, owned: ExitStack) -> Connect:
    def open_session(endpoint: str, region: Region) -> KvSession:
        return owned.enter_context(closing(link.connect(endpoint, region)))

    return open_session
