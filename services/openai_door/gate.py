"""Who may ask: keys and tokens are checked here too, before any work, and passed on to routers."""

from __future__ import annotations

from collections.abc import Callable

from services.common.access.guard import Authenticator
from services.common.access.roles import Role
from services.common.errors import PermissionDeniedError, UnauthenticatedError
from services.common.http_host import REASON_HOST, host_problem


class Gate:
    """Checks the key or token of a request.

    Args:
        authenticator: Knows keys and tokens; None takes everybody, and routers decide.
        is_own_host: Tells whether a request's host is one that this door may be asked by.
    """

    def __init__(
        self,
        authenticator: Authenticator | None,
        is_own_host: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._authenticator = authenticator
        self._is_own_host = is_own_host

    def check(self, authorization: str, host: str = "") -> None:
        """Lets a request pass. A key is asked for, or a host that is this machine's.

        Raises:
            UnauthenticatedError: It has no key or token, or none that is known here.
            PermissionDeniedError: Its client may not have requests answered, or its host is none.
        """
        if self._authenticator is None:
            self.check_host(host)
            return
        if not authorization:
            raise UnauthenticatedError(
                "this request needs a key: authorization: Bearer KEY", reason="MISSING_CREDENTIALS"
            )
        caller = self._authenticator.of_header(authorization)
        if Role.DATA not in caller.roles:
            text = f"{caller.client}: it needs the role {Role.DATA}"
            raise PermissionDeniedError(text, reason="ROLE_MISSING")

    def check_host(self, host: str) -> None:
        """Lets a request pass whose host is one that this door may be asked by.

        Raises:
            PermissionDeniedError: It is none.
        """
        if not self._is_own_host(host):
            raise PermissionDeniedError(host_problem(host), reason=REASON_HOST)
