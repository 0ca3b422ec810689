"""The clients of the endpoints that a router knows."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Collection, Mapping

from router.fleet import EndpointProtocol
from services.common.access.tls import Tls
from services.common.openai.client import OpenAIClient
from services.common.tiers.client import ForbiddenClient, TierClient
from services.common.triton.client import TritonClient

Spoken = tuple[str, EndpointProtocol]
"""An address and what is spoken there."""
_LEAVE_STEP_S = 1.0


class ClientPool:
    """One client per address, made at first use, closed when the address is used no more."""

    def __init__(
        self,
        cancel_grace_s: float = 0.0,
        most_idle: int = 0,
        tls: Tls | None = None,
        is_allowed: Callable[[str], bool] = lambda _: True,
        api_keys: Mapping[str, str] | None = None,
    ) -> None:
        """Opens nothing.

        Args:
            cancel_grace_s: See `TritonClient`.
            most_idle: How many streams or connections of an address wait for a next request.
            tls: Certificates; None means plain text.
            is_allowed: Tells whether prompts may go to an address, whatever the monitor says.
            api_keys: Keys that servers want, by address.
        """
        self._is_allowed = is_allowed
        self._api_keys = api_keys or {}
        self._cancel_grace_s = cancel_grace_s
        self._most_idle = most_idle
        self._tls = tls
        self._clients: dict[Spoken, TierClient] = {}
        self._leaving: set[asyncio.Task[None]] = set()

    def keep(self, used: Collection[Spoken]) -> None:
        """Lets go of all other clients, once they have ended their requests."""
        for spoken in self._clients.keys() - used:
            self._let_go(spoken)

    def _let_go(self, spoken: Spoken) -> None:
        task = asyncio.create_task(self._leave(self._clients.pop(spoken)))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _leave(self, client: TierClient) -> None:
        try:
            while client.busy_count:
                await asyncio.sleep(_LEAVE_STEP_S)
        finally:
            await client.close()
        if len(self._leaving) == 1:
            # gRPC's calls that were cancelled are circles that keep the connection open, and a
            # router's collector hardly ever looks at what has lived for long. It takes some 20 ms.
            gc.collect()

    def get(self, address: str, protocol: EndpointProtocol = EndpointProtocol.TRITON) -> TierClient:
        """Returns the client of an address; that of one that is not allowed sends nothing."""
        client = self._clients.get((address, protocol))
        if client is None:
            client = self._clients[address, protocol] = self._new(address, protocol)
        return client

    def _new(self, address: str, protocol: EndpointProtocol) -> TierClient:
        if not self._is_allowed(address):
            return ForbiddenClient(address)
        if protocol is EndpointProtocol.OPENAI:
            return OpenAIClient(
                address,
                most_idle_connections=self._most_idle,
                tls=self._tls,
                api_key=lambda: self._api_keys.get(address, ""),
            )
        return TritonClient(
            address,
            cancel_grace_s=self._cancel_grace_s,
            most_idle_streams=self._most_idle,
            tls=self._tls,
        )

    def allow(self, is_allowed: Callable[[str], bool], api_keys: Mapping[str, str]) -> None:
        """Takes another rule for addresses, and keys; calls under way end by the old ones."""
        self._is_allowed = is_allowed
        self._api_keys = api_keys
        for spoken, client in list(self._clients.items()):
            if is_allowed(spoken[0]) == isinstance(client, ForbiddenClient):
                self._let_go(spoken)

    async def close(self) -> None:
        """Closes every client."""
        for task in self._leaving:
            task.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)
        await asyncio.gather(*(client.close() for client in self._clients.values()))
