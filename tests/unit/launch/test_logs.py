from __future__ import annotations

import logging
from pathlib import Path

import pytest

from triptych.launch.logs import last_lines, last_message, plain_message
from triptych.obs.log import JsonFormatter, TextFormatter


@pytest.mark.parametrize("formatter", [TextFormatter("decode-0"), JsonFormatter("decode-0")])
def test_a_line_of_ours_is_shown_without_its_head(formatter: logging.Formatter) -> None:
    record = logging.LogRecord(
        "triptych.models.load", logging.INFO, __file__, 1, "tensor 7 of 272: a: b", (), None
    )
    assert plain_message(formatter.format(record)) == "tensor 7 of 272: a: b"


@pytest.mark.parametrize("line", ["Killed", "{not json", '{"no": "message"}', "a: b: c"])
def test_any_other_line_is_shown_as_it_is(line: str) -> None:
    assert plain_message(line) == line


def test_the_last_message_is_the_last_line_that_says_something(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("first\nsecond\n\n  \n")
    assert last_message(log) == "second"


def test_what_an_earlier_run_wrote_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("old\nnew\n")
    assert last_lines(log, 10, since=4) == ["new"]
    assert last_message(log, since=8) == ""


def test_a_process_without_a_log_has_said_nothing(tmp_path: Path) -> None:
    assert last_lines(tmp_path / "none", 10) == []
    assert last_message(tmp_path / "none") == ""


def test_of_a_long_log_only_the_end_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {index}\n" for index in range(100_000)))
    assert last_lines(log, 2) == ["line 99998", "line 99999"]
