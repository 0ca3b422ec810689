"""What a request costs at the OpenAI-shaped door, beside a bare relay from HTTP to gRPC.

Both stand in front of the same fake router, which answers at once, each in a process of its own.
The measure is the CPU time of that process, as in `services.bench.hop`.
"""

from __future__ import annotations

import asyncio
import json
import math
import statistics
from collections.abc import Mapping
from typing import Any

from services.bench.bench import Bench, Server
from services.bench.hop import DEVICES, TOKENS, Subject
from services.bench.load import PROMPT, Stream, cpu_per_request_s, posting
from services.bench.readings import Reading
from services.bench.routers import TASK, start_router, write_settings

PATH = "/v1/chat/completions"
PAIRS: Mapping[str, bool] = {"openai": False, "openai_stream": True}
"""Metrics, and whether the answer is streamed."""


async def measure(bench: Bench) -> list[Reading]:
    """Measures what is wanted of `PAIRS`."""
    wanted = [name for name in PAIRS if name in bench.wanted]
    bench.say(0.0, "starting servers")
    router = await bench.start("router", "services.bench.peers", "router", str(TOKENS))
    door, relay = await asyncio.gather(
        _door(bench, router), bench.start("relay", "services.bench.asgi_relay", router.address)
    )
    readings = []
    for index, name in enumerate(wanted):
        units = TOKENS if PAIRS[name] else 1
        pair = {
            kind: Subject(server, chatting(bench, server, is_stream=PAIRS[name]), units)
            for kind, server in (("door", door), ("relay", relay))
        }
        for number in range(bench.rounds + 1):
            for kind, subject in pair.items():
                share = (index + number / (bench.rounds + 1)) / len(wanted)
                bench.say(share, f"{name}, round {number} of {bench.rounds}: {kind}")
                # The first round warms up and is not kept.
                count = math.ceil(bench.part(700 if number else 300))
                cpu_s = await cpu_per_request_s(subject.ask, subject.server, count)
                subject.cpu_s_R += [cpu_s] if number else []
        parts = {
            "CPU us per request": 1e6 * statistics.median(pair["door"].cpu_s_R),
            "CPU us per request of the reference": 1e6 * statistics.median(pair["relay"].cpu_s_R),
        }
        readings.append(Reading(name, pair["door"].rate_R, pair["relay"].rate_R, parts))
    return readings


async def start_chain(bench: Bench, upstream: Server) -> dict[str, Server]:
    """Starts door and router before a server that speaks OpenAI itself; returns them by name."""
    traces = await bench.start("door-traces", "services.bench.peers", "traces")
    router = await start_router(
        bench,
        "door-router",
        [upstream.address] * DEVICES,
        own={"policy": "price"},
        traces=traces.address,
        endpoint={"protocol": "openai"},
    )
    return {"door": await _door(bench, router), "router": router}


async def _door(bench: Bench, router: Server) -> Server:
    config = write_settings(bench.folder / "door.toml", ["127.0.0.1:1"], {})
    own = {"listen": "127.0.0.1:0", "metrics_listen": "", "lame_duck_s": "0", "grace_s": "1"}
    own["routers"] = f'["{router.address}"]'
    arguments = [
        part for key, text in own.items() for part in ("--set", f"openai_door.{key}={text}")
    ]
    return await bench.start("door", "services.openai_door", "--config", str(config), *arguments)


def chatting(
    bench: Bench, server: Server, *, is_stream: bool, model: str = f"tiercel/{TASK}"
) -> Stream:
    """Returns a function that asks for a chat completion."""
    asked: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": TOKENS,
    }
    body = json.dumps(asked | ({"stream": True} if is_stream else {})).encode()
    return posting(bench, server, PATH, body, marks=[b"[DONE]"] if is_stream else [])
