"""A model's vocabulary as llguidance wants to see it."""

from __future__ import annotations

from collections.abc import Sequence

from llguidance import LLTokenizer, TokenizerWrapper

from triptych.tokenizer import Tokenizer


def grammar_vocabulary(
    tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]
) -> LLTokenizer:
    """`vocab_size`: columns of the model's logits, of which the tokenizer may know fewer or more.

    Takes up to a second for the largest vocabularies.
    """
    return LLTokenizer(
        TokenizerWrapper(_Pieces(tokenizer, vocab_size, eos_token_ids)),
        n_vocab=vocab_size,
        eos_token=list(eos_token_ids) or None,
    )


class _Pieces:
    """What `TokenizerWrapper` reads. Ids without a piece have no bytes and are never allowed."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        known = range(min(vocab_size, tokenizer.vocab_size))
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in known]
        self.tokens += [b""] * (vocab_size - len(known))
        self.special_token_ids = [token_id for token_id in known if tokenizer.is_special(token_id)]
        self.eos_token_id = next(iter(eos_token_ids), 0)

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode(errors="replace"), add_special_tokens=False)
