"""Wrong requests over HTTP to the OpenAI-shaped door (`make fuzz`).

Made from right ones: bodies changed value by value and as bytes, whole requests changed as bytes,
and sent in pieces, or cut. Whatever comes back must be an answer, or an error of OpenAI's form
below status 500; nothing may be logged as a bug, and a good request is answered after every 200.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import logging
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fakes.openai_door import RunningDoor, door_toml, running_door
from tests.fakes.router import FakeRouter, serve
from tests.fuzzing.bugs import Bugs
from tests.fuzzing.octets import VALUES, changed_bytes
from tests.waiting import until

KEPT = Path(__file__).parent / "kept" / "http"
"""Requests that once found a defect; every run sends them first."""
PATHS = ("/v1/chat/completions", "/v1/completions")
OTHER_PATHS = ("/v1/models", "/v1/models/tiercel", "/health", "/nothing")
BODIES: tuple[dict[str, Any], ...] = (
    {
        "model": "tiercel/piqa",
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": [{"type": "text", "text": "é"}]},
        ],
        "max_completion_tokens": 5,
        "temperature": 0.5,
        "seed": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
        "metadata": {"tiercel_deadline_ms": "80000", "tiercel_quality_floor": 0.1},
        "prompt_cache_key": "talk",
        "n": 1,
        "stop": None,
    },
    {"model": "small", "prompt": ["hi"], "max_tokens": 3, "user": "u", "logprobs": None},
)
HEADERS = (
    "content-type: application/json",
    "x-tiercel-deadline-ms: 50000",
    "x-tiercel-task: piqa",
    "x-request-id: r1",
    "x-tiercel-conversation-id: talk",
    "authorization: Bearer tck_a_b",
    "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "expect: 100-continue",
    "content-encoding: identity",
    "connection: close",
)
_PROBE_EVERY = 200
_ANSWER_S = 15.0
_SHORT = ("head_timeout_s = 0.3", "body_timeout_s = 0.3", "keep_alive_s = 0.3")
_MOST_PROBLEMS = 20


@dataclass
class Report:
    """What came back.

    Attributes:
        statuses: How often each status; "closed" where nothing came before the connection ended.
        problems: What must not be, with the input.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def _changed(value: Any, rng: random.Random) -> Any:
    """Returns a JSON value with one place in it changed."""
    if isinstance(value, dict | list) and value and rng.random() < 0.8:
        copied: Any = dict(value) if isinstance(value, dict) else list(value)
        key = rng.choice(list(copied)) if isinstance(copied, dict) else rng.randrange(len(copied))
        how = rng.randrange(6)
        if how == 0:
            del copied[key]
        elif how == 1 and isinstance(copied, dict):
            name = rng.choice(("n", "tools", "x", "metadata", "stream", "", "\ud800", "logprobs"))
            copied[name] = rng.choice(VALUES)
        else:
            copied[key] = _changed(copied[key], rng)
        return copied
    return rng.choice(VALUES)


def request_of(rng: random.Random) -> list[bytes]:
    """Returns one request in the pieces in which it is sent; an empty last one hangs up."""
    body = json.dumps(_changed(rng.choice(BODIES), rng) if rng.random() < 0.8 else BODIES[0])
    data = body.encode("utf-8", "surrogatepass")
    if rng.random() < 0.3:
        data = changed_bytes(data, rng)
    method, path = "POST", rng.choice(PATHS)
    if rng.random() < 0.1:
        method, path = rng.choice(("GET", "PUT", "HEAD", "POST")), rng.choice(OTHER_PATHS)
    headers = ["host: localhost", HEADERS[0], *rng.sample(HEADERS, rng.randint(0, 3))]
    if rng.random() < 0.8:
        headers.append(f"content-length: {len(data)}")
    else:
        headers.append("transfer-encoding: chunked")
        data = b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data)
    head = f"{method} {path} HTTP/1.1\r\n" + "\r\n".join(headers) + "\r\n\r\n"
    whole = head.encode() + data
    if rng.random() < 0.25:
        whole = changed_bytes(whole, rng)
    if rng.random() < 0.2:
        place = rng.randrange(len(whole) + 1)
        return [whole[:place], b""] if rng.random() < 0.5 else [whole[:place], whole[place:]]
    return [whole]


async def send(door: RunningDoor, pieces: list[bytes]) -> bytes:
    """Sends one request on a connection of its own and returns the first answer's beginning."""
    reader, writer = await asyncio.open_connection(*door.server.address)
    answer = b""
    with contextlib.suppress(ConnectionError):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if pieces[-1]:
            answer = await _read(reader)
    writer.close()
    return answer


async def _read(reader: asyncio.StreamReader) -> bytes:
    """Returns the first answer on a connection; what there is of it if the connection ends."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"HTTP/1.1 100 "):
            head = await reader.readuntil(b"\r\n\r\n")
        lower = head.lower()
        if b"transfer-encoding: chunked" in lower:
            return head + await reader.readuntil(b"0\r\n\r\n")
        length = int(lower.partition(b"content-length: ")[2].split(b"\r\n")[0])
        return head + await reader.read(length)
    except asyncio.IncompleteReadError as error:
        return error.partial


def wrong(answer: bytes) -> str:
    """Returns what is wrong with an answer; empty if nothing is."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head[9:12])
    if status >= 500:
        return f"status {status}"
    if status < 400 or b"transfer-encoding: chunked" in head:
        return ""
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    if body:  # none comes after HEAD
        error = json.loads(body[:length])["error"]
        if error.keys() != {"message", "type", "param", "code"} or not error["message"]:
            return f"error {error}"
    return ""


def keep(pieces: list[bytes]) -> str:
    """Keeps a request that found a defect, as it was sent; returns the name of its file."""
    text = json.dumps([piece.decode("latin-1") for piece in pieces])
    path = KEPT / f"{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"
    KEPT.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path.name


def kept() -> list[list[bytes]]:
    """Returns the requests that were kept."""
    texts = (json.loads(path.read_text()) for path in sorted(KEPT.glob("*.json")))
    return [[piece.encode("latin-1") for piece in text] for text in texts]


async def fuzz(
    door: RunningDoor,
    *,
    count: int,
    seed: int,
    end_s: float,
    keeps: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Sends wrong requests, the kept ones first, until their number or the time is reached.

    Args:
        door: the door.
        count: requests beside the kept ones.
        seed: of every choice.
        end_s: sends nothing after this, by the monotonic clock.
        keeps: True writes what finds a defect into the folder of kept requests.
        say: told how far it is.
    """
    report, bugs, rng = Report(), Bugs(), random.Random(seed)
    first = kept()
    logging.getLogger().addHandler(bugs)
    try:
        for number in range(len(first) + count):
            if time.monotonic() > end_s or len(report.problems) >= _MOST_PROBLEMS:
                break
            pieces = first[number] if number < len(first) else request_of(rng)
            try:
                async with asyncio.timeout(_ANSWER_S):
                    answer = await send(door, pieces)
                problem = wrong(answer) if answer else ""
                report.statuses[answer[9:12].decode() if answer else "closed"] += 1
            except Exception as error:
                problem = repr(error)
            problem = problem or "; ".join(bugs.seen)
            if problem:
                name = keep(pieces) if keeps else "not kept"
                report.problems.append(f"input {number} ({name}): {problem}: {pieces!r:.2000}")
                bugs.seen.clear()
            if number % _PROBE_EVERY == 0:
                good = await door.client.post(PATHS[1], json={"model": "small", "prompt": "hi"})
                if good.status_code != 200:
                    report.problems.append(f"input {number}: then a good one: {good.text}")
                say(f"{number:,} of {count:,}: {dict(report.statuses)}")
        # The client of the good requests keeps one.
        await until(lambda: door.server.connection_count <= 1, "connections are closed")
    finally:
        logging.getLogger().removeHandler(bugs)
    return report


async def run(folder: Path, **how: Any) -> Report:
    """Fuzzes a door before a router that answers at once."""
    server, address = await serve(FakeRouter())
    try:
        async with running_door(folder, door_toml([address], *_SHORT)) as door:
            return await fuzz(door, **how)
    finally:
        await server.stop(0)


def main() -> int:
    """Runs the long form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="requests")
    parser.add_argument("--seconds", type=float, default=3_600.0, help="start nothing after this")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    given = parser.parse_args()
    started_s = time.monotonic()
    print(f"requests: seed {given.seed}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        report = asyncio.run(
            run(
                Path(name),
                count=given.count,
                seed=given.seed,
                end_s=started_s + given.seconds,
                keeps=True,
                say=lambda text: print(f"{time.monotonic() - started_s:6.0f} s  {text}"),
            )
        )
    for problem in report.problems:
        print(problem)
    print(
        f"{report.statuses.total():,} requests in {time.monotonic() - started_s:.0f} s, seed"
        f" {given.seed}: {len(report.problems)} problems; {dict(report.statuses)}"
    )
    return 1 if report.problems or not report.statuses else 0


if __name__ == "__main__":
    sys.exit(main())
