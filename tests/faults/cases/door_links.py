"""The network between doors and those they ask, which fails while the doors are asked."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from tests.faults import packets
from tests.faults.case import Expect, Start
from tests.faults.cases import doors
from tests.faults.cases.network import CUT_ENDS, ENDS, IS_CUT, LOSES, TAKES, cut, lose, slow
from tests.faults.cases.processes import BUSY, NO_TIER
from tests.faults.mesh import FaultMesh
from tests.faults.relay import Relay

_OPENAI, _PICKERS, _TIERS = "openai-door to routers", "Envoy to routers", "Envoy to endpoints"
_BROKEN = frozenset({"HTTP_503", "HTTP_504"})
"""What Envoy says of a request whose endpoint it could not reach, or did not hear of in time."""


class DoorLinks:
    """Wires between doors and those they ask, in one mesh after another.

    Attributes:
        wires: By link, one for each who is asked.
    """

    def __init__(self) -> None:
        """Starts nothing yet."""
        self.wires: dict[str, list[Relay]] = {}

    def of(self, *links: str) -> Sequence[Relay]:
        """Returns the wires of some links."""
        return [wire for link in links for wire in self.wires[link]]

    @contextlib.asynccontextmanager
    async def around(self, mesh: FaultMesh) -> AsyncIterator[None]:
        """Runs the wires, and tells Envoy its own."""
        targets = {
            _OPENAI: mesh.router_addresses,
            _PICKERS: mesh.picker_addresses,
            _TIERS: [mesh.addresses["triton_http"]] * len(mesh.endpoint_names),
        }
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self.wires.clear)
            for link, addresses in targets.items():
                self.wires[link] = []
                for address in addresses:
                    self.wires[link].append(wire := await Relay(address).start())
                    stack.push_async_callback(wire.close)
            mesh.behind_envoy["pickers"] = self._addresses(_PICKERS)
            mesh.behind_envoy["tiers"] = self._addresses(_TIERS)
            yield

    def settings(self, mesh: FaultMesh, document: dict[str, Any]) -> None:
        """Puts routers behind the OpenAI-shaped door's wires, and endpoints behind Envoy's."""
        document["openai_door"]["routers"] = self._addresses(_OPENAI)
        endpoints = document["mesh"]["endpoints"]
        for entry, address in zip(endpoints, self._addresses(_TIERS), strict=True):
            if mesh.options.envoy:
                entry["http_address"] = address

    def _addresses(self, link: str) -> list[str]:
        return [wire.address for wire in self.wires[link]]


_LINKS = DoorLinks()
_START = Start(doors=True, settings=_LINKS.settings, around=_LINKS.around)


def _openai() -> Sequence[Relay]:
    return _LINKS.of(_OPENAI)


def _pickers() -> Sequence[Relay]:
    return _LINKS.of(_PICKERS)


def _endpoint() -> Sequence[Relay]:
    return _LINKS.of(_TIERS)[:1]


def _envoy() -> Sequence[Relay]:
    return _LINKS.of(_PICKERS, _TIERS)


def _loss_in_envoy() -> str:
    return doors.no_envoy() or packets.problem()


CASES = [
    doors.case(
        "openai", "cut-routers", f"network between the openai-door and both routers {IS_CUT}",
        CUT_ENDS, cut(_openai),
        Expect(
            reasons=BUSY | {"TRANSPORT_DEADLINE_EXCEEDED", "NO_ANSWER", "NO_ROUTER"},
            on_time_share=0.6,
            recovery_s=3.0,
        ),
        start=_START,
    ),
    doors.case(
        "openai", "network-slow", f"every link between the openai-door and routers takes {TAKES}",
        ENDS, slow(_openai), Expect(on_time_share=0.99),
        start=_START,
    ),
    doors.case(
        "openai", "network-loss", f"every link between the openai-door and routers loses {LOSES}",
        ENDS, lose(_openai), Expect(on_time_share=0.97),
        start=_START, needs=packets.problem,
    ),
    doors.case(
        "envoy", "cut-routers",
        f"network between Envoy and both routers {IS_CUT}: Envoy sends requests to the tier that"
        " its configuration names",
        CUT_ENDS, cut(_pickers), Expect(on_time_share=0.97),
        start=_START, check=doors.went_on_without,
    ),
    doors.case(
        "envoy", "cut-endpoint", f"network between Envoy and one of two endpoints {IS_CUT}",
        CUT_ENDS, cut(_endpoint),
        Expect(reasons=NO_TIER | _BROKEN, on_time_share=0.8, recovery_s=3.0, whole_s=15.0),
        start=_START,
    ),
    doors.case(
        "envoy", "network-slow", f"every link between Envoy, routers and endpoints takes {TAKES}",
        ENDS, slow(_envoy), Expect(on_time_share=0.99),
        start=_START,
    ),
    doors.case(
        "envoy", "network-loss", f"every link between Envoy, routers and endpoints loses {LOSES}",
        ENDS, lose(_envoy),
        # The greeting of a new connection is said again after a second, and not waited for so long.
        Expect(reasons=NO_TIER | _BROKEN, on_time_share=0.9),
        start=_START, needs=_loss_in_envoy,
    ),
]  # fmt: skip
