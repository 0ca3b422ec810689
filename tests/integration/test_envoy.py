"""A router as endpoint picker of a real Envoy, with the configuration of `deploy/envoy`."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import pytest
import yaml
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.access.keys import new_key, write_keys
from services.common.access.roles import Role
from services.local.certificates import make_certificates
from services.router_inference.doors.envoy import picker as picker_module
from services.router_inference.doors.envoy.talk import Talk
from tests.fakes.envoy import (
    ENVOY_FILES,
    Change,
    Envoy,
    connection_manager,
    http_filter,
    lead_to,
    running_envoy,
)
from tests.fakes.http_tier import HttpTier
from tests.fakes.router_process import RunningRouter, mesh_toml, running_router
from tests.integration.conftest import PacedTriton
from tests.integration.test_doors import priorities_of, table
from tests.waiting import LIMIT_S, until

GENERATE = "/v2/models/tiercel/generate_stream"
TASK = {"x-tiercel-task": "piqa"}
INSTANT_COUNT = 300
LONG_PROMPT_BYTES = 220_000
LONG_S = 30.0
"""Default deadline: nothing comes late because the machine is busy."""
EJECTED = "eject_s = 300.0\neject_max_s = 300.0\n"
"""What has failed is left alone until the test has ended."""
OWN = 'policy = "static-large"\nenvoy_listen = "127.0.0.1:0"\nfollow_trainer = false\n'


@dataclass
class Meshed:
    """A router, the Envoy that asks it, and a client of that."""

    router: RunningRouter
    envoy: Envoy
    client: httpx.AsyncClient

    async def post(
        self, path: str = GENERATE, *, prompt: str = "word " * 24, tokens: int = 4, **headers: str
    ) -> httpx.Response:
        """Asks for an answer; header names with `_` for `-`."""
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        sampling = json.dumps({"max_tokens": tokens})
        body = {"text_input": prompt, "stream": True, "sampling_parameters": sampling}
        return await self.client.post(path, json=body, headers={**TASK, **named})

    async def settled(self) -> None:
        """Waits until every exchange has ended, and checks that nothing is left of them."""
        core = self.router.core
        await until(lambda: core.accounts.in_flight == 0, "every exchange has ended")
        assert len(core.view.load.ledger) == core.leases.open_count == 0

    def counted(self, outcome: str) -> int:
        """Returns how many requests ended so."""
        return int(getattr(self.router.core.accounts.counts, outcome))


@asynccontextmanager
async def meshed(
    folder: Path,
    addresses: Mapping[str, str],
    *,
    change: Change = lambda config: config,
    toml: str = "",
    own: str = "",
) -> AsyncIterator[Meshed]:
    """Runs router and Envoy before the HTTP addresses of endpoints by name."""
    text = toml or mesh_toml([], router=OWN + own, deadline_s=LONG_S)
    endpoints = "" if toml else endpoints_toml(addresses)
    text = text.replace("[router_inference]\n", f"{endpoints}[router_inference]\n")

    def to_mesh(config: dict[str, Any]) -> dict[str, Any]:
        lead_to(config, "pickers", [running.addresses["envoy"]])
        lead_to(config, "tiers", list(dict.fromkeys(addresses.values())))
        return change(patient(config))

    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(running_router(folder, text))
        path = ENVOY_FILES / "envoy.yaml"
        envoy = await stack.enter_async_context(running_envoy(folder, path, to_mesh))
        client = httpx.AsyncClient(base_url=envoy.url, timeout=LIMIT_S, trust_env=False)
        await stack.enter_async_context(client)
        yield Meshed(running, envoy, client)


def patient(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a configuration that waits for a router on a busy machine."""
    http_filter(config, "ext_proc")["message_timeout"] = f"{LIMIT_S:g}s"
    return config


def endpoints_toml(addresses: Mapping[str, str]) -> str:
    """Returns entries of endpoints that serve every tier, by name and HTTP address."""
    lines = []
    for number, (name, address) in enumerate(addresses.items()):
        lines += ["[[mesh.endpoints]]", f'name = "{name}"', f'address = "127.0.0.1:{number + 1}"']
        lines += [f'http_address = "{address}"', 'tiers = ["small", "medium", "large"]']
    return "\n".join(lines) + "\n"


def addresses_of(*tiers: HttpTier) -> dict[str, str]:
    """Returns endpoints of some servers."""
    return {f"e{number}": tier.address for number, tier in enumerate(tiers)}


async def test_the_router_chooses_endpoint_and_tier(
    tmp_path: Path, two_tiers: tuple[HttpTier, HttpTier]
) -> None:
    """The path names the tier; the client hears who answered; the request ends on time."""
    async with meshed(tmp_path, addresses_of(*two_tiers)) as mesh:
        reply = await mesh.post(x_tiercel_deadline_ms="25000", x_request_id="mine")
        assert (reply.status_code, reply.headers["x-tiercel-tier"]) == (200, "large")
        assert reply.text.count("data: ") == 3
        [tier] = [each for each in two_tiers if each.paths]
        assert tier.paths == ["/v2/models/large/generate_stream"]
        assert 20_000 < int(tier.headers[0]["x-envoy-expected-rq-timeout-ms"]) <= 25_000
        await mesh.settled()
        assert mesh.counted("on_time") == 1
        choice = mesh.router.core.explanations.find(reply.headers["x-request-id"])
        assert choice is not None


@pytest.mark.parametrize(
    "name", ["liveness", "readiness", "envoy.service.ext_proc.v3.ExternalProcessor"]
)
async def test_health_is_told_where_a_gateway_asks(tmp_path: Path, name: str) -> None:
    """At the picker's own address, by the names that gateways and their probes use."""
    async with (
        running_router(tmp_path, mesh_toml([("e0", "127.0.0.1:1")], router=OWN)) as router,
        grpc.aio.insecure_channel(router.addresses["envoy"]) as channel,
    ):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        asked = health_pb2.HealthCheckRequest(service=name)
        reply = await stub.Check(asked, timeout=LIMIT_S)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


async def test_an_endpoint_that_is_gone_is_passed_over(
    tmp_path: Path, two_tiers: tuple[HttpTier, HttpTier], free_port: Any
) -> None:
    """Envoy goes down the picker's list; the router hears who served, and closes what failed."""
    addresses = {"e0": f"127.0.0.1:{free_port()}", "e1": two_tiers[0].address}
    async with meshed(tmp_path, addresses, own=EJECTED) as mesh:
        reply = await mesh.post()
        assert (reply.status_code, reply.headers["x-tiercel-endpoint"]) == (200, "e1")
        await mesh.settled()
        for _ in range(4):
            assert (await mesh.post()).status_code == 200
        await mesh.settled()
        assert mesh.counted("on_time") == 5
        reasons = [mesh.router.core.view.fleet.unusable_reason(row) for row in range(6)]
        assert any("RETRIED_BY_GATEWAY" in reason for reason in reasons)


async def test_no_server_is_tried_that_lacks_the_model(
    tmp_path: Path, two_tiers: tuple[HttpTier, HttpTier], free_port: Any
) -> None:
    """Where the list of the router ends, Envoy tries nobody of its own choice."""
    tier, _ = two_tiers
    gone = f"127.0.0.1:{free_port()}"
    entries = endpoints_toml({"e0": gone}) + endpoints_toml({"e1": tier.address}).replace(
        '["small", "medium", "large"]', '["small"]'
    )
    text = mesh_toml([], router=OWN, deadline_s=LONG_S)
    text = text.replace("[router_inference]\n", f"{entries}[router_inference]\n")
    addresses = {"e0": gone, "e1": tier.address}
    async with meshed(tmp_path, addresses, toml=text) as mesh:
        assert (await mesh.post(x_tiercel_tier="large")).status_code == 503
        await mesh.settled()
        assert mesh.counted("failed") == 1
        assert not tier.paths
        assert (await mesh.post(x_tiercel_tier="small")).status_code == 200


async def test_with_keys_envoy_shows_one(
    tmp_path: Path, two_tiers: tuple[HttpTier, HttpTier]
) -> None:
    """On loopback without TLS it stands for the certificate; without, no router answers.

    Nor by the key of a client, who could call itself any other there.
    """
    shop, client_key = new_key("shop", [Role.DATA])
    gateway, key = new_key("envoy", [Role.GATEWAY])
    write_keys(tmp_path / "keys.toml", [shop, gateway])
    addresses = addresses_of(two_tiers[0])
    access = f'[mesh.access]\nkeys_file = "{tmp_path / "keys.toml"}"\n[[mesh.tasks]]'
    router = f'{OWN}operate_listen = "127.0.0.1:0"\n'
    text = mesh_toml([], router=router, deadline_s=LONG_S).replace("[[mesh.tasks]]", access, 1)
    entries = endpoints_toml(addresses)
    text = text.replace("[router_inference]\n", f"{entries}[router_inference]\n")
    for shown in (key, client_key, ""):

        def change(config: dict[str, Any], shown: str = shown) -> dict[str, Any]:
            entry = {"key": "authorization", "value": f"Bearer {shown}"}
            service = http_filter(config, "ext_proc")["grpc_service"]
            service["initial_metadata"] = [entry] if shown else []
            return config

        async with meshed(tmp_path, addresses, toml=text, change=change) as mesh:
            reply = await mesh.post()
            assert reply.status_code == 200
            assert ("x-tiercel-tier" in reply.headers) == (shown == key)
            (tmp_path / "admin").unlink()


async def test_without_any_endpoint_the_answer_is_503(tmp_path: Path, free_port: Any) -> None:
    """First by Envoy, which reaches none; then by the router, which has learned that."""
    async with meshed(tmp_path, {"e0": f"127.0.0.1:{free_port()}"}, own=EJECTED) as mesh:
        replies = [await mesh.post(x_tiercel_tier="large") for _ in range(4)]
        assert [reply.status_code for reply in replies] == [503] * 4
        await mesh.settled()
        assert mesh.counted("failed") == 4
        assert replies[-1].headers["x-tiercel-reason"] == "NO_USABLE_ENDPOINT"
        assert "retry-after" in replies[-1].headers


@pytest.mark.parametrize("has_begun", [True, False])
async def test_a_server_that_dies_in_mid_stream_is_no_success(
    tmp_path: Path, two_tiers: tuple[HttpTier, HttpTier], has_begun: bool
) -> None:
    """The client sees a broken answer, at once or after a piece; the router no answer."""
    tier, _ = two_tiers
    tier.cut_after = 1
    async with meshed(tmp_path, addresses_of(tier)) as mesh:
        if has_begun:
            tier.may_go_on.clear()
            async with mesh.client.stream("POST", GENERATE, json={}, headers=TASK) as reply:
                pieces = reply.aiter_bytes()
                await anext(pieces)
                tier.may_go_on.set()
                with pytest.raises(httpx.RemoteProtocolError):
                    await anext(pieces)
        else:
            with pytest.raises(httpx.RemoteProtocolError):
                await mesh.post()
        await mesh.settled()
        assert (mesh.counted("cancelled"), mesh.counted("offered")) == (1, 1)


async def test_instant_answers_come_whole(
    tmp_path: Path, two_tiers: tuple[HttpTier, HttpTier]
) -> None:
    """Also where a router is busy: however late it takes note, nothing overtakes an answer."""

    async def work() -> None:
        while True:
            until_s = time.monotonic() + 0.001
            while time.monotonic() < until_s:
                pass
            await asyncio.sleep(0)

    async with meshed(tmp_path, addresses_of(*two_tiers)) as mesh:
        busy = asyncio.ensure_future(work())
        try:
            for _ in range(INSTANT_COUNT // 20):
                replies = await asyncio.gather(*(mesh.post() for _ in range(20)))
                assert {reply.text.count("data: ") for reply in replies} == {3}
        finally:
            busy.cancel()
        await mesh.settled()
        assert mesh.counted("on_time") == mesh.counted("offered") == INSTANT_COUNT


async def test_an_error_without_a_body_is_heard_of(
    tmp_path: Path, two_tiers: tuple[HttpTier, HttpTier]
) -> None:
    """It counts against the endpoint, which would draw everything with instant errors."""
    bad, good = two_tiers
    bad.status, bad.has_body = 500, False
    async with meshed(tmp_path, addresses_of(bad, good), own=EJECTED + "seed = 7\n") as mesh:
        replies = [await mesh.post() for _ in range(8)]
        await mesh.settled()
        assert mesh.counted("failed") == len(bad.paths) == 3
        assert [reply.status_code for reply in replies][-3:] == [200] * 3


@pytest.mark.parametrize("is_dropped", [True, False])
async def test_what_is_told_the_picker_is_not_told_clients(
    tmp_path: Path, two_tiers: tuple[HttpTier, HttpTier], is_dropped: bool
) -> None:
    """The trailers name addresses; without the filter that drops them a client would see those."""

    def change(config: dict[str, Any]) -> dict[str, Any]:
        manager = connection_manager(config)
        manager["http_protocol_options"] = {"enable_trailers": True}
        first = manager["http_filters"].pop(0)
        assert first["name"] == "drop_told"
        manager["http_filters"][:0] = [first] * is_dropped
        return config

    async with meshed(tmp_path, addresses_of(two_tiers[0]), change=change) as mesh:
        host, _, port = mesh.envoy.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST {GENERATE} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        head += "content-length: 2\r\nte: trailers\r\nx-tiercel-task: piqa\r\n"
        writer.write(f"{head}\r\n{{}}".encode())
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 200")
        assert (b"tiercel-answer-served" in answer) == (not is_dropped)


async def test_a_client_that_leaves_has_cancelled(
    tmp_path: Path, two_tiers: tuple[HttpTier, HttpTier]
) -> None:
    """Its request is ended at the server too."""
    tier, _ = two_tiers
    tier.step_s, tier.pieces = 0.05, 1_000
    async with meshed(tmp_path, addresses_of(tier)) as mesh:
        async with mesh.client.stream("POST", GENERATE, json={}, headers=TASK) as reply:
            await anext(reply.aiter_bytes())
        await mesh.settled()
        assert mesh.counted("cancelled") == 1
        await until(lambda: tier.left == 1, "the server was left")


async def test_the_deadline_binds_in_mid_stream(
    tmp_path: Path, two_tiers: tuple[HttpTier, HttpTier]
) -> None:
    """Envoy ends the answer at the request's own deadline; the router counts it late."""
    tier, _ = two_tiers
    tier.step_s, tier.pieces = 0.05, 1_000
    async with meshed(tmp_path, addresses_of(tier)) as mesh:
        with pytest.raises(httpx.RemoteProtocolError):
            await mesh.post(x_tiercel_deadline_ms="2000")
        await mesh.settled()
        assert mesh.counted("late") == 1
        await until(lambda: tier.left == 1, "the server was left")


async def test_refusals_reach_the_client(
    tmp_path: Path, two_tiers: tuple[HttpTier, HttpTier]
) -> None:
    """429 with a time to retry; 404 and 400 with what is wrong; no server sees any of it."""
    async with meshed(tmp_path, addresses_of(*two_tiers)) as mesh:
        hopeless = await mesh.post(x_tiercel_deadline_ms="1")
        assert (hopeless.status_code, hopeless.headers["retry-after"]) == (429, "1")
        assert "limit" in hopeless.json()["error"]
        assert (await mesh.post(x_tiercel_tier="huge")).status_code == 404
        wrong = await mesh.post(x_tiercel_deadline_ms="soon")
        assert (wrong.status_code, wrong.headers["content-type"]) == (400, "application/json")
        assert "x-tiercel-deadline-ms" in wrong.json()["error"]
        await mesh.settled()
        assert mesh.counted("refused") == 1
        assert not any(tier.paths for tier in two_tiers)


async def test_only_the_subset_is_used(
    tmp_path: Path, two_tiers: tuple[HttpTier, HttpTier]
) -> None:
    """As another filter names it, in metadata."""
    allowed = two_tiers[1].address

    def change(config: dict[str, Any]) -> dict[str, Any]:
        filters = connection_manager(config)["http_filters"]
        url = "type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config"
        value = {"x-gateway-destination-endpoint-subset": [allowed]}
        entry = {"metadata_namespace": "envoy.lb.subset_hint", "value": value}
        typed = {"@type": url, "metadata": [entry]}
        filters.insert(0, {"name": "envoy.filters.http.set_metadata", "typed_config": typed})
        return config

    async with meshed(tmp_path, addresses_of(*two_tiers), change=change) as mesh:
        for _ in range(3):
            assert (await mesh.post()).headers["x-tiercel-endpoint"] == "e1"
        assert not two_tiers[0].paths


@pytest.mark.parametrize("is_open", [True, False])
async def test_without_routers(
    tmp_path: Path, two_tiers: tuple[HttpTier, HttpTier], is_open: bool
) -> None:
    """Requests go on to the named tier, or are refused, as the configuration says."""

    def change(config: dict[str, Any]) -> dict[str, Any]:
        http_filter(config, "ext_proc")["failure_mode_allow"] = is_open
        return config

    async with meshed(tmp_path, addresses_of(*two_tiers), change=change) as mesh:
        assert (await mesh.post()).status_code == 200
        # As a router that is gone: its port refuses.
        await mesh.router.server.stop(0.0)
        replies = [await mesh.post() for _ in range(6)]
        assert {reply.status_code for reply in replies} == ({200} if is_open else {503})
        paths = [path for tier in two_tiers for path in tier.paths]
        assert paths.count("/v2/models/small/generate_stream") == (6 if is_open else 0)


async def test_a_router_that_hangs_is_waited_for_a_tenth_of_a_second(
    tmp_path: Path, two_tiers: tuple[HttpTier, HttpTier], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then requests go on without it."""

    async def hang(*_: object) -> None:
        await asyncio.Event().wait()

    def change(config: dict[str, Any]) -> dict[str, Any]:
        http_filter(config, "ext_proc")["message_timeout"] = "0.1s"
        return config

    monkeypatch.setattr(picker_module.Picker, "Process", hang)
    async with meshed(tmp_path, addresses_of(*two_tiers), change=change) as mesh:
        assert (await mesh.post()).status_code == 200
        [path] = [path for tier in two_tiers for path in tier.paths]
        assert path == "/v2/models/small/generate_stream"


async def test_other_calls_reach_an_endpoint_uncounted(
    tmp_path: Path, two_tiers: tuple[HttpTier, HttpTier]
) -> None:
    """Health of Triton, for instance."""
    async with meshed(tmp_path, addresses_of(*two_tiers)) as mesh:
        assert (await mesh.client.get("/v2/health/ready")).status_code == 200
        assert mesh.counted("offered") == 0


@pytest.mark.parametrize("has_router", [True, False])
async def test_what_changes_a_server_reaches_none(
    tmp_path: Path, two_tiers: tuple[HttpTier, HttpTier], has_router: bool
) -> None:
    """A client would have it unload a tier, or answer what is not counted."""
    async with meshed(tmp_path, addresses_of(*two_tiers)) as mesh:
        if not has_router:
            await mesh.router.server.stop(0.0)
        for path in ("/v2/repository/models/large/unload", "/update_weights", "/generate"):
            assert (await mesh.client.post(path)).status_code == 403
        assert (await mesh.client.put(GENERATE)).status_code == 403
        assert (await mesh.post(sec_fetch_site="cross-site")).status_code == 403
        assert mesh.counted("offered") == 0
    assert [path for tier in two_tiers for path in tier.paths] == []


async def test_a_web_page_that_has_its_name_lead_here_is_refused(
    tmp_path: Path, two_tiers: tuple[HttpTier, HttpTier]
) -> None:
    """Its browser would take this Envoy for the page's own site. Nor does a page end it."""
    async with meshed(tmp_path, addresses_of(*two_tiers)) as mesh:
        for host in ("rebound.example:8080", "127.0.0.1.rebound.example", "localhost.example"):
            reply = await mesh.post(host=host)
            assert reply.status_code == 403
            assert "no name of this machine" in reply.text
        assert mesh.counted("offered") == 0
        for path in ("quitquitquit", "healthcheck/fail", "drain_listeners", "logging?level=off"):
            assert (await mesh.client.post(f"{mesh.envoy.admin}/{path}")).status_code == 403
        for host in ("localhost:8080", "LOCALHOST", "mesh.localhost", "192.0.2.1", "[::1]:8080"):
            assert (await mesh.post(host=host)).status_code == 200


CHAT = "/v1/chat/completions"
READING = "envoy_reads_bodies = true\n"


def read_by_routers(mode: str) -> Change:
    """Returns what is to be changed for bodies to be read, as the configuration says."""

    def change(config: dict[str, Any]) -> dict[str, Any]:
        manager = connection_manager(config)
        [host] = manager["route_config"]["virtual_hosts"]
        [route] = [each for each in host["routes"] if each["match"].get("prefix") == "/v1/"]
        [found] = route["typed_per_filter_config"].values()
        modes = found["overrides"]["processing_mode"]
        modes["request_body_mode"] = mode
        if mode == "FULL_DUPLEX_STREAMED":  # as gateways of the Gateway API
            modes["request_trailer_mode"] = "SEND"
        return config

    return change


def named_toml(*tiers: HttpTier) -> str:
    """Returns endpoints whose servers call their models otherwise, `llama-` before the tier."""
    names = ("small", "medium", "large")
    models = "models = {" + ", ".join(f'{tier} = "llama-{tier}"' for tier in names) + "}\n"
    text = mesh_toml([], router=OWN + READING, deadline_s=LONG_S)
    entries = endpoints_toml(addresses_of(*tiers)).replace("tiers = [", f"{models}tiers = [")
    return text.replace("[router_inference]\n", f"{entries}[router_inference]\n")


@pytest.mark.parametrize("mode", ["BUFFERED", "FULL_DUPLEX_STREAMED"])
async def test_the_model_in_a_body_is_read_and_written(
    tmp_path: Path, two_tiers: tuple[HttpTier, HttpTier], mode: str
) -> None:
    """Task, tier, deadline, limit are those of the JSON; the server gets its own model's name."""
    tier, _ = two_tiers
    toml = named_toml(tier)
    messages = [{"role": "user", "content": "größer " * 2_000}]
    async with meshed(
        tmp_path, addresses_of(tier), toml=toml, change=read_by_routers(mode)
    ) as mesh:

        async def ask(data: bytes | None = None, **fields: Any) -> httpx.Response:
            given = json.dumps({"messages": messages} | fields).encode() if data is None else data
            return await mesh.client.post(CHAT, content=given)

        wishes = {"tiercel_deadline_ms": "25000"}
        reply = await ask(model="tiercel/piqa", max_tokens=4, metadata=wishes, stream=True)
        assert (reply.status_code, reply.headers["x-tiercel-tier"]) == (200, "large"), reply.text
        assert reply.text.count("data: ") == 3
        got = json.loads(tier.bodies[0])
        assert got["model"] == "llama-large"
        assert got | {"model": "tiercel/piqa"} == {
            "messages": messages, "model": "tiercel/piqa", "max_tokens": 4, "metadata": wishes,
            "stream": True,
        }  # fmt: skip
        assert tier.paths == [CHAT]
        assert 20_000 < int(tier.headers[0]["x-envoy-expected-rq-timeout-ms"]) <= 25_000
        pinned = await ask(model="llama-small", metadata={"tiercel_task": "piqa"})
        assert pinned.headers["x-tiercel-tier"] == "small"
        assert json.loads(tier.bodies[1])["model"] == "llama-small"
        await mesh.settled()
        assert mesh.counted("on_time") == mesh.counted("offered") == 2

        for data, status, named in (
            (b"{", 400, "body"),
            (b'{"model": 7}', 400, "model"),
            (b'{"model": "gpt-4"}', 404, "gpt-4"),
            (b'{"model": "tiercel/piqa", "max_tokens": 0}', 400, "max_tokens"),
            (b"x" * 70_000, 413, "body"),
        ):
            refused = await ask(data)
            assert (refused.status_code, named in refused.json()["error"]) == (status, True)
        assert len(tier.bodies) == 2
        await mesh.settled()
        assert (mesh.counted("offered"), mesh.counted("invalid")) == (2, 5)
        # A path that has the model: nothing of its body is read.
        assert (await mesh.post(prompt="x" * 60_000)).status_code == 200


async def test_bodies_stay_out_of_python_by_default(
    tmp_path: Path, two_tiers: tuple[HttpTier, HttpTier]
) -> None:
    """The configuration as it is sends none, whatever the routers would read."""
    tier, _ = two_tiers
    async with meshed(tmp_path, addresses_of(tier), own=READING) as mesh:
        reply = await mesh.client.post(CHAT, content=b'{"model": "any"}', headers=TASK)
        assert reply.status_code == 200
        assert tier.bodies == [b'{"model": "any"}']


TRACE = "0af7651916cd43dd8448eb211c80319c"
Check = Callable[[Meshed, HttpTier], Awaitable[bool]]


async def one_answer(mesh: Meshed, tier: HttpTier) -> bool:
    """In one piece, by Triton's path for that."""
    tier.pieces = 1
    reply = await mesh.post("/v2/models/tiercel/generate")
    return reply.status_code == 200 and tier.paths == ["/v2/models/large/generate"]


async def streaming(mesh: Meshed, tier: HttpTier) -> bool:
    """A piece comes while the server still waits with the next one."""
    tier.may_go_on.clear()
    async with mesh.client.stream("POST", GENERATE, json={}, headers=TASK) as reply:
        pieces = reply.aiter_lines()
        first = await anext(pieces)
        tier.may_go_on.set()
        rest = [line async for line in pieces if line]
    return first.startswith("data:") and len(rest) == 2


async def deadline(mesh: Meshed, tier: HttpTier) -> bool:
    """Envoy answers in the server's place, and leaves it."""
    tier.begins.clear()
    return (await mesh.post(x_tiercel_deadline_ms="700")).status_code == 504


async def first_token_deadline(mesh: Meshed, tier: HttpTier) -> bool:
    """An answer that begins in time is on time, however long it takes."""
    tier.may_go_on.clear()
    wishes = {**TASK, "x-tiercel-slo-kind": "first_token", "x-tiercel-deadline-ms": "5000"}
    async with mesh.client.stream("POST", GENERATE, json={}, headers=wishes) as reply:
        pieces = reply.aiter_lines()
        await anext(pieces)
        tier.may_go_on.set()
        async for _ in pieces:
            pass
    await mesh.settled()
    return mesh.counted("on_time") == 1


async def token_deadlines(mesh: Meshed, tier: HttpTier) -> bool:
    """They are refused by name: nobody tells a router of each token."""
    reply = await mesh.post(x_tiercel_slo_kind="per_token", x_tiercel_token_interval_ms="100")
    is_refused = reply.status_code == 400 and "x-tiercel-slo-kind" in reply.text
    return not is_refused


async def task(mesh: Meshed, tier: HttpTier) -> bool:
    """One that does not exist is told."""
    reply = await mesh.client.post(GENERATE, json={}, headers={"x-tiercel-task": "nope"})
    return reply.status_code == 404


async def quality_floor(mesh: Meshed, tier: HttpTier) -> bool:
    """One that the only tier cannot reach is told."""
    reply = await mesh.post(x_tiercel_tier="small", x_tiercel_quality_floor="1.0")
    return reply.status_code == 400


async def conversation(mesh: Meshed, tier: HttpTier) -> bool:
    """The second request of one stays where the first was served."""
    for _ in range(2):
        await mesh.post(x_tiercel_conversation_id="a")
        await mesh.settled()
    return dict(mesh.router.core.accounts.conversation_counts) == {"new": 1, "kept": 1}


async def one_tier_only(mesh: Meshed, tier: HttpTier) -> bool:
    """The tier asked for answers."""
    return (await mesh.post(x_tiercel_tier="small")).headers["x-tiercel-tier"] == "small"


async def rescue(mesh: Meshed, tier: HttpTier) -> bool:
    """A smaller tier answers where the largest one does not."""
    tier.begins.clear()
    return (await mesh.post(x_tiercel_deadline_ms="1000")).status_code == 200


async def cancellation(mesh: Meshed, tier: HttpTier) -> bool:
    """A client that leaves stops its server."""
    tier.step_s, tier.pieces = 0.02, 100_000
    async with mesh.client.stream("POST", GENERATE, json={}, headers=TASK) as reply:
        await anext(reply.aiter_bytes())
    await until(lambda: tier.left == 1, "the server was left")
    return True


async def priority(mesh: Meshed, tier: HttpTier) -> bool:
    """The decision is made for the class asked for."""
    for asked in ("high", "1", "low"):
        await mesh.post(x_tiercel_priority=asked)
    await mesh.settled()
    return priorities_of(mesh.router) == {"high": 2, "low": 1}


async def trace(mesh: Meshed, tier: HttpTier) -> bool:
    """The caller's trace goes on at the server."""
    await mesh.post(traceparent=f"00-{TRACE}-b7ad6b7169203331-01")
    return TRACE in tier.headers[0]["traceparent"]


async def never(mesh: Meshed, tier: HttpTier) -> bool:
    """HTTP has one request at a time, and its answer."""
    return False


async def test_a_client_of_a_gateway_is_held_to_its_class(
    tmp_path: Path, two_tiers: tuple[HttpTier, HttpTier]
) -> None:
    """One that asks for more gets that class, and its answer."""
    tier, _ = two_tiers
    own = 'other_clients = {highest_priority = "low"}\n'
    async with meshed(tmp_path, addresses_of(tier), own=own) as mesh:
        assert (await mesh.post(x_tiercel_priority="high")).status_code == 200
        assert (await mesh.post()).status_code == 200
        await mesh.settled()
        assert priorities_of(mesh.router) == {"low": 2}


CHECKS: dict[str, Check] = {
    "one answer": one_answer,
    "streaming": streaming,
    "many requests on one call": never,
    "deadline": deadline,
    "deadline of the first token": first_token_deadline,
    "due time of each token": token_deadlines,
    "task": task,
    "quality floor": quality_floor,
    "one tier only": one_tier_only,
    "conversation kept": conversation,
    "rescue": rescue,
    "cancellation": cancellation,
    "priority": priority,
    "trace": trace,
    "decision alone Route": never,
}


@pytest.mark.parametrize("row", [row for row, door in table() if door == "Envoy"])
async def test_the_page_on_doors_says_what_envoy_does(
    row: str, tmp_path: Path, two_tiers: tuple[HttpTier, HttpTier]
) -> None:
    """Its table, row by row."""
    tier, _ = two_tiers
    async with meshed(tmp_path, addresses_of(tier)) as mesh:
        found = await CHECKS[row](mesh, tier)
        tier.may_go_on.set()
        tier.begins.set()
    assert found is table()[row, "Envoy"]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of everybody here, of one root."""
    folder = tmp_path_factory.mktemp("tls")
    make_certificates(folder, names=("envoy", "router-inference", "triton", "trainer"))
    return folder


def with_files(config: dict[str, Any], folders: Mapping[str, Path]) -> dict[str, Any]:
    """Returns a configuration that reads files of other folders."""
    text = json.dumps(config)
    for place, folder in folders.items():
        text = text.replace(f'"{place}/', f'"{folder}/').replace(f'"{place}"', f'"{folder}"')
    found: dict[str, Any] = json.loads(text)
    return found


@pytest.mark.parametrize("holder", ["envoy", "trainer"])
async def test_everything_by_tls(
    tmp_path: Path, two_tiers: tuple[HttpTier, HttpTier], certificates: Path, holder: str
) -> None:
    """Clients, routers, endpoints. With a certificate of another role neither of both answers."""
    tier, _ = two_tiers
    (tmp_path / "beside").mkdir()

    def to_server(config: dict[str, Any]) -> dict[str, Any]:
        lead_to(config, "triton", [tier.address])
        return with_files(config, {"/run/tls": certificates / "triton"})

    own = certificates / "router-inference"
    tls = f'[mesh.tls]\nroot_certificates = "{own}/ca.crt"\ncertificate = "{own}/tls.crt"\n'
    tls += f'key = "{own}/tls.key"\n'
    router = f'{OWN}client_certificates = true\noperate_listen = "127.0.0.1:0"\n'
    async with AsyncExitStack() as stack:
        beside = ENVOY_FILES / "triton.tls.yaml"
        proxy = await stack.enter_async_context(
            running_envoy(tmp_path / "beside", beside, to_server)
        )
        address = proxy.url.removeprefix("http://")
        text = mesh_toml([], router=router, deadline_s=LONG_S)
        text = text.replace("[[mesh.tasks]]", f"{tls}[[mesh.tasks]]", 1)
        entry = endpoints_toml({"e0": address})
        text = text.replace("[router_inference]\n", f"{entry}[router_inference]\n")
        running = await stack.enter_async_context(running_router(tmp_path, text))

        def to_mesh(config: dict[str, Any]) -> dict[str, Any]:
            lead_to(config, "pickers", [running.addresses["envoy"]])
            lead_to(patient(config), "tiers", [address])
            folders = {"/run/tls/envoy": certificates / holder, "/run/tls/clients": own}
            return with_files(config, folders)

        path = ENVOY_FILES / "envoy.tls.yaml"
        envoy = await stack.enter_async_context(running_envoy(tmp_path, path, to_mesh))
        context = ssl.create_default_context(cafile=str(own / "ca.crt"))
        url = envoy.url.replace("http:", "https:")
        client = httpx.AsyncClient(base_url=url, verify=context, timeout=LIMIT_S, trust_env=False)
        mesh = Meshed(running, envoy, await stack.enter_async_context(client))
        reply = await mesh.post()
        await mesh.settled()
        if holder == "envoy":
            assert (reply.status_code, reply.headers["x-tiercel-tier"]) == (200, "large")
            assert mesh.counted("on_time") == 1
        else:
            assert (reply.status_code, mesh.counted("offered"), tier.paths) == (503, 0, [])


def test_the_configuration_by_tls_is_the_plain_one_and_tls() -> None:
    """What is changed in one is changed in the other."""
    plain, tls = (
        yaml.safe_load((ENVOY_FILES / name).read_text())
        for name in ("envoy.yaml", "envoy.tls.yaml")
    )
    [host] = connection_manager(plain)["route_config"]["virtual_hosts"]
    host["routes"].pop(0)  # by which names it may be asked on loopback
    for config in (plain, tls):
        static = config["static_resources"]
        for each in static["listeners"]:
            each.pop("address")
            each["filter_chains"][0].pop("transport_socket", None)
        for each in static["clusters"]:
            each.pop("transport_socket", None)
            each.pop("load_assignment")
    assert tls == plain


@pytest.mark.triton
async def test_real_triton_behind_envoy(
    tmp_path: Path, paced_triton: PacedTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream, a long prompt whose bytes never reach Python, a deadline that frees the tier."""
    told: list[tuple[str | None, int]] = []
    answer = Talk.answer

    def spying(talk: Any, message: Message) -> Any:
        told.append((message.WhichOneof("request"), message.ByteSize()))
        return answer(talk, message)  # type: ignore[arg-type]

    monkeypatch.setattr(Talk, "answer", spying)
    toml = paced_toml(paced_triton, OWN, mesh="max_prompt_bytes = 300000")
    http = {"triton": paced_triton.server.http_address}
    async with meshed(tmp_path, http, toml=toml) as mesh:
        reply = await mesh.post(tokens=8)
        assert reply.status_code == 200, reply.text
        pieces = [json.loads(line[5:]) for line in reply.text.split("\n") if line[:5] == "data:"]
        assert "".join(piece["text_output"] for piece in pieces)
        await mesh.settled()
        assert mesh.counted("on_time") == 1

        prompt = "x" * LONG_PROMPT_BYTES
        long = await mesh.post(
            prompt=prompt, x_tiercel_tier="small", x_tiercel_slo_kind="first_token"
        )
        assert long.status_code == 200, long.text
        await mesh.settled()
        assert {kind for kind, _ in told} == {
            "request_headers", "response_trailers",
        }  # fmt: skip
        assert max(size for _, size in told) < 4_096

        cut = mesh.counted("late")
        with pytest.raises(httpx.RemoteProtocolError):
            await mesh.post(tokens=1_500, x_tiercel_deadline_ms="2000")
        await mesh.settled()
        assert mesh.counted("late") == cut + 1
        # 1,500 tokens would hold the device for fifteen seconds.
        again = await mesh.post(tokens=4, x_tiercel_deadline_ms="10000")
        assert again.status_code == 200


def paced_toml(paced_triton: PacedTriton, own: str, *, mesh: str = "") -> str:
    """Returns settings of the paced endpoints, with their HTTP address."""
    text = mesh_toml([], router=own, deadline_s=LONG_S, mesh=mesh)
    head, mark, rest = text.partition("[router_inference]\n")
    [server] = paced_triton.repository.servers
    entries = server.endpoints(paced_triton.address, http_address=paced_triton.server.http_address)
    for entry in entries:
        head += "[[mesh.endpoints]]\n"
        for key in ("name", "address", "device", "http_address"):
            head += f'{key} = "{entry[key]}"\n'
        head += f"tiers = {json.dumps(entry['tiers'])}\n"
        pairs = ", ".join(f'{tier} = "{model}"' for tier, model in entry["models"].items())
        head += f"models = {{ {pairs} }}\n"
    return head + mark + rest
