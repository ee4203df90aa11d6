"""The engine without a network, in a process of its own: what serving is measured against.

    python -m bench.bare_engine CONFIG.yaml

Takes one batch a line from standard input, {"prompts": [[id, …], …], "tokens": n}, and answers with
{"seconds": …, "cpu_s": …}. The step, the scheduler and the sampler are the decode worker's own.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from decode_worker.loop import DecodeLoop
from decode_worker.speculate.make import make_speculator
from triptych.config import load_config
from triptych.engine.sampler import Sampler
from triptych.engine.sequence import Sequence
from triptych.obs.metrics import WorkerMetrics, new_registry
from triptych.request import SamplingParams
from triptych.speculation_config import SpeculationConfig
from triptych.worker.args import WorkerArgs
from triptych.worker.boot import EngineParts, build_engine


def main() -> None:
    config = load_config(Path(sys.argv[1]))
    (pool,) = (pool for pool in config.pools if pool.role == "decode")
    parts = build_engine(WorkerArgs(config, pool, "bare", 1, Path(), "", (), ""))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(run_batch(parts, config.speculation, **json.loads(line))), flush=True)


def run_batch(
    parts: EngineParts, speculation: SpeculationConfig, prompts: list[list[int]], tokens: int
) -> dict[str, Any]:
    """All prompts at once, greedy, exactly `tokens` tokens each."""
    drawn = 0

    def count(outputs: list[Any]) -> None:
        nonlocal drawn
        drawn += len(outputs)

    sampler = Sampler(())
    loop = DecodeLoop(
        parts.scheduler,
        parts.runner,
        sampler,
        make_speculator(speculation, parts, sampler),
        count,
        WorkerMetrics(new_registry()),
        eos_token_ids=(),
        max_model_len=parts.max_model_len,
    )
    params = SamplingParams(seed=1, max_tokens=tokens, temperature=0.0, ignore_eos=True)
    cpu, began = time.process_time(), time.perf_counter()
    for number, prompt in enumerate(prompts):
        root, size = parts.root(""), parts.layout.block_tokens
        loop.submit(Sequence(f"bare-{number}", list(prompt), root, size, params))
    while loop.step():
        pass
    assert drawn == tokens * len(prompts), f"{drawn} tokens drawn"
    return {"seconds": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}


if __name__ == "__main__":
    main()
