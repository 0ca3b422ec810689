"""OpenAI's own client library, unmodified, against the door before a real router."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio

from tests.fakes.openai_door import RunningDoor, door_toml, running_door
from tests.fakes.router_process import mesh_toml, running_router
from tests.fakes.triton import FakeTriton, Script
from tests.waiting import LIMIT_S, until

MODEL = "tiercel/piqa"
MESSAGES: Any = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "hi"}]


@dataclass
class Served:
    """A mesh with its door.

    Attributes:
        door: The door.
        triton: The tiers.
        client: OpenAI's asynchronous client.
    """

    door: RunningDoor
    triton: FakeTriton
    client: openai.AsyncOpenAI

    def blocking(self) -> openai.OpenAI:
        """OpenAI's blocking client."""
        return openai.OpenAI(base_url=f"{self.door.url}/v1", api_key="-", max_retries=0)


@pytest_asyncio.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """A real router with fake tiers, and a door before it."""
    triton = await FakeTriton(default=Script(tokens=("a", "b", "c"))).start()
    mesh = mesh_toml([("e0", triton.address)])
    async with AsyncExitStack() as stack:
        router = await stack.enter_async_context(running_router(tmp_path, mesh))
        toml = door_toml([router.address], mesh=mesh)
        door = await stack.enter_async_context(running_door(tmp_path, toml))
        client = openai.AsyncOpenAI(
            base_url=f"{door.url}/v1", api_key="-", max_retries=0, timeout=LIMIT_S
        )
        stack.push_async_callback(client.close)
        yield Served(door, triton, client)
    await triton.stop()


async def test_the_asynchronous_client_is_answered(served: Served) -> None:
    """Our object comes along, typed or not."""
    answer = await served.client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_completion_tokens=5,
        temperature=0.0,
        seed=7,
        metadata={"tiercel_deadline_ms": "9000", "run": "1"},
    )
    assert answer.choices[0].message.content == "abc"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3
    facts: Any = answer.model_extra
    assert facts["tiercel"]["tier"] in ("small", "medium", "large")
    assert served.triton.received[0].prompt == "Be short.\n\nUser: hi\nAssistant:"


async def test_the_asynchronous_client_reads_streams(served: Served) -> None:
    """To their end, with usage where it asked for it."""
    stream = await served.client.chat.completions.create(
        model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    texts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(texts) == "abc"
    assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage] == [3]
    ends = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert [end for end in ends if end] == ["stop"]


async def test_the_blocking_client_does_the_same(served: Served) -> None:
    """Chat, completions, a stream, models; in a thread, as the servers run in this one."""

    def ask() -> list[str]:
        with served.blocking() as client:
            whole = client.chat.completions.create(model=MODEL, messages=MESSAGES)
            text = client.completions.create(
                model="small", prompt="hi", extra_headers={"x-tiercel-task": "copa"}
            )
            stream = client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
            pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
            names = [model.id for model in client.models.list()]
            shown = client.models.retrieve(MODEL)
            return [
                str(whole.choices[0].message.content), text.choices[0].text, "".join(pieces),
                names[0], shown.id,
            ]  # fmt: skip

    assert await asyncio.to_thread(ask) == ["abc", "abc", "abc", "tiercel", MODEL]


@pytest.mark.parametrize(
    ("more", "kind", "param"),
    [
        ({"n": 2}, openai.BadRequestError, "n"),
        ({"model": "gpt-4o"}, openai.NotFoundError, "model"),
        ({"temperature": 2.5}, openai.BadRequestError, "temperature"),
        ({"extra_headers": {"x-tiercel-task": "a b"}}, openai.BadRequestError, "x-tiercel-task"),
    ],
)
async def test_errors_are_the_clients_own(
    served: Served, more: dict[str, Any], kind: type[openai.APIStatusError], param: str
) -> None:
    """By status, with the field that is wrong."""
    asked: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, **more}
    with pytest.raises(kind) as caught:
        await served.client.chat.completions.create(**asked)
    assert caught.value.param == param


async def test_a_refusal_is_a_rate_limit(served: Served) -> None:
    """It says when to come again; the client would, by itself."""
    with pytest.raises(openai.RateLimitError) as caught:
        await served.client.chat.completions.create(
            model=MODEL, messages=MESSAGES, extra_headers={"x-tiercel-deadline-ms": "1"}
        )
    assert caught.value.code == "deadline_not_reachable"
    assert int(caught.value.response.headers["retry-after"]) >= 1


async def test_a_missed_deadline_is_not_asked_again(served: Served) -> None:
    """Though this client tries again twice by default."""
    served.triton.default = Script(hang=True)
    patient = served.client.with_options(max_retries=2)
    with pytest.raises(openai.InternalServerError) as caught:
        await patient.chat.completions.create(
            model=MODEL, messages=MESSAGES, extra_headers={"x-tiercel-deadline-ms": "400"}
        )
    assert caught.value.status_code == 504
    text = (await served.door.client.get("/metrics")).text
    assert 'route="/v1/chat/completions",status="504"} 1.0' in text


async def test_a_stream_that_is_closed_stops_the_tier(served: Served) -> None:
    """Its work ends in Triton, not only here."""
    served.triton.default = Script(tokens=("a",) * 1_000, step_s=0.01)
    stream = await served.client.chat.completions.create(
        model="tiercel/openbookqa", messages=MESSAGES, stream=True, max_tokens=2_000
    )
    async for _ in stream:
        break
    await stream.close()
    await until(
        lambda: [each.end for each in served.triton.received] == ["cancelled"],
        "the tier was cancelled",
    )
