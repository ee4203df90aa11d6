"""Mixed requests: greedy and seeded, short and long, with choices, stop strings and filters."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DTYPES = ("float32", "bfloat16", "int8", "int4")  # of weights, for --dtype

_TOPICS = (
    "the migration of arctic terns", "a bakery in Lisbon", "how tides work", "a chess endgame",
    "the invention of paper", "repairing a bicycle", "volcanoes on Io", "learning the cello",
    "a rainy day in Kyoto", "the price of coffee", "compilers", "a lost key", "whale songs",
)  # fmt: skip
_STYLES = (
    "Write two sentences about {}.", "Explain {} to a child.", "List three facts about {}.",
    "What would a poet say about {}?", "Give step by step advice concerning {}.",
)  # fmt: skip
_WORDS = (  # noqa: SIM905
    "river stone garden winter letter machine silver bridge window market engine forest paper "
    "signal harbour candle copper thunder meadow lantern archive velvet compass orchard granite"
).split()


@dataclass(frozen=True, slots=True)
class Ask:
    """One HTTP request of the workload."""

    path: str
    body: dict[str, Any]


def mixed_requests(
    count: int, *, model: str, seed: int, max_tokens: int, long_tokens: int, prompts: Path | None
) -> list[Ask]:
    """A function of its arguments: the same asks for every mode."""
    draw = random.Random(seed)
    texts = read_prompts(prompts) if prompts else None
    asks = []
    for index in range(count):
        text = texts[index % len(texts)] if texts else _short_text(draw)
        if index % 10 == 9:
            text = f"{_filler(draw, long_tokens)}\n\n{text}"
        body = {
            "model": model,
            "max_tokens": max_tokens,
            "return_token_ids": True,
            **_sampling(draw, index),
        }
        if index % 2:
            asks.append(Ask("/v1/completions", {**body, "prompt": text}))
        else:
            message = {"role": "user", "content": text}
            asks.append(Ask("/v1/chat/completions", {**body, "messages": [message]}))
    return asks


def read_prompts(path: Path) -> list[str]:
    """JSON lines with `turns` (Spec-Bench), `question` (GSM8K) or `prompt`."""
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return [
        row["turns"][0] if "turns" in row else row.get("question") or row["prompt"] for row in rows
    ]


def _sampling(draw: random.Random, index: int) -> dict[str, Any]:
    found: dict[str, Any] = {"temperature": 0.0}
    if index % 3:
        found = {"temperature": draw.choice([0.5, 0.8, 1.0]), "seed": draw.randrange(2**31)}
        found |= draw.choice(
            [{}, {"top_p": 0.9}, {"top_k": 40}, {"min_p": 0.05}, {"top_p": 0.95, "top_k": 100}]
        )
    if index % 8 == 3:
        found["n"] = 2
    if index % 7 == 5:
        found["stop"] = ["\n\n", ". The"]
    if index % 11 == 7:
        found |= {"frequency_penalty": 0.4, "presence_penalty": 0.2, "repetition_penalty": 1.1}
    return found


def _short_text(draw: random.Random) -> str:
    return draw.choice(_STYLES).format(draw.choice(_TOPICS))


def _filler(draw: random.Random, tokens: int) -> str:
    """About `tokens` tokens of words: one each, and a full stop now and then."""
    words: Sequence[str] = draw.choices(_WORDS, k=int(tokens * 0.85))
    return " ".join(word + ("." if draw.random() < 0.1 else "") for word in words)
