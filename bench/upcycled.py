"""How near do mixtures made by `triptych models upcycle` come to their dense model?

    python -m bench.upcycled [--tokens N] [--save NAME]

The dense model answers some prompts, sampling with a fixed seed; the table tells its own perplexity
on those answers and that of each mixture, by transformers in float32. Trained mixtures would be
nearer: this is what the weights alone give.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.quality import PROMPTS, RESULTS, tell
from bench.report import finish, print_table
from triptych.hub import pull_model
from triptych.launch.machine import usable_cores
from triptych.models.upcycle.convert import upcycle
from triptych.models.upcycle.recipe import Recipe
from triptych.testing.transformers_model import transformers_smollm2
from triptych.tokenizer import Tokenizer

TEMPERATURE = 0.8
RECIPES = (
    Recipe(),
    Recipe(how="perturbed"),
    *(Recipe(how="split", top_k=top_k) for top_k in (8, 7, 6, 4, 2)),
    *(Recipe(how="split", top_k=top_k, router="random") for top_k in (7, 6)),
)
Answer = tuple[list[int], list[int]]  # ids of the prompt, of the answer


def write_answers(dense: Any, tokenizer: Tokenizer, tokens: int) -> list[Answer]:
    """`tokens` of each; an end of sequence stops nothing."""
    torch.manual_seed(0)
    found = []
    for text in PROMPTS:
        prompt = tokenizer.encode_chat([{"role": "user", "content": text}])
        answer: list[int] = []
        step, past = torch.tensor([prompt]), None
        while len(answer) < tokens:
            with torch.inference_mode():
                output = dense(step, past_key_values=past, use_cache=True)
            past = output.past_key_values
            chances = (output.logits[0, -1] / TEMPERATURE).softmax(-1)
            answer.append(int(chances.multinomial(1)))
            step = torch.tensor([answer[-1:]])
        found.append((prompt, answer))
        tell(f"  wrote {len(found)} of {len(PROMPTS)}: {tokenizer.decode(answer[:12])!r} …")
    return found


def perplexity(model: Any, answers: Sequence[Answer]) -> float:
    total, count = 0.0, 0
    for prompt, answer in answers:
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        logprobs = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])
        total -= float(logprobs.sum(dtype=torch.float64))
        count += len(answer)
    return math.exp(total / count)


def measure(dense: Path, recipe: Recipe, answers: Sequence[Answer]) -> dict[str, Any]:
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        out, begin = Path(folder) / "moe", time.perf_counter()
        report = upcycle(dense, out, recipe)
        seconds = time.perf_counter() - begin
        auto: Any = transformers.AutoModelForCausalLM  # untyped
        model = auto.from_pretrained(out, dtype=torch.float32).eval()
        found = perplexity(model, answers)
    row = {
        "how": recipe.how,
        "router": recipe.router,
        "experts": f"{recipe.top_k} of {recipe.num_experts}",
        "gigabytes": round(report.weight_bytes / 1e9, 2),
        "seconds": round(seconds, 1),
        "ffn_error": report.ffn_error,
        "perplexity": found,
    }
    tell(f"  {row}")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=96, help="of each answer")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--save", metavar="NAME", help="keep the result as bench/results/NAME.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = pull_model("smollm2-135m")
    dense = transformers_smollm2(path)
    answers = write_answers(dense, Tokenizer.load(path), options.tokens)
    base = perplexity(dense, answers)
    rows = [measure(path, recipe, answers) for recipe in RECIPES]
    result = {"tokens": len(PROMPTS) * options.tokens, "dense_perplexity": base, "mixtures": rows}
    print_table(
        f"perplexity of the dense model: {base:.3f}",
        list(rows[0]),
        [
            [*list(row.values())[:-2], *(f"{x:.3f}" for x in list(row.values())[-2:])]
            for row in rows
        ],
    )
    finish(result, RESULTS / f"{options.save}.json" if options.save else None)


if __name__ == "__main__":
    main()
