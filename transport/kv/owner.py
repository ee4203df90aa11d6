"""A pool's owner in a process of its own, for the probe and for the tests: a peer one may kill.

    python -m transport.kv.owner --link shm --run-dir DIR --block-bytes N --num-blocks N --seed N

Fills the pool with `owner_bytes`, prints its endpoint on one line and serves until its input ends.
A line of input names a block to hand out again, or nothing; the answer is the present endpoint.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

import numpy as np
import psutil
from numpy.typing import NDArray

from transport.kv.base import LinkUnusable, PeerGone
from transport.kv.links import make_links
from transport.kv.region import Region, RegionShape

GENERATION = 1  # of every block at first
_IMPORT_ROOT = Path(__file__).resolve().parents[2]  # where `transport` lies
_END_S = 10.0


def owner_bytes(shape: RegionShape, seed: int, block: int) -> NDArray[np.uint8]:
    """What the owner's `block` holds at first."""
    random = np.random.default_rng((seed, block))
    return np.frombuffer(random.bytes(shape.block_bytes), dtype=np.uint8)


class PoolOwner:
    """Our handle on an owner. It and its helpers are one process group, led by it."""

    def __init__(self, link: str, shape: RegionShape, run_dir: Path, *, seed: int = 0) -> None:
        """Raises LinkUnusable when the link cannot serve there."""
        self.shape = shape
        self.seed = seed
        command = [sys.executable, "-m", "transport.kv.owner", "--link", link]
        command += ["--run-dir", str(run_dir.absolute()), "--seed", str(seed)]
        command += ["--block-bytes", str(shape.block_bytes), "--num-blocks", str(shape.num_blocks)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=_IMPORT_ROOT,
            text=True,
            start_new_session=True,
        )
        self.pid = self._process.pid
        try:
            self.endpoint = self._answer()
        except BaseException:
            self.close()
            raise

    def block(self, index: int) -> NDArray[np.uint8]:
        return owner_bytes(self.shape, self.seed, index)

    def hand_out(self, block: int) -> None:
        """Gives a block to another owner: its generation rises, then its bytes change."""
        self._ask(str(block))

    def refresh(self) -> None:
        """Looks whether `endpoint` changed, as a home does after PeerGone."""
        self._ask("")

    def signal(self, number: signal.Signals) -> None:
        """To the owner and its helpers."""
        os.killpg(self.pid, number)

    def kill(self) -> None:
        """The owner and its helpers, all at once, as a machine that loses power."""
        helpers = psutil.Process(self.pid).children(recursive=True)
        self.signal(signal.SIGKILL)
        self._process.wait()
        psutil.wait_procs(helpers, timeout=_END_S)

    def close(self) -> None:
        """Ends it the gentle way, or else."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        self.endpoint = self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PeerGone("the pool's owner ended")
        if line.startswith("unusable: "):
            raise LinkUnusable(line.removeprefix("unusable: ").strip())
        return line.strip()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--link", required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    for name in ("block-bytes", "num-blocks", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    arguments = parser.parse_args()
    shape = RegionShape(arguments.block_bytes, arguments.num_blocks)
    region = Region.create(shape)
    for block in range(shape.num_blocks):
        region.blocks[block] = owner_bytes(shape, arguments.seed, block)
    region.generations[:] = GENERATION
    [link] = make_links([arguments.link], arguments.run_dir)
    try:
        source = link.serve(region)
    except LinkUnusable as error:
        print(f"unusable: {error}", flush=True)
        return
    print(source.endpoint, flush=True)
    for line in sys.stdin:
        if line.strip():
            region.generations[int(line)] += 1
            region.blocks[int(line)] ^= 0xFF
        print(source.endpoint, flush=True)
    source.close()


if __name__ == "__main__":
    main()
