"""What the mesh of these cases stands in: wires, proxies of Triton, clocks, a disk of its own."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from tests.faults.case import Start
from tests.faults.clock import ShiftedClocks
from tests.faults.mesh import ROUTERS, FaultMesh
from tests.faults.relay import Relay
from tests.faults.small_disk import SmallDisk
from tests.faults.triton_proxy import TritonProxy

ROUTER_NAMES = tuple(f"router-inference-{index}" for index in range(ROUTERS))
REDIS, MONITOR, TRAINER = "redis", "load-monitor", "trainer"
DISK_BYTES = 192 * 2**20
_VARIABLE_OF = {
    REDIS: "TIERCEL_MESH__REDIS_URL",
    MONITOR: "TIERCEL_MESH__LOAD_MONITOR_ADDRESS",
    TRAINER: "TIERCEL_MESH__TRAINER_ADDRESS",
}
_ADDRESS_OF = {REDIS: "redis", MONITOR: "load_monitor", TRAINER: "trainer"}
_PAIRS = (
    *((router, whom) for router in ROUTER_NAMES for whom in (REDIS, MONITOR, TRAINER)),
    (MONITOR, REDIS),
    (TRAINER, REDIS),
    (TRAINER, MONITOR),
)


class Surroundings:
    """Stands between all parts of one mesh after another.

    Attributes:
        wires: By (who connects, whom to); ("client", router) is the load's way to a router, and
            ("routers", endpoint) everybody's way to an endpoint.
        proxies: What stands before each endpoint, by its name.
        disk: Disk of the mesh's folder; None where this process may not mount one.
        clocks: Steps of clocks; None without a C compiler.
        variables: Environment of each process, filled before it starts.
    """

    def __init__(self) -> None:
        """Starts nothing yet."""
        self.wires: dict[tuple[str, str], Relay] = {}
        self.proxies: dict[str, TritonProxy] = {}
        self.disk: SmallDisk | None = None
        self.clocks: ShiftedClocks | None = None
        names = (REDIS, MONITOR, TRAINER, *ROUTER_NAMES)
        self.variables: dict[str, dict[str, str]] = {name: {} for name in names}

    def to(self, whom: str, *whos: str) -> list[Relay]:
        """Returns the wires to somebody, from everybody or from those named."""
        return [
            wire
            for (who, target), wire in self.wires.items()
            if target == whom and (not whos or who in whos)
        ]

    def mend(self) -> None:
        """Lets every wire and proxy behave."""
        for wire in self.wires.values():
            wire.mend()
        for proxy in self.proxies.values():
            proxy.mend()

    @contextlib.asynccontextmanager
    async def beneath(self, mesh: FaultMesh) -> AsyncIterator[None]:
        """Lays the disk and the clocks under the mesh before anything of it starts."""
        with contextlib.suppress(OSError):
            self.disk = SmallDisk(mesh.folder, DISK_BYTES)
        with contextlib.suppress(OSError):
            self.clocks = ShiftedClocks(mesh.folder.parent / "clocks")
        for name in self.variables:
            self.variables[name] = dict(self.clocks.variables if self.clocks else {})
        try:
            yield
        finally:
            if self.disk is not None:
                self.disk.close()
            self.disk = self.clocks = None

    @contextlib.asynccontextmanager
    async def around(self, mesh: FaultMesh) -> AsyncIterator[None]:
        """Runs wires and proxies, and tells each process its own."""
        async with contextlib.AsyncExitStack() as stack:

            async def wire(who: str, whom: str, target: str) -> str:
                relay = self.wires[who, whom] = await Relay(target).start()
                stack.push_async_callback(relay.close)
                return relay.address

            stack.callback(self.wires.clear)
            for who, whom in _PAIRS:
                address = await wire(who, whom, mesh.addresses[_ADDRESS_OF[whom]])
                url = f"redis://{address}/0" if whom == REDIS else address
                self.variables[who][_VARIABLE_OF[whom]] = url
            mesh.load_addresses = [
                await wire("client", name, address)
                for name, address in zip(ROUTER_NAMES, mesh.router_addresses, strict=True)
            ]
            stack.callback(self.proxies.clear)
            for name in mesh.endpoint_names:
                proxy = self.proxies[name] = await TritonProxy(
                    mesh.addresses["triton_grpc"]
                ).start()
                stack.push_async_callback(proxy.close)
                await wire("routers", name, proxy.address)
            mesh.added_address = self.to(mesh.endpoint_names[0])[0].address
            yield

    def settings(self, mesh: FaultMesh, document: dict[str, Any]) -> None:
        """Puts each endpoint behind its wire and its proxy."""
        for entry in document["mesh"]["endpoints"]:
            entry["address"] = self.wires["routers", entry["name"]].address


AROUND = Surroundings()
START = Start(
    variables=AROUND.variables,
    settings=AROUND.settings,
    beneath=AROUND.beneath,
    around=AROUND.around,
)
