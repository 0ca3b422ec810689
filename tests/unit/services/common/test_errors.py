"""Domain errors: what their messages and details tell the caller."""

from __future__ import annotations

from urllib.parse import quote

import grpc
import pytest
from google.rpc import error_details_pb2

from services.common.errors import (
    MAX_VIOLATIONS,
    AbortedError,
    AlreadyExistsError,
    DomainError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
    cut,
    status_of,
)
from services.common.state.errors import StateUnavailableError

_HEADER_BYTES = 8 * 1024
LONG = "ü€😀x" * 5_000


class OwnError(FailedPreconditionError):
    """An error some service derives."""


def info_of(error: BaseException) -> error_details_pb2.ErrorInfo:
    """Returns the ErrorInfo, which is always the first detail."""
    info = error_details_pb2.ErrorInfo()
    assert status_of(error).rich.details[0].Unpack(info)
    return info


def test_all_violations_are_named_at_once() -> None:
    """Message and details hold every wrong field."""
    error = InvalidArgumentError("a", "is empty", "1 to 9", more=[("b", "is negative")])
    assert error.message == "a: is empty (limit: 1 to 9); b: is negative"
    bad = error_details_pb2.BadRequest()
    assert status_of(error).rich.details[1].Unpack(bad)
    assert [violation.field for violation in bad.field_violations] == ["a", "b"]


def test_a_long_list_of_known_names_is_cut() -> None:
    """A mesh with many tasks still answers in one short line."""
    error = NotFoundError("task", "x", [f"t{number}" for number in range(100)])
    assert error.message.endswith("t31, and 68 more")
    assert info_of(error).metadata["known"].endswith("and 68 more")


def test_a_time_that_is_unknown_is_left_out() -> None:
    """Without a retry time there is no RetryInfo; a negative one counts as now."""
    assert len(status_of(ResourceExhaustedError("FULL", "1", "2")).rich.details) == 1
    retry = error_details_pb2.RetryInfo()
    status = status_of(ResourceExhaustedError("FULL", "1", "2", retry_after_s=-1.0))
    assert status.rich.details[1].Unpack(retry)
    assert retry.retry_delay.ToNanoseconds() == 0


def test_a_derived_error_has_the_status_of_its_kind() -> None:
    """Services derive errors without touching the table."""
    status = status_of(OwnError("no", reason="OWN"))
    assert (status.code, status.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "OWN")


@pytest.mark.parametrize("error", [KeyError("secret"), DomainError("secret")])
def test_what_is_in_no_row_is_a_bug(error: Exception) -> None:
    """Code INTERNAL, a generic text, marked so that its traceback is logged."""
    status = status_of(error)
    assert (status.code, status.is_bug) == (grpc.StatusCode.INTERNAL, True)
    assert status.rich.message == "internal error"


def test_hosts_of_the_store_stay_inside() -> None:
    """The caller learns that the store is missing, not where it is."""
    status = status_of(StateUnavailableError("Redis cannot be reached: 10.0.0.7:6379"))
    assert "10.0.0.7" not in str(status.rich)


@pytest.mark.parametrize(
    "error",
    [
        InvalidArgumentError("field", LONG, LONG),
        InvalidArgumentError(LONG, LONG, more=[(LONG, LONG)] * 200_000),
        InvalidArgumentError("a", "b", more=((f"loads[{i}]", "no tier") for i in range(200_000))),
        NotFoundError("endpoint", LONG, [LONG] * 1_000),
        NotFoundError("tier", "x" * 5_000, [f"{i}" * 64 for i in range(100)]),
        AlreadyExistsError("endpoint", LONG, LONG),
        ResourceExhaustedError("TOO_MANY", LONG, LONG, 1.0, {f"key{i}": LONG for i in range(99)}),
        UnavailableError("GONE", LONG),
        FailedPreconditionError(LONG),
        AbortedError(LONG),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_answer_fits_the_headers_of_a_call(error: DomainError) -> None:
    """Text and details together stay below what a client takes, in their form on the wire."""
    status = status_of(error).rich
    wire_bytes = len(quote(status.message)) + len(status.SerializeToString()) * 4 / 3
    assert wire_bytes < _HEADER_BYTES - 200


def test_the_first_violations_are_named_and_the_rest_is_not_read() -> None:
    """Twenty mistakes are enough to go on with; the source of more is left alone."""
    taken = iter(range(1_000))
    error = InvalidArgumentError("a", "b", more=((f"f{i}", "wrong") for i in taken))
    (_info, packed) = status_of(error).rich.details
    details = error_details_pb2.BadRequest()
    packed.Unpack(details)
    assert len(details.field_violations) == MAX_VIOLATIONS
    assert next(taken) <= MAX_VIOLATIONS


def test_an_unknown_name_is_cut() -> None:
    """A caller's 5,000 bytes do not come back to it."""
    error = NotFoundError("endpoint", "e" * 5_000, ["gpu0"])
    assert len(error.name) == 64
    assert error.message == f"unknown endpoint {error.name!r}; known: gpu0"


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [("short", 5, "short"), ("longer", 5, "lo..."), ("üüüü", 8, "üüüü"), ("üüüüü", 8, "üü...")],
)
def test_a_cut_text_has_at_most_so_many_bytes(text: str, most: int, expected: str) -> None:
    """It ends in dots, never in half a character."""
    assert cut(text, most) == expected
