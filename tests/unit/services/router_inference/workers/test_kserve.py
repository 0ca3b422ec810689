"""What the KServe door tells where several workers answer it."""

from __future__ import annotations

import asyncio

from tritonclient.grpc import service_pb2 as kserve

from services.router_inference.workers.exchange import EACH, Exchange, answer_bytes, read_ask
from services.router_inference.workers.place import Place
from services.router_inference.workers.siblings import NoSiblings
from tests.kserve_requests import infer_request
from tests.unit.services.router_inference.doors.test_servicer import CALL
from tests.unit.services.router_inference.parts import make_rig
from tests.unit.services.router_inference.scenario import scenario


@scenario
async def test_statistics_are_those_of_all_workers() -> None:
    """Two siblings say theirs, joined as the parent joins them; one that says nothing is none."""
    exchange = Exchange()
    place = Place(router_id="r1", epoch=1, siblings=NoSiblings(), number=1, exchange=exchange)
    sibling = make_rig(default_task="hard").core.kserve
    await sibling.ModelInfer(infer_request("small"), CALL)
    other = sibling._statistics.read(["small"]).SerializeToString()
    answers: list[bytes | None] = [other + other, None]

    def send(data: bytes) -> None:
        number, to, body = read_ask(data[5:])
        assert to == EACH
        assert body == b"ModelStatistics\0\0small"
        answer = answer_bytes(number, answers.pop(0))
        asyncio.get_running_loop().call_soon(exchange.on_answer, answer)

    exchange.connect(send)
    door = make_rig(place=place, default_task="hard").core.kserve
    await door.ModelInfer(infer_request("small"), CALL)
    asked = kserve.ModelStatisticsRequest(name="small")
    [found] = (await door.ModelStatistics(asked, CALL)).model_stats
    assert found.inference_count == found.inference_stats.success.count == 3
    [own] = (await door.ModelStatistics(asked, CALL)).model_stats
    assert own.inference_count == 1
    assert found.inference_stats.success.ns == 3 * own.inference_stats.success.ns
    reply = await place.exchange._answers["ModelStatistics"]("ModelStatistics", "", b"small")
    assert kserve.ModelStatisticsResponse.FromString(reply or b"").model_stats[0] == own
