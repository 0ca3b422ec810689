"""What every door does with prompts up to its limit, and with requests that name no task."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from services.common.prompt_sizes import DEFAULT_PROMPT_BYTES
from services.common.settings import SettingsError, load_settings
from services.common.triton.client import TritonClient
from services.router_inference.settings import Settings
from tests.fakes.http_tier import HttpTier, http_tier
from tests.fakes.openai_door import door_toml, running_door
from tests.fakes.openai_server import openai_server
from tests.fakes.router_process import TIERS, mesh_toml, running_router
from tests.fakes.triton import FakeTriton
from tests.faults.doors import (
    MAX_TOKENS,
    Door,
    DoorError,
    EnvoyDoor,
    KServeDoor,
    OpenAiDoor,
    OwnDoor,
)
from tests.integration.conftest import PacedTriton
from tests.integration.test_envoy import OWN, endpoints_toml, meshed, paced_toml
from tests.waiting import LIMIT_S

DEFAULT_BYTES, MOST_BYTES = DEFAULT_PROMPT_BYTES, 1024 * 1024
LONG_S = 600.0
"""A prompt of a million bytes takes its time."""
DOORS = ("own", "kserve", "openai")
FIELDS = {"own": "spec.prompt", "kserve": "text_input", "openai": "messages"}
"""What each door calls the prompt."""


def line_of(limit: int) -> str:
    """Returns the one line of settings that allows prompts of so many bytes."""
    return "" if limit == DEFAULT_BYTES else f"max_prompt_bytes = {limit}"


@asynccontextmanager
async def doors_before(folder: Path, mesh: str) -> AsyncIterator[Mapping[str, Door]]:
    """Opens the doors that need no gateway, before a router of a mesh."""
    async with AsyncExitStack() as stack:
        router = await stack.enter_async_context(running_router(folder, mesh))
        toml = door_toml([router.address], 'chat_template = "bare"', mesh=mesh)
        openai = await stack.enter_async_context(running_door(folder, toml))
        doors: dict[str, Door] = {
            "own": OwnDoor([router.address], connections=1),
            "kserve": KServeDoor([router.address]),
            "openai": OpenAiDoor(openai.url.removeprefix("http://")),
        }
        for door in doors.values():
            stack.push_async_callback(door.close)
        yield doors


@asynccontextmanager
async def opened(
    folder: Path, kind: str, *own: str, mesh: str = ""
) -> AsyncIterator[tuple[Door, FakeTriton]]:
    """Opens a door before a router with some lines of settings, and a tier behind it."""
    triton = await FakeTriton().start()
    ends, router = [("e0", triton.address)], "\n".join(own)
    toml = mesh_toml(ends, router=router, mesh=mesh, deadline_s=LONG_S)
    async with doors_before(folder, toml) as doors:
        yield doors[kind], triton
    await triton.stop()


@pytest.mark.parametrize("limit", [DEFAULT_BYTES, MOST_BYTES])
@pytest.mark.parametrize("kind", DOORS)
async def test_prompts_pass_up_to_the_limit(tmp_path: Path, kind: str, limit: int) -> None:
    """In one piece and streamed; beyond it the door's name of the field and the limit are told."""
    async with opened(tmp_path, kind, mesh=line_of(limit)) as (door, triton):
        for stream in (False, True):
            await door.ask("x" * limit, task="piqa", deadline_s=LONG_S, stream=stream)
            assert len(triton.received[-1].prompt) == limit
            with pytest.raises(DoorError) as caught:
                await door.ask("x" * (limit + 1), task="piqa", deadline_s=LONG_S, stream=stream)
            assert caught.value.reason == "INVALID_ARGUMENT"
            assert FIELDS[kind] in str(caught.value)
            assert f"1 to {limit} bytes" in str(caught.value)
        assert len(triton.received) == 2


@pytest.mark.parametrize("limit", [DEFAULT_BYTES, MOST_BYTES])
@pytest.mark.parametrize("kind", DOORS)
async def test_prompts_pass_to_servers_that_speak_openai(
    tmp_path: Path, kind: str, limit: int
) -> None:
    """Also what takes most room as JSON, which both bodies on the way of a request are."""
    prompt = "\x01" * limit
    async with openai_server(models=TIERS) as server:
        toml = mesh_toml(
            [("e0", server.address)], endpoint='protocol = "openai"', mesh=line_of(limit),
            deadline_s=LONG_S,
        )  # fmt: skip
        async with doors_before(tmp_path, toml) as doors:
            for stream in (False, True):
                await doors[kind].ask(prompt, task="piqa", deadline_s=LONG_S, stream=stream)
                assert server.received[-1].body["prompt"] == prompt
                longer = prompt + "\x01"
                with pytest.raises(DoorError, match=f"{FIELDS[kind]}.*1 to {limit} bytes"):
                    await doors[kind].ask(longer, task="piqa", deadline_s=LONG_S, stream=stream)
            assert len(server.received) == 2


async def served_count(client: TritonClient) -> int:
    """Returns how many requests a Triton has answered."""
    return sum(each.success_count for each in (await client.statistics()).values())


@pytest.mark.triton
@pytest.mark.parametrize("limit", [DEFAULT_BYTES, MOST_BYTES])
async def test_prompts_pass_every_door_to_a_real_triton(
    tmp_path: Path, paced_triton: PacedTriton, limit: int
) -> None:
    """It answers the longest prompt, and never hears of one that is a byte longer."""
    mesh = paced_toml(paced_triton, OWN, mesh=line_of(limit))
    http = {"triton": paced_triton.server.http_address}
    async with AsyncExitStack() as stack:
        client = TritonClient(paced_triton.address, control_timeout_s=LIMIT_S)
        await stack.enter_async_context(client)
        doors = dict(await stack.enter_async_context(doors_before(tmp_path, mesh)))
        (tmp_path / "envoy").mkdir()
        gate = await stack.enter_async_context(meshed(tmp_path / "envoy", http, toml=mesh))
        doors["envoy"] = envoy = EnvoyDoor(gate.envoy.url.removeprefix("http://"))
        stack.push_async_callback(envoy.close)
        sampling = json.dumps({"max_tokens": MAX_TOKENS})
        around = {"text_input": "", "stream": True, "sampling_parameters": sampling}
        beside = len(json.dumps(around, separators=(",", ":")))
        for kind, door in doors.items():
            longest = limit - beside if kind == "envoy" else limit
            field = FIELDS.get(kind, "content-length")
            for stream in (True,) if kind == "envoy" else (False, True):
                before = await served_count(client)
                await door.ask("x" * longest, task="piqa", deadline_s=LONG_S, stream=stream)
                longer = "x" * (longest + 1)
                with pytest.raises(DoorError, match=f"{field}.* {limit}") as caught:
                    await door.ask(longer, task="piqa", deadline_s=LONG_S, stream=stream)
                assert caught.value.reason == "INVALID_ARGUMENT"
                assert await served_count(client) == before + 1
        assert envoy.picked[-1]


@pytest.mark.parametrize("kind", DOORS)
async def test_requests_without_a_task_are_of_the_default_one(tmp_path: Path, kind: str) -> None:
    """Where the settings name one; else they are refused, by the name of the field."""
    async with opened(tmp_path, kind, 'default_task = "piqa"') as (door, triton):
        for stream in (False, True):
            await door.ask("hello", task="", deadline_s=LONG_S, stream=stream)
        assert len(triton.received) == 2
    async with opened(tmp_path, kind) as (door, triton):
        for stream in (False, True):
            with pytest.raises(DoorError, match=r"task.*there is no default task") as caught:
                await door.ask("hello", task="", deadline_s=LONG_S, stream=stream)
            assert caught.value.reason == "INVALID_ARGUMENT"
        assert not triton.received


@asynccontextmanager
async def through_envoy(
    folder: Path, *own: str, mesh: str = ""
) -> AsyncIterator[tuple[EnvoyDoor, HttpTier]]:
    """Opens the way through a real Envoy before such a router."""
    async with http_tier() as tier:
        addresses = {"e0": tier.address}
        text = mesh_toml([], router=OWN + "\n".join(own), mesh=mesh, deadline_s=LONG_S)
        entries = endpoints_toml(addresses)
        text = text.replace("[router_inference]\n", f"{entries}[router_inference]\n")
        async with meshed(folder, addresses, toml=text) as running:
            door = EnvoyDoor(running.envoy.url.removeprefix("http://"))
            yield door, tier
            await door.close()
    (folder / "admin").unlink()


@pytest.mark.parametrize("limit", [DEFAULT_BYTES, MOST_BYTES])
async def test_bodies_pass_envoy_up_to_the_limit(tmp_path: Path, limit: int) -> None:
    """The limit is that of the whole body, whose bytes the router never sees."""
    async with through_envoy(tmp_path, mesh=line_of(limit)) as (door, tier):
        await door.ask("", task="piqa", deadline_s=LONG_S, stream=True)
        beside = len(tier.bodies[0])
        await door.ask("x" * (limit - beside), task="piqa", deadline_s=LONG_S, stream=True)
        assert (door.picked[-1], len(tier.bodies[1])) == (True, limit)
        with pytest.raises(DoorError, match=f"content-length.*{limit}") as caught:
            await door.ask("x" * (limit - beside + 1), task="piqa", deadline_s=LONG_S, stream=True)
        assert caught.value.reason == "INVALID_ARGUMENT"
        assert len(tier.bodies) == 2


async def test_envoys_requests_without_a_task_are_of_the_default_one(tmp_path: Path) -> None:
    """As at every door."""
    async with through_envoy(tmp_path, 'default_task = "piqa"') as (door, tier):
        await door.ask("hello", task="", deadline_s=LONG_S, stream=True)
        assert (door.picked[-1], len(tier.bodies)) == (True, 1)
    async with through_envoy(tmp_path) as (door, tier):
        with pytest.raises(DoorError, match=r"x-tiercel-task.*there is no default task"):
            await door.ask("hello", task="", deadline_s=LONG_S, stream=True)
        assert not tier.bodies


@pytest.mark.parametrize("given", ["0", "16777217", '"long"'])
def test_limits_out_of_range_are_refused(tmp_path: Path, given: str) -> None:
    """With the name of the setting; one prompt may not take all memory."""
    path = tmp_path / "tiercel.toml"
    path.write_text(mesh_toml([], mesh=f"max_prompt_bytes = {given}"), encoding="utf-8")
    with pytest.raises(SettingsError, match=r"mesh\.max_prompt_bytes"):
        load_settings(Settings, path=path, environ={})


async def test_a_message_has_room_for_the_longest_prompt_that_settings_allow(
    tmp_path: Path,
) -> None:
    """Far above the size of messages where prompts are short; nothing else is set."""
    longest = 16 * 1024 * 1024
    async with opened(tmp_path, "own", mesh=f"max_prompt_bytes = {longest}") as (door, triton):
        await door.ask("x" * longest, task="piqa", deadline_s=LONG_S, stream=False)
        assert len(triton.received[-1].prompt) == longest
        with pytest.raises(DoorError, match=f"spec.prompt.*1 to {longest} bytes"):
            await door.ask("x" * (longest + 1), task="piqa", deadline_s=LONG_S, stream=False)
