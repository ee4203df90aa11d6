"""vLLM as a peer: its engine in this process, driven step by step.

Runs in `.peers/vllm` (see `make peers`): `python -m bench.peers.vllm_peer`. As vLLM's manual asks
for CPUs, Intel's OpenMP is preloaded (it comes with the package), and tcmalloc where there is one.
In one process, because its worker and scheduler processes would compete for the cores that compute.
"""

from __future__ import annotations

import ctypes.util
import os
import sys
import time
from typing import Any

from bench.peers.lines import serve

MAX_TOKENS = 4096  # of a sequence, and of a step: no prompt of the benchmark is cut into chunks


class Vllm:
    def load(
        self,
        model: str,
        threads: int,
        batch: int,
        tokens: int,
        eager: bool,
        ngram: int = 0,
    ) -> dict[str, Any]:
        """Without `eager` the model is compiled: minutes the first time, cached by vLLM after.
        `ngram`: tokens that its n-gram drafter may propose; 0: it decodes plainly.
        """
        environment = {
            "OMP_NUM_THREADS": str(threads),
            "KMP_AFFINITY": f"granularity=fine,explicit,proclist=[{_list(range(threads))}]",
            "KMP_BLOCKTIME": "5",  # ms that idle threads spin: vLLM's own choice for its workers
            "KMP_TPAUSE": "0",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        os.environ.update(environment)
        import vllm  # reads the environment

        self._vllm = vllm
        self._engine = vllm.LLM(
            model=model,
            dtype="bfloat16",
            skip_tokenizer_init=True,
            enable_prefix_caching=False,
            enforce_eager=eager,
            max_num_seqs=batch,
            max_num_batched_tokens=MAX_TOKENS,
            max_model_len=MAX_TOKENS,
            disable_log_stats=True,
            **({"speculative_config": _ngram(ngram)} if ngram else {}),
        ).llm_engine
        self._count = 0
        settings = {name: value for name, value in environment.items() if name[:2] != "HF"}
        settings["LD_PRELOAD"] = ":".join(map(os.path.basename, preloads()))
        return {
            "engine": f"vLLM {vllm.__version__}",
            "settings": {"dtype": "bfloat16", "enforce_eager": eager, **settings},
        }

    def decode(self, prompts: list[list[int]], steps: int) -> dict[str, Any]:
        """Steps until every prompt has two tokens, then times what `steps` more steps give."""
        drawn = self._add(prompts, steps + 8)
        while min(map(len, drawn.values())) < 2:
            self._step(drawn)
        before = sum(map(len, drawn.values()))
        began = time.perf_counter()
        for _ in range(steps):
            self._step(drawn)
        seconds = time.perf_counter() - began
        tokens = sum(map(len, drawn.values())) - before
        self._finish(drawn)
        return {"tokens": tokens, "seconds": seconds, "drawn": list(drawn.values())}

    def answer(self, prompts: list[list[int]], max_tokens: int, stop: list[int]) -> dict[str, Any]:
        """To their ends, greedily; timed is what comes behind the first token of each."""
        drawn = self._add(prompts, max_tokens, ignore_eos=False, stop_token_ids=stop)
        while min(map(len, drawn.values())) < 1:
            self._step(drawn)
        before = sum(map(len, drawn.values()))
        began = time.perf_counter()
        self._finish(drawn)
        seconds = time.perf_counter() - began
        tokens = sum(map(len, drawn.values())) - before
        return {"tokens": tokens, "seconds": seconds, "drawn": list(drawn.values())}

    def prefill(self, prompt: list[int]) -> dict[str, Any]:
        began = time.perf_counter()
        drawn = self._add([prompt], 1)
        self._finish(drawn)
        seconds = time.perf_counter() - began
        return {"tokens": len(prompt), "seconds": seconds, "drawn": list(drawn.values())}

    def _add(
        self, prompts: list[list[int]], max_tokens: int, ignore_eos: bool = True, **more: Any
    ) -> dict[str, list[int]]:
        """Tokens by request, still empty."""
        params = self._vllm.SamplingParams(
            temperature=0.0, max_tokens=max_tokens, ignore_eos=ignore_eos, detokenize=False, **more
        )
        drawn: dict[str, list[int]] = {}
        for prompt in prompts:
            self._count += 1
            drawn[str(self._count)] = []
            self._engine.add_request(str(self._count), {"prompt_token_ids": prompt}, params)
        return drawn

    def _step(self, drawn: dict[str, list[int]]) -> None:
        for output in self._engine.step():
            drawn[output.request_id] = list(output.outputs[0].token_ids)

    def _finish(self, drawn: dict[str, list[int]]) -> None:
        while self._engine.has_unfinished_requests():
            self._step(drawn)


def _ngram(tokens: int) -> dict[str, Any]:
    return {
        "method": "ngram",
        "num_speculative_tokens": tokens,
        "prompt_lookup_max": 5,
        "prompt_lookup_min": 2,
    }


def preloads() -> list[str]:
    found = [os.path.join(sys.prefix, "lib", "libiomp5.so")]
    if allocator := ctypes.util.find_library("tcmalloc_minimal"):
        found.append(allocator)
    return found


def _list(numbers: range) -> str:
    return ",".join(map(str, numbers))


if __name__ == "__main__":
    wanted = ":".join(preloads())
    if os.environ.get("LD_PRELOAD") != wanted:  # takes effect when a process starts
        os.environ["LD_PRELOAD"] = wanted
        os.execv(sys.executable, [sys.executable, "-m", "bench.peers.vllm_peer"])
    serve(Vllm())
