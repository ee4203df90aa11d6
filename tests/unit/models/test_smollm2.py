"""A real model: SmolLM2 135M from its quantised GGUF file, against transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from triptych.hub import pull_model
from triptych.models.load import load_model
from triptych.models.model import Model
from triptych.testing.dense_kv import DenseSequence, greedy_tokens
from triptych.testing.transformers_model import transformers_smollm2
from triptych.tokenizer import Tokenizer

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def file() -> Path:
    return pull_model("smollm2-135m")


@pytest.fixture(scope="module")
def model(file: Path) -> Model:
    return load_model(file, dtype="float32")


def test_it_knows_the_capital_of_france(file: Path, model: Model) -> None:
    tokenizer = Tokenizer.load(file)
    answer = greedy_tokens(model, tokenizer.encode_chat(QUESTION), 8)
    assert tokenizer.decode(answer) == "The capital of France is Paris."
    assert answer[-1] in model.config.eos_token_ids


def test_logits_are_those_of_transformers(file: Path, model: Model) -> None:
    theirs = transformers_smollm2(file)
    text = "Once upon a time, in a land of rivers and mountains, a baker found a key. " * 4
    ids = Tokenizer.load(file).encode(text)
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids])).logits[0].clone()
    logits = DenseSequence(model).extend(ids)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=2e-3)
    assert torch.equal(logits.argmax(-1), expected.argmax(-1))
