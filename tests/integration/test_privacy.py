"""Prompts, answers and keys are written nowhere: everything a router wrote is searched for them."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import redis
from tritonclient.grpc import service_pb2_grpc as kserve_grpc

from services.common.access.keys import new_key, write_keys
from services.common.access.roles import Role
from tests.conftest import RedisServer
from tests.fakes.otlp_sink import OtlpSink
from tests.fakes.router_process import mesh_toml, router_process
from tests.fakes.triton import FakeTriton, Script
from tests.kserve_requests import infer_request
from tests.waiting import LIMIT_S, until
from tiercel import AsyncClient, TiercelError

PROMPT = "marker-of-a-prompt"
ANSWER = "marker-of-an-answer"
CONVERSATION = "marker-of-a-conversation"


@pytest.fixture
def sink() -> Iterator[OtlpSink]:
    """A collector."""
    opened = OtlpSink()
    yield opened
    opened.close()


SCRIPTS = {
    "an answer": Script(tokens=(ANSWER, ANSWER)),
    "a refusal that repeats the prompt": Script(says="text_input: cannot read {prompt}"),
    "words unknown that repeat the prompt": Script(says="something about {prompt}"),
    "a status that repeats the prompt": Script(
        error=grpc.StatusCode.INTERNAL, error_text=f"cannot do {PROMPT}"
    ),
    "an answer that breaks off": Script(
        tokens=(ANSWER, ANSWER),
        error=grpc.StatusCode.UNAVAILABLE,
        error_text=f"gone in {ANSWER}",
        error_after=1,
    ),
}


async def test_what_a_router_writes_holds_no_prompt_answer_or_key(
    tmp_path: Path, sink: OtlpSink, redis_server: RedisServer
) -> None:
    """Logs, spans, metrics, records and files, whatever a tier or a caller does."""
    key, text = new_key("shop", [Role.DATA])
    write_keys(tmp_path / "keys.toml", [key])
    triton = await FakeTriton().start()
    toml = mesh_toml([("e0", triton.address)], redis_url=redis_server.url, deadline_s=0.5)
    access = f'[mesh.access]\nkeys_file = "{tmp_path / "keys.toml"}"\n[[mesh.tasks]]'
    toml = toml.replace("[[mesh.tasks]]", access, 1)
    toml = toml.replace('metrics_listen = ""', 'metrics_listen = "127.0.0.1:0"')
    toml = toml.replace("lame_duck_s", 'operate_listen = "127.0.0.1:0"\nlame_duck_s', 1)
    toml += '[log]\nlevel = "debug"\n'
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_TRACES_SAMPLER": "always_on",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    with router_process(tmp_path, toml, environ=environ) as router:
        async with AsyncClient(router.address, api_key=text) as client:
            for triton.default in SCRIPTS.values():
                await _ask(client)
                await _ask_by_kserve(router.address, text)
            with pytest.raises(TiercelError):
                await client.generate(PROMPT * 10_000, task="piqa")
            with pytest.raises(TiercelError):
                await client.generate(PROMPT, task="none")
            with pytest.raises(TiercelError):
                await client.generate(PROMPT, task="piqa", conversation_id=CONVERSATION * 10)
        async with AsyncClient(router.address, api_key=text + "x") as stranger:
            with pytest.raises(TiercelError):
                await stranger.generate(PROMPT, task="piqa")
        page = await asyncio.to_thread(_page, router.metrics)
    await triton.stop()
    assert {entry.prompt for entry in triton.received} == {PROMPT}
    await until(lambda: len(sink.spans) >= len(SCRIPTS), "spans are exported")
    config = tmp_path / "tiercel.toml"
    written = {
        "metrics": page,
        "spans": b"\n".join(sink.bodies),
        "redis": await asyncio.to_thread(_stored, redis_server.url),
        **{str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()},
    }
    assert b"tiercel.request" in written["spans"]
    assert b"e0" in written["redis"]
    assert b"serving" in written[str(router.log_path)]
    del written[str(config)]
    found = [
        (place, marker)
        for place, content in written.items()
        for marker in (PROMPT, ANSWER, CONVERSATION, text, text.split("_", 2)[2])
        if marker.encode() in content
    ]
    assert found == []


async def _ask(client: AsyncClient) -> None:
    """Asks both ways; whether there is an answer does not matter."""
    for stream in (False, True):
        try:
            if stream:
                async for _ in client.generate_stream(
                    PROMPT, task="piqa", conversation_id=CONVERSATION
                ):
                    pass
            else:
                await client.generate(PROMPT, task="piqa", conversation_id=CONVERSATION)
        except TiercelError:
            pass


async def _ask_by_kserve(address: str, key: str) -> None:
    """Asks as a client of Triton does; whether there is an answer does not matter."""
    parameters = {"tiercel_task": "piqa", "tiercel_conversation_id": CONVERSATION}
    request = infer_request(prompt=PROMPT.encode(), parameters=parameters)
    metadata = (("authorization", f"Bearer {key}"),)
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = kserve_grpc.GRPCInferenceServiceStub(channel)
        code = await stub.ModelInfer(request, metadata=metadata, timeout=LIMIT_S).code()
    # It came as far as a tier.
    assert code not in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.NOT_FOUND)


def _page(address: str) -> bytes:
    """Returns the metrics page."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=LIMIT_S) as reply:
        content: bytes = reply.read()
    return content


def _stored(url: str) -> bytes:
    """Returns everything that Redis holds, keys and values."""
    connection: Any = redis.Redis.from_url(url)
    found: list[Any] = []
    for key in connection.scan_iter():
        readers = {
            b"string": connection.get,
            b"hash": connection.hgetall,
            b"stream": connection.xrange,
            b"set": connection.smembers,
            b"zset": lambda name: connection.zrange(name, 0, -1),
            b"list": lambda name: connection.lrange(name, 0, -1),
        }
        found += [key, readers[connection.type(key)](key)]
    connection.close()
    return repr(found).encode()
