"""llama.cpp as a peer: the low-level API, because only that one decodes several sequences at once.

Runs in `.peers/llama_cpp` (see `make peers`): `python -m bench.peers.llama_cpp`.
"""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any

import llama_cpp
import numpy as np

from bench.peers.lines import serve

PROMPT_BATCH = 512  # tokens of one llama_decode while prompts are read; measured best, as n_ubatch


class LlamaCpp:
    def load(self, model: str, threads: int, batch: int, tokens: int) -> dict[str, Any]:
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            model.encode(), llama_cpp.llama_model_default_params()
        )
        assert self._model, f"llama.cpp cannot load {model}"
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = -(-tokens // 256) * 256
        params.n_seq_max = batch
        params.n_batch = params.n_ubatch = PROMPT_BATCH
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True  # one cache for all: a sequence may use all of it
        if flash := os.environ.get("LLAMA_FLASH_ATTENTION"):
            params.flash_attn_type = int(flash)
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        assert self._context, "llama.cpp cannot create a context"
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(PROMPT_BATCH, 0, 1)
        system = llama_cpp.llama_print_system_info().decode()
        return {
            "engine": f"llama.cpp (llama-cpp-python {llama_cpp.__version__})",
            "settings": {
                "threads": threads,
                "n_ubatch": PROMPT_BATCH,
                "flash_attn_type": params.flash_attn_type,
                "system": " ".join(system.split()),
            },
        }

    def decode(self, prompts: list[list[int]], steps: int) -> dict[str, Any]:
        self._forget()
        drawn = [[self._read(prompt, number)] for number, prompt in enumerate(prompts)]
        self._step(prompts, drawn)  # warm
        began = time.perf_counter()
        for _ in range(steps):
            self._step(prompts, drawn)
        seconds = time.perf_counter() - began
        return {"tokens": steps * len(prompts), "seconds": seconds, "drawn": drawn}

    def prefill(self, prompt: list[int]) -> dict[str, Any]:
        self._forget()
        began = time.perf_counter()
        token = self._read(prompt, 0)
        return {
            "tokens": len(prompt),
            "seconds": time.perf_counter() - began,
            "drawn": [[token]],
        }

    def _forget(self) -> None:
        llama_cpp.llama_memory_clear(self._memory, False)

    def _read(self, prompt: list[int], sequence: int) -> int:
        """The token behind a prompt."""
        for start in range(0, len(prompt), PROMPT_BATCH):
            piece = prompt[start : start + PROMPT_BATCH]
            rows = [(token, start + i, sequence) for i, token in enumerate(piece)]
            self._run(rows, wanted={len(prompt) - 1 - start})
        return self._best(-1)

    def _step(self, prompts: list[list[int]], drawn: list[list[int]]) -> None:
        rows = [
            (done[-1], len(prompt) + len(done) - 1, number)
            for number, (prompt, done) in enumerate(zip(prompts, drawn, strict=True))
        ]
        self._run(rows, wanted=set(range(len(rows))))
        for number, done in enumerate(drawn):
            done.append(self._best(number))

    def _run(self, rows: list[tuple[int, int, int]], wanted: set[int]) -> None:
        """rows: (token, position, sequence); `wanted` rows get logits."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence) in enumerate(rows):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = i in wanted
        status = llama_cpp.llama_decode(self._context, batch)
        assert status == 0, f"llama_decode returned {status}"

    def _best(self, row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, row)
        values = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float * self._vocab)).contents
        return int(np.frombuffer(values, np.float32).argmax())


if __name__ == "__main__":
    serve(LlamaCpp())
