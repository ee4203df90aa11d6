"""Which failure becomes which answer."""

from __future__ import annotations

import json

import pytest

from router.errors import DeadlineError, problem_of
from triptych.errors import (
    CapacityError,
    ContextLengthError,
    ModelError,
    RequestError,
    WorkerError,
)


@pytest.mark.parametrize(
    ("error", "status", "kind", "param", "code"),
    [
        (RequestError("n: bad", param="n"), 400, "invalid_request_error", "n", None),
        (
            ContextLengthError("too long", param="prompt"),
            400,
            "invalid_request_error",
            "prompt",
            "context_length_exceeded",
        ),
        (
            RequestError("model: no", param="model", code="model_not_found"),
            404,
            "invalid_request_error",
            "model",
            "model_not_found",
        ),
        (CapacityError("full"), 503, "overloaded_error", None, "no_capacity"),
        (WorkerError("died"), 502, "server_error", None, "worker_failed"),
        (ModelError("gone"), 502, "server_error", None, "worker_failed"),
        (DeadlineError("late"), 504, "timeout_error", None, "deadline_exceeded"),
    ],
)
def test_every_error_of_ours_has_its_status(
    error: Exception, status: int, kind: str, param: str | None, code: str | None
) -> None:
    problem = problem_of(error)
    assert problem.status == status
    assert json.loads(problem.body()) == {
        "error": {"message": str(error), "type": kind, "param": param, "code": code}
    }


def test_no_capacity_says_when_to_try_again() -> None:
    assert problem_of(CapacityError("full")).headers["Retry-After"] == "1"


def test_a_bug_of_ours_tells_nothing_about_itself() -> None:
    problem = problem_of(KeyError("secret"))
    assert problem.status == 500
    assert b"secret" not in problem.body()
