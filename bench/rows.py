"""How long rows are on their way to a feed-forward worker and back, beside a bare pipe.

    python -m bench.rows [--rounds N] [--rows N] [--hidden N] [--top-k N]

One call in flight; the worker, a process of its own, answers each cell with its row, so that what
is left is the exchange. Beside it, in turns, the least that two processes can do: a pipe there and
a pipe back, with one byte and with as many bytes as the rows have. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from transport.rows.exchange import Exchange, ExchangeShape
from transport.rows.hello import Offer
from transport.rows.library import RowsLibrary, SegmentShape
from transport.rows.links import LINK_NAMES, make_links
from transport.rows.segment import Doorbell
from triptych.testing.row_workers import EXPERTS, LAYERS, ProcessWorker
from triptych_kernels.cpu.native import native

WAIT_US = 10_000_000
_TURN = 100  # round trips before the next kind has its turn

Trip = Callable[[], float]  # takes one, tells its µs


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """In µs, of all turns together."""

    p50_us: float
    p99_us: float


def measure(
    *, rounds: int = 3000, rows: int = 16, hidden: int = 576, top_k: int = 1
) -> dict[str, RoundTrip]:
    """`shm`, `tcp`, `pipe_byte` and `pipe_rows`, taken in turns. Raises RuntimeError where nothing
    native can be compiled.
    """
    with ExitStack() as owned:
        trips = {
            name: owned.enter_context(exchanging(name, rows, hidden, top_k)) for name in LINK_NAMES
        }
        trips["pipe_byte"] = owned.enter_context(ping_pong(1))
        trips["pipe_rows"] = owned.enter_context(ping_pong(rows * hidden * 2))
        times: dict[str, list[float]] = {name: [] for name in trips}
        for turn in range(-1, max(1, rounds // _TURN)):
            for name, trip in trips.items():
                took = [trip() for _ in range(_TURN)]
                if turn >= 0:  # the first one warms up
                    times[name] += took
    return {
        name: RoundTrip(*(float(np.percentile(took, q)) for q in (50, 99)))
        for name, took in times.items()
    }


def summary(measured: dict[str, RoundTrip]) -> dict[str, float]:
    """What a comparison keeps of it."""
    shm, byte, same = measured["shm"], measured["pipe_byte"], measured["pipe_rows"]
    return {
        "p50_us": shm.p50_us,
        "p99_us": shm.p99_us,
        "pingpong_p50_us": byte.p50_us,
        "pingpong_p99_us": byte.p99_us,
        "pingpong_rows_p50_us": same.p50_us,
        "ratio": shm.p50_us / byte.p50_us,
        "ratio_rows": shm.p50_us / same.p50_us,
        "tcp_p50_us": measured["tcp"].p50_us,
        "tcp_p99_us": measured["tcp"].p99_us,
    }


@contextmanager
def exchanging(link_name: str, rows: int, hidden: int, top_k: int) -> Iterator[Trip]:
    """A call of `rows` bfloat16 rows to one worker and back."""
    found = native()
    if found is None:
        raise RuntimeError("no native library can be compiled here")
    library = RowsLibrary(found.bind)
    with ExitStack() as owned:
        run_dir = Path(owned.enter_context(tempfile.TemporaryDirectory(prefix="rows-")))
        worker = owned.enter_context(
            ProcessWorker(found.dll._name, run_dir, hidden, "--mode", "echo")
        )
        bell = owned.enter_context(closing(Doorbell(library)))
        shape = ExchangeShape(LAYERS, EXPERTS, 1, hidden, top_k, 1, rows)
        exchange = owned.enter_context(closing(Exchange(library, shape, bell)))
        exchange.tables[:] = 0
        [link] = make_links([link_name], library, run_dir)
        segment = SegmentShape(hidden, slots=4, slot_rows=rows, slot_cells=rows * top_k)
        endpoint = worker.endpoints[link_name]
        session = link.connect(endpoint, Offer(segment, 1), bell, lambda _: exchange.ring())
        owned.callback(session.close)
        exchange.add_worker(0, session.segment)
        x = np.random.default_rng(0).standard_normal((rows, hidden), np.float32)
        ids = np.tile(np.arange(top_k, dtype=np.int32), (rows, 1))
        addresses = x.ctypes.data, ids.ctypes.data

        def trip() -> float:
            start = time.perf_counter_ns()
            exchange.begin(0, 0, addresses[0], rows, addresses[1], top_k)
            done = exchange.wait(WAIT_US).done  # from here on the cells can be read
            took = time.perf_counter_ns() - start
            exchange.end(0)
            if not done:
                raise RuntimeError(f"the worker did not answer over {link_name}")
            return took / 1000

        yield trip


@contextmanager
def ping_pong(size: int) -> Iterator[Trip]:
    """`size` bytes to a forked process and back, through two pipes."""
    (there_out, there_in), (back_out, back_in) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(there_in)
        os.close(back_out)
        _answer_all(there_out, back_in, size)
        os._exit(0)
    os.close(there_out)
    os.close(back_in)
    message = bytes(size)

    def trip() -> float:
        start = time.perf_counter_ns()
        os.write(there_in, message)
        _read(back_out, size)
        return (time.perf_counter_ns() - start) / 1000

    try:
        yield trip
    finally:
        os.close(there_in)
        os.close(back_out)
        os.waitpid(child, 0)


def _answer_all(source: int, target: int, size: int) -> None:
    while data := _read(source, size):
        os.write(target, data)


def _read(source: int, size: int) -> bytes:
    data = os.read(source, size)
    while 0 < len(data) < size:
        more = os.read(source, size - len(data))
        if not more:
            return b""
        data += more
    return data


def main() -> None:
    parser = argparse.ArgumentParser(description="Round trips of rows beside a bare pipe.")
    parser.add_argument("--rounds", type=int, default=3000)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--top-k", type=int, default=1)
    given = parser.parse_args()
    measured = measure(rounds=given.rounds, rows=given.rows, hidden=given.hidden, top_k=given.top_k)
    byte = measured["pipe_byte"].p50_us
    print(f"{given.rows} rows x {given.hidden} bfloat16, {given.top_k} experts each, µs")
    print(f"{'':<12}{'p50':>9}{'p99':>9}{'p50 / pipe of 1 byte':>24}")
    for name, trip in measured.items():
        print(f"{name:<12}{trip.p50_us:>9.1f}{trip.p99_us:>9.1f}{trip.p50_us / byte:>24.2f}")
    each = {name: asdict(trip) for name, trip in measured.items()}
    print(json.dumps({"round_trip": summary(measured), "measured": each}))


if __name__ == "__main__":
    main()
