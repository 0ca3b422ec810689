"""What a command says of a call that failed."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from services.common.access.caller import ROOTS_VARIABLE
from services.local.calls import explain
from services.local.errors import InputError


class Failure(grpc.RpcError):
    """A call's failure, with a reason where the service gave one."""

    def __init__(self, code: grpc.StatusCode, text: str, reason: str = "") -> None:
        super().__init__()
        status = status_pb2.Status(code=code.value[0], message=text)
        if reason:
            packed = any_pb2.Any()
            packed.Pack(error_details_pb2.ErrorInfo(reason=reason))
            status.details.append(packed)
        self._status: Any = rpc_status.to_status(status)

    def code(self) -> Any:
        """Its code."""
        return self._status.code

    def details(self) -> Any:
        """Its text."""
        return self._status.details

    def trailing_metadata(self) -> Any:
        """Where the reason is."""
        return self._status.trailing_metadata


@pytest.mark.parametrize(
    ("part", "command"),
    [("router", "router"), ("load monitor", "monitor"), ("trainer", "trainer")],
)
def test_what_is_not_reached_is_said_with_how_to_start_it(
    part: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also that one which has just begun does not answer yet, and what TLS takes."""
    monkeypatch.delenv(ROOTS_VARIABLE, raising=False)
    said = str(explain(part, "h:1", Failure(grpc.StatusCode.UNAVAILABLE, "connection refused")))
    assert said.startswith(f"no {part} answers at h:1; start it (tiercel up, or tiercel serve ")
    assert f"serve {command})" in said
    assert "wait until it says that it is serving; if it has TLS" in said
    monkeypatch.setenv(ROOTS_VARIABLE, "ca.crt")
    said = str(explain(part, "h:1", Failure(grpc.StatusCode.UNAVAILABLE, "connection refused")))
    assert said.endswith("is serving; it was asked by TLS, by the roots ca.crt")


def test_a_refusal_is_no_failure() -> None:
    """A service that says what stands in the way works; the reason stays for programs."""
    failure = Failure(grpc.StatusCode.FAILED_PRECONDITION, "the gate refused it", "GATE_REFUSED")
    said = str(explain("trainer", "h:1", failure))
    assert said == "the trainer at h:1 refused: the gate refused it (GATE_REFUSED)"


def test_bad_input_is_told_apart_by_its_exit_code() -> None:
    """What the caller got wrong is an InputError, in the service's words alone."""
    error = explain("trainer", "h:1", Failure(grpc.StatusCode.NOT_FOUND, "no policy 'x'"))
    assert isinstance(error, InputError)
    assert str(error) == "no policy 'x'"


def test_the_port_of_another_part_is_told_as_such() -> None:
    """It answers, so nothing is to be started; what it says is of no use."""
    failure = Failure(grpc.StatusCode.UNIMPLEMENTED, "method not found", "METHOD_NOT_FOUND")
    said = str(explain("load monitor", "h:1", failure))
    assert said.startswith("what answers at h:1 does not know this call: it is no load monitor, or")
    assert "METHOD_NOT_FOUND" in said
