"""What a long prompt takes of memory while it is answered: `python -m tests.bench.prompt_memory`.

A router and an OpenAI-shaped door, each a process, before a tier that does not answer; requests
come in at one door, and what the processes have grown by is divided by their number.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.fakes.openai_door import door_toml
from tests.fakes.openai_server import FakeOpenAI, Script
from tests.fakes.router_process import TIERS, mesh_toml, router_process
from tests.fakes.triton import FakeTriton
from tests.fakes.triton import Script as TritonScript
from tests.faults.doors import Door, KServeDoor, OpenAiDoor, OwnDoor
from tests.waiting import until

LONG_S = 600.0
_WARM = 4
_OWN = "compiled = false\nsafety_net = false"  # so many long prompts look too late to be taken


def resident_bytes(pid: int) -> int:
    """Returns the memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    found = next(line for line in lines if line.startswith("VmRSS:"))
    return int(found.split()[1]) * 1024


async def grown(
    door: Door, prompt: str, count: int, pids: list[int], received: Callable[[], int]
) -> list[float]:
    """Returns by how many bytes for each request the processes grow while it is under way."""
    tasks: list[asyncio.Task[None]] = []

    async def asked(number: int) -> list[int]:
        wanted = received() + number
        for _ in range(number):
            asking = door.ask(prompt, task="piqa", deadline_s=LONG_S, stream=True)
            tasks.append(asyncio.ensure_future(asking))
        await until(lambda: received() >= wanted, "the requests are at the tier", LONG_S)
        return [resident_bytes(pid) for pid in pids]

    before = await asked(_WARM)
    after = await asked(count)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return [(late - early) / count for early, late in zip(before, after, strict=True)]


def door_of(kind: str, router: str, openai: str) -> Door:
    """Returns the client of a door; takes where router and OpenAI-shaped door are."""
    if kind == "own":
        return OwnDoor([router], connections=1)
    return KServeDoor([router]) if kind == "kserve" else OpenAiDoor(openai)


async def main() -> None:
    """Measures each door, and prints MiB for each request."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=32, help="requests under way at a time")
    parser.add_argument("--prompt-bytes", type=int, default=1024 * 1024)
    given = parser.parse_args()
    prompt = "x" * given.prompt_bytes
    triton = await FakeTriton(default=TritonScript(hang=True)).start()
    openai = await FakeOpenAI(models=TIERS, default=Script(hang=True)).start()
    tiers: dict[str, tuple[str, str, Callable[[], int]]] = {
        "Triton": (triton.address, "", lambda: len(triton.received)),
        "OpenAI": (openai.address, 'protocol = "openai"', lambda: len(openai.received)),
    }
    print(f"{given.count} requests of {given.prompt_bytes} bytes under way; MiB for each")
    print("| door | tier speaks | router | door's process |")
    print("|---|---|---|---|")
    for spoken, (address, endpoint, received) in tiers.items():
        for kind in ("own", "kserve", "openai"):
            # Processes of their own for each: what one request leaves behind, the next one reuses.
            with contextlib.ExitStack() as stack:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                longest = f"max_prompt_bytes = {given.prompt_bytes}"
                mesh = mesh_toml(
                    [("e0", address)], router=_OWN, endpoint=endpoint, mesh=longest,
                    deadline_s=LONG_S,
                )  # fmt: skip
                router = stack.enter_context(router_process(folder, mesh))
                (folder / "door").mkdir()
                toml = door_toml([router.address], 'chat_template = "bare"', mesh=mesh)
                before = stack.enter_context(
                    router_process(folder / "door", toml, service="openai_door", place="http")
                )
                pids = [router.process.pid, before.process.pid]
                door = door_of(kind, router.address, before.address)
                took = await grown(door, prompt, given.count, pids, received)
                await door.close()
            said = [f"{each / 2**20:.1f}" for each in took]
            shown = said[1] if kind == "openai" else ""
            print(f"| {kind} | {spoken} | {said[0]} | {shown} |", flush=True)
    await triton.stop()
    await openai.stop()


if __name__ == "__main__":
    asyncio.run(main())
