"""A switch before a store, which makes it fail."""

from __future__ import annotations

from typing import Any

from services.common.state.errors import StateUnavailableError


class SwitchableStore:
    """Passes calls on to `target`; `is_down = True` makes each raise StateUnavailableError."""

    def __init__(self, target: object) -> None:
        self.target = target
        self.is_down = False

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any, **named: Any) -> Any:
            if self.is_down:
                raise StateUnavailableError("switched off by the test")
            return await getattr(self.target, name)(*arguments, **named)

        return call
