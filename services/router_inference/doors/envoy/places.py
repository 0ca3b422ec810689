"""Where gateways reach the endpoints: `ip:port`, as the Endpoint Picker Protocol wants it."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence

from services.common.addresses import HostPort, parse_address
from services.common.clock import Clock
from services.router_inference.view.fleet import FleetView, Target

_RESOLVE_S = 5.0
_RESOLVE_TIMEOUT_S = 2.0


class Names:
    """Addresses of hosts that are known by name, looked up again every few seconds.

    A host of several addresses is known by one of them, which stays while it is among them.
    """

    def __init__(self, clock: Clock) -> None:
        """Knows none."""
        self.version = 0
        self._clock = clock
        self._known: dict[str, str] = {}
        self._wanted: set[str] = set()
        self._news = asyncio.Event()

    def find(self, address: str) -> str:
        """Returns `host:port` as `ip:port`; empty while the host is not known."""
        host, port = parse_address(address)
        try:
            ipaddress.ip_address(host)
        except ValueError:
            if host not in self._wanted:
                self._wanted.add(host)
                self._news.set()
            found = self._known.get(host)
            return str(HostPort(found, port)) if found else ""
        return address

    def keep(self, hosts: Iterable[str]) -> None:
        """Forgets all other hosts."""
        self._wanted.intersection_update(hosts)

    async def run(self) -> None:
        """Looks them up for ever."""
        while True:
            self._news.clear()
            for host in sorted(self._wanted):
                await self._look_up(host)
            waiting = asyncio.ensure_future(self._news.wait())
            pause = asyncio.ensure_future(self._clock.sleep(_RESOLVE_S))
            try:
                await asyncio.wait((waiting, pause), return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiting.cancel()
                pause.cancel()

    async def _look_up(self, host: str) -> None:
        """Looks a host up; what was known stays where that fails."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_RESOLVE_TIMEOUT_S):
                found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError, UnicodeError):
            return
        addresses = [str(entry[4][0]) for entry in found]
        if addresses and self._known.get(host) not in addresses:
            self._known[host] = addresses[0]
            self.version += 1


class Places:
    """The endpoints' HTTP addresses, by endpoint and back; found again when the fleet changes.

    Attributes:
        models: what servers call their models, with the tier that each is; empty for a name that
            stands for every tier. A name of several tiers, but not of all, is not there.
    """

    def __init__(self, fleet: FleetView, names: Names, is_allowed: Callable[[str], bool]) -> None:
        """Takes the fleet, and what tells whether prompts may go to an address."""
        self.names = names
        self._fleet = fleet
        self._is_allowed = is_allowed
        self._targets: tuple[Target, ...] | None = None
        self._version = -1
        self._address: dict[str, str] = {}
        self._by_address: dict[str, list[Target]] = {}
        self._alike: dict[tuple[str, str], frozenset[tuple[str, str]]] = {}
        self._all: frozenset[str] | None = None
        self.models: Mapping[str, str] = {}
        self._only_model = ""

    def allow(self, is_allowed: Callable[[str], bool]) -> None:
        """Takes another rule for addresses."""
        self._is_allowed = is_allowed
        self._targets = None

    def look(self) -> None:
        """Follows the fleet; to be called before what is asked below."""
        if self._fleet.targets is self._targets and self._version == self.names.version:
            return
        self._targets, self._version = self._fleet.targets, self.names.version
        self._address, self._by_address = {}, {}
        for target in self._targets:
            address = self._found(target)
            if address:
                self._address[target.endpoint] = address
                self._by_address.setdefault(address, []).append(target)
        self.names.keep(
            parse_address(each.http_address).host for each in self._targets if each.http_address
        )
        reached = [each for each in self._targets if each.endpoint in self._address]
        self._alike = {each.candidate: self._like(each, reached) for each in reached}
        self._all = None if len(reached) == len(self._targets) else frozenset(self._address)
        self.models = _models(reached)
        self._only_model = reached[0].model if len({each.model for each in reached}) == 1 else ""

    @property
    def endpoints(self) -> frozenset[str] | None:
        """Names of the endpoints that gateways reach; None if those are all."""
        return self._all

    @property
    def is_single(self) -> bool:
        """True if there is one address only."""
        return len(self._by_address) == 1

    def is_only_model(self, name: str) -> bool:
        """Returns whether every server calls whatever it serves by that name."""
        return name == self._only_model

    def subset(self, addresses: Iterable[str]) -> frozenset[str]:
        """Returns the names of the endpoints at some addresses."""
        return frozenset(
            target.endpoint
            for address in addresses
            for target in self._by_address.get(address.strip(), ())
        )

    def address(self, target: Target) -> str:
        """Returns `ip:port` of a target; empty if gateways do not reach it."""
        return self._address.get(target.endpoint, "")

    def alike(self, target: Target) -> frozenset[tuple[str, str]]:
        """Returns the candidates elsewhere that take the same request unchanged."""
        return self._alike.get(target.candidate, frozenset())

    def at(self, address: str, like: Target) -> Target | None:
        """Returns who at an address serves what `like` was sent; None if nobody does."""
        if self._address.get(like.endpoint) == address:
            return like
        for target in self._by_address.get(address, ()):
            if target.model == like.model:
                return target
        return None

    def _found(self, target: Target) -> str:
        http_address = target.http_address
        if not http_address or not self._is_allowed(http_address):
            return ""
        return self.names.find(http_address)

    def _like(self, target: Target, reached: list[Target]) -> frozenset[tuple[str, str]]:
        """Returns the candidates of the same model name at other addresses.

        The name is in the request already, in its path or its body.
        """
        here = self._address[target.endpoint]
        return frozenset(
            each.candidate
            for each in reached
            if each.model == target.model and self._address[each.endpoint] != here
        )


def _models(targets: Sequence[Target]) -> Mapping[str, str]:
    """Returns the names of models by what they stand for; see `Places.models`."""
    tiers_of: dict[str, set[str]] = {}
    for target in targets:
        tiers_of.setdefault(target.model, set()).add(target.tier)
    everything = {target.tier for target in targets}
    found = {name: next(iter(tiers)) for name, tiers in tiers_of.items() if len(tiers) == 1}
    return found | {name: "" for name, tiers in tiers_of.items() if tiers == everything}
