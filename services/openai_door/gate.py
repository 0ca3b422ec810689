"""Who may ask: keys and tokens are checked here too, before any work, and passed on to routers."""

from __future__ import annotations

from services.common.access.guard import Authenticator
from services.common.access.roles import Role
from services.common.errors import PermissionDeniedError, UnauthenticatedError


class Gate:
    """Checks the key or token of a request.

    Args:
        authenticator: Knows keys and tokens; None takes everybody, and routers decide.
    """

    def __init__(self, authenticator: Authenticator | None) -> None:
        self._authenticator = authenticator

    def check(self, authorization: str) -> None:
        """Lets a request pass.

        Raises:
            UnauthenticatedError: It has no key or token, or none that is known here.
            PermissionDeniedError: Its client may not have requests answered.
        """
        if self._authenticator is None:
            return
        if not authorization:
            raise UnauthenticatedError(
                "this request needs a key: authorization: Bearer KEY", reason="MISSING_CREDENTIALS"
            )
        caller = self._authenticator.of_header(authorization)
        if Role.DATA not in caller.roles:
            text = f"{caller.client}: it needs the role {Role.DATA}"
            raise PermissionDeniedError(text, reason="ROLE_MISSING")
