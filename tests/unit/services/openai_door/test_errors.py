"""Errors as OpenAI's clients read them."""

from __future__ import annotations

import json

import grpc
import pytest

from services.common import errors
from services.common.openai.body import not_served
from services.openai_door.errors import HTTP_OF_GRPC, HttpError, problem_of


def test_every_status_of_grpc_has_one_of_http() -> None:
    """But OK, which is no error."""
    assert HTTP_OF_GRPC.keys() == set(grpc.StatusCode) - {grpc.StatusCode.OK}
    assert set(errors.STATUS_BY_ERROR.values()) <= HTTP_OF_GRPC.keys()


@pytest.mark.parametrize(
    ("error", "status", "kind", "param", "code"),
    [
        (
            errors.InvalidArgumentError("seed", "is 1", "0"),
            400, "invalid_request_error", "seed", "invalid_argument",
        ),
        (not_served("n"), 400, "invalid_request_error", "n", "unsupported_parameter"),
        (
            errors.NotFoundError("model", "x", ["y"]),
            404, "not_found_error", "model", "model_not_found",
        ),
        (
            errors.UnauthenticatedError("who?", reason="BAD_CREDENTIALS"),
            401, "authentication_error", None, "bad_credentials",
        ),
        (
            errors.PermissionDeniedError("no", reason="ROLE_MISSING"),
            403, "permission_error", None, "role_missing",
        ),
        (HttpError(413, "TOO_LARGE", "b"), 413, "invalid_request_error", None, "too_large"),
        (HttpError(502, "UNREADABLE", "b"), 502, "server_error", None, "unreadable"),
        (KeyError("secret"), 500, "server_error", None, "internal"),
    ],
)  # fmt: skip
def test_an_error_has_status_type_field_and_code(
    error: Exception, status: int, kind: str, param: str | None, code: str
) -> None:
    """All four, in OpenAI's form; a bug says nothing of itself."""
    problem = problem_of(error)
    assert (problem.status, problem.is_bug) == (status, isinstance(error, KeyError))
    found = json.loads(problem.body())["error"]
    assert found.keys() == {"message", "type", "param", "code"}
    assert (found["type"], found["param"], found["code"]) == (kind, param, code)
    assert found["message"]
    assert "secret" not in found["message"]


def test_when_to_come_again_is_said_in_whole_seconds_and_in_milliseconds() -> None:
    """The first is HTTP's, the second is what OpenAI's clients look at first."""
    error = errors.ResourceExhaustedError("DEADLINE_NOT_REACHABLE", "0.5 s", "0.9 s", 0.0625)
    headers = dict(problem_of(error).all_headers())
    assert (headers[b"retry-after"], headers[b"retry-after-ms"]) == (b"1", b"63")


def test_a_client_whose_deadline_has_passed_is_told_not_to_ask_again() -> None:
    """OpenAI's clients would, twice, by themselves."""
    problem = problem_of(errors.DeadlineExceededError("late"))
    assert problem.status == 504
    assert (b"x-should-retry", b"false") in problem.all_headers()
