"""A tokenizer small enough to follow by hand."""

from __future__ import annotations

import pytest

from triptych.testing.tiny_chat import save_tiny_chat
from triptych.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(save_tiny_chat(tmp_path_factory.mktemp("tokenizer")))
