"""What the target wrote: prompts and its answers, token ids in JSON lines, added to at the end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from triptych.errors import ModelError


class Text(NamedTuple):
    """A prompt and what the target answered."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.prompt + self.answer


class Corpus:
    """A file that survives being cut off at any byte: a broken last line is written over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_texts = 0
        self.num_answer_tokens = 0
        whole = 0
        for text, end in self._read():
            self.num_texts += 1
            self.num_answer_tokens += len(text.answer)
            whole = end
        if path.exists() and whole < path.stat().st_size:
            with path.open("rb+") as file:
                file.truncate(whole)

    def add(self, text: Text) -> None:
        line = json.dumps({"prompt": text.prompt, "answer": text.answer}, separators=(",", ":"))
        with self.path.open("a") as file:
            file.write(line + "\n")
        self.num_texts += 1
        self.num_answer_tokens += len(text.answer)

    def texts(self) -> list[Text]:
        return [text for text, _ in self._read()]

    def _read(self) -> Iterator[tuple[Text, int]]:
        """Whole lines, each with the offset behind it. Raises ModelError for other files."""
        if not self.path.exists():
            return
        end = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    record = json.loads(line)
                    text = Text(tuple(record["prompt"]), tuple(record["answer"]))
                except (ValueError, KeyError, TypeError) as error:
                    raise ModelError(
                        f"{self.path}:{number}: not a line of a corpus ({error}); remove the file "
                        "or choose another directory"
                    ) from error
                end += len(line)
                yield text, end
