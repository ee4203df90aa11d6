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
        self._special = frozenset(self.special_token_ids)
        self._by_bytes = {
            self.tokens[token_id]: token_id for token_id in known if token_id not in self._special
        }
        self._longest = max(map(len, self._by_bytes), default=0)
        self.eos_token_id = next(iter(eos_token_ids), 0)

    def __call__(self, text: bytes) -> list[int]:
        """Tokens of exactly these bytes, none of them special: what a grammar forces is drawn so.

        As the model would see them, if the tokenizer says so: one may put a space before a text, or
        find special tokens in it. A character before the text keeps the space away from it.
        """
        said = text.decode(errors="replace")
        for before in ("", "\x02"):
            ids = self._tokenizer.encode(before + said, add_special_tokens=False)
            pieces = [self._tokenizer.token_bytes(token_id) for token_id in ids]
            start = _length_within(pieces, (before.encode(), b" " + before.encode()))
            if b"".join(pieces[start:]) == text and not self._special.intersection(ids[start:]):
                return ids[start:]
        return self._longest_pieces(text)

    def _longest_pieces(self, text: bytes) -> list[int]:
        ids, at = list[int](), 0
        while at < len(text):
            lengths = range(min(self._longest, len(text) - at), 0, -1)
            end = next((at + n for n in lengths if text[at : at + n] in self._by_bytes), None)
            if end is None:  # no piece begins with this byte
                break
            ids.append(self._by_bytes[text[at:end]])
            at = end
        return ids


def _length_within(pieces: Sequence[bytes], texts: Sequence[bytes]) -> int:
    """How many pieces make the longest of the texts that their beginning is."""
    seen, found = b"", 0
    for count, piece in enumerate(pieces, start=1):
        seen += piece
        if seen in texts:
            found = count
    return found
