"""What do our kernels and number formats cost in quality?

    python -m bench.quality [--prompts FILE.jsonl] [--text FILE]

* Agreement: greedy answers of our engine in float32 and of transformers, from the same GGUF file,
  to the same prompts, compared token by token. Wanted: no mismatch.
* Perplexity of a fixed text under float32, bfloat16, int8 and int4, in per cent of bfloat16's.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.engine_checkpoint import bfloat16_folder
from bench.engine_ours import OurEngine
from bench.report import finish, print_table
from bench.workload import read_prompts
from triptych.calibrate.text import fixed_text
from triptych.hub import pull_model
from triptych.launch.machine import usable_cores
from triptych.testing.transformers_model import transformers_smollm2
from triptych.tokenizer import Tokenizer
from triptych_kernels.cpu.native import set_threads

RESULTS = Path(__file__).parent / "results"
# (from which checkpoint, weights, group). What a GGUF file holds on a grid of ours stays on it, so
# int8 and int4 are also told for the same weights spelled out in bfloat16 and quantised anew.
FORMATS = (
    ("file", "float32", 32), ("file", "bfloat16", 32), ("file", "int8", 32), ("file", "int4", 32),
    ("anew", "int8", 32), ("anew", "int8", 64), ("anew", "int8", 128),
    ("anew", "int4", 32), ("anew", "int4", 64), ("anew", "int4", 128),
)  # fmt: skip
PROMPTS = (
    "A train leaves at 9:40 and arrives at 13:15. How long does the journey take?",
    "Tom has 3 boxes with 12 pencils each and gives away 7 pencils. How many are left?",
    "A shirt costs 40 dollars and is reduced by 15 percent. What does it cost now?",
    "Why is the sky blue?",
    "Name three uses of copper.",
    "Write a short poem about a lighthouse.",
    "What is the difference between a frog and a toad?",
    "Explain what a prime number is.",
)


def agreement(model: Path, prompts: Sequence[str], tokens: int) -> dict[str, Any]:
    """How many greedy answers of `tokens` tokens differ, and where each first does."""
    tokenizer = Tokenizer.load(model)
    ids = [tokenizer.encode_chat([{"role": "user", "content": text}]) for text in prompts]
    ours = OurEngine(model, "float32", ids, steps=tokens, longest=1)
    theirs = transformers_smollm2(model)
    first: dict[int, int] = {}
    for number, prompt in enumerate(ids):
        found = ours.greedy(number, tokens)
        wanted = _greedy(theirs, prompt, tokens)
        same = sum(1 for _ in _common(found, wanted))
        if same < tokens:
            first[number] = same
        tell(f"  prompt {number + 1} of {len(ids)}: {'equal' if same == tokens else same}")
    return {"prompts": len(ids), "tokens": tokens, "mismatching": len(first), "first": first}


def _greedy(theirs: Any, prompt: list[int], tokens: int) -> list[int]:
    """End-of-sequence stops nothing: both engines go on for as long."""
    with torch.inference_mode():
        found = theirs(torch.tensor([prompt]), use_cache=True)
        answer = [int(found.logits[0, -1].argmax())]
        while len(answer) < tokens:
            step = torch.tensor([answer[-1:]])
            found = theirs(step, past_key_values=found.past_key_values, use_cache=True)
            answer.append(int(found.logits[0, -1].argmax()))
    return answer


def _common(one: Sequence[int], other: Sequence[int]) -> Iterator[int]:
    """The tokens that both begin with."""
    for a, b in zip(one, other, strict=True):
        if a != b:
            return
        yield a


def perplexity(engine: OurEngine, pieces: Sequence[list[int]]) -> float:
    """exp of the mean −log p of every token of every piece, given those before it in the piece."""
    total, count = 0.0, 0
    for piece in pieces:
        logprobs = engine.token_logprobs(piece)
        total -= float(logprobs.sum(dtype=torch.float64))
        count += len(logprobs)
    return math.exp(total / count)


def pieces_of(ids: Sequence[int], size: int) -> list[list[int]]:
    """Runs of `size` tokens; a shorter rest is left out, so that all pieces weigh the same."""
    return [list(ids[at : at + size]) for at in range(0, len(ids) - size + 1, size)]


def formats(model: Path, pieces: Sequence[list[int]]) -> list[dict[str, Any]]:
    """Perplexity by format, and its distance from bfloat16's in per cent."""
    checkpoints = {"file": model, "anew": bfloat16_folder(model)}
    rows: list[dict[str, Any]] = []
    for source, dtype, group in FORMATS:
        engine = OurEngine(
            checkpoints[source], dtype, [], steps=0, longest=len(pieces[0]), group=group
        )
        found = perplexity(engine, pieces)
        tell(f"  {source} {dtype}/{group}: {found:.4f}")
        rows.append({"source": source, "dtype": dtype, "group": group, "perplexity": found})
    base = next(row["perplexity"] for row in rows if row["dtype"] == "bfloat16")
    for row in rows:
        row["percent"] = 100 * (row["perplexity"] / base - 1)
    return rows


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=Path, help="JSON lines; default: a few of our own")
    parser.add_argument("--max-prompts", type=int, default=None)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--text", type=Path, help="default: Python's own language reference")
    parser.add_argument("--pieces", type=int, default=16, help="pieces of the text that count")
    parser.add_argument("--piece-tokens", type=int, default=1024)
    parser.add_argument("--only", choices=["agreement", "perplexity"])
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--save", metavar="NAME", help="keep the result as bench/results/NAME.json")
    return parser.parse_args()


def main() -> None:
    options = read_options()
    torch.set_num_threads(options.threads)
    set_threads(options.threads)
    model = pull_model("smollm2-135m")
    result: dict[str, Any] = {}
    if options.only != "perplexity":
        prompts = read_prompts(options.prompts) if options.prompts else PROMPTS
        result["agreement"] = agreement(model, prompts[: options.max_prompts], options.tokens)
        found = result["agreement"]
        line = [found["prompts"], found["tokens"], found["mismatching"]]
        print_table("greedy, transformers", ["prompts", "tokens each", "mismatching"], [line])
    if options.only != "agreement":
        name, text = fixed_text()
        if options.text is not None:
            name, text = options.text.name, options.text.read_text(encoding="utf-8")
        # 16 characters a token are more than enough; the whole reference would take seconds.
        ids = Tokenizer.load(model).encode(text[: 16 * options.pieces * options.piece_tokens])
        pieces = pieces_of(ids, options.piece_tokens)[: options.pieces]
        digest = hashlib.sha256(repr(pieces).encode()).hexdigest()[:16]
        rows = formats(model, pieces)
        result["text"] = {"name": name, "tokens": sum(map(len, pieces)), "sha256": digest}
        result["perplexity"] = rows
        lines = [
            (*list(row.values())[:3], f"{row['perplexity']:.4f}", f"{row['percent']:+.2f} %")
            for row in rows
        ]
        columns = ["quantised", "weights", "group", "perplexity", "against bfloat16"]
        print_table(name, columns, lines)
    finish(result, RESULTS / f"{options.save}.json" if options.save else None)


if __name__ == "__main__":
    main()
