"""vLLM as a peer, its engine in this process and driven step by step.

Runs in `.peers/vllm` (see `make peers`): `python -m bench.peers.vllm`.
"""

from __future__ import annotations

import os
import time
from typing import Any

from bench.peers.lines import serve


class Vllm:
    def load(self, model: str, threads: int, batch: int, tokens: int) -> dict[str, Any]:
        environment = {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # no second process, no messages between them
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
            "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        for name, value in environment.items():
            os.environ.setdefault(name, value)
        import vllm

        eager = os.environ.get("VLLM_PEER_EAGER", "0") == "1"
        self._vllm = vllm
        self._engine = vllm.LLM(
            model=model,
            dtype="bfloat16",
            skip_tokenizer_init=True,
            enable_prefix_caching=False,
            enforce_eager=eager,
            max_num_seqs=batch,
            max_num_batched_tokens=4096,
            max_model_len=4096,
            disable_log_stats=True,
        ).llm_engine
        self._count = 0
        return {
            "engine": f"vLLM {vllm.__version__}",
            "settings": {
                "dtype": "bfloat16",
                "enforce_eager": eager,
                "max_num_batched_tokens": 4096,
                **{name: os.environ[name] for name in environment if name.startswith("VLLM_")},
            },
        }

    def decode(self, prompts: list[list[int]], steps: int) -> dict[str, Any]:
        """Steps until everybody has two tokens, then counts what `steps` more steps give."""
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

    def prefill(self, prompt: list[int]) -> dict[str, Any]:
        began = time.perf_counter()
        drawn = self._add([prompt], 1)
        self._finish(drawn)
        seconds = time.perf_counter() - began
        return {"tokens": len(prompt), "seconds": seconds, "drawn": list(drawn.values())}

    def _add(self, prompts: list[list[int]], max_tokens: int) -> dict[str, list[int]]:
        params = self._vllm.SamplingParams(
            temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False
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


if __name__ == "__main__":
    serve(Vllm())
