"""How long messages take, one way, if nobody computes anything."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray

from transport.rows.exchange import Exchange, ExchangeShape
from transport.rows.hello import Offer
from transport.rows.inbox import Inbox
from transport.rows.library import SegmentShape
from transport.rows.links import make_links
from transport.rows.segment import Doorbell
from triptych.experts.rows import rows_library

_ROWS = (1, 16, 64, 256)
_TURNS, _WARM = 200, 20
_WAIT_US = 5_000_000


@dataclass(frozen=True, slots=True)
class LinkTimes:
    nbytes: NDArray[np.float64]  # of a message
    seconds: NDArray[np.float64]  # one way


def time_link(name: str, hidden: int) -> LinkTimes:
    """Over this link to a thread of this process that answers at once."""
    library = rows_library()
    with ExitStack() as owned:
        run_dir = Path(owned.enter_context(tempfile.TemporaryDirectory(prefix="triptych-")))
        inbox = Inbox(library, Doorbell(library), layers=1, experts=1, hidden=hidden)
        inbox.hosted[:] = 1
        [link] = make_links([name], library, run_dir)
        server = link.serve(inbox, dict, 1)
        owned.callback(server.close)
        owned.enter_context(_answering(inbox))
        shape = SegmentShape(
            slots=8,
            slot_rows=max(_ROWS),
            slot_cells=max(_ROWS),
            hidden=hidden,
            row_type="bfloat16",
            cell_type="bfloat16",
        )
        bell = Doorbell(library)
        session = link.connect(server.endpoint, Offer(shape, 1, {}), bell, lambda _: None)
        owned.callback(session.close)
        exchange = Exchange(
            library,
            ExchangeShape(
                layers=1, experts=1, replicas=1, hidden=hidden, top_k=1, lanes=1,
                max_rows=max(_ROWS),
            ),
            bell,
        )  # fmt: skip
        owned.callback(exchange.close)
        exchange.add_worker(0, session.segment)
        exchange.tables[:] = 0
        seconds = [_one_way(exchange, rows, hidden) for rows in _ROWS]
    return LinkTimes(np.array([2.0 * rows * hidden for rows in _ROWS]), np.array(seconds))


@contextmanager
def _answering(inbox: Inbox) -> Iterator[None]:
    """A worker without units: answers come back as they lie."""
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            batch = inbox.take(_WAIT_US)
            if batch is not None:
                inbox.reply(batch)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        inbox.ring()
        thread.join()


def _one_way(exchange: Exchange, rows: int, hidden: int) -> float:
    """Half of a median round trip in which as many rows come back."""
    x, ids = torch.randn(rows, hidden), torch.zeros(rows, 1, dtype=torch.int32)
    took = []
    for _ in range(_TURNS):
        began = time.perf_counter()
        exchange.begin(0, 0, x.data_ptr(), rows, ids.data_ptr(), 1)
        while not exchange.wait(_WAIT_US).done:
            pass
        exchange.end(0)
        took.append(time.perf_counter() - began)
    return median(took[_WARM:]) / 2
