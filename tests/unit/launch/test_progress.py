from __future__ import annotations

from triptych.launch.progress import Lines


def test_a_log_gets_a_line_every_few_seconds_with_speed_and_what_is_left() -> None:
    now = 100.0
    lines: list[str] = []
    told = Lines("fetching x", lines.append, lambda: now)
    for second in range(21):
        now = 100.0 + second
        told(second * 50_000_000, 1_000_000_000)
    assert lines == [
        "fetching x: 0 of 953 MiB",
        "fetching x: 238 of 953 MiB, 50.0 MB/s, 15 s left",
        "fetching x: 476 of 953 MiB, 50.0 MB/s, 10 s left",
        "fetching x: 715 of 953 MiB, 50.0 MB/s, 5 s left",
        "fetching x: 953 of 953 MiB, 50.0 MB/s",
    ]


def test_what_was_there_before_does_not_count_as_speed() -> None:
    now = 0.0
    lines: list[str] = []
    told = Lines("fetching x", lines.append, lambda: now)
    told(900_000_000, 1_000_000_000)
    now = 10.0
    told(950_000_000, 1_000_000_000)
    assert lines[-1].endswith("5.0 MB/s, 10 s left")
