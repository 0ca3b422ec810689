"""docs/doors.md row by row: every door does what its table says, and nothing that it denies."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from tritonclient.grpc import service_pb2 as kserve
from tritonclient.grpc import service_pb2_grpc as kserve_grpc

from router.types import Priority
from services.common.priorities import MESSAGE
from services.common.telemetry import Telemetry
from services.openai_door.errors import HTTP_OF_GRPC
from services.router_inference.records.accounts import PRIORITIES
from tests.fakes.openai_door import RunningDoor, door_toml, running_door
from tests.fakes.router_process import RunningRouter, mesh_toml, running_router
from tests.fakes.triton import FakeTriton, Script
from tests.kserve_requests import infer_request, outputs_of, said
from tests.unit.deploy.manifests import ROOT
from tests.waiting import until
from tiercel.common.v1 import common_pb2
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2

PAGE = ROOT / "docs" / "doors.md"
CALL_S = 60.0
TRACE = "0af7651916cd43dd8448eb211c80319c"
# The default deadline of a task here; requests that are about something else have time.
LONG_S = 30.0
TRITONS_NUMBER = {"high": 1, "normal": 2, "low": 3}


def table() -> dict[tuple[str, str], bool]:
    """Returns what the page says, by row and door."""
    text = PAGE.read_text(encoding="utf-8")
    block = text.split("<!-- begin features -->")[1].split("<!-- end features -->")[0]
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in block.strip().splitlines()
    ]
    claims = {}
    for name, *cells in rows:
        for door, cell in zip(head[1:], cells, strict=True):
            assert cell.startswith(("yes", "no")), f"{name}, {door}: neither yes nor no"
            claims[re.sub(r"\W+", " ", name).strip(), door] = cell.startswith("yes")
    return claims


class Answer:
    """What a door said.

    Attributes:
        text: the answer.
        piece_count: in how many messages it came.
        tier: who answered.
        is_rescued: whether that was a rescue.
        is_on_time: whether the deadline was met.
        stay: what became of its conversation.
    """

    def __init__(
        self,
        text: str,
        piece_count: int,
        tier: str,
        *,
        is_rescued: bool,
        is_on_time: bool,
        stay: str | None,
    ) -> None:
        self.text, self.piece_count, self.tier, self.stay = text, piece_count, tier, stay
        self.is_rescued, self.is_on_time = is_rescued, is_on_time


class OwnDoor:
    """The router's own service."""

    name = "own gRPC"

    def __init__(self, router: RunningRouter) -> None:
        self.router = router
        self._stub = router.stub

    @property
    def streams_requests(self) -> bool:
        """Whether one call can carry many requests."""
        service = pb2.DESCRIPTOR.services_by_name["RouterInferenceService"]
        return any(method.client_streaming for method in service.methods)

    @property
    def decides_alone(self) -> bool:
        """Whether there is a decision without an answer."""
        return hasattr(self._stub, "Route")

    def call(self, *, stream: bool = False, **wishes: Any) -> Any:
        """Begins a call."""
        spec = pb2.GenerationSpec(prompt="hello", task=wishes.get("task", "piqa"))
        spec.tier = wishes.get("tier", "")
        spec.quality_floor = wishes.get("floor", 0.0)
        spec.max_output_tokens = 1_000
        spec.conversation_id = wishes.get("conversation", "")
        if "priority" in wishes:
            spec.priority = MESSAGE[Priority[wishes["priority"].upper()]]
        if "deadline_s" in wishes:
            spec.deadline.FromMilliseconds(round(wishes["deadline_s"] * 1e3))
        if wishes.get("is_first_token"):
            spec.slo_kind = common_pb2.SLO_KIND_FIRST_TOKEN
        if "interval_s" in wishes:
            spec.slo_kind = common_pb2.SLO_KIND_PER_TOKEN
            spec.token_interval.FromMilliseconds(round(wishes["interval_s"] * 1e3))
        options = {"metadata": wishes.get("metadata"), "timeout": CALL_S}
        if stream:
            return self._stub.GenerateStream(pb2.GenerateStreamRequest(spec=spec), **options)
        return self._stub.Generate(pb2.GenerateRequest(spec=spec), **options)

    async def ask(self, **wishes: Any) -> Answer:
        """Returns what comes of a request."""
        call = self.call(**wishes)
        pieces = []
        if wishes.get("stream"):
            async for message in call:
                if message.WhichOneof("event") == "chunk":
                    pieces.append(message.chunk.text)
                else:
                    done = message.completion
        else:
            response = await call
            pieces, done = [response.text], response.completion
        return Answer(
            "".join(pieces),
            len(pieces),
            done.tier,
            is_rescued=done.rescued,
            is_on_time=done.on_time,
            stay=common_pb2.ConversationStay.Name(done.conversation_stay)[18:].lower(),
        )


class KserveDoor:
    """Triton's service."""

    name = "KServe v2"
    decides_alone = False

    def __init__(self, router: RunningRouter) -> None:
        self.router = router
        self._stub: Any = kserve_grpc.GRPCInferenceServiceStub(router.channel)

    @property
    def streams_requests(self) -> bool:
        """Whether one call can carry many requests."""
        service = kserve.DESCRIPTOR.services_by_name["GRPCInferenceService"]
        return any(method.client_streaming for method in service.methods)

    def call(self, *, stream: bool = False, **wishes: Any) -> Any:
        """Begins a call."""
        parameters: dict[str, Any] = {"tiercel_task": wishes.get("task", "piqa")}
        if "priority" in wishes:
            parameters["priority"] = TRITONS_NUMBER[wishes["priority"]]
        if "deadline_s" in wishes:
            parameters["tiercel_deadline_ms"] = wishes["deadline_s"] * 1e3
        if "floor" in wishes:
            parameters["tiercel_quality_floor"] = wishes["floor"]
        if "conversation" in wishes:
            parameters["tiercel_conversation_id"] = wishes["conversation"]
        if wishes.get("is_first_token"):
            parameters["tiercel_slo_kind"] = "first_token"
        if "interval_s" in wishes:
            parameters["tiercel_slo_kind"] = "per_token"
            parameters["tiercel_token_interval_ms"] = wishes["interval_s"] * 1e3
        request = infer_request(
            wishes.get("tier", "tiercel"),
            sampling=b'{"max_tokens": 1000}',
            parameters=parameters,
            exclude_input_in_output=True,
            stream=stream,
        )
        options: dict[str, Any] = {"metadata": wishes.get("metadata"), "timeout": CALL_S}
        if stream:
            by_status = (("triton_grpc_error", "true"), *(options["metadata"] or ()))
            requests = [request] * wishes.get("times", 1)
            options["metadata"] = by_status
            return self._stub.ModelStreamInfer(iter(requests), **options)
        return self._stub.ModelInfer(request, **options)

    async def ask(self, **wishes: Any) -> Answer:
        """Returns what comes of a request."""
        call = self.call(**wishes)
        if wishes.get("stream"):
            responses = [message.infer_response async for message in call]
        else:
            responses = [await call]
        texts = [outputs_of(response)["text_output"] for response in responses]
        done = said(responses[-1])
        return Answer(
            b"".join(texts).decode(),  # type: ignore[arg-type]
            sum(bool(text) for text in texts),
            done["tiercel_tier"],
            is_rescued=done.get("tiercel_rescued", False),
            is_on_time=done["tiercel_on_time"],
            stay=done.get("tiercel_conversation_stay"),
        )


class RefusedError(Exception):
    """An answer of HTTP that is an error, with the gRPC status it was made from."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self._status = status

    def code(self) -> grpc.StatusCode:
        """The first gRPC status that the door answers so."""
        return next(code for code, (status, _) in HTTP_OF_GRPC.items() if status == self._status)


class OpenAiDoor:
    """The service for OpenAI's clients, before the router."""

    name = "OpenAI-shaped"
    streams_requests = False
    decides_alone = False

    def __init__(self, router: RunningRouter, door: RunningDoor) -> None:
        self.router = router
        self._client = door.client

    def call(self, *, stream: bool = False, **wishes: Any) -> Any:
        """Begins a call."""
        return asyncio.ensure_future(self.ask(stream=stream, **wishes))

    async def ask(self, *, stream: bool = False, **wishes: Any) -> Answer:
        """Returns what comes of a request."""
        task = wishes.get("task", "piqa")
        headers = {"x-tiercel-task": task} if "tier" in wishes else {}
        headers |= dict(wishes.get("metadata", ()))
        if "deadline_s" in wishes:
            headers["x-tiercel-deadline-ms"] = str(wishes["deadline_s"] * 1e3)
        if "floor" in wishes:
            headers["x-tiercel-quality-floor"] = str(wishes["floor"])
        if "conversation" in wishes:
            headers["x-tiercel-conversation-id"] = wishes["conversation"]
        if wishes.get("is_first_token"):
            headers["x-tiercel-slo-kind"] = "first_token"
        if "interval_s" in wishes:
            headers["x-tiercel-slo-kind"] = "per_token"
            headers["x-tiercel-token-interval-ms"] = str(wishes["interval_s"] * 1e3)
        if "priority" in wishes:
            headers["x-tiercel-priority"] = wishes["priority"]
        body = {"model": wishes.get("tier", f"tiercel/{task}"), "prompt": "hello", "stream": stream}
        response = await self._client.post(
            "/v1/completions", json={**body, "max_tokens": 1_000}, headers=headers
        )
        if response.status_code != 200:
            raise RefusedError(response.status_code)
        lines = [response.text]
        if stream:
            lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
            assert lines.pop() == "[DONE]"
        events = [json.loads(line) for line in lines]
        texts = [event["choices"][0]["text"] for event in events]
        done = events[-1]["tiercel"]
        return Answer(
            "".join(texts),
            sum(bool(text) for text in texts),
            done["tier"],
            is_rescued=done["rescued"],
            is_on_time=done["on_time"],
            stay=done["conversation_stay"],
        )


DOORS = ("own gRPC", "KServe v2", "OpenAI-shaped")


@contextlib.asynccontextmanager
async def opened(name: str, router: RunningRouter, folder: Path) -> AsyncIterator[Any]:
    """Opens a door of the page before a router."""
    if name != OpenAiDoor.name:
        yield {door.name: door for door in (OwnDoor, KserveDoor)}[name](router)
        return
    mesh = mesh_toml([("e0", "127.0.0.1:1")], deadline_s=LONG_S)
    async with running_door(folder, door_toml([router.address], mesh=mesh)) as door:
        yield OpenAiDoor(router, door)


def priorities_of(router: RunningRouter) -> dict[str, int]:
    """Returns how many requests were decided for as each class, where there were any."""
    counts = router.core.accounts.by_priority().sum(axis=1).tolist()
    named = zip((each.label for each in PRIORITIES), map(round, counts), strict=True)
    return {name: count for name, count in named if count}


async def status_of(asking: Awaitable[Answer]) -> grpc.StatusCode:
    """Returns the status that a request ends with."""
    try:
        await asking
    except (grpc.aio.AioRpcError, RefusedError) as error:
        return error.code()
    return grpc.StatusCode.OK


async def one_answer(door: Any, triton: FakeTriton) -> bool:
    """The whole text in one message."""
    answer = await door.ask()
    return bool(answer.text == "abc" and answer.piece_count == 1)


async def streaming(door: Any, triton: FakeTriton) -> bool:
    """Pieces come before the answer is complete."""
    triton.default = Script(tokens=("a", "b", "c"), step_s=0.1)
    answer = await door.ask(stream=True)
    return bool(answer.text == "abc" and answer.piece_count > 1)


async def many_requests(door: Any, triton: FakeTriton) -> bool:
    """Two are under way on one call at the same time."""
    if not door.streams_requests:
        return False
    triton.default = Script(hang=True)
    call = door.call(stream=True, times=2)
    await until(lambda: len(triton.received) == 2, "both are under way")
    call.cancel()
    return True


async def deadline(door: Any, triton: FakeTriton) -> bool:
    """The tier is told; nothing goes on beyond it."""
    triton.default = Script(times_out=True)
    code = await status_of(door.ask(deadline_s=1.0))
    return code is grpc.StatusCode.DEADLINE_EXCEEDED and triton.received[0].timeout_us <= 1_000_000


async def first_token_deadline(door: Any, triton: FakeTriton) -> bool:
    """An answer that begins in time is on time, however long it takes."""
    triton.default = Script(tokens=("a", "b"), rest_s=1.5)
    answer = await door.ask(stream=True, is_first_token=True, deadline_s=1.4)
    return bool(answer.is_on_time)


async def token_deadlines(door: Any, triton: FakeTriton) -> bool:
    """An answer that ends late is on time if its tokens are due later still, else it is not."""
    triton.default = Script(tokens=("a", "b"), rest_s=1.5)
    found = [
        (await door.ask(stream=True, interval_s=interval_s, deadline_s=1.4)).is_on_time
        for interval_s in (3.0, 0.001)
    ]
    return found == [True, False]


async def task(door: Any, triton: FakeTriton) -> bool:
    """One that does not exist is told."""
    return await status_of(door.ask(task="nope")) is grpc.StatusCode.NOT_FOUND


async def quality_floor(door: Any, triton: FakeTriton) -> bool:
    """One that the only tier cannot reach is told."""
    found = await status_of(door.ask(tier="small", floor=1.0))
    return found is grpc.StatusCode.INVALID_ARGUMENT


async def conversation(door: Any, triton: FakeTriton) -> bool:
    """The second request of one stays where the first was served; another's does not."""
    found = [(await door.ask(conversation=name)).stay for name in ("a", "a", "b")]
    return found == ["new", "kept", "new"]


async def one_tier_only(door: Any, triton: FakeTriton) -> bool:
    """The tier asked for answers."""
    return bool((await door.ask(tier="small")).tier == "small")


async def rescue(door: Any, triton: FakeTriton) -> bool:
    """A smaller tier answers where the largest one does not."""
    triton.scripts["large"] = Script(times_out=True)
    answer = await door.ask(deadline_s=3.0)
    return bool(answer.is_rescued and answer.tier != "large")


async def cancellation(door: Any, triton: FakeTriton) -> bool:
    """A client that leaves stops its tier."""
    triton.default = Script(hang=True)
    call = door.call(stream=True)
    await until(lambda: bool(triton.received), "it is under way")
    call.cancel()
    await until(lambda: triton.received[0].end == "cancelled", "the tier has stopped")
    return True


async def priority(door: Any, triton: FakeTriton) -> bool:
    """The decision is made for the class asked for."""
    for asked in ("high", "low", "low"):
        await door.ask(priority=asked)
    return priorities_of(door.router) == {"high": 1, "low": 2}


async def trace(door: Any, triton: FakeTriton) -> bool:
    """The caller's trace goes on at the tier."""
    await door.ask(stream=True, metadata=(("traceparent", f"00-{TRACE}-b7ad6b7169203331-01"),))
    return TRACE in triton.received[0].metadata.get("traceparent", "")


async def decision_alone(door: Any, triton: FakeTriton) -> bool:
    """A decision without an answer."""
    return bool(door.decides_alone)


CHECKS: dict[str, Callable[[Any, FakeTriton], Awaitable[bool]]] = {
    "one answer": one_answer,
    "streaming": streaming,
    "many requests on one call": many_requests,
    "deadline": deadline,
    "deadline of the first token": first_token_deadline,
    "due time of each token": token_deadlines,
    "task": task,
    "quality floor": quality_floor,
    "one tier only": one_tier_only,
    "conversation kept": conversation,
    "rescue": rescue,
    "cancellation": cancellation,
    "priority": priority,
    "trace": trace,
    "decision alone Route": decision_alone,
}


@pytest_asyncio.fixture
async def triton() -> AsyncIterator[FakeTriton]:
    """An endpoint that answers in three pieces."""
    fake = await FakeTriton(default=Script(tokens=("a", "b", "c"))).start()
    yield fake
    await fake.stop()


@pytest_asyncio.fixture
async def router(triton: FakeTriton, tmp_path: Path) -> AsyncIterator[RunningRouter]:
    """A router before it that prefers the largest tier."""
    # A rescue comes so early that a busy machine still makes it.
    own = 'policy = "static-large"\ndefault_task = "piqa"\nsafety_guard_s = 1.5'
    text = mesh_toml([("e0", triton.address)], router=own, deadline_s=LONG_S)
    provider = TracerProvider(sampler=ParentBased(ALWAYS_OFF))
    telemetry = Telemetry(provider, random.Random(1))
    async with running_router(tmp_path, text, telemetry=telemetry) as running:
        yield running


@pytest.mark.parametrize(("row", "door"), [key for key in table() if key[1] in DOORS])
async def test_a_door_does_what_its_table_says(
    row: str, door: str, router: RunningRouter, triton: FakeTriton, tmp_path: Path
) -> None:
    """Yes where it works, no where it does not."""
    async with asyncio.timeout(CALL_S), opened(door, router, tmp_path) as subject:
        found = await CHECKS[row](subject, triton)
    assert found is table()[row, door]


@pytest.mark.parametrize("door", DOORS)
async def test_a_client_is_held_to_its_class_at_every_door(
    door: str, triton: FakeTriton, tmp_path: Path
) -> None:
    """One that asks for more gets that class, and its answer."""
    own = 'default_task = "piqa"\nother_clients = {highest_priority = "normal"}'
    text = mesh_toml([("e0", triton.address)], router=own, deadline_s=LONG_S)
    async with (
        asyncio.timeout(CALL_S),
        running_router(tmp_path, text) as router,
        opened(door, router, tmp_path) as subject,
    ):
        assert (await subject.ask(priority="high")).text == "abc"
        assert (await subject.ask(priority="low")).text == "abc"
        assert priorities_of(router) == {"normal": 1, "low": 1}


def test_every_row_has_its_check() -> None:
    """And every check its row."""
    assert {row for row, _ in table()} == CHECKS.keys()


@pytest.mark.parametrize(
    ("page", "said"),
    [
        (PAGE, "sort:hgcafde=abc\nlarge\n"),
        (PAGE.parents[1] / "README.md", "sort:hgcafde=abc\n"),
    ],
    ids=["doors", "readme"],
)
async def test_the_example_of_the_kserve_door_runs(
    router: RunningRouter, page: Path, said: str
) -> None:
    """As printed, but for the address and the task, which this mesh does not have."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    [code] = (block for block in blocks if "import tritonclient" in block)
    code = code.replace("127.0.0.1:7410", router.address).replace('": "sort"', '": "piqa"')
    printed = io.StringIO()

    def run() -> None:
        with contextlib.redirect_stdout(printed):
            exec(compile(code, page.name, "exec"), {})

    await asyncio.to_thread(run)
    assert printed.getvalue() == said
