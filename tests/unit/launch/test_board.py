from __future__ import annotations

import io

from rich.console import Console

from triptych.launch.base import ProcessEvent, ProcessState
from triptych.launch.board import Board


def test_a_log_file_gets_one_plain_line_per_state() -> None:
    screen = io.StringIO()
    with Board(Console(file=screen, width=200), ["router", "decode-0"]) as board:
        board.show(ProcessEvent("decode-0", ProcessState.STARTING))
        board.show(ProcessEvent("decode-0", ProcessState.LOADING, "tensor 1 of 9 [x]"))
        board.show(ProcessEvent("decode-0", ProcessState.LOADING, "tensor 2 of 9 [x]"))
        board.show(ProcessEvent("router", ProcessState.READY, "http://127.0.0.1:8000"))
        board.show(ProcessEvent("decode-0", ProcessState.EXITED, "exited with code 1"))
    lines = screen.getvalue().splitlines()
    assert lines[0] == "decode-0  loading   tensor 1 of 9 [x]"
    assert lines[1].startswith("router    ready     0.0 s  http://127.0.0.1:8000")
    assert lines[2] == "decode-0  exited    exited with code 1"
    assert len(lines) == 3


def test_a_terminal_shows_every_process_and_its_last_word() -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=80, force_terminal=True)
    with Board(console, ["router", "decode-0"]) as board:
        board.show(ProcessEvent("decode-0", ProcessState.LOADING, "tensor 1 of 9"))
        board.show(ProcessEvent("decode-0", ProcessState.LOADING, "tensor 2 of 9"))
    final = screen.getvalue()
    assert "router" in final
    assert "tensor 2 of 9" in final
