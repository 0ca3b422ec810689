"""What a worker passes on to its siblings."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.common.errors import NotFoundError
from services.router_inference.workers import frames
from services.router_inference.workers.exchange import Exchange, answer_bytes, read_ask
from services.router_inference.workers.place import Place
from services.router_inference.workers.siblings import NoSiblings
from tests.fakes.virtual_time import run_virtual
from tests.unit.services.router_inference.doors.test_servicer import CALL
from tests.unit.services.router_inference.parts import make_rig
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2

UNKNOWN_FIELD = b"\xfa\x7f\x80\x80\x40" + bytes(1024 * 1024)
METHODS: list[tuple[str, Any]] = [
    ("ReportOutcome", pb2.ReportOutcomeRequest(request_id="gone", quality=0.5)),
    ("ExplainDecision", pb2.ExplainDecisionRequest(request_id="gone")),
]


@pytest.mark.parametrize(("method", "request_"), METHODS)
def test_fields_of_another_version_are_not_passed_on(method: str, request_: Any) -> None:
    """A megabyte that means nothing here would go through the parent to every worker."""
    run_virtual(passed_on(method, request_))


async def passed_on(method: str, request_: Any) -> None:
    """Calls a worker with such a field, and looks at what it asks its siblings."""
    exchange = Exchange()
    asked: list[bytes] = []

    def answer(data: bytes) -> None:
        asked.append(data)
        number, _, _ = read_ask(data[5:])
        asyncio.get_running_loop().call_soon(exchange.on_answer, answer_bytes(number, None))

    exchange.connect(answer)
    place = Place(router_id="r1", epoch=1, siblings=NoSiblings(), number=1, exchange=exchange)
    servicer = make_rig(place=place).core.servicer
    large = type(request_).FromString(request_.SerializeToString() + UNKNOWN_FIELD)
    with pytest.raises(NotFoundError):
        await getattr(servicer, method)(large, CALL)
    (sent,) = asked
    assert sent[:1] == frames.ASK
    assert len(sent) < 100
