"""An exchange whose workers are threads or processes, over each link."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from transport.rows.exchange import Exchange, ExchangeShape
from transport.rows.hello import Offer
from transport.rows.library import RowsLibrary, SegmentShape
from transport.rows.links import make_links
from transport.rows.segment import Doorbell
from transport.rows.session import RowsLink, RowsSession
from triptych.testing.row_workers import (
    EXPERTS,
    LAYERS,
    ProcessWorker,
    ThreadWorker,
    from_wire,
    integer_expert,
)
from triptych_kernels.cpu.native import native

HIDDEN = 24
WAIT_US = 20_000_000  # nothing here takes so long unless it is lost


@pytest.fixture(scope="session")
def library() -> RowsLibrary:
    found = native()
    if found is None:
        pytest.skip("no native library can be compiled here")
    return RowsLibrary(found.bind)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture(params=["shm", "tcp"])
def link(request: pytest.FixtureRequest, library: RowsLibrary, run_dir: Path) -> RowsLink:
    [link] = make_links([request.param], library, run_dir)
    return link


@pytest.fixture
def owned() -> Iterator[ExitStack]:
    """What a test opened; closed last opened first, after the test."""
    with ExitStack() as stack:
        yield stack


@dataclass
class Attention:
    """A with one exchange. Its rows are small whole numbers."""

    link: RowsLink
    exchange: Exchange
    bell: Doorbell
    owned: ExitStack
    shape: SegmentShape
    random: np.random.Generator
    sessions: dict[int, RowsSession] = field(default_factory=dict)
    lost: list[RowsSession] = field(default_factory=list)
    away: dict[int, np.ndarray] = field(default_factory=dict)  # rows of open calls, by lane

    def connect(self, number: int, endpoints: dict[str, str], **hello: str) -> RowsSession:
        offer = Offer(self.shape, 77, hello)
        session = self.link.connect(endpoints[self.link.name], offer, self.bell, self._note)
        self.owned.callback(session.close)
        self.owned.callback(self.exchange.drop_worker, number)
        self.exchange.add_worker(number, session.segment)
        self.sessions[number] = session
        return session

    def host(self, *workers: int) -> None:
        self.exchange.tables[:] = -1
        self.exchange.tables[:, :, : len(workers)] = workers

    def begin(self, rows: int, k: int, *, lane: int = 0, layer: int = 1) -> np.ndarray:
        """Sends random rows; what must come back."""
        x = self.random.integers(0, 20, (rows, HIDDEN)).astype(np.float32)
        ids = np.array(
            [sorted(self.random.choice(EXPERTS, k, replace=False)) for _ in range(rows)], np.int32
        ).reshape(rows, k)
        self.away[lane] = x
        self.exchange.begin(lane, layer, x.ctypes.data, rows, ids.ctypes.data, k)
        return integer_expert(layer, ids.reshape(-1).astype(np.int64), np.repeat(x, k, axis=0))

    def finish(self, expected: np.ndarray, lane: int = 0) -> None:
        """Waits for the lane; lost workers are dropped on the way."""
        while not (wake := self.exchange.wait(WAIT_US)).done >> lane & 1:
            assert any(wake), "nothing came"
            self.drop_lost()
        assert np.array_equal(from_wire(self.exchange.cells_array(lane)), expected)
        self.exchange.end(lane)

    def drop_lost(self) -> None:
        while self.lost:
            gone = self.lost.pop()
            for number, session in self.sessions.items():
                if session is gone:
                    self.exchange.drop_worker(number)

    def _note(self, session: RowsSession) -> None:
        self.lost.append(session)
        self.exchange.ring()


MakeAttention = Callable[..., Attention]


@pytest.fixture
def make_attention(library: RowsLibrary, link: RowsLink, owned: ExitStack) -> MakeAttention:
    def make(*, row_type: str = "float32", seed: int = 1) -> Attention:
        bell = owned.enter_context(closing(Doorbell(library)))
        shape = ExchangeShape(
            *(LAYERS, EXPERTS, 3, HIDDEN, 4, 3, 64), row_type=row_type, cell_type="float32"
        )
        exchange = owned.enter_context(closing(Exchange(library, shape, bell)))
        segment = SegmentShape(HIDDEN, row_type, "float32", 4, 16, 32)
        random = np.random.default_rng(seed)
        return Attention(link, exchange, bell, owned, segment, random)

    return make


@pytest.fixture
def make_thread_worker(
    library: RowsLibrary, run_dir: Path, owned: ExitStack
) -> Callable[..., ThreadWorker]:
    def make(**options: object) -> ThreadWorker:
        worker = ThreadWorker(library, run_dir, HIDDEN, **options)  # type: ignore[arg-type]
        return owned.enter_context(closing(worker))

    return make


@pytest.fixture
def make_process_worker(
    library: RowsLibrary, run_dir: Path, owned: ExitStack
) -> Callable[..., ProcessWorker]:
    def make(*options: str) -> ProcessWorker:
        found = native()
        assert found is not None
        path = found.dll._name
        return owned.enter_context(ProcessWorker(path, run_dir, HIDDEN, *options))

    return make
