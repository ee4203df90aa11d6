"""Log lines for people and for machines, on the standard library's logging.

Every line carries a UTC time with milliseconds, level, process and logger; inside `bind_request`
also the request's id. Structured fields go in `extra`:

    log.info("fetched", extra={"fields": {"blocks": 12, "path": "shm"}})

A thread that works for many requests (the engine's) names the one it speaks of as the field
`request_id`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

# These follow the configured level; all other libraries speak up from WARNING on.
_OUR_LOGGERS = (
    "__main__",
    "triptych",
    "transport",
    "triptych_kernels",
    "router",
    "prefill_worker",
    "decode_worker",
    "ffn_worker",
)


def setup_logging(level: str, format: Literal["json", "text"], process: str) -> None:
    """Sends this process's log to stderr. Called by `__main__`; a second call replaces the first.

    `level` is one of debug, info, warning, error; `process` is the worker id or "router".
    """
    handler = _ProcessHandler()
    handler.setFormatter(JsonFormatter(process) if format == "json" else TextFormatter(process))
    root = logging.getLogger()
    for other in [h for h in root.handlers if isinstance(h, _ProcessHandler)]:
        root.removeHandler(other)
    root.addHandler(handler)
    number = logging.getLevelNamesMapping()[level.upper()]
    root.setLevel(max(number, logging.WARNING))
    for name in _OUR_LOGGERS:
        logging.getLogger(name).setLevel(number)


@contextlib.contextmanager
def bind_request(request_id: str) -> Iterator[None]:
    """Lines logged inside, and in tasks started inside, carry `request_id`."""
    outer = _request_id.get()
    _request_id.set(request_id)
    try:
        yield
    finally:
        # Not reset(token): an async generator may be closed in another context than its own.
        _request_id.set(outer)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, process, logger, message, the fields, exception.

    A field that bears the name of one of those keys appears as `field_<name>`.
    """

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _utc_time(record),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        reserved = {*line, "exception"}
        for name, value in _fields(record).items():
            line[f"field_{name}" if name in reserved else name] = value
        if trace := _trace(self, record):
            line["exception"] = trace
        return _to_json(line)


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z INFO    decode-0 router.relay: message  key=value`."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        head = f"{_utc_time(record)} {record.levelname:<7} {self._process} {record.name}: "
        fields = "".join(f" {name}={_quoted(value)}" for name, value in _fields(record).items())
        line = head + record.getMessage() + (" " + fields if fields else "")
        trace = _trace(self, record)
        return f"{line}\n{trace}" if trace else line


class _ProcessHandler(logging.Handler):
    """Writes to whatever stderr is now. Its class is how `setup_logging` finds the one before."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:  # as every handler of the standard library: a log line never raises
            self.handleError(record)


def _utc_time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if request_id := _request_id.get():
        fields["request_id"] = request_id
    given = getattr(record, "fields", None)
    if isinstance(given, dict):
        fields |= {str(name): value for name, value in given.items()}
    return fields


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = []
    if record.exc_info and record.exc_info[0] is not None:
        parts.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return "\n".join(parts)


def _quoted(value: Any) -> str:
    text = str(value)
    return text if text.isprintable() and not {" ", '"', "="} & set(text) else json.dumps(text)


def _to_json(line: dict[str, Any]) -> str:
    try:
        return json.dumps(line, default=str, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):  # NaN, keys that are no strings, cycles
        return json.dumps({name: _plain(value) for name, value in line.items()})


def _plain(value: Any) -> str | int | float | None:
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    return value if isinstance(value, str | int | None) else repr(value)
