"""How long simulated steps take."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from transport.pace import pairs_between


@dataclass(frozen=True, slots=True)
class Machine:
    """A worker: one copy of a model on its devices. Roofline terms of a step add up, except that
    weights are read while rows are multiplied.
    """

    name: str
    overhead_s: float  # of a step: launches, collectives
    weights_s: float  # to read all weights once
    row_s: float  # to multiply one row with all of them
    pair_s: float  # of attention in a prompt, bound by compute: per row and position
    read_s: float  # of attention in decoding, bound by memory: per position of context
    kv_tokens: int  # that fit
    token_bytes: int  # of KV
    link_bytes_s: float
    chunk_tokens: int = 2048  # rows of a prefill worker's step, at most
    home_chunk_tokens: int = 512  # of a home's: longer ones would be felt by its streams

    def step_s(self, rows: int, prompt_pairs: float = 0.0, context: float = 0.0) -> float:
        compute_s = max(self.weights_s, rows * self.row_s)
        return self.overhead_s + compute_s + prompt_pairs * self.pair_s + context * self.read_s

    def prompt_s(self, prompt: int, cached: int) -> float:
        """Alone on the worker, in chunks."""
        full, rest = divmod(prompt - cached, self.chunk_tokens)
        seconds = full * self.step_s(self.chunk_tokens) + (self.step_s(rest) if rest else 0.0)
        return seconds + pairs_between(cached, prompt) * self.pair_s

    def fetch_s(self, tokens: int) -> float:
        return tokens * self.token_bytes / self.link_bytes_s


def _llama_70b_on_8_a800() -> Machine:
    """The cluster of the Mooncake paper (FAST'25): nodes of eight A800-80G with NVLink and four
    200 Gb/s NICs, dummy Llama-3-70B in bfloat16. Data sheet: 312 TFLOP/s and 2.0 TB/s a device, of
    which half and 0.7 are reached; 87 GB/s is their measured transfer rate.
    """
    return _llama_3(
        "Llama-3-70B on 8 × A800",
        _Node(devices=8, flops=312e12, bytes_s=2.0e12, overhead_s=0.005, link_bytes_s=87e9),
        parameters=70.6e9,
        layers=80,
        width=8192,
    )


def _llama_8b_on_h100() -> Machine:
    """One H100-80G: 989 TFLOP/s and 3.35 TB/s by data sheet, 0.5 and 0.7 reached; 50 GB/s NIC."""
    return _llama_3(
        "Llama-3-8B on H100",
        _Node(devices=1, flops=989e12, bytes_s=3.35e12, overhead_s=0.002, link_bytes_s=40e9),
        parameters=8.03e9,
        layers=32,
        width=4096,
    )


@dataclass(frozen=True, slots=True)
class _Node:
    """Of devices with 80 GB; rates of one device by its data sheet."""

    devices: int
    flops: float
    bytes_s: float
    overhead_s: float
    link_bytes_s: float


def _llama_3(name: str, node: _Node, *, parameters: float, layers: int, width: int) -> Machine:
    """bfloat16, with eight KV heads of 128."""
    flops, bytes_s = node.devices * node.flops * 0.5, node.devices * node.bytes_s * 0.7
    token_bytes = 2 * layers * 8 * 128 * 2
    return Machine(
        name=name,
        overhead_s=node.overhead_s,
        weights_s=2 * parameters / bytes_s,
        row_s=2 * parameters / flops,
        pair_s=4 * layers * width / flops,
        read_s=token_bytes / bytes_s,
        kv_tokens=int((node.devices * 80e9 * 0.9 - 2 * parameters) / token_bytes),
        token_bytes=token_bytes,
        link_bytes_s=node.link_bytes_s,
    )


MACHINES = {"70b-a800": _llama_70b_on_8_a800(), "8b-h100": _llama_8b_on_h100()}


def fitted_machine(path: Path, dtype: str = "bfloat16") -> Machine:
    """Constants out of what `bench.engine` saved: decode rates by batch give weights and rows,
    prompts of two lengths give rows and pairs. Its decode rows have short contexts, so reading KV
    is taken to cost as much as attending to it in a prompt.
    """
    rows = [row for row in json.loads(path.read_text())["rows"] if row.get("dtype") == dtype]
    steps = {r["batch"]: r["batch"] / r["tokens_s"] for r in rows if r["phase"] == "decode"}
    prompts = {r["tokens"]: 1 / r["tokens_s"] for r in rows if r["phase"] == "prefill"}
    if not steps or not prompts:
        raise SystemExit(f"{path}: no {dtype} rows of phases decode and prefill in it")
    short, long = min(prompts), max(prompts)
    slope = (prompts[long] - prompts[short]) / max(1, (long - short) / 2)
    pair_s = max(0.0, slope)
    row_s = max(1e-9, prompts[short] - pair_s * short / 2)
    return Machine(
        name=f"{path.name} {dtype}",
        overhead_s=0.0,
        weights_s=max(steps[min(steps)], row_s),
        row_s=row_s,
        pair_s=pair_s,
        read_s=pair_s,
        kv_tokens=1 << 18,
        token_bytes=23_040,  # SmolLM2-135M in bfloat16, which bench.engine measures
        link_bytes_s=1.5e9,  # bench.handoff, shm
        chunk_tokens=512,
    )


def steps_until(seconds: float, first_s: float, growth_s: float) -> int:
    """The fewest steps, at least one, that take so long; step i takes first_s + i · growth_s."""
    if seconds <= first_s:
        return 1
    if growth_s <= 0:
        return math.ceil(seconds / first_s)
    half = growth_s / 2
    linear = first_s - half
    steps = (-linear + math.sqrt(linear * linear + 4 * half * seconds)) / (2 * half)
    return max(1, math.ceil(steps - 1e-9))


def steps_s(count: int, first_s: float, growth_s: float) -> float:
    return count * first_s + growth_s * count * (count - 1) / 2
