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
from services.bench.hop import TOKENS, Subject
from services.bench.load import PROMPT, TIMEOUT_S, Ask, cpu_per_request_s, unanswered
from services.bench.readings import Reading
from services.bench.routers import TASK, write_settings

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
            kind: Subject(server, await _asking(bench, server, is_stream=PAIRS[name]), units)
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


async def _door(bench: Bench, router: Server) -> Server:
    config = write_settings(bench.folder / "door.toml", ["127.0.0.1:1"], {})
    own = {"listen": "127.0.0.1:0", "metrics_listen": "", "lame_duck_s": "0", "grace_s": "1"}
    own["routers"] = f'["{router.address}"]'
    arguments = [
        part for key, text in own.items() for part in ("--set", f"openai_door.{key}={text}")
    ]
    return await bench.start("door", "services.openai_door", "--config", str(config), *arguments)


async def _asking(bench: Bench, server: Server, *, is_stream: bool) -> Ask:
    """Returns a function that asks once over HTTP, on connections that stay."""
    body = json_body(is_stream=is_stream)
    head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    host, _, port = server.address.partition(":")
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def close() -> None:
        for _, writer in idle:
            writer.close()

    bench.stack.push_async_callback(close)

    async def ask() -> object:
        reader, writer = idle.pop() if idle else await asyncio.open_connection(host, int(port))
        writer.write(request)
        async with asyncio.timeout(TIMEOUT_S):
            head, answer = await _answer(reader)
        is_whole = not is_stream or b"[DONE]" in answer
        if not head.startswith(b"http/1.1 200 ") or b'"error"' in answer or not is_whole:
            raise unanswered(server, repr(answer[-200:]))
        idle.append((reader, writer))
        return answer

    return ask


async def _answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    _, found, rest = head.partition(b"content-length:")
    if found:
        return head, await reader.readexactly(int(rest.split(b"\r\n")[0]))
    return head, await reader.readuntil(b"0\r\n\r\n")


def json_body(*, is_stream: bool) -> bytes:
    """Returns the body of a request."""
    asked: dict[str, Any] = {
        "model": f"tiercel/{TASK}",
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": TOKENS,
    }
    return json.dumps(asked | ({"stream": True} if is_stream else {})).encode()
