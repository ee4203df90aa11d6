"""Real weights: the engine generates what transformers generates, token for token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from triptych.engine.backend import choose_backend
from triptych.hub import pull_model
from triptych.models.load import load_model
from triptych.request import SamplingParams
from triptych.testing.transformers_model import transformers_smollm2
from triptych.tokenizer import Tokenizer

PROMPTS = (
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Explain gravity to a child.",
    "List three uses of copper.",
    "Translate 'good morning' into Spanish.",
    "Who wrote Hamlet?",
    "What is 17 plus 25?",
    "Give me a recipe for pancakes.",
    "Why is the sky blue?",
    "Name the planets of the solar system.",
    "Write a Python function that reverses a string.",
    "Summarise the story of Cinderella.",
    "What does a compiler do?",
    "Describe a sunset in one sentence.",
    "How do bees make honey?",
    "Tell me a joke about a cat.",
    "What are the primary colours?",
    "Write the first line of a mystery novel.",
    "How many legs does a spider have?",
    "What should I pack for a trip to the mountains in winter? " * 12,
)
NUM_TOKENS = 24


def test_twenty_greedy_answers_are_those_of_transformers(make_home: Callable[..., Any]) -> None:
    file = pull_model("smollm2-135m")
    tokenizer = Tokenizer.load(file)
    prompts = [tokenizer.encode_chat([{"role": "user", "content": text}]) for text in PROMPTS]
    packer = choose_backend("float32", "auto").packer
    model = load_model(file, dtype="float32", packer=packer)
    home = make_home(model, "float32", chunk_tokens=256)
    params = SamplingParams(seed=0, max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
    for prompt in prompts:
        home.submit(prompt, params)
    ours = home.run()

    theirs = transformers_smollm2(file)
    for text, prompt, answer in zip(PROMPTS, prompts, ours, strict=True):
        with torch.inference_mode():
            generated = theirs.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                max_new_tokens=NUM_TOKENS,
                min_new_tokens=NUM_TOKENS,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        assert generated[0, len(prompt) :].tolist() == answer, text
