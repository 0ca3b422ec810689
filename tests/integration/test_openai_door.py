"""The OpenAI-shaped door over HTTP: before fake routers, and before a real one with fake tiers."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import ssl
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.common.access.keys import new_key, write_keys
from services.common.access.roles import Role
from services.common.telemetry import Telemetry
from services.local.certificates import make_certificates
from tests import certificates
from tests.fakes.openai_door import RunningDoor, door_toml, running_door
from tests.fakes.ports import free_port
from tests.fakes.router import FakeRouter, abort, serve
from tests.fakes.router_process import mesh_toml, running_router
from tests.fakes.triton import FakeTriton, Script
from tests.waiting import LIMIT_S, until
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb

CHAT: dict[str, Any] = {"model": "tiercel/piqa", "messages": [{"role": "user", "content": "hi"}]}
ROUTES = ("/v1/chat/completions", "/v1/completions")
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest_asyncio.fixture
async def fake() -> AsyncIterator[FakeRouter]:
    """A fake router."""
    router = FakeRouter()
    server, _ = await serve(router)
    yield router
    await server.stop(0)


@pytest_asyncio.fixture
async def door(tmp_path: Path, fake: FakeRouter) -> AsyncIterator[RunningDoor]:
    """A door before it."""
    toml = door_toml([fake.address], "max_body_bytes = 65536", "max_header_bytes = 8192")
    async with running_door(tmp_path, toml) as running:
        yield running


def error_of(response: httpx.Response) -> dict[str, Any]:
    """Returns the error of an answer, which must have the form of OpenAI's."""
    assert response.headers["content-type"] == "application/json"
    found = response.json()
    assert found.keys() == {"error"}
    assert found["error"].keys() == {"message", "type", "param", "code"}
    error: dict[str, Any] = found["error"]
    return error


async def raw(door: RunningDoor, *parts: bytes) -> bytes:
    """Sends bytes on a connection of its own and returns all that comes back."""
    reader, writer = await asyncio.open_connection(*door.server.address)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        return await asyncio.wait_for(reader.read(), LIMIT_S)
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_the_router_gets_what_was_asked_and_its_facts_come_back(
    door: RunningDoor, fake: FakeRouter
) -> None:
    """Key, trace, deadline and id go along; tier and policy are headers and an object."""
    headers = {
        "x-request-id": "r7",
        "x-tiercel-deadline-ms": "400",
        "authorization": "Bearer tck_a_b",
        "traceparent": TRACE,
    }
    response = await door.client.post(ROUTES[0], json={**CHAT, "max_tokens": 9}, headers=headers)
    assert response.status_code == 200
    assert response.headers["x-request-id"] == "r7"
    assert response.headers["x-tiercel-tier"] == "large"
    assert response.headers["x-tiercel-on-time"] == "true"
    assert response.json()["tiercel"]["policy"] == "greedy"
    (spec,), (metadata,) = fake.specs, fake.metadata
    assert (spec.task, spec.max_output_tokens, spec.request_id) == ("piqa", 9, "r7")
    assert spec.deadline.ToMilliseconds() == 400
    assert metadata["authorization"] == "Bearer tck_a_b"
    assert metadata["traceparent"].split("-")[1] == TRACE.split("-")[1]
    assert fake.time_left_s[0] < 2.0  # a stuck router is given up soon after a hard deadline


async def test_an_empty_answer_is_an_answer(door: RunningDoor, fake: FakeRouter) -> None:
    """In one piece and as a stream: role, end, and nothing between."""
    fake.answer = lambda spec: ""
    whole = (await door.client.post(ROUTES[0], json=CHAT)).json()
    assert whole["choices"][0]["message"]["content"] == ""
    assert whole["usage"]["completion_tokens"] == 0
    stream = await door.client.post(ROUTES[0], json={**CHAT, "stream": True})
    first, last, done = [line for line in stream.text.split("\n\n") if line]
    assert json.loads(first.removeprefix("data: "))["choices"][0]["delta"]["content"] == ""
    assert json.loads(last.removeprefix("data: "))["choices"][0]["finish_reason"] == "stop"
    assert done == "data: [DONE]"


async def test_nothing_of_a_prompt_or_a_key_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where a request is refused, breaks, or meets a bug."""
    server, address = await serve(BreakingRouter())
    key = {"authorization": "Bearer tck_marked"}
    body: dict[str, Any] = {**CHAT, "messages": [{"role": "user", "content": "marked"}]}
    with caplog.at_level(logging.DEBUG, "services"):
        async with running_door(tmp_path, door_toml([address])) as door:
            for more in ({}, {"stream": True}, {"n": 2}, {"stop": "marked"}, {"model": "marked"}):
                await door.client.post(ROUTES[0], json={**body, **more}, headers=key)
            text = (await door.client.get("/metrics")).text
    assert "marked" not in caplog.text + text
    await server.stop(0)


async def test_a_soft_task_is_not_given_up_at_its_deadline(
    door: RunningDoor, fake: FakeRouter
) -> None:
    """Its late answers are worth something; a stream's first token says nothing of its last."""
    await door.client.post(ROUTES[0], json={**CHAT, "model": "tiercel/openbookqa"})
    headers = {"x-tiercel-slo-kind": "first_token", "x-tiercel-deadline-ms": "100"}
    await door.client.post(ROUTES[0], json={**CHAT, "stream": True}, headers=headers)
    assert min(fake.time_left_s) > 200.0


async def test_a_refusal_has_its_status_and_the_time_to_come_again(
    door: RunningDoor, fake: FakeRouter
) -> None:
    """For streams too: nothing was sent before the router answered."""
    fake.refuse = lambda spec: "DEADLINE_NOT_REACHABLE"
    for is_stream in (False, True):
        response = await door.client.post(ROUTES[0], json={**CHAT, "stream": is_stream})
        assert response.status_code == 429
        assert error_of(response)["code"] == "deadline_not_reachable"
        assert response.headers["retry-after"] == "1"
        assert response.headers["retry-after-ms"] == "250"


class BreakingRouter(FakeRouter):
    """Breaks every stream after its first piece."""

    async def GenerateStream(
        self, request: pb.GenerateStreamRequest, context: Any
    ) -> AsyncIterator[pb.GenerateStreamResponse]:
        """Answers one character, and fails."""
        async for piece in super().GenerateStream(request, context):
            yield piece
            await abort(context, grpc.StatusCode.UNAVAILABLE, "ENDPOINT_LOST", "it went away")


async def test_a_stream_that_breaks_is_no_success(tmp_path: Path) -> None:
    """Its last event is an error, no `[DONE]` follows, and it counts as what it is."""
    server, address = await serve(BreakingRouter())
    async with running_door(tmp_path, door_toml([address])) as door:
        response = await door.client.post(ROUTES[0], json={**CHAT, "stream": True})
        events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
        assert json.loads(events[0])["choices"][0]["delta"]["content"] == ""
        error = json.loads(events[-1])["error"]
        assert (error["code"], error["message"]) == ("endpoint_lost", "it went away")
        assert "[DONE]" not in response.text
        labels = f'code="endpoint_lost",route="{ROUTES[0]}",status="503"'
        assert (
            f"tiercel_http_handled_total{{{labels}}} 1.0"
            in (await door.client.get("/metrics")).text
        )
    await server.stop(0)


async def test_models_are_listed_and_shown(door: RunningDoor) -> None:
    """Those a request may name; others are not found."""
    listed = (await door.client.get("/v1/models")).json()
    names = [each["id"] for each in listed["data"]]
    assert listed["object"] == "list"
    assert names[:2] == ["tiercel", "tiercel/hellaswag"]
    assert names[-3:] == ["small", "medium", "large"]
    for name in names:
        assert (await door.client.get(f"/v1/models/{name}")).json()["id"] == name
    missing = await door.client.get("/v1/models/gpt-4o")
    assert missing.status_code == 404
    assert error_of(missing)["param"] == "model"


async def test_there_is_nothing_else(door: RunningDoor) -> None:
    """Other paths and methods are answered in the same form."""
    for method, path, status in (
        ("GET", "/", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", ROUTES[0], 405),
        ("DELETE", "/v1/models", 405),
    ):
        response = await door.client.request(method, path)
        assert response.status_code == status
        assert error_of(response)["message"]


async def test_health_follows_the_routers(
    tmp_path: Path, fake: FakeRouter, caplog: pytest.LogCaptureFixture
) -> None:
    """Not serving until one is reached, and no longer once the last is gone."""
    fakes = FakeRouter()
    server, address = await serve(fakes)
    async with running_door(tmp_path, door_toml([address])) as door:
        assert (await door.client.get("/health")).status_code == 200
        await server.stop(0)

        async def has_noticed() -> bool:
            return (await door.client.get("/health")).status_code == 503

        await until(has_noticed, "the door says that no router serves")
        assert (await door.client.get("/health/live")).status_code == 200
        response = await door.client.post(ROUTES[0], json=CHAT)
        assert response.status_code == 503
        assert error_of(response) == {
            "message": "no router can be reached",
            "type": "service_unavailable_error",
            "param": None,
            "code": "no_router",
        }
    caplog.clear()
    nobody = f"127.0.0.1:{free_port()}"
    async with running_door(tmp_path, door_toml([nobody]), is_ready=False) as alone:
        assert (await alone.client.get("/health")).status_code == 503

        async def is_said() -> bool:
            named = {"routers": nobody, "setting": "openai_door.routers"}
            return any(named == getattr(each, "tiercel_fields", {}) for each in caplog.records)

        await until(is_said, "the log names the routers that do not answer, and their setting")


async def test_metrics_are_shown_on_loopback(door: RunningDoor) -> None:
    """With what was counted, by route, status and code."""
    await door.client.post(ROUTES[0], json={**CHAT, "n": 2})
    text = (await door.client.get("/metrics")).text
    labels = f'code="unsupported_parameter",route="{ROUTES[0]}",status="400"'
    assert f"tiercel_http_handled_total{{{labels}}} 1.0" in text
    assert "tiercel_http_routers_serving 1.0" in text


def holds(found: list[Any], count: int) -> bool:
    """Whether a list has so many entries."""
    return len(found) == count


def was_cancelled(fake: FakeRouter, count: int) -> bool:
    """Whether so many requests were cancelled."""
    return fake.cancelled_count == count


async def test_a_client_that_leaves_stops_the_work(door: RunningDoor, fake: FakeRouter) -> None:
    """In the middle of an answer in one piece, and of a stream."""
    fake.delay_s = LIMIT_S
    for count, is_stream in enumerate((False, True), start=1):
        body = {**CHAT, "stream": is_stream}
        asking = asyncio.create_task(door.client.post(ROUTES[0], json=body))
        await until(partial(holds, fake.specs, count), "the router has the request")
        asking.cancel()
        await until(partial(was_cancelled, fake, count), "its work has stopped")
    text = (await door.client.get("/metrics")).text
    assert f'{{code="client_gone",route="{ROUTES[0]}",status="499"}} 2.0' in text


@pytest.mark.parametrize(
    ("content", "headers", "status", "param"),
    [
        (b"{", {}, 400, "body"),
        (b'{"model": "\xff"}', {}, 400, "body"),
        (b"[" * 60_000, {}, 400, "body"),
        (b"[]", {}, 400, "body"),
        (b"{}", {}, 400, "messages"),
        (b" " * 70_000, {}, 413, None),
        (b"{}", {"content-type": "text/plain"}, 415, None),
        (b"{}", {"content-encoding": "gzip"}, 415, None),
        (b"{}", {"x-tiercel-dedline-ms": "5"}, 400, "x-tiercel-dedline-ms"),
        (b"{}", {"x-request-id": "x" * 200}, 400, "x-request-id"),
    ],
)
async def test_bad_bodies_and_headers_are_refused(
    door: RunningDoor,
    content: bytes,
    headers: dict[str, str],
    status: int,
    param: str | None,
) -> None:
    """Before any router is asked, with the field named where there is one."""
    sent = {"content-type": "application/json", **headers}
    if "x-tiercel-dedline-ms" in headers:
        content = json.dumps(CHAT).encode()
    response = await door.client.post(ROUTES[0], content=content, headers=sent)
    assert response.status_code == status
    assert error_of(response)["param"] == param


async def test_a_body_of_no_stated_length_is_bounded_too(door: RunningDoor) -> None:
    """What is beyond the limit is not kept."""

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 10_000

    sent = {"content-type": "application/json"}
    response = await door.client.post(ROUTES[0], content=pieces(), headers=sent)
    assert response.status_code == 413
    assert error_of(response)["code"] == "body_too_large"


@pytest.mark.parametrize(
    ("parts", "status", "code"),
    [
        ([b"nonsense\r\n\r\n"], 400, b"bad_http"),
        ([b"GET /\x00 HTTP/1.1\r\n\r\n"], 400, b"bad_http"),
        ([b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 3_000], 431, b"headers_too_large"),
        ([b"GET / HTTP/1.1\r\nx: ", b"y" * 20_000], 431, b"headers_too_large"),
        ([b"GET /" + b"x" * 20_000], 431, b"headers_too_large"),
        ([b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n"], 400, b"bad_http"),
        (
            [b"POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n"],
            400,
            b"bad_http",
        ),
    ],
)
async def test_what_is_no_http_is_refused_in_the_same_form(
    door: RunningDoor, parts: list[bytes], status: int, code: bytes
) -> None:
    """And headers without an end take no memory without an end."""
    answer = await raw(door, *parts)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b'"code": "%s"' % code in answer
    assert (await door.client.get("/health")).status_code == 200


async def test_too_many_connections_are_refused(tmp_path: Path, fake: FakeRouter) -> None:
    """Those that are open go on."""
    toml = door_toml([fake.address], "max_connections = 1")
    async with running_door(tmp_path, toml) as door:
        assert (await door.client.get("/health")).status_code == 200
        answer = await raw(door, b"GET /health HTTP/1.1\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b'"code": "too_many_connections"' in answer
        assert (await door.client.get("/health")).status_code == 200


async def test_what_comes_slowly_is_not_waited_for(tmp_path: Path, fake: FakeRouter) -> None:
    """Headers, and a body."""
    toml = door_toml([fake.address], "head_timeout_s = 0.05", "body_timeout_s = 0.05")
    async with running_door(tmp_path, toml) as door:
        assert b'"code": "headers_too_slow"' in await raw(door, b"GET / HTTP/1.1\r\n")
        head = b"POST %s HTTP/1.1\r\ncontent-type: application/json\r\n" % ROUTES[0].encode()
        answer = await raw(door, head + b"content-length: 9\r\n\r\n{")
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code": "body_too_slow"' in answer
        # The rest of a request that was answered before its end.
        refused = await raw(door, b"PUT /v1/models HTTP/1.1\r\ncontent-length: 9\r\n\r\n{")
        assert refused.startswith(b"HTTP/1.1 405 ")


async def test_a_key_is_needed_where_keys_are_known(tmp_path: Path, fake: FakeRouter) -> None:
    """And checked before the body is read."""
    path = tmp_path / "keys.toml"
    shop, key = new_key("shop", [Role.DATA])
    write_keys(path, [shop])
    mesh = mesh_toml([("e0", "127.0.0.1:1")])
    mesh = mesh.replace("[[mesh.tasks]]", f'[mesh.access]\nkeys_file = "{path}"\n[[mesh.tasks]]', 1)
    async with running_door(tmp_path, door_toml([fake.address], mesh=mesh)) as door:
        for path_, method in ((ROUTES[0], "POST"), ("/v1/models", "GET")):
            response = await door.client.request(method, path_)
            assert response.status_code == 401
            assert error_of(response)["type"] == "authentication_error"
        headers = {"authorization": f"Bearer {key}"}
        assert (await door.client.post(ROUTES[0], json=CHAT, headers=headers)).status_code == 200
        assert (await door.client.get("/v1/models", headers=headers)).status_code == 200
        assert (await door.client.get("/health")).status_code == 200
    assert fake.metadata[0]["authorization"] == f"Bearer {key}"


async def test_a_web_page_that_has_its_name_lead_here_is_refused(door: RunningDoor) -> None:
    """Its browser would take this door for the page's own site, and let it ask and read."""
    for method, path in (("POST", ROUTES[0]), ("GET", "/v1/models"), ("GET", "/metrics")):
        response = await door.client.request(method, path, headers={"host": "rebound.example"})
        assert response.status_code == 403
        assert error_of(response)["code"] == "host_not_allowed"


async def test_it_serves_by_tls(tmp_path: Path, fake: FakeRouter) -> None:
    """With the mesh's certificates."""
    own = certificates.tls_settings("router-inference")
    files = ("root_certificates", "certificate", "key")
    tls = "\n".join(["[mesh.tls]", *(f'{key} = "{getattr(own, key)}"' for key in files), ""])
    mesh = mesh_toml([("e0", "127.0.0.1:1")]).replace("[[mesh.tasks]]", f"{tls}[[mesh.tasks]]", 1)
    async with running_door(tmp_path, door_toml([fake.address], mesh=mesh), is_ready=False) as door:
        assert door.url.startswith("https://")
        trusted = ssl.create_default_context(cafile=own.root_certificates)
        async with httpx.AsyncClient(base_url=door.url, verify=trusted) as client:
            assert (await client.get("/health/live")).status_code == 200


async def test_renewed_certificates_are_shown(tmp_path: Path, fake: FakeRouter) -> None:
    """To connections to come, without a restart."""
    make_certificates(tmp_path / "tls")
    own = certificates.tls_settings("openai-door", tmp_path / "tls")
    files = ("root_certificates", "certificate", "key")
    tls = "\n".join(["[mesh.tls]", *(f'{key} = "{getattr(own, key)}"' for key in files), ""])
    mesh = mesh_toml([("e0", "127.0.0.1:1")]).replace("[[mesh.tasks]]", f"{tls}[[mesh.tasks]]", 1)
    toml = door_toml([fake.address], mesh=mesh)
    async with running_door(tmp_path, toml, is_ready=False) as door:

        async def shown() -> str:
            return await asyncio.to_thread(ssl.get_server_certificate, door.server.address)

        before = await shown()
        make_certificates(tmp_path / "tls")

        async def is_new() -> bool:
            return await shown() != before

        await until(is_new, "the new certificate is shown")


async def test_a_request_is_a_span_of_the_callers_trace(tmp_path: Path, fake: FakeRouter) -> None:
    """And the router's spans hang below it."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    telemetry = Telemetry(provider, random.Random(1))
    async with running_door(tmp_path, door_toml([fake.address]), telemetry=telemetry) as door:
        await door.client.post(ROUTES[0], json=CHAT, headers={"traceparent": TRACE})
        await door.client.post(ROUTES[0], json={**CHAT, "n": 2}, headers={"traceparent": TRACE})
    good, bad = exporter.get_finished_spans()
    assert good.name == f"POST {ROUTES[0]}"
    assert format(good.context.trace_id, "032x") == TRACE.split("-")[1]
    assert fake.metadata[0]["traceparent"].split("-")[2] == format(good.context.span_id, "016x")
    assert bad.attributes is not None
    assert bad.attributes["error.type"] == "unsupported_parameter"


async def test_a_real_router_answers(tmp_path: Path) -> None:
    """In one piece and piece by piece, with its own names of fields turned into ours."""
    triton = await FakeTriton(default=Script(tokens=("a", "b", "c"))).start()
    mesh = mesh_toml([("e0", triton.address)], router='default_task = "copa"')
    async with (
        running_router(tmp_path, mesh) as router,
        running_door(tmp_path, door_toml([router.address], mesh=mesh)) as door,
    ):
        whole = (await door.client.post(ROUTES[0], json=CHAT)).json()
        assert whole["choices"][0]["message"]["content"] == "abc"
        assert whole["usage"]["completion_tokens"] == 3
        stream = await door.client.post(ROUTES[0], json={**CHAT, "stream": True})
        lines = [line.removeprefix("data: ") for line in stream.text.split("\n\n") if line]
        assert lines[-1] == "[DONE]"
        pieces = [json.loads(line)["choices"][0]["delta"] for line in lines[:-1]]
        assert "".join(piece.get("content", "") for piece in pieces) == "abc"
        for more, param in (
            ({"max_completion_tokens": 5_000}, "max_completion_tokens"),
            ({"temperature": 3}, "temperature"),
            ({"messages": [{"role": "user", "content": "x" * 70_000}]}, "messages"),
            ({"metadata": {"tiercel_deadline_ms": 4e6}}, "metadata.tiercel_deadline_ms"),
        ):
            refused = await door.client.post(ROUTES[0], json={**CHAT, **more})
            assert refused.status_code == 400
            error = error_of(refused)
            assert error["param"] == param
            assert error["message"].startswith(f"{param}: ")
        pinned = await door.client.post(
            ROUTES[1],
            json={"model": "small", "prompt": "hi", "metadata": {"tiercel_task": "piqa"}},
        )
        assert pinned.json()["tiercel"]["tier"] == "small"
        untold = await door.client.post(ROUTES[0], json={**CHAT, "model": "tiercel"})
        assert untold.json()["choices"][0]["message"]["content"] == "abc"  # by the default task
    await triton.stop()


async def test_without_a_task_anywhere_the_header_is_named(tmp_path: Path) -> None:
    """The mesh has several tasks, and no default."""
    triton = await FakeTriton().start()
    mesh = mesh_toml([("e0", triton.address)])
    async with (
        running_router(tmp_path, mesh) as router,
        running_door(tmp_path, door_toml([router.address], mesh=mesh)) as door,
    ):
        refused = await door.client.post(ROUTES[0], json={**CHAT, "model": "tiercel"})
        assert refused.status_code == 400
        assert error_of(refused)["param"] == "x-tiercel-task"
    await triton.stop()


async def test_a_drain_lets_answers_end(tmp_path: Path) -> None:
    """What is under way ends; then nobody is served."""
    router = FakeRouter(delay_s=0.3)
    server, address = await serve(router)
    async with running_door(tmp_path, door_toml([address])) as door:
        asking = asyncio.create_task(door.client.post(ROUTES[0], json=CHAT))
        await until(lambda: router.specs, "the router has the request")
        await door.server.enter_drain()
        assert (await door.client.get("/health")).status_code == 503
        await door.server.stop(LIMIT_S)
        assert (await asking).status_code == 200
        with pytest.raises(httpx.ConnectError):
            await door.client.get("/health")
    await server.stop(0)


async def test_any_json_over_http_is_answered_in_form(door: RunningDoor) -> None:
    """Bodies drawn at random, by both routes, on one door."""
    draws = random.Random(15)
    values: list[Any] = [
        None,
        True,
        0,
        -1,
        1e308,
        "",
        "a",
        [],
        {},
        [[]],
        {"type": "text"},
        "\ud800",
    ]
    fields = ["model", "messages", "prompt", "n", "stream", "max_tokens", "metadata", "seed", "zz"]
    for _ in range(200):
        body = {**CHAT, "prompt": "a"} if draws.random() < 0.5 else {}
        for name in draws.sample(fields, draws.randint(0, 3)):
            body[name] = draws.choice(values)
        response = await door.client.post(
            draws.choice(ROUTES),
            content=json.dumps(body).encode(),
            headers={"content-type": "application/json"},
        )
        assert response.status_code < 500
        if response.status_code != 200:
            assert error_of(response)["param"]
