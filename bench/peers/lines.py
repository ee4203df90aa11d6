"""The peers' side of the protocol: one JSON object per line, in on stdin, out on stdout.

Standard library only: it runs in the peers' own environments. Requests and answers:

    {"do": "load", "model": PATH, "threads": 2, "batch": 32, "tokens": 2560, …}
        → {"engine": "name version", "settings": {…}}; room for `batch` sequences of together
          `tokens` tokens; further keys are the peer's own options
    {"do": "decode", "prompts": [[id, …], …], "steps": 32}
        → {"tokens": 1024, "seconds": 2.2, "drawn": [[id, …], …]}; the time is of decode steps only
    {"do": "prefill", "prompt": [id, …]}
        → {"tokens": 512, "seconds": 0.3, "drawn": [[id]]}; from nothing to the first token
    {"do": "answer", "prompts": [[id, …], …], "max_tokens": 96, "stop": [id]}
        → as decode, to the answers' ends; only vLLM's, the one that speculates
    {"do": "quit"}

An exception ends the process; its traceback is on stderr.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, Protocol


class Peer(Protocol):
    """A foreign engine. Tokens are drawn greedily, end-of-sequence stops nothing."""

    # def load(self, model: str, threads: int, batch: int, tokens: int, **options): …
    load: Callable[..., dict[str, Any]]

    def decode(self, prompts: list[list[int]], steps: int) -> dict[str, Any]: ...

    def prefill(self, prompt: list[int]) -> dict[str, Any]: ...


def serve(peer: Peer) -> None:
    """Until `quit` or the end of stdin. Whatever the engine prints goes to stderr instead."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        verb = request.pop("do")
        if verb == "quit":
            return
        answers.write(json.dumps(getattr(peer, verb)(**request)) + "\n")
        answers.flush()
