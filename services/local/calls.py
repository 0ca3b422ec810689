"""Blocking control calls to the services of a mesh, with failures as one-line errors."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import grpc

from services.common.access.caller import Caller, CallerError
from services.common.channels import open_blocking_channel
from services.local.errors import CommandError, InputError, NotReachedError
from tiercel.errors import from_rpc_error
from tiercel.load_monitor.v1 import load_monitor_service_pb2_grpc as monitor_grpc
from tiercel.router_inference.v1 import router_inference_service_pb2_grpc as router_grpc
from tiercel.trainer.v1 import trainer_service_pb2_grpc as trainer_grpc

TIMEOUT_S = 3.0
_STUBS: dict[str, Any] = {
    "router": router_grpc.RouterInferenceServiceStub,
    "load monitor": monitor_grpc.LoadMonitorServiceStub,
    "trainer": trainer_grpc.TrainerServiceStub,
}
_INPUT_CODES = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
)


@contextlib.contextmanager
def connected(part: str, address: str) -> Iterator[Any]:
    """Opens a channel and yields the stub of ``router``, ``load monitor`` or ``trainer``.

    Raises:
        InputError: The service refused what was asked for, or a certificate cannot be used.
        CommandError: It is not reached, or failed.
    """
    try:
        credentials = Caller.of_environment(os.environ).credentials(address)
    except CallerError as error:
        raise InputError(str(error)) from None
    with open_blocking_channel(address, credentials) as channel:
        try:
            yield _STUBS[part](channel)
        except grpc.RpcError as error:
            raise explain(part, address, error) from None


def call(part: str, address: str, method: str, request: Any, timeout_s: float = TIMEOUT_S) -> Any:
    """Makes one unary call; raises what ``connected`` does."""
    with connected(part, address) as stub:
        return getattr(stub, method)(request, timeout=timeout_s)


def nobody_answers(part: str, address: str) -> NotReachedError:
    """Returns the error of a service that is not reached, with what may help."""
    command = part.removeprefix("load ")
    roots = Caller.of_environment(os.environ).roots
    by_tls = f"it was asked by TLS, by the roots {roots}"
    in_plain = "if it has TLS: tiercel --root-certificates FILE ..."
    return NotReachedError(
        f"no {part} answers at {address}; start it (tiercel up, or tiercel serve {command}), or "
        f"wait until it says that it is serving; {by_tls if roots else in_plain}"
    )


def explain(part: str, address: str, error: Any) -> CommandError:
    """Turns a gRPC failure into the error a command ends with."""
    failure = from_rpc_error(error)
    if error.code() in _INPUT_CODES:
        return InputError(error.details() or str(failure))
    if failure.reason == "TRANSPORT" and error.code() is grpc.StatusCode.UNAVAILABLE:
        return nobody_answers(part, address)
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return CommandError(f"the {part} at {address} did not answer in time")
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        # Mostly the port of another part: a mesh has many.
        return CommandError(
            f"what answers at {address} does not know this call: it is no {part}, or one of an "
            f"earlier version ({failure.reason})"
        )
    if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
        # It works as it should, and says what stands in the way.
        return CommandError(
            f"the {part} at {address} refused: {error.details()} ({failure.reason})"
        )
    return CommandError(f"the {part} at {address} failed: {failure}")
