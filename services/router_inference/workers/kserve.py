"""The KServe door where several workers answer it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tritonclient.grpc import service_pb2 as kserve

from services.router_inference.doors.kserve.servicer import KserveServicer
from services.router_inference.doors.kserve.statistics import add
from services.router_inference.workers.exchange import EACH
from services.router_inference.workers.place import Place

_METHOD = "ModelStatistics"


class WorkerKserveServicer(KserveServicer):
    """Counts what all workers count; everything else concerns one of them."""

    def __init__(self, *, place: Place, **parts: Any) -> None:
        """Takes its place, and the parts of the door."""
        super().__init__(**parts)
        self._exchange = place.exchange
        place.exchange.answer_with(self._own_statistics, (_METHOD,))

    async def _statistics_of(self, names: Sequence[str]) -> kserve.ModelStatisticsResponse:
        """Returns the statistics of some models, those of the workers that run now."""
        found = await super()._statistics_of(names)
        others = await self._exchange.ask(EACH, _METHOD, "", b"\n".join(map(str.encode, names)))
        if others is not None:
            add(found, kserve.ModelStatisticsResponse.FromString(others))
        return found

    async def _own_statistics(self, method: str, client: str, message: bytes) -> bytes:
        """Answers a sibling."""
        found = self._statistics.read(message.decode().split("\n"))
        return bytes(found.SerializeToString())
