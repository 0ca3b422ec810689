"""Which process this is: the one of its router, or one of several."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.router_inference.workers.exchange import Exchange
from services.router_inference.workers.siblings import NoSiblings


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A process's place in its router.

    Attributes:
        router_id: name of the router, the same for all its workers.
        epoch: start stamp of the router, likewise.
        siblings: the other workers.
        number: of this worker, from 1, the same for its successor; 0 = the router is one process.
        listen: where all workers listen; empty = as the settings say.
        operate_listen: where they take operating calls, likewise.
        envoy_listen: where gateways ask them, likewise.
        exchange: asks the other workers.
    """

    router_id: str
    epoch: int
    siblings: NoSiblings
    number: int = 0
    listen: str = ""
    operate_listen: str = ""
    envoy_listen: str = ""
    exchange: Exchange = field(default_factory=Exchange)

    @property
    def worker_id(self) -> str:
        """Name of this process in what it writes down; no router's name has a slash."""
        return f"{self.router_id}/{self.number}" if self.number else self.router_id

    def number_of(self, worker_id: str, epoch: int) -> int:
        """Returns the number of another worker of this router; 0 if it is none."""
        name, _, number = worker_id.partition("/")
        if (name, epoch) != (self.router_id, self.epoch) or number == str(self.number):
            return 0
        return int(number or 0)
