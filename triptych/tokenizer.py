"""Text to token ids and back, for Hugging Face directories and GGUF files. No torch needed.

A prompt and its answer, streamed:

    tokenizer = Tokenizer.load(path)
    prompt_ids = tokenizer.encode_chat([{"role": "user", "content": "Hi"}])
    detokenizer = Detokenizer(tokenizer, continues=True)
    text = "".join(detokenizer.push(token_id) for token_id in stream) + detokenizer.flush()
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from encodings.utf_8 import IncrementalDecoder
from pathlib import Path
from typing import Any

from triptych.chat import ChatTemplate
from triptych.errors import ModelError, RequestError
from triptych.gguf_vocab import read_gguf
from triptych.segments import SegmentCache
from triptych.token_pieces import piece_rules
from triptych.vocab import Vocab, read_folder

_SURROGATE = re.compile("[\ud800-\udfff]")


class Tokenizer:
    """Tells always the same; may be shared between threads."""

    def __init__(self, vocab: Vocab) -> None:
        """`load` is the usual way. Raises ModelError for a decoder or template we cannot follow."""
        self._backend = vocab.backend
        self._segments = SegmentCache(vocab.backend)
        self._rules = piece_rules(_decoder_settings(vocab))
        self._special_tokens = dict(vocab.special_tokens)
        self._special_ids = frozenset(
            token_id
            for token_id, token in vocab.backend.get_added_tokens_decoder().items()
            if token.special
        )
        self._templates = {
            name: ChatTemplate(source) for name, source in vocab.chat_templates.items()
        }
        self.template_text = "\n".join(vocab.chat_templates.values())  # of all of them
        self._known_bytes: dict[int, bytes] = {}
        self._known_text: dict[int, str | None] = {}
        self.vocab_size = vocab.size
        self.bos_token_id = vocab.bos_token_id
        self.eos_token_ids = vocab.eos_token_ids

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """A directory with tokenizer.json, or a .gguf file. Raises ModelError naming the file."""
        vocab = read_folder(path) if path.is_dir() else read_gguf(path)
        try:
            return cls(vocab)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error

    @property
    def has_chat_template(self) -> bool:
        return bool(self._templates)

    @property
    def knows_tools(self) -> bool:
        """Whether the chat templates do."""
        return "tools" in self.template_text

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Special tokens spelled out in `text` become those tokens, as in transformers.

        `add_special_tokens`: put around it what the model wants there (usually BOS or nothing).
        """
        _check_unicode(text, param="prompt")
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Equal to pushing all ids through a `Detokenizer`. Raises RequestError for unknown ids."""
        detokenizer = Detokenizer(self, skip_special_tokens=skip_special_tokens)
        return "".join([*map(detokenizer.push, ids), detokenizer.flush()])

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt text; `extra` (OpenAI's chat_template_kwargs) are variables of the template.

        Raises RequestError when there is no template, or it refuses these messages.
        """
        template = self._templates.get("tool_use") if tools else None
        template = template or self._templates.get("default")
        if template is None:
            raise RequestError(
                "messages: this model has no chat template; use /v1/completions, "
                "or put a chat_template.jinja into the model's directory",
                param="messages",
            )
        return template.render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            variables={**self._special_tokens, **(extra or {})},
        )

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        extra: Mapping[str, Any] | None = None,
        scope: str = "",
    ) -> list[int]:
        """Turns that were encoded before, in the same scope, cost next to nothing."""
        text = self.render_chat(
            messages, tools=tools, add_generation_prompt=add_generation_prompt, extra=extra
        )
        _check_unicode(text, param="messages")
        # The template has written every special token already.
        return self._segments.encode(text, scope)

    def token_text(self, token_id: int) -> str:
        """One token for display; bytes that are no text by themselves show as U+FFFD."""
        return self.token_bytes(token_id).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that the token adds to a text, b"" for an id without a piece.

        A SentencePiece text drops the space of its first token; this does not.
        Raises RequestError for an id that is not in the vocabulary.
        """
        known = self._known_bytes.get(token_id)
        if known is None:
            if not 0 <= token_id < self.vocab_size:
                raise RequestError(
                    f"token id {token_id} is not in the vocabulary (0 to {self.vocab_size - 1})"
                )
            piece = self._backend.id_to_token(token_id)
            known = b"" if piece is None else self._rules.piece_bytes(piece)
            self._known_bytes[token_id] = known
        return known

    def whole_text(self, token_id: int) -> str | None:
        """The text of an ordinary token of whole characters; None for any other.

        Raises RequestError for an id that is not in the vocabulary.
        """
        try:
            return self._known_text[token_id]
        except KeyError:
            text = None if self.is_special(token_id) else _as_text(self.token_bytes(token_id))
            return self._known_text.setdefault(token_id, text)

    def is_special(self, token_id: int) -> bool:
        """Whether `skip_special_tokens` leaves it out."""
        return token_id in self._special_ids

    def special_id(self, text: str) -> int | None:
        """Of the special token that is spelled so."""
        token_id = self._backend.token_to_id(text)
        return token_id if token_id in self._special_ids else None

    @property
    def leading_spaces(self) -> int:
        """How many leading spaces a decoded text drops, if it has them: SentencePiece's own."""
        return self._rules.strip_left


class Detokenizer:
    """Turns a stream of tokens into text as early as it is certain. One stream, one thread.

    What `push` returns is final, and whole characters only: bytes that may go on are kept back.
    The cost of a token does not depend on how many came before.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        shown: Collection[int] = (),
        continues: bool = False,
    ) -> None:
        """`shown`: special tokens that are not skipped. `continues`: the text goes on from a
        prompt, so a leading space belongs to it.

        It matters for SentencePiece only, where a text by itself loses its first token's space.
        """
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._shown = shown
        # `buffer` holds the bytes of a character that is not complete yet.
        self._utf8 = IncrementalDecoder(errors="replace")
        self._spaces_to_drop = 0 if continues else tokenizer.leading_spaces

    def push(self, token_id: int) -> str:
        """Raises RequestError for an id that is not in the vocabulary."""
        text = self._tokenizer.whole_text(token_id)
        if text is not None and not self._utf8.buffer:
            return self._drop_spaces(text) if self._spaces_to_drop else text
        piece = self._tokenizer.token_bytes(token_id)
        special = self._tokenizer.is_special(token_id) and token_id not in self._shown
        if self._skip_special_tokens and special:
            return ""
        return self._drop_spaces(self._utf8.decode(piece))

    def flush(self) -> str:
        """The rest, at the end of the stream: half a character comes out as U+FFFD."""
        return self._drop_spaces(self._utf8.decode(b"", final=True))

    def _drop_spaces(self, text: str) -> str:
        while self._spaces_to_drop and text:
            if text[0] != " ":
                self._spaces_to_drop = 0
                break
            text = text[1:]
            self._spaces_to_drop -= 1
        return text


def _check_unicode(text: str, param: str) -> None:
    lone = _SURROGATE.search(text)
    if lone is not None:
        raise RequestError(
            f"{param}: not valid Unicode: a lone surrogate at character {lone.start()}",
            param=param,
        )


def _as_text(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def _decoder_settings(vocab: Vocab) -> dict[str, Any] | None:
    decoder = vocab.backend.decoder
    return None if decoder is None else json.loads(decoder.__getstate__())
