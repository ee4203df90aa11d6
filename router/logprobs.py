"""Token log-probabilities in OpenAI's two shapes: one entry per completion token, no exceptions."""

from __future__ import annotations

from collections.abc import Sequence

from router.reply import ChatLogprob, ChatLogprobs, CompletionLogprobs, TopLogprob
from router.text import Piece
from triptych.request import TokenLogprobs
from triptych.tokenizer import Tokenizer

_LEAST = -9999.0  # JSON has no infinity; OpenAI's stand-in for "never"


def chat_logprobs(tokenizer: Tokenizer, pieces: Sequence[Piece]) -> ChatLogprobs | None:
    """Of one choice. None when the request did not ask for them."""
    content = [_chat_entry(tokenizer, entry) for piece in pieces for entry in piece.logprobs]
    return ChatLogprobs(content=content) if content else None


def completion_logprobs(
    tokenizer: Tokenizer, pieces: Sequence[Piece], *, top: bool
) -> CompletionLogprobs | None:
    """Of one choice. None when they were not asked for; `top`: the k > 0 best were."""
    entries = [entry for piece in pieces for entry in piece.logprobs]
    if not entries:
        return None
    return CompletionLogprobs(
        text_offset=[offset for piece in pieces for offset in piece.offsets],
        tokens=[_spelled(tokenizer.token_bytes(entry.token_id)) for entry in entries],
        token_logprobs=[_finite(entry.logprob) for entry in entries],
        top_logprobs=[_top_dict(tokenizer, entry) for entry in entries] if top else None,
    )


def _chat_entry(tokenizer: Tokenizer, entry: TokenLogprobs) -> ChatLogprob:
    best = _top(tokenizer, entry.token_id, entry.logprob)
    return ChatLogprob(
        token=best.token,
        logprob=best.logprob,
        bytes=best.bytes,
        top_logprobs=[_top(tokenizer, token_id, logprob) for token_id, logprob in entry.top],
    )


def _top(tokenizer: Tokenizer, token_id: int, logprob: float) -> TopLogprob:
    raw = tokenizer.token_bytes(token_id)
    return TopLogprob(token=_spelled(raw), logprob=_finite(logprob), bytes=list(raw))


def _top_dict(tokenizer: Tokenizer, entry: TokenLogprobs) -> dict[str, float]:
    """The k best and, as OpenAI does it, the chosen token even if it is not among them."""
    pairs = [*entry.top, (entry.token_id, entry.logprob)]
    return {_spelled(tokenizer.token_bytes(i)): _finite(logprob) for i, logprob in pairs}


def _spelled(raw: bytes) -> str:
    """A token as text; half a character as OpenAI writes it: `bytes:\\xe2\\x96`."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _finite(logprob: float) -> float:
    return logprob if logprob > _LEAST else _LEAST
