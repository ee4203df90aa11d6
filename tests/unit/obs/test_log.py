"""What a log line tells."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import threading

import pytest

from triptych.obs.log import bind_request, setup_logging

log = logging.getLogger("router.relay")


@pytest.fixture(autouse=True)
def untouched_logging():
    """Every test starts from, and leaves behind, the process's own logging."""
    names = [None, "__main__", "triptych", "transport", "router", "somebody"]
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture
def lines(capsys):
    """The log lines so far, as text."""
    return lambda: capsys.readouterr().err.splitlines()


@pytest.fixture
def objects(lines):
    """The log lines so far, as JSON."""
    setup_logging("info", "json", "decode-0")
    return lambda: [json.loads(line) for line in lines()]


def test_a_json_line_says_when_who_and_what(objects):
    log.info("placed on %s", "decode-1", extra={"fields": {"blocks": 3, "path": "shm"}})
    [line] = objects()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "info",
        "process": "decode-0",
        "logger": "router.relay",
        "message": "placed on decode-1",
        "blocks": 3,
        "path": "shm",
    }


def test_a_text_line_reads_from_left_to_right(lines):
    setup_logging("info", "text", "decode-0")
    fields = {"blocks": 3, "reason": "stale block", "text": 'a="b"\nERROR'}
    log.warning("fell back", extra={"fields": fields})
    [line] = lines()
    time, rest = line.split(" ", 1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time)
    assert rest == (
        "WARNING decode-0 router.relay: fell back  "
        r'blocks=3 reason="stale block" text="a=\"b\"\nERROR"'
    )


def test_lines_inside_a_request_carry_its_id(objects):
    log.info("before")
    with bind_request("req-1"):
        log.info("inside")
        with bind_request("req-2"):
            log.info("deeper")
        log.info("inside again")
    log.info("after")
    assert [line.get("request_id") for line in objects()] == [None, "req-1", "req-2", "req-1", None]


async def test_requests_that_interleave_keep_their_ids_apart(objects):
    async def serve(request_id, mine, other):
        with bind_request(request_id):
            other.set()
            await mine.wait()
            log.info("in %s", request_id)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(child(request_id))

    async def child(request_id):
        log.info("below %s", request_id)

    first, second = asyncio.Event(), asyncio.Event()
    await asyncio.gather(serve("a", first, second), serve("b", second, first))
    lines = objects()
    assert len(lines) == 4
    assert all(line["message"].endswith(line["request_id"]) for line in lines)


async def test_a_generator_that_is_closed_elsewhere_gives_no_error(objects):
    async def stream():
        with bind_request("req-1"):
            yield 1

    generator = stream()
    await asyncio.create_task(anext(generator))
    await asyncio.create_task(generator.aclose())  # another task, another context
    log.info("after")
    assert "request_id" not in objects()[0]


def test_a_thread_for_many_requests_names_the_one_it_speaks_of(objects):
    def step():
        log.info("preempted", extra={"fields": {"request_id": "req-9"}})

    with bind_request("req-1"):
        thread = threading.Thread(target=step)
        thread.start()
        thread.join()
    assert [line["request_id"] for line in objects()] == ["req-9"]


def test_an_exception_brings_its_traceback(objects):
    try:
        raise ZeroDivisionError("by zero")
    except ZeroDivisionError:
        log.exception("step failed")
    [line] = objects()
    assert line["message"] == "step failed"
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ZeroDivisionError: by zero")


def test_a_text_traceback_follows_its_line(lines):
    setup_logging("info", "text", "decode-0")
    log.error("step failed", exc_info=ZeroDivisionError("by zero"), stack_info=True)
    first, *rest = lines()
    assert first.endswith("step failed")
    assert rest[0] == "ZeroDivisionError: by zero"
    assert rest[1].startswith("Stack (most recent call last)")


def test_fields_that_json_does_not_know_are_described(objects):
    cycle = []
    cycle.append(cycle)
    fields = {
        "set": {1},
        "error": ValueError("bad"),
        "keys": {(1, 2): 3},
        "cycle": cycle,
        "rate": float("nan"),
        7: "seven",
        "kept": 0.5,
        "none": None,
    }
    log.info("odd", extra={"fields": fields})
    [line] = objects()
    assert line["set"] == "{1}"
    assert "bad" in line["error"]
    assert line["keys"] == "{(1, 2): 3}"
    assert line["cycle"] == "[[...]]"
    assert line["rate"] == "nan"
    assert (line["7"], line["kept"], line["none"]) == ("seven", 0.5, None)


def test_a_field_cannot_pose_as_part_of_the_line(objects):
    fields = {"level": "debug", "message": "x", "exception": "y"}
    log.info("true words", extra={"fields": fields})
    [line] = objects()
    assert (line["level"], line["message"]) == ("info", "true words")
    assert "exception" not in line
    assert [line[f"field_{name}"] for name in fields] == ["debug", "x", "y"]


def test_other_scripts_stay_readable(lines):
    setup_logging("info", "json", "router")
    log.info("grüße 🙈")
    assert "grüße 🙈" in lines()[0]


def test_the_level_is_ours_and_libraries_speak_up_from_warning_on(objects):
    setup_logging("debug", "json", "router")
    somebody = logging.getLogger("somebody.elses")
    for logger in (log, logging.getLogger("__main__"), somebody):
        logger.debug("detail")
    somebody.warning("trouble")
    assert [(line["logger"], line["level"]) for line in objects()] == [
        ("router.relay", "debug"),
        ("__main__", "debug"),
        ("somebody.elses", "warning"),
    ]


def test_the_level_silences_libraries_too(objects):
    setup_logging("error", "json", "router")
    log.warning("unheard")
    logging.getLogger("somebody.elses").warning("unheard")
    log.error("heard")
    assert [line["message"] for line in objects()] == ["heard"]


def test_a_second_setup_replaces_the_first_and_nobody_elses(objects):
    stranger = logging.NullHandler()
    logging.getLogger().addHandler(stranger)
    setup_logging("info", "json", "decode-1")
    log.info("once")
    assert [line["process"] for line in objects()] == ["decode-1"]
    assert stranger in logging.getLogger().handlers


def test_a_line_with_wrong_arguments_does_not_stop_the_program(objects, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)
    log.info("%d blocks", "three")
    log.info("goes on")
    assert [line["message"] for line in objects()] == ["goes on"]


def test_the_log_follows_stderr(objects, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", sys.stdout)
    log.info("elsewhere")
    assert json.loads(capsys.readouterr().out)["message"] == "elsewhere"
