"""Domain errors: what their messages and details tell the caller."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2

from services.common.errors import (
    DomainError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    status_of,
)
from services.common.state.errors import StateUnavailableError


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
