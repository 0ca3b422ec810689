"""Asks a mesh at its doors as their clients do: KServe's calls, OpenAI's HTTP, HTTP through Envoy.

For tests that offer load: each answer is read to its end, and whatever is none has a reason.
"""

from __future__ import annotations

import asyncio
import enum
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import grpc
import grpc.aio
import httpx
from tritonclient.grpc import service_pb2_grpc as kserve_grpc

from services.common.channels import open_channel
from tests.kserve_requests import infer_request, said
from tiercel import AsyncClient, DeadlineMissedError, RefusedError, TiercelError
from tiercel.calls import answer_of
from tiercel.errors import TRANSPORT_REASON, details_of

MAX_TOKENS = 8
_CALL_LIFE_S = 5.0
"""After so long further requests go on another call: one that lasts ends with its connection."""
_MOST_CONNECTIONS = 1_000


class Missed(enum.Enum):
    """Kinds of requests without a whole answer."""

    LATE = "late"
    REFUSED = "refused"
    FAILED = "failed"


class DoorError(Exception):
    """A request without a whole answer.

    Attributes:
        reason: Why, as routers say it; ``TRANSPORT_...`` where nobody said anything.
        kind: What it counts as.
    """

    def __init__(self, reason: str, text: str = "", kind: Missed = Missed.FAILED) -> None:
        """Takes the reason, what else was said, and what it counts as."""
        super().__init__(f"{reason}: {text}")
        self.reason = reason
        self.kind = kind


_OF_STATUS = {"DEADLINE_EXCEEDED": Missed.LATE, "RESOURCE_EXHAUSTED": Missed.REFUSED}
_OF_HTTP = {504: Missed.LATE, 429: Missed.REFUSED}
_OF_TYPE = {"deadline_error": Missed.LATE, "rate_limit_error": Missed.REFUSED}
_CHOSEN = ("x-tiercel-policy", "x-tiercel-reason")
"""Headers of what a router had a say in, one of them."""


class Door(Protocol):
    """A way to ask. Giving up a request (cancelling `ask`) is leaving, as far as a door can."""

    async def ask(self, prompt: str, *, task: str, deadline_s: float, stream: bool) -> None:
        """Asks and reads the whole answer.

        Args:
            prompt: The prompt.
            task: Its task; empty names none.
            deadline_s: Its deadline, seconds.
            stream: Whether the answer is streamed.

        Raises:
            DoorError: There was none.
        """

    async def close(self) -> None:
        """Closes every connection."""


class OwnDoor:
    """The routers' own door, by our client."""

    def __init__(self, addresses: Sequence[str], *, connections: int) -> None:
        """Takes the routers, and how many connections to open to each."""
        self._client = AsyncClient(list(addresses), connections=connections)

    async def ask(self, prompt: str, *, task: str, deadline_s: float, stream: bool) -> None:
        """Asks by Generate or GenerateStream."""
        try:
            if not stream:
                await self._client.generate(prompt, task=task, deadline_s=deadline_s)
                return
            async for _ in self._client.generate_stream(prompt, task=task, deadline_s=deadline_s):
                pass
        except TiercelError as error:
            kind = Missed.FAILED
            if isinstance(error, DeadlineMissedError):
                kind = Missed.LATE
            elif isinstance(error, RefusedError):
                kind = Missed.REFUSED
            raise DoorError(error.reason, str(error), kind) from None

    async def close(self) -> None:
        """Closes every connection."""
        await self._client.close()


class KServeDoor:
    """Routers' KServe: single answers by ModelInfer, streamed ones many on one call."""

    def __init__(self, addresses: Sequence[str]) -> None:
        """Takes the routers; make it inside the event loop."""
        self._routers = [_KServeRouter(each) for each in addresses]
        self._turns = itertools.cycle(self._routers)
        self._ids = itertools.count()

    async def ask(self, prompt: str, *, task: str, deadline_s: float, stream: bool) -> None:
        """Asks the next router that can be reached, as far as is known."""
        request = infer_request(
            prompt=prompt.encode(),
            request_id=str(next(self._ids)),
            parameters={
                **({"tiercel_task": task} if task else {}),
                "tiercel_deadline_ms": round(1e3 * deadline_s),
            },
            sampling=json.dumps({"max_tokens": MAX_TOKENS}).encode(),
            stream=stream,
        )
        router = next(
            (each for each, _ in zip(self._turns, self._routers, strict=False) if each.is_there),
            self._routers[0],
        )
        if stream:
            await router.stream(request)
        else:
            await router.infer(request)

    async def close(self) -> None:
        """Ends the calls and closes the channels."""
        for router in self._routers:
            await router.close()


class _KServeRouter:
    """One router, and the calls on which answers are streamed."""

    def __init__(self, address: str) -> None:
        self._channel = open_channel(address)
        self._stub: Any = kserve_grpc.GRPCInferenceServiceStub(self._channel)
        self._call: _StreamCall | None = None
        self._old: set[_StreamCall] = set()

    @property
    def is_there(self) -> bool:
        state = self._channel.get_state(try_to_connect=True)
        return state is not grpc.ChannelConnectivity.TRANSIENT_FAILURE

    async def infer(self, request: Any) -> None:
        try:
            await answer_of(self._stub.ModelInfer(request))
        except grpc.aio.AioRpcError as error:
            raise _failed(error) from None

    async def stream(self, request: Any) -> None:
        call = self._call
        if call is None or call.has_ended or time.monotonic() > call.until_s:
            if call is not None:
                call.finish()
                self._old = {each for each in (*self._old, call) if not each.has_ended}
            call = self._call = _StreamCall(self._stub)
        await call.ask(request)

    async def close(self) -> None:
        for call in (*self._old, *([self._call] if self._call else [])):
            await call.close()
        await self._channel.close()


class _StreamCall:
    """One call of ModelStreamInfer."""

    def __init__(self, stub: Any) -> None:
        self.until_s = time.monotonic() + _CALL_LIFE_S
        self._to_send: asyncio.Queue[Any] = asyncio.Queue()
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._reading = asyncio.create_task(self._read(stub.ModelStreamInfer(self._requests())))

    @property
    def has_ended(self) -> bool:
        return self._reading.done()

    async def ask(self, request: Any) -> None:
        answered = self._waiting[request.id] = asyncio.get_running_loop().create_future()
        self._to_send.put_nowait(request)
        try:
            await answered
        finally:
            self._waiting.pop(request.id, None)

    def finish(self) -> None:
        """Sends no more; the call ends with its last answer."""
        self._to_send.put_nowait(None)

    async def close(self) -> None:
        self.finish()
        self._reading.cancel()
        await asyncio.wait([self._reading])

    async def _requests(self) -> Any:
        while (request := await self._to_send.get()) is not None:
            yield request

    async def _read(self, call: Any) -> None:
        end = DoorError(f"{TRANSPORT_REASON}_CANCELLED", "the call has ended")
        try:
            async for message in call:
                self._take(message)
        except grpc.aio.AioRpcError as error:
            end = _failed(error)
        except asyncio.CancelledError:
            pass  # kept by its task, it would keep the call, and the call the connection
        finally:
            call.cancel()
            for answered in self._waiting.values():
                if not answered.done():
                    answered.set_exception(end)

    def _take(self, message: Any) -> None:
        response = message.infer_response
        answered = self._waiting.get(response.id)
        if answered is None or answered.done():
            return
        parameters = said(response)
        if message.error_message:
            reason = str(parameters.get("tiercel_reason", "REFUSED_BY_FORM"))
            kind = _OF_STATUS.get(str(parameters.get("tiercel_status")), Missed.FAILED)
            answered.set_exception(DoorError(reason, message.error_message, kind))
        elif parameters.get("triton_final_response"):
            answered.set_result(None)


def _failed(error: grpc.aio.AioRpcError) -> DoorError:
    reason = details_of(error).reason or f"{TRANSPORT_REASON}_{error.code().name}"
    kind = _OF_STATUS.get(error.code().name, Missed.FAILED)
    return DoorError(reason, error.details() or "", kind)


class _HttpDoor:
    """What is asked by HTTP."""

    def __init__(self, address: str) -> None:
        limits = httpx.Limits(max_connections=_MOST_CONNECTIONS)
        # By default each client reads all certificates of the machine, which takes 0.7 MB until a
        # collector looks; nothing is asked by TLS here.
        self._client = httpx.AsyncClient(
            base_url=f"http://{address}",
            trust_env=False,
            timeout=None,
            limits=limits,
            verify=False,
        )

    async def close(self) -> None:
        """Closes every connection."""
        await self._client.aclose()

    async def _post(
        self, path: str, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> tuple[httpx.Response, str]:
        """Returns the answer to a request, with its whole text."""
        try:
            reply = await self._client.post(path, json=body, headers=dict(headers))
        except httpx.ConnectError as error:
            raise DoorError(f"{TRANSPORT_REASON}_UNAVAILABLE", repr(error)) from None
        except httpx.HTTPError as error:
            raise DoorError(f"{TRANSPORT_REASON}_CANCELLED", repr(error)) from None
        return reply, reply.text


class OpenAiDoor(_HttpDoor):
    """The OpenAI-shaped door."""

    async def ask(self, prompt: str, *, task: str, deadline_s: float, stream: bool) -> None:
        """Asks for a chat completion."""
        body = {
            "model": f"tiercel/{task}" if task else "tiercel",
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": MAX_TOKENS,
            "stream": stream,
        }
        headers = {"x-tiercel-deadline-ms": f"{1e3 * deadline_s:.0f}"}
        reply, text = await self._post("/v1/chat/completions", body, headers)
        is_stream = stream and reply.is_success
        pieces = list(_events(text)) if is_stream else [text]
        for piece in pieces:
            error = json.loads(piece).get("error") if piece.startswith("{") else None
            if error is not None:
                kind = _OF_TYPE.get(error["type"], Missed.FAILED)
                raise DoorError(str(error["code"]).upper(), error["message"], kind)
        if not reply.is_success or (is_stream and pieces[-1:] != ["[DONE]"]):
            raise DoorError(f"{TRANSPORT_REASON}_CANCELLED", f"{reply.status_code}: {text[-200:]}")


class EnvoyDoor(_HttpDoor):
    """An Envoy that asks the routers.

    Attributes:
        picked_s: How long answers took for which a router had chosen.
        unpicked_s: The same for those of the tier that the configuration names for the time without
            routers.
        picked: For each request in the order of their ends whether a router had chosen.
    """

    def __init__(self, address: str) -> None:
        """Takes where it listens."""
        super().__init__(address)
        self.picked_s: list[float] = []
        self.unpicked_s: list[float] = []
        self.picked: list[bool] = []

    @property
    def goes_without(self) -> bool:
        """Whether the last request went on without a router, while some are sent."""
        return not self._client.is_closed and self.picked[-1:] == [False]

    async def ask(self, prompt: str, *, task: str, deadline_s: float, stream: bool) -> None:
        """Asks as Triton is asked by HTTP."""
        sampling = json.dumps({"max_tokens": MAX_TOKENS})
        body = {"text_input": prompt, "stream": stream, "sampling_parameters": sampling}
        headers = {
            **({"x-tiercel-task": task} if task else {}),
            "x-tiercel-deadline-ms": f"{1e3 * deadline_s:.0f}",
            "x-tiercel-max-output-tokens": str(MAX_TOKENS),
        }
        path = f"/v2/models/tiercel/generate{'_stream' if stream else ''}"
        began_s = time.monotonic()
        reply, text = await self._post(path, body, headers)
        is_picked = any(name in reply.headers for name in _CHOSEN)
        self.picked.append(is_picked)
        if not reply.is_success:
            reason = reply.headers.get("x-tiercel-reason", f"HTTP_{reply.status_code}")
            kind = _OF_HTTP.get(reply.status_code, Missed.FAILED)
            raise DoorError(reason, text[:200], kind)
        if '"error"' in text or "text_output" not in text:
            raise DoorError("ENDPOINT_FAILED", text[-200:])
        took_s = time.monotonic() - began_s
        (self.picked_s if is_picked else self.unpicked_s).append(took_s)


def _events(text: str) -> Iterator[str]:
    """Yields the data of server-sent events."""
    for line in text.splitlines():
        if line.startswith("data: "):
            yield line.removeprefix("data: ")
