"""Lengths of recorded requests: JSON lines, or CSV with a header."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from triptych.errors import ConfigError

# What traces call them: ours and vLLM's, Mooncake's, Azure's.
_PROMPT = ("prompt_tokens", "input_length", "ContextTokens")
_OUTPUT = ("output_tokens", "completion_tokens", "output_length", "GeneratedTokens")


def read_trace(path: Path) -> list[tuple[int, int]]:
    """(prompt, output) tokens of each request. Raises ConfigError naming file, line and field."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--trace: {path}: {error}") from error
    rows = _csv_rows(text) if path.suffix == ".csv" else _json_rows(text, path)
    requests = [
        (_length(row, _PROMPT, path, number), _length(row, _OUTPUT, path, number))
        for number, row in rows
    ]
    if not any(output for _, output in requests):
        raise ConfigError(f"--trace: {path}: no request with output tokens in it")
    return requests


def _csv_rows(text: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    yield from enumerate(csv.DictReader(text.splitlines()), 2)


def _json_rows(text: str, path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"--trace: {path}:{number}: no JSON: {error}") from error
        if not isinstance(row, dict):
            raise ConfigError(f"--trace: {path}:{number}: expected an object per line")
        yield number, row


def _length(row: Mapping[str, object], names: tuple[str, ...], path: Path, number: int) -> int:
    name = next((name for name in names if name in row), None)
    if name is None:
        raise ConfigError(f"--trace: {path}:{number}: expected one of {', '.join(names)}")
    try:
        length = int(str(row[name]))
    except ValueError:
        length = -1
    if length < 0:
        raise ConfigError(f"--trace: {path}:{number}: {name}: {row[name]!r} is no number of tokens")
    return length
