"""In front of every method: who calls, and may they?

Handlers are wrapped as they are registered. Where there is nothing to check they are left as they
are, so a mesh without authentication pays nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import grpc
import grpc.aio

from services.common.access.keys import PREFIX, KeyRing
from services.common.access.roles import ROLE_OF, Role
from services.common.access.tokens import TokenReader
from services.common.errors import PermissionDeniedError, UnauthenticatedError
from services.common.log import Logger

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Metadata: TypeAlias = "Iterable[tuple[str, str | bytes]]"

_HEADER = "authorization"
_SCHEME = "bearer "
_TOKEN_ROLES = frozenset({Role.DATA})


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls.

    Attributes:
        client: Name of a client, or of a service.
        roles: What it may do.
    """

    client: str
    roles: frozenset[Role]


CALLER: ContextVar[Caller] = ContextVar("caller")
"""The authenticated caller of the call that runs; each call has a context of its own."""
_CHECK: ContextVar[Callable[[], None]] = ContextVar("check")


def address_without_port(context: Context) -> str:
    """Returns the address of a call's peer: one client for all its connections."""
    return str(context.peer().rpartition(":")[0])


def authenticated_client(_: Context) -> str:
    """Returns the name of the authenticated caller of the call that runs."""
    return CALLER.get().client


def caller_name(context: Context) -> str:
    """Returns who calls: the authenticated caller, else the address of the call's peer."""
    caller = CALLER.get(None)
    return address_without_port(context) if caller is None else caller.client


def check_again() -> None:
    """Checks once more who makes the call that runs, where its messages come one after another.

    Raises:
        UnauthenticatedError: Its key was revoked since, or its token has ended.
        PermissionDeniedError: It may not make the call any more.
    """
    check = _CHECK.get(None)
    if check is not None:
        check()


def ticket_holder() -> str:
    """Returns whose tickets the caller of the call that runs may close; empty for everybody's.

    Those are all where callers are not known, and all for a service of the mesh.
    """
    caller = CALLER.get(None)
    return "" if caller is None or Role.REPORT in caller.roles else caller.client


class Authenticator:
    """Tells callers by certificate, key or token.

    Args:
        keys: API keys; None if there are none.
        tokens: JSON Web Tokens; None if they are not taken.
        certificate_roles: Roles by a name in the caller's certificate.
    """

    def __init__(
        self,
        *,
        keys: KeyRing | None,
        tokens: TokenReader | None,
        certificate_roles: Mapping[str, frozenset[Role]],
    ) -> None:
        self._keys = keys
        self._tokens = tokens
        self._by_certificate = {
            name.encode(): Caller(name, roles) for name, roles in certificate_roles.items()
        }

    def identify(self, context: Context) -> Caller:
        """Returns who calls; raises UnauthenticatedError if nobody can tell."""
        for name in context.peer_identities() or ():
            known = self._by_certificate.get(name)
            if known is not None:
                return known
        return self._of_metadata(context.invocation_metadata() or ())

    def is_stranger(self, metadata: Metadata) -> bool:
        """Returns whether a call without a certificate is nobody's that is known."""
        try:
            self._of_metadata(metadata)
        except UnauthenticatedError:
            return True
        return False

    def _of_metadata(self, metadata: Metadata) -> Caller:
        for entry, value in metadata:
            if entry == _HEADER and isinstance(value, str):
                return self.of_header(value)
        raise UnauthenticatedError(
            "this call needs a key or a certificate", reason="MISSING_CREDENTIALS"
        )

    def of_header(self, value: str) -> Caller:
        """Returns whose key or token an `authorization` header holds.

        Raises:
            UnauthenticatedError: It is not known here.
        """
        text = value[len(_SCHEME) :]
        if value[: len(_SCHEME)].lower() == _SCHEME:
            if text.startswith(PREFIX):
                key = None if self._keys is None else self._keys.find(text)
                if key is not None:
                    return Caller(key.client, frozenset(key.roles))
            elif self._tokens is not None:
                client = self._tokens.client_of(text)
                if client is not None:
                    return Caller(client, _TOKEN_ROLES)
        raise UnauthenticatedError("the key or token is not known here", reason="BAD_CREDENTIALS")


class Guard:
    """Wraps handlers of one listener.

    Args:
        authenticator: Tells callers; None takes everybody.
        operate_address: Where operating calls are served instead; empty serves them here.
        log: Where it is said who makes operating calls; None says it nowhere.
    """

    def __init__(
        self,
        authenticator: Authenticator | None,
        operate_address: str = "",
        log: Logger | None = None,
    ) -> None:
        self._authenticator = authenticator
        self._operate_address = operate_address
        self._log = log
        self._has_told_of_gateway = False

    def __call__(self, method: str, handler: Handler) -> Handler:
        """Returns the handler of a method (`package.Service/Method`) with its check before it."""
        role = ROLE_OF.get(method)
        if role is Role.OPERATE and self._operate_address:
            return _checked(handler, self._refuse_operating)
        if role is Role.OPERATE and self._authenticator is None and self._log is not None:
            return _checked(handler, partial(self._tell, method))
        if role is Role.ANYONE or self._authenticator is None:
            return handler
        authenticator = self._authenticator

        def check(context: Context) -> None:
            caller = authenticator.identify(context)
            if role is not Role.CALLER and role not in caller.roles:
                if role is Role.GATEWAY:
                    self._tell_of_gateway(caller)
                needed = "nobody may call this" if role is None else f"it needs the role {role}"
                raise PermissionDeniedError(f"{caller.client}: {needed}", reason="ROLE_MISSING")
            CALLER.set(caller)
            if handler.request_streaming:
                _CHECK.set(partial(check, context))
            if role is Role.OPERATE:
                self._tell(method, context)

        return _checked(handler, check)

    def _tell(self, method: str, context: Context) -> None:
        if self._log is not None:
            name = method.rpartition("/")[2]
            self._log.info("operating_call", method=name, caller=caller_name(context))

    def _tell_of_gateway(self, caller: Caller) -> None:
        """Says once that a gateway is refused: it may go on without routers, and say nothing."""
        if self._log is not None and not self._has_told_of_gateway:
            self._has_told_of_gateway = True
            self._log.warning("gateway_refused", caller=caller.client, needs=Role.GATEWAY.value)

    def _refuse_operating(self, _: Context) -> None:
        raise PermissionDeniedError(
            f"this call is served at {self._operate_address} only", reason="OPERATE_PORT"
        )


def _checked(handler: Handler, check: Any) -> Handler:
    take, give = handler.request_deserializer, handler.response_serializer
    if handler.request_streaming and handler.response_streaming:
        behavior = _before(handler.stream_stream, check)
        return grpc.stream_stream_rpc_method_handler(behavior, take, give)
    if handler.request_streaming:
        behavior = _before(handler.stream_unary, check)
        return grpc.stream_unary_rpc_method_handler(behavior, take, give)
    if handler.response_streaming:
        behavior = _before(handler.unary_stream, check)
        return grpc.unary_stream_rpc_method_handler(behavior, take, give)
    return grpc.unary_unary_rpc_method_handler(_before(handler.unary_unary, check), take, give)


def _before(behavior: Any, check: Any) -> Any:
    """Returns a behavior that checks first and is of the same kind."""
    if inspect.iscoroutinefunction(behavior):

        async def answer(request: Any, context: Context) -> Any:
            check(context)
            return await behavior(request, context)

        return answer

    def stream(request: Any, context: Context) -> Any:
        check(context)
        return behavior(request, context)

    return stream
