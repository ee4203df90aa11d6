"""Recorded requests, and how much of their prompts any cache could have held."""

from __future__ import annotations

import csv
import heapq
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

BLOCK_TOKENS = 512  # of Mooncake's hash ids


@dataclass(frozen=True, slots=True)
class Recorded:
    """One request. `blocks`: ids of the prompt's blocks; equal ids are equal prefixes."""

    at: float  # seconds since the first one
    prompt: int  # tokens
    output: int  # tokens
    blocks: tuple[int, ...]


def load_trace(path: Path) -> list[Recorded]:
    """Mooncake's .jsonl (timestamp in ms, input_length, output_length, hash_ids of 512 tokens) or
    Azure's .csv (TIMESTAMP, ContextTokens, GeneratedTokens). Prompts without hashes share nothing.
    """
    requests = _azure(path) if path.suffix == ".csv" else _mooncake(path)
    if not requests:
        raise SystemExit(f"{path}: no requests in it")
    return sorted(requests, key=lambda request: request.at)


def _mooncake(path: Path) -> list[Recorded]:
    found = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            row = json.loads(line)
            prompt = max(1, int(row["input_length"]))
            blocks = tuple(row["hash_ids"])[: -(-prompt // BLOCK_TOKENS)]
            output = max(1, int(row["output_length"]))
            found.append(Recorded(row["timestamp"] / 1000, prompt, output, blocks))
        except (KeyError, ValueError, TypeError) as error:
            raise SystemExit(f"{path}:{number}: not a Mooncake request: {error}") from None
    return found


def _azure(path: Path) -> list[Recorded]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        times = [datetime.fromisoformat(row["TIMESTAMP"][:26]) for row in rows]
        lengths = [
            (max(1, int(row["ContextTokens"])), max(1, int(row["GeneratedTokens"]))) for row in rows
        ]
    except (KeyError, ValueError) as error:
        raise SystemExit(f"{path}: not an Azure trace: {error}") from None
    found, fresh = [], 0
    for time, (prompt, output) in zip(times, lengths, strict=True):
        count = -(-prompt // BLOCK_TOKENS)
        blocks = tuple(range(fresh, fresh + count))
        fresh += count
        found.append(Recorded((time - times[0]).total_seconds(), prompt, output, blocks))
    return found


def hit_tokens(request: Recorded, blocks: int) -> int:
    """Of the prompt, in its first `blocks` blocks; the last token is always computed."""
    return min(blocks * BLOCK_TOKENS, request.prompt - 1)


Eviction = Literal["lru", "clairvoyant"]


def pooled_hit_ratio(
    trace: Sequence[Recorded], capacity: int | None, eviction: Eviction = "lru"
) -> float:
    """Share of prompt tokens found by one cache of `capacity` blocks that sees every request.

    None: infinite. No prefix is held twice and none is in the wrong place: `lru` with the
    replacement that workers have, `clairvoyant` with Belady's (what is needed again last goes
    first), which no placement and no replacement can beat. What placement can reach is
    `bench.replay_ideal`'s. Requests are instantaneous: two that overlap share already.
    """
    uses = next_uses(trace) if eviction == "clairvoyant" else None
    held: OrderedDict[int, int] = OrderedDict()  # block → position of its next use
    queue: list[tuple[int, int, int]] = []  # (−next use, −place, block), some of them stale
    hits = total = 0
    for number, request in enumerate(trace):
        found = 0
        while found < len(request.blocks) and request.blocks[found] in held:
            found += 1
        hits += hit_tokens(request, found)
        total += request.prompt
        for place in reversed(range(len(request.blocks))):  # the tail is the oldest of a prompt
            block = request.blocks[place]
            held[block] = 0 if uses is None else uses[number][place]
            held.move_to_end(block)
            if uses is not None:
                heapq.heappush(queue, (-held[block], -place, block))
        while capacity is not None and len(held) > capacity:
            if uses is None:
                held.popitem(last=False)
            else:
                use, _, block = heapq.heappop(queue)
                if held.get(block) == -use:
                    del held[block]
    return hits / max(1, total)


def next_uses(trace: Sequence[Recorded]) -> list[list[int]]:
    """For every block of every request, which request uses it next; `len(trace)`: none."""
    following: dict[int, int] = {}
    uses: list[list[int]] = []
    for number in reversed(range(len(trace))):
        uses.append([following.get(block, len(trace)) for block in trace[number].blocks])
        following.update(dict.fromkeys(trace[number].blocks, number))
    return uses[::-1]
