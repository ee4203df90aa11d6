"""What a process last said: its log file, read from the end, and what to tell its user then."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from triptych.launch.base import ProcessEvent, ProcessState

_WINDOW = 64 << 10  # bytes from the end; longer lines are cut
_HEAD = re.compile(r"^\S+Z \w+ +\S+ \S+: ")  # of triptych.obs.log's text format


def last_lines(log_file: Path, count: int, since: int = 0) -> list[str]:
    """At most `count` lines that were written after byte `since`; none if there is no file."""
    try:
        with open(log_file, "rb") as file:
            end = file.seek(0, 2)
            file.seek(max(since, end - _WINDOW))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    return text.splitlines()[-count:]


def last_message(log_file: Path, since: int = 0) -> str:
    """The last line as a person wants to read it, without time, level and logger; "" if none."""
    lines = [line for line in last_lines(log_file, 10, since) if line.strip()]
    return plain_message(lines[-1]) if lines else ""


def plain_message(line: str) -> str:
    """The message of a log line in our text or JSON format; any other line as it is."""
    if line.startswith("{"):
        try:
            return str(json.loads(line)["message"])
        except (ValueError, KeyError, TypeError):
            return line
    return _HEAD.sub("", line)


def explain_end(event: ProcessEvent, tail: Sequence[str]) -> str:
    """Why a cluster did not start: `event` is of the process that ended, `tail` is from its log."""
    lines = "".join(f"\n  {line}" for line in tail)
    said = f"; its log ends:{lines}" if tail else " and logged nothing"
    return f"{event.name} {event.detail} while the cluster was starting{said}"


def explain_delay(states: Sequence[ProcessEvent], timeout_s: float, logs: Path) -> str:
    """Why a cluster is not ready yet."""
    late = [event for event in states if event.state is not ProcessState.READY]
    words = "; ".join(f"{e.name} is {e.state}: {e.detail or 'no word'}" for e in late)
    words = words or "every process is, but the router takes no requests"
    return f"not ready after {timeout_s:g} s: {words}; logs: {logs}"
