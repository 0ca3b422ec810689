"""Every method of every service, called in every role and without one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from tritonclient.grpc import service_pb2 as kserve

from services.common.access.guard import (
    CALLER,
    Authenticator,
    Guard,
    address_without_port,
    authenticated_client,
    check_again,
)
from services.common.access.keys import Key
from services.common.access.roles import GRANTED, ROLE_OF, Role
from services.common.errors import PermissionDeniedError, UnauthenticatedError
from services.common.log import get_logger
from tiercel.envoy.v3 import external_processor_pb2
from tiercel.load_monitor.v1 import load_monitor_service_pb2
from tiercel.router_inference.v1 import router_inference_service_pb2
from tiercel.trainer.v1 import trainer_service_pb2

FILES = (
    router_inference_service_pb2,
    load_monitor_service_pb2,
    trainer_service_pb2,
    external_processor_pb2,
    kserve,
    health_pb2,
    reflection_pb2,
)


def methods() -> Iterator[MethodDescriptor]:
    """Yields every method that our servers have, from the descriptors."""
    for file in FILES:
        for service in file.DESCRIPTOR.services_by_name.values():
            yield from service.methods


METHODS = {f"{each.containing_service.full_name}/{each.name}": each for each in methods()}


class Context:
    """A call as the guard sees it."""

    def __init__(self, *names: str, header: str = "") -> None:
        self.names = [name.encode() for name in names]
        self.header = header

    def peer(self) -> str:
        """Returns where the call comes from."""
        return "ipv4:1.2.3.4:5"

    def peer_identities(self) -> list[bytes] | None:
        """Returns the names in the caller's certificate."""
        return self.names or None

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """Returns the call's metadata."""
        return (("other", "x"), ("authorization", self.header)) if self.header else ()


def guard(operate_address: str = "") -> Guard:
    """Returns a guard that knows one certificate per role, named like it."""
    authenticator = Authenticator(
        keys=None,
        tokens=None,
        certificate_roles={str(role): frozenset({role}) for role in GRANTED},
    )
    return Guard(authenticator, operate_address)


def handler_of(method: MethodDescriptor) -> Any:
    """Returns a handler that answers with the caller's name."""

    async def unary(request: Any, context: Any) -> str:
        caller = CALLER.get(None)
        return "anyone" if caller is None else caller.client

    async def stream(request: Any, context: Any) -> Any:
        yield await unary(request, context)

    if method.client_streaming and method.server_streaming:
        return grpc.stream_stream_rpc_method_handler(stream)
    if method.client_streaming:
        return grpc.stream_unary_rpc_method_handler(unary)
    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(stream)
    return grpc.unary_unary_rpc_method_handler(unary)


async def called(guard: Guard, name: str, context: Context) -> str:
    """Calls a method through a guard and returns what its handler says."""
    handler: Any = guard(name, handler_of(METHODS[name]))
    behaviors = (
        handler.unary_unary,
        handler.unary_stream,
        handler.stream_unary,
        handler.stream_stream,
    )
    (behavior,) = (each for each in behaviors if each is not None)

    async def answer() -> str:
        found = behavior(None, context)
        if hasattr(found, "__anext__"):
            return str(await anext(found))
        return str(await found)

    return await asyncio.create_task(answer())


def test_every_method_has_a_row_and_every_row_a_method() -> None:
    """A new RPC needs a decision about who may call it."""
    assert ROLE_OF.keys() == METHODS.keys()


@pytest.mark.parametrize("name", METHODS)
async def test_a_method_answers_its_role_alone(name: str) -> None:
    """In every other role it is PERMISSION_DENIED, without one UNAUTHENTICATED."""
    needed = ROLE_OF[name]
    for role in GRANTED:
        if needed in (role, Role.ANYONE, Role.CALLER):
            expected = "anyone" if needed is Role.ANYONE else str(role)
            assert await called(guard(), name, Context(str(role))) == expected
        else:
            with pytest.raises(PermissionDeniedError):
                await called(guard(), name, Context(str(role)))
    for nobody in (Context(), Context("stranger"), Context(header="Bearer tck_x")):
        if needed is Role.ANYONE:
            assert await called(guard(), name, nobody) == "anyone"
        else:
            with pytest.raises(UnauthenticatedError):
                await called(guard(), name, nobody)


async def test_a_method_without_a_row_is_for_nobody() -> None:
    """What somebody forgot to decide about is closed."""
    name = "tiercel.router_inference.v1.RouterInferenceService/Generate"
    handler: Any = guard()("tiercel.New/Forgotten", handler_of(METHODS[name]))
    for role in GRANTED:
        with pytest.raises(PermissionDeniedError):
            await handler.unary_unary(None, Context(str(role)))


@pytest.mark.parametrize("name", METHODS)
async def test_operating_calls_are_refused_where_they_have_another_address(name: str) -> None:
    """Whoever asks at the data port, an operator included; other calls are not touched."""
    for here in (guard("127.0.0.1:7420"), Guard(None, "127.0.0.1:7420")):
        needed = ROLE_OF[name]
        caller = Context(str(Role.READ if needed is Role.CALLER else needed))
        if needed is Role.OPERATE:
            with pytest.raises(PermissionDeniedError, match=r"127\.0\.0\.1:7420") as caught:
                await called(here, name, caller)
            assert caught.value.reason == "OPERATE_PORT"
        else:
            await called(here, name, caller)


@pytest.mark.parametrize("name", METHODS)
async def test_who_operates_is_logged(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever it is: by name, or by address where callers are not known. Nobody else is."""
    caplog.set_level("INFO")
    log, needed = get_logger("test"), ROLE_OF[name]
    known = Guard(guard()._authenticator, log=log)
    await called(known, name, Context(str(Role.READ if needed is Role.CALLER else needed)))
    await called(Guard(None, log=log), name, Context())
    told = [(r.message, r.tiercel_fields) for r in caplog.records]  # type: ignore[attr-defined]
    method = name.rpartition("/")[2]
    callers = ("operate", "ipv4:1.2.3.4") if needed is Role.OPERATE else ()
    assert told == [("operating_call", {"method": method, "caller": each}) for each in callers]


async def test_a_call_that_goes_on_is_checked_again() -> None:
    """A key that was revoked meanwhile is none."""
    keys: Any = SimpleNamespace(find=lambda _: Key("id", "shop", (Role.DATA,), "", ""))

    async def behavior(requests: Any, context: Any) -> Any:
        for _ in range(3):
            check_again()
            yield authenticated_client(context)

    handler: Any = grpc.stream_stream_rpc_method_handler(behavior)
    authenticator = Authenticator(keys=keys, tokens=None, certificate_roles={})
    wrapped: Any = Guard(authenticator)("inference.GRPCInferenceService/ModelStreamInfer", handler)
    answers = wrapped.stream_stream(None, Context(header="Bearer tck_x"))
    assert [await anext(answers), await anext(answers)] == ["shop", "shop"]
    keys.find = lambda _: None
    with pytest.raises(UnauthenticatedError):
        await anext(answers)


async def test_a_gateway_that_is_refused_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """It may go on without routers, past every limit, and say nothing of it."""
    known = Guard(guard()._authenticator, log=get_logger("test"))
    for _ in range(2):
        with pytest.raises(PermissionDeniedError, match="gateway"):
            await called(
                known, "envoy.service.ext_proc.v3.ExternalProcessor/Process", Context("data")
            )
    (told,) = caplog.records
    assert told.tiercel_fields == {"caller": "data", "needs": "gateway"}  # type: ignore[attr-defined]


def test_without_authentication_no_handler_is_wrapped() -> None:
    """A request of a mesh that knows no callers pays nothing."""
    for name, method in METHODS.items():
        handler = handler_of(method)
        assert Guard(None)(name, handler) is handler


@pytest.mark.parametrize("peer", ["ipv4:1.2.3.4:5", "ipv4:1.2.3.4:6"])
def test_without_authentication_a_client_is_its_address(peer: str) -> None:
    """All its connections are one client."""
    context: Any = type("Call", (), {"peer": lambda self: peer})()
    assert address_without_port(context) == "ipv4:1.2.3.4"


async def test_a_handler_knows_its_own_caller() -> None:
    """Calls at the same time do not see each other's callers."""
    name = "tiercel.router_inference.v1.RouterInferenceService/Generate"
    both = await asyncio.gather(
        *(called(guard(), name, Context("stranger", "data")) for _ in range(3))
    )
    assert both == ["data"] * 3
    with pytest.raises(LookupError):
        authenticated_client(None)  # type: ignore[arg-type]
