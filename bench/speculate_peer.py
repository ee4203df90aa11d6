"""What vLLM's n-gram speculation brings on the same prompts: it with and without, side by side."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.engine_peer import KINDS, Peer, peer_command
from bench.speculate_lane import Job

NAME, NODES = "vllm_ngram_5", 5
_ROOM = 4096  # tokens of a sequence


@dataclass(slots=True)
class PeerRuns:
    """Of one cell."""

    ratios: list[float] = field(default_factory=list)  # tokens per second, with over without
    changed: int = 0  # prompts whose greedy answer was another with speculation

    @property
    def speedup(self) -> float:
        return statistics.median(self.ratios)


class PeerPair:
    """Two processes, one model each, asked in turns."""

    def __init__(self, model: Path, threads: int, batch: int, eos: Sequence[int]) -> None:
        """Raises PeerError when vLLM is not installed (`make peers`) or dies."""
        self._eos = list(eos)
        self._stack = ExitStack()
        command = peer_command(KINDS["vllm"])
        self._peers = [
            self._stack.enter_context(
                Peer(
                    f"vllm, {nodes} nodes",
                    command,
                    model,
                    threads=threads,
                    batch=batch,
                    tokens=_ROOM * batch,
                    eager=False,
                    ngram=nodes,
                )
            )
            for nodes in (0, NODES)
        ]

    def run(self, jobs: Sequence[Job], runs: PeerRuns) -> None:
        prompts = [job.prompt for job in jobs]
        plain, drafted = (
            peer.answer(prompts, jobs[0].params.max_tokens, self._eos) for peer in self._peers
        )
        if plain.tokens and drafted.tokens:
            runs.ratios.append(drafted.tokens_s / plain.tokens_s)
        runs.changed += sum(a != b for a, b in zip(plain.drawn, drafted.drawn, strict=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, traceback)
