"""Other engines as child processes: started once, then asked in turns with ours."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".peers"  # filled by `make peers`


@dataclass(frozen=True, slots=True)
class Kind:
    """A peer we know: its environment under PEERS, its program, the dtype it computes in."""

    folder: str
    module: str
    dtype: str
    options: dict[str, bool] = field(default_factory=dict)
    # (phase, size) of what it is asked for; None: everything. More would only take time: llama.cpp
    # gains nothing from a batch without AMX.
    cells: tuple[tuple[str, int], ...] | None = None

    def takes(self, phase: str, size: int) -> bool:
        """Nobody else has a verification step that could be called."""
        known = phase in ("decode", "prefill")
        return known and (self.cells is None or (phase, size) in self.cells)


_ALONE = (("decode", 1), ("prefill", 512))

KINDS = {
    "vllm": Kind("vllm", "bench.peers.vllm_peer", "bfloat16", {"eager": False}),
    "vllm_eager": Kind("vllm", "bench.peers.vllm_peer", "bfloat16", {"eager": True}),
    "llama_cpp": Kind("llama_cpp", "bench.peers.llama_cpp_peer", "int4", cells=_ALONE),
    "llama_cpp_amx": Kind("llama_cpp_amx", "bench.peers.llama_cpp_peer", "int4", cells=_ALONE),
}


class PeerError(Exception):
    """A peer is not installed, or it died; the message holds the end of what it printed."""


@dataclass(frozen=True, slots=True)
class Timed:
    """What one engine did in one measurement."""

    tokens: int
    seconds: float
    drawn: list[list[int]] = field(repr=False)  # greedy tokens by sequence

    @property
    def tokens_s(self) -> float:
        return self.tokens / self.seconds


def peer_command(kind: Kind) -> list[str]:
    """Raises PeerError when `make peers` has not run."""
    python = PEERS / kind.folder / "bin" / "python"
    if not python.exists():
        raise PeerError(f"{kind.folder} is not installed: run `make peers`")
    return [str(python), "-m", kind.module]


class Peer:
    """One engine in a process of its own environment. It sleeps while it is not asked."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        model: Path,
        *,
        threads: int,
        batch: int,
        tokens: int,
        **options: bool | int,
    ) -> None:
        """Starts it and loads the model, with room for `batch` sequences of together `tokens`."""
        self.name = name
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=ROOT,
        )
        about = self._ask(
            "load", model=str(model), threads=threads, batch=batch, tokens=tokens, **options
        )
        self.engine: str = about["engine"]
        self.settings: dict[str, Any] = about["settings"]

    def decode(self, prompts: list[list[int]], steps: int) -> Timed:
        return Timed(**self._ask("decode", prompts=prompts, steps=steps))

    def answer(self, prompts: list[list[int]], max_tokens: int, stop: Sequence[int]) -> Timed:
        """To the ends of the answers, see bench/peers/lines.py."""
        asked = {"prompts": prompts, "max_tokens": max_tokens, "stop": list(stop)}
        return Timed(**self._ask("answer", **asked))

    def prefill(self, prompt: list[int]) -> Timed:
        return Timed(**self._ask("prefill", prompt=prompt))

    def close(self) -> None:
        process = self._process
        try:
            process.communicate('{"do": "quit"}\n', timeout=20)
        except (subprocess.TimeoutExpired, OSError):
            process.kill()
            process.wait()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, verb: str, **arguments: Any) -> dict[str, Any]:
        pipes = self._process.stdin, self._process.stdout
        assert pipes[0] is not None and pipes[1] is not None
        try:
            pipes[0].write(json.dumps({"do": verb, **arguments}) + "\n")
            pipes[0].flush()
            answer = pipes[1].readline()
        except OSError:  # it left while we were writing
            answer = ""
        if not answer:
            self._process.wait()
            self._log.seek(0)
            raise PeerError(
                f"{self.name} died at {verb!r}, exit code {self._process.returncode}:\n"
                f"{self._log.read()[-3000:]}"
            )
        found: dict[str, Any] = json.loads(answer)
        return found
