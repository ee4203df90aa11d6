"""What a vocabulary's pieces stand for, as bytes.

Bytes, because a byte-level piece may be half a character: only a run of tokens is text.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from triptych.errors import ModelError

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True, slots=True)
class PieceRules:
    """The decoder of a tokenizer, as rules that hold for each token by itself.

    Text = all pieces' bytes joined, less `strip_left` leading spaces, invalid UTF-8 as U+FFFD.
    As in the `tokenizers` library, but for a run of byte pieces (`<0x..>`) that is not valid UTF-8
    as a whole: there the library turns every byte of the run into U+FFFD, even characters that a
    stream has shown long before.
    """

    byte_level: bool = False  # characters spell bytes (GPT-2's alphabet)
    byte_fallback: bool = False  # <0x41> is the byte 0x41
    replace: tuple[tuple[str, str], ...] = ()
    prefix: str = ""  # before every piece
    strip_left: int = 0

    def piece_bytes(self, piece: str) -> bytes:
        if self.byte_level:
            spelled = byte_alphabet()
            # A token added later may be plain text; one foreign character tells.
            if all(character in spelled for character in piece):
                return bytes(spelled[character] for character in piece)
            return piece.encode()
        if self.byte_fallback and (match := _BYTE_PIECE.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        for old, new in self.replace:
            piece = piece.replace(old, new)
        return (self.prefix + piece).encode()


def piece_rules(decoder: Mapping[str, Any] | None) -> PieceRules:
    """From the `decoder` of a tokenizer.json. Raises ModelError naming an unsupported kind."""
    if decoder is None:
        return PieceRules(prefix=" ", strip_left=1)  # whole words
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    byte_level = byte_fallback = False
    replace: list[tuple[str, str]] = []
    strip_left = 0
    for step in steps:
        match step:
            case {"type": "ByteLevel"}:
                byte_level = True
            case {"type": "ByteFallback"}:
                byte_fallback = True
            case {"type": "Fuse"}:
                pass
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                replace.append((old, new))
            case {"type": "Strip", "content": " ", "start": int(start), "stop": 0}:
                strip_left = start
            case {"type": "Metaspace", "replacement": str(old)}:
                replace.append((old, " "))
                strip_left = int(step.get("prepend_scheme", "always") != "never")
            case _:
                raise ModelError(
                    f"tokenizer: decoder {step} is not supported; supported: ByteLevel, Metaspace, "
                    "ByteFallback, Fuse, Replace of a string, Strip of leading spaces"
                )
    return PieceRules(byte_level, byte_fallback, tuple(replace), "", strip_left)


@functools.cache
def byte_alphabet() -> Mapping[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 as itself, the rest from U+0100 upwards."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    spelled = {chr(byte): byte for byte in plain}
    spelled.update((chr(0x100 + index), byte) for index, byte in enumerate(others))
    return spelled
