"""Feed-forward workers for tests and measurements of the row exchange, without a model.

Their experts have whole numbers: what a cell must hold is exact, whoever computed it.

    python -m triptych.testing.row_workers --library SO --run-dir DIR --hidden N

serves on every link, prints its endpoints on one line of JSON and answers until its input ends.
With `--mode hold` it says `held` when it has computed a batch, and keeps the answer until a line of
input comes; with `--mode echo` every cell is its row.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from transport.rows.base import RowsRefused
from transport.rows.inbox import Batch, Inbox
from transport.rows.library import RowsLibrary, ShardStruct
from transport.rows.links import LINK_NAMES, make_links
from transport.rows.segment import Doorbell

LAYERS, EXPERTS = 4, 16
_IMPORT_ROOT = Path(__file__).resolve().parents[2]


def load_rows(path: str) -> RowsLibrary:
    """The row exchange of a compiled library, without whatever else uses that library."""
    dll = ctypes.CDLL(path)

    def bind(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
        function = dll[name]
        function.restype, function.argtypes = result, arguments
        return function

    return RowsLibrary(bind)


def integer_expert(
    layer: int, expert: NDArray[np.integer[Any]], rows: NDArray[np.float32]
) -> NDArray[np.float32]:
    """rows float32 [n, hidden] of whole numbers, expert [n]: others come out, exactly."""
    factor = (expert % 3 + 1).astype(np.float32)
    return rows * factor[:, None] + (layer * 100 + expert).astype(np.float32)[:, None]


def compute_shard(layer: int, shard: ShardStruct, hidden: int) -> None:
    """float32 or bfloat16 rows in, cells of the wanted type out."""
    rows = from_wire(_view(shard.rows, shard.row_type, shard.num_rows, hidden))
    pairs = (ctypes.c_uint16 * (2 * shard.num_cells)).from_address(shard.cells)
    cells = np.frombuffer(pairs, np.uint16).reshape(-1, 2)
    answer = integer_expert(layer, cells[:, 1].astype(np.int64), rows[cells[:, 0]])
    out = _view(shard.out, shard.out_type, shard.num_cells, hidden)
    out[:] = answer if out.dtype == np.float32 else to_wire(answer)


def compute_batch(batch: Batch, hidden: int) -> None:
    for index in range(batch.count):
        compute_shard(batch.layer, batch.shard(index), hidden)


def from_wire(rows: NDArray[Any]) -> NDArray[np.float32]:
    """float32, or bfloat16 as uint16."""
    if rows.dtype == np.float32:
        return rows
    return (rows.astype(np.uint32) << 16).view(np.float32)


def to_wire(rows: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Of numbers that bfloat16 holds exactly."""
    return (rows.view(np.uint32) >> 16).astype(np.uint16)


def _view(address: int, type_number: int, rows: int, hidden: int) -> NDArray[Any]:
    dtype = np.dtype(np.float32 if type_number == 0 else np.uint16)
    memory = (ctypes.c_uint8 * (rows * hidden * dtype.itemsize)).from_address(address)
    return np.ctypeslib.as_array(memory).view(dtype).reshape(rows, hidden)


class ThreadWorker:
    """A worker on a thread of this process, on every link."""

    def __init__(
        self,
        library: RowsLibrary,
        run_dir: Path,
        hidden: int,
        *,
        f_inc: int = 1,
        answer: Callable[[Inbox, Batch], None] | None = None,
        refuse: str = "",
    ) -> None:
        self._stack = ExitStack()
        self._answer = answer or self._compute
        self._refuse = refuse
        self._hidden = hidden
        bell = self._stack.enter_context(closing(Doorbell(library)))
        self.inbox = Inbox(library, bell, layers=LAYERS, experts=EXPERTS, hidden=hidden)
        self._stack.callback(self.inbox.close)
        self.inbox.hosted[:] = 1
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="test-worker")
        self._thread.start()
        self._stack.callback(self._stop)
        self.endpoints: dict[str, str] = {}
        for link in make_links(LINK_NAMES, library, run_dir):
            server = self._stack.enter_context(
                closing(link.serve(self.inbox, self._welcome, f_inc))
            )
            self.endpoints[link.name] = server.endpoint

    def close(self) -> None:
        self._stack.close()

    def _welcome(self, hello: Mapping[str, Any]) -> dict[str, Any]:
        if self._refuse:
            raise RowsRefused(self._refuse)
        return {"you_are": hello.get("name")}

    def _run(self) -> None:
        inbox, take, answer = self.inbox, self.inbox.take, self._answer
        while not self._stopping:
            if batch := take(1_000_000):
                answer(inbox, batch)

    def _compute(self, inbox: Inbox, batch: Batch) -> None:
        compute_batch(batch, self._hidden)
        inbox.reply(batch)

    def _stop(self) -> None:
        self._stopping = True
        self.inbox.ring()
        self._thread.join()


class ProcessWorker:
    """A worker in a process of its own, which one may stop and kill."""

    def __init__(self, library_path: str, run_dir: Path, hidden: int, *options: str) -> None:
        command = [sys.executable, "-m", "triptych.testing.row_workers"]
        command += ["--library", library_path, "--run-dir", str(run_dir), "--hidden", str(hidden)]
        self._process = subprocess.Popen(
            [*command, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=_IMPORT_ROOT,
            env={**os.environ, "PYTHONPATH": str(_IMPORT_ROOT)},
            text=True,
        )
        self.endpoints: dict[str, str] = json.loads(self.line())

    def line(self) -> str:
        """The next line that the worker prints."""
        assert self._process.stdout is not None
        text = self._process.stdout.readline()
        assert text, "the worker ended"
        return text.strip()

    def answer(self) -> None:
        """Lets go of what is held."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.resume()
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(library: RowsLibrary, run_dir: Path, hidden: int, *, mode: str) -> None:
    """Until the input ends. `mode`: compute, hold, or echo (rows come back as they are)."""
    held = threading.Event()

    def answer(inbox: Inbox, batch: Batch) -> None:
        if mode == "echo":
            library.echo(ctypes.c_void_p(batch.shards), batch.count, hidden)
            inbox.reply(batch)
            return
        compute_batch(batch, hidden)
        if mode == "hold":
            print("held", flush=True)
            held.wait()
        inbox.reply(batch)

    worker = ThreadWorker(library, run_dir, hidden, answer=answer)
    try:
        print(json.dumps(worker.endpoints), flush=True)
        sys.stdin.readline()  # a line of input lets what is held go
        held.set()
        sys.stdin.read()
    finally:
        held.set()
        worker.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A feed-forward worker for tests.")
    parser.add_argument("--library", required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--hidden", type=int, required=True)
    parser.add_argument("--mode", choices=("compute", "hold", "echo"), default="compute")
    given = parser.parse_args()
    serve(load_rows(given.library), given.run_dir, given.hidden, mode=given.mode)
