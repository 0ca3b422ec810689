"""What every door does with prompts up to its limit, and with requests that name no task."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.common.settings import SettingsError, load_settings
from services.router_inference.settings import Settings
from tests.fakes.http_tier import HttpTier, http_tier
from tests.fakes.openai_door import door_toml, running_door
from tests.fakes.router_process import mesh_toml, running_router
from tests.fakes.triton import FakeTriton
from tests.faults.doors import Door, DoorError, EnvoyDoor, KServeDoor, OpenAiDoor, OwnDoor
from tests.integration.test_envoy import OWN, endpoints_toml, meshed

DEFAULT_BYTES, MOST_BYTES = 64 * 1024, 1024 * 1024
LONG_S = 600.0
"""A prompt of a million bytes takes its time."""
DOORS = ("own", "kserve", "openai")
FIELDS = {"own": "spec.prompt", "kserve": "text_input", "openai": "messages"}
"""What each door calls the prompt."""


@asynccontextmanager
async def opened(folder: Path, kind: str, *own: str) -> AsyncIterator[tuple[Door, FakeTriton]]:
    """Opens a door before a router with some lines of settings, and a tier behind it."""
    triton = await FakeTriton().start()
    mesh = mesh_toml([("e0", triton.address)], router="\n".join(own), deadline_s=LONG_S)
    async with running_router(folder, mesh) as router:
        lines = f"max_body_bytes = {2 * MOST_BYTES}", 'chat_template = "bare"'
        toml = door_toml([router.address], *lines, mesh=mesh)
        async with running_door(folder, toml) as openai:
            doors: dict[str, Door] = {
                "own": OwnDoor([router.address], connections=1),
                "kserve": KServeDoor([router.address]),
                "openai": OpenAiDoor(openai.url.removeprefix("http://")),
            }
            yield doors[kind], triton
            for door in doors.values():
                await door.close()
    await triton.stop()


@pytest.mark.parametrize("limit", [DEFAULT_BYTES, MOST_BYTES])
@pytest.mark.parametrize("kind", DOORS)
async def test_prompts_pass_up_to_the_limit(tmp_path: Path, kind: str, limit: int) -> None:
    """In one piece and streamed; beyond it the door's name of the field and the limit are told."""
    own = [] if limit == DEFAULT_BYTES else [f"max_prompt_bytes = {limit}"]
    async with opened(tmp_path, kind, *own) as (door, triton):
        for stream in (False, True):
            await door.ask("x" * limit, task="piqa", deadline_s=LONG_S, stream=stream)
            assert len(triton.received[-1].prompt) == limit
            with pytest.raises(DoorError) as caught:
                await door.ask("x" * (limit + 1), task="piqa", deadline_s=LONG_S, stream=stream)
            assert caught.value.reason == "INVALID_ARGUMENT"
            assert FIELDS[kind] in str(caught.value)
            assert f"1 to {limit} bytes" in str(caught.value)
        assert len(triton.received) == 2


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
async def through_envoy(folder: Path, *own: str) -> AsyncIterator[tuple[EnvoyDoor, HttpTier]]:
    """Opens the way through a real Envoy before such a router."""
    async with http_tier() as tier:
        addresses = {"e0": tier.address}
        text = mesh_toml([], router=OWN + "\n".join(own), deadline_s=LONG_S)
        entries = endpoints_toml(addresses)
        text = text.replace("[router_inference]\n", f"{entries}[router_inference]\n")
        async with meshed(folder, addresses, toml=text) as mesh:
            door = EnvoyDoor(mesh.envoy.url.removeprefix("http://"))
            yield door, tier
            await door.close()
    (folder / "admin").unlink()


@pytest.mark.parametrize("limit", [DEFAULT_BYTES, MOST_BYTES])
async def test_bodies_pass_envoy_up_to_the_limit(tmp_path: Path, limit: int) -> None:
    """The limit is that of the whole body, whose bytes the router never sees."""
    own = [] if limit == DEFAULT_BYTES else [f"max_prompt_bytes = {limit}"]
    async with through_envoy(tmp_path, *own) as (door, tier):
        await door.ask("", task="piqa", deadline_s=LONG_S, stream=True)
        beside = len(tier.bodies[0])
        await door.ask("x" * (limit - beside), task="piqa", deadline_s=LONG_S, stream=True)
        assert (door.was_picked, len(tier.bodies[1])) == (True, limit)
        with pytest.raises(DoorError, match=f"content-length.*{limit}") as caught:
            await door.ask("x" * (limit - beside + 1), task="piqa", deadline_s=LONG_S, stream=True)
        assert caught.value.reason == "INVALID_ARGUMENT"
        assert len(tier.bodies) == 2


async def test_envoys_requests_without_a_task_are_of_the_default_one(tmp_path: Path) -> None:
    """As at every door."""
    async with through_envoy(tmp_path, 'default_task = "piqa"') as (door, tier):
        await door.ask("hello", task="", deadline_s=LONG_S, stream=True)
        assert (door.was_picked, len(tier.bodies)) == (True, 1)
    async with through_envoy(tmp_path) as (door, tier):
        with pytest.raises(DoorError, match=r"x-tiercel-task.*there is no default task"):
            await door.ask("hello", task="", deadline_s=LONG_S, stream=True)
        assert not tier.bodies


def test_the_longest_prompt_must_fit_into_a_message(tmp_path: Path) -> None:
    """The start is refused otherwise: the limit that a caller is told would not be the real one."""
    path = tmp_path / "tiercel.toml"
    path.write_text(mesh_toml([], router="max_prompt_bytes = 4194304"), encoding="utf-8")
    with pytest.raises(SettingsError, match="max_prompt_bytes: needs a max_message_bytes of 42598"):
        load_settings(Settings, path=path, environ={})
