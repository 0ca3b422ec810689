"""What the router does when input is bad, and when monitor, trainer, Redis or Triton are away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from services.common.state.policy_store import RedisPolicyStore
from services.common.state.redis_connection import RedisConnection
from tests.conftest import RedisServer
from tests.details import details_of
from tests.fakes.monitor import running_monitor
from tests.fakes.router_process import RunningRouter, mesh_toml, running_router
from tests.fakes.trainer import FakeTrainer
from tests.fakes.triton import FakeTriton, Script
from tests.unit.services.router_inference.policy.test_slot import snapshot_bytes
from tests.waiting import LIMIT_S, until
from tiercel.common.v1 import common_pb2
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as monitor_pb2
from tiercel.load_monitor.v1 import load_monitor_service_pb2_grpc as monitor_grpc
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2

DEADLINE_S = 10.0


@pytest_asyncio.fixture
async def triton() -> AsyncIterator[FakeTriton]:
    """A fake Triton; tests may stop and start it."""
    fake = await FakeTriton().start()
    yield fake
    await fake.stop()


def spec(**fields: Any) -> pb2.GenerationSpec:
    """A good request."""
    return pb2.GenerationSpec(**{"prompt": "hello", "task": "piqa", **fields})


async def generate(router: RunningRouter, **fields: Any) -> pb2.GenerateResponse:
    """One Generate."""
    request = pb2.GenerateRequest(spec=spec(**fields))
    response: pb2.GenerateResponse = await router.stub.Generate(request, timeout=LIMIT_S)
    return response


async def status(router: RunningRouter) -> pb2.GetRouterStatusResponse:
    """The router's status."""
    found: pb2.GetRouterStatusResponse = await router.stub.GetRouterStatus(
        pb2.GetRouterStatusRequest(), timeout=LIMIT_S
    )
    return found


async def refused(call: Any) -> tuple[grpc.StatusCode, str, list[str]]:
    """Returns code, reason and violated fields of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    found = details_of(caught.value)
    violations = found["BadRequest"].field_violations if "BadRequest" in found else ()
    reason = found["ErrorInfo"].reason if found else ""
    return caught.value.code(), reason, [violation.field for violation in violations]


# ---- bad input ----


BAD: tuple[tuple[dict[str, Any], str, str], ...] = (
    ({"prompt": ""}, "INVALID_ARGUMENT", "spec.prompt"),
    ({"prompt": "x" * 70_000}, "INVALID_ARGUMENT", "spec.prompt"),
    ({"task": "nonsense"}, "NOT_FOUND", ""),
    ({"tier": "nonsense"}, "NOT_FOUND", ""),
    ({"max_output_tokens": 0}, "INVALID_ARGUMENT", "spec.max_output_tokens"),
    ({"max_output_tokens": 100_000}, "INVALID_ARGUMENT", "spec.max_output_tokens"),
    ({"quality_floor": 2.0}, "INVALID_ARGUMENT", "spec.quality_floor"),
    ({"sampling": pb2.Sampling(temperature=3.0)}, "INVALID_ARGUMENT", "spec.sampling.temperature"),
    ({"request_id": "x" * 200}, "INVALID_ARGUMENT", "spec.request_id"),
)


async def test_bad_input_over_the_wire(tmp_path: Path, triton: FakeTriton) -> None:
    """Every kind of bad input: its status, its field, counted as invalid, never offered."""
    async with running_router(tmp_path, mesh_toml([("e0", triton.address)])) as router:
        for fields, code, field in BAD:
            got = await refused(generate(router, **fields))
            assert got[0].name == code, fields
            assert got[2] == ([field] if field else []), fields
        for seconds in (0, -1):
            request = pb2.GenerateRequest(spec=spec())
            request.spec.deadline.seconds = seconds
            found, _, fields_named = await refused(router.stub.Generate(request, timeout=LIMIT_S))
            assert (found.name, fields_named) == ("INVALID_ARGUMENT", ["spec.deadline"])
        counts = router.core.accounts.counts
        assert (counts.invalid, counts.offered) == (len(BAD) + 2, 0)
        assert not triton.received


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        # Field 1 (spec), inside it field 1 (prompt) with bytes that are not UTF-8.
        (b"\x0a\x04\x0a\x02\xff\xfe", "MALFORMED_MESSAGE"),
        (b"\xff\xff\xff", "MALFORMED_MESSAGE"),
        (b"\x0a" + b"\x80\x80\x80\x03" + b"x" * 6_291_456, "MESSAGE_TOO_LARGE"),
    ],
)
async def test_bytes_that_are_no_message(
    tmp_path: Path, triton: FakeTriton, payload: bytes, reason: str
) -> None:
    """Invalid UTF-8, garbage and a message over the limit are INVALID_ARGUMENT with a reason."""
    async with running_router(tmp_path, mesh_toml([("e0", triton.address)])) as router:
        raw: Any = router.channel.unary_unary(
            "/tiercel.router_inference.v1.RouterInferenceService/Generate"
        )
        code, got, _ = await refused(raw(payload, timeout=LIMIT_S))
        assert (code.name, got) == ("INVALID_ARGUMENT", reason)
        assert router.core.accounts.counts.invalid == 1


@pytest.mark.parametrize(
    ("says", "code"),
    [
        ("text_input: character 'A' is outside the vocabulary", "INVALID_ARGUMENT"),
        ("[request id: {id}] text_input: {prompt}", "INVALID_ARGUMENT"),
        ("[request id: {id}] {prompt}", "UNAVAILABLE"),
        ("[request id: {prompt}] Request timeout expired", "UNAVAILABLE"),
        ("ValueError: {prompt}", "UNAVAILABLE"),
    ],
)
@pytest.mark.parametrize("request_id", ["a]b", "job[7]", "timeout expired"])
async def test_what_tiers_say_of_one_request_closes_them_to_nobody(
    tmp_path: Path, triton: FakeTriton, says: str, code: str, request_id: str
) -> None:
    """Whatever the words and the id, however often: the next request is answered."""
    async with running_router(tmp_path, mesh_toml([("e0", triton.address)])) as router:
        for tier in ("", "small", "medium", "large"):
            triton.default = Script(says=says)
            for _ in range(5):
                fields = {"prompt": "bad words", "request_id": request_id, "tier": tier}
                got, _, _ = await refused(generate(router, **fields))
                assert got.name == code
            triton.default = Script()
            assert (await generate(router, tier=tier)).text
        counts = router.core.accounts.counts
        bad = 20 if code == "INVALID_ARGUMENT" else 0
        assert (counts.invalid, counts.on_time, counts.failed) == (bad, 4, 20 - bad)


async def test_every_call_of_a_burst_is_answered_or_refused(
    tmp_path: Path, triton: FakeTriton
) -> None:
    """More than the router takes, at once, on one channel: none is cut off, all are counted."""
    triton.default = Script(first_s=0.2)
    toml = mesh_toml(
        [("e0", triton.address)],
        router="max_in_flight = 20\nsafety_net = false",
        deadline_s=20.0,
    )
    async with running_router(tmp_path, toml) as router:

        async def one() -> str:
            try:
                await generate(router)
            except grpc.aio.AioRpcError as error:
                return f"{error.code().name} {'RetryInfo' in details_of(error)}"
            return "OK"

        ends = await asyncio.gather(*(one() for _ in range(400)))
        assert set(ends) == {"OK", "RESOURCE_EXHAUSTED True"}
        counts = router.core.accounts.counts
        assert (counts.offered, counts.refused) == (400, 400 - ends.count("OK"))


# ---- requests that end early ----


async def test_a_deadline_reaches_triton_and_the_client(tmp_path: Path, triton: FakeTriton) -> None:
    """DEADLINE_EXCEEDED at the deadline; Triton was told of it and is cancelled in the end."""
    triton.default = Script(hang=True)
    settings = "safety_net = false\ntier_cancel_grace_s = 1.0"
    toml = mesh_toml([("e0", triton.address)], router=settings)
    async with running_router(tmp_path, toml) as router:
        request = pb2.GenerateRequest(spec=spec())
        request.spec.deadline.FromMilliseconds(600)
        code, reason, _ = await refused(router.stub.Generate(request, timeout=LIMIT_S))
        assert (code.name, reason) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
        [received] = triton.received
        assert 0 < received.timeout_us <= 600_000
        await until(lambda: received.end == "cancelled", "Triton's call is cancelled")
        assert router.core.accounts.counts.late == 1


async def test_late_requests_are_ended_by_their_tier(tmp_path: Path, triton: FakeTriton) -> None:
    """Of many misses at once none is a cancelled stream, whose state Triton may use once freed."""
    triton.default = Script(times_out=True)
    # Also where router and tier see the deadline at once, since the loop of both stood still.
    settings = "safety_net = false\ntier_cancel_grace_s = 10.0"
    toml = mesh_toml([("e0", triton.address)], router=settings)
    async with running_router(tmp_path, toml) as router:
        request = pb2.GenerateRequest(spec=spec())
        request.spec.deadline.FromMilliseconds(1000)
        calls = [refused(router.stub.Generate(request, timeout=LIMIT_S)) for _ in range(20)]
        codes = {code.name for code, _, _ in await asyncio.gather(*calls)}
        assert codes == {"DEADLINE_EXCEEDED"}
        await until(lambda: all(each.end for each in triton.received), "every call has ended")
        assert [each.end for each in triton.received] == ["timeout"] * 20


@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
async def test_a_client_that_cancels_stops_the_work(
    tmp_path: Path, triton: FakeTriton, method: str
) -> None:
    """The work in Triton is cancelled; the request counts as cancelled."""
    triton.default = Script(tokens=("a",) * 16, step_s=0.2)
    async with running_router(tmp_path, mesh_toml([("e0", triton.address)])) as router:
        kind = pb2.GenerateRequest if method == "Generate" else pb2.GenerateStreamRequest
        request: Any = kind(spec=spec())
        request.spec.deadline.FromMilliseconds(20_000)
        call = getattr(router.stub, method)(request, timeout=LIMIT_S)
        if method == "GenerateStream":
            await call.read()
        await until(lambda: triton.received, "the request reaches Triton")
        call.cancel()
        await until(lambda: triton.received[0].end == "cancelled", "Triton's call is cancelled")
        await until(lambda: router.core.accounts.counts.cancelled == 1, "it counts as cancelled")
        assert router.core.accounts.in_flight == 0
        assert len(router.core.view.load.ledger) == 0


async def test_a_stream_is_coalesced_and_complete(tmp_path: Path, triton: FakeTriton) -> None:
    """A fast tier's pieces come in few messages, none lost, completion last."""
    triton.default = Script(tokens=tuple("0123456789" * 3))
    toml = mesh_toml([("e0", triton.address)], router="stream_coalesce_s = 0.3")
    async with running_router(tmp_path, toml) as router:
        request = pb2.GenerateStreamRequest(spec=spec(max_output_tokens=30))
        messages = [m async for m in router.stub.GenerateStream(request, timeout=LIMIT_S)]
    chunks = [m.chunk for m in messages if m.WhichOneof("event") == "chunk"]
    assert "".join(chunk.text for chunk in chunks) == "0123456789" * 3
    assert sum(chunk.token_count for chunk in chunks) == 30
    assert len(chunks) <= 5
    assert messages[-1].completion.output_token_count == 30


# ---- Triton away ----


async def test_triton_killed_and_back(tmp_path: Path, triton: FakeTriton) -> None:
    """UNAVAILABLE with a reason inside the deadline while it is away; service when it is back."""
    toml = mesh_toml(
        [("e0", triton.address)],
        router="eject_s = 0.2\neject_max_s = 0.4",
        deadline_s=DEADLINE_S,
    )
    async with running_router(tmp_path, toml) as router:
        await generate(router)
        await triton.stop()
        reasons = set()

        async def both_and_all_closed() -> bool:
            for _ in range(12):
                started = time.monotonic()
                code, reason, _ = await refused(generate(router))
                assert code.name == "UNAVAILABLE"
                assert time.monotonic() - started < DEADLINE_S
                reasons.add(reason)
            found = await status(router)
            # A candidate is closed for a moment only, then tried again.
            return len(reasons) == 2 and not any(each.usable for each in found.candidates)

        await until(both_and_all_closed, "every candidate is closed")
        assert reasons == {"ENDPOINT_FAILED", "NO_USABLE_ENDPOINT"}
        await triton.start()

        async def answers() -> bool:
            try:
                return bool((await generate(router)).text)
            except grpc.aio.AioRpcError:
                return False

        await until(answers, "answers come again")
        counts = router.core.accounts.counts
        assert counts.offered == counts.ended


async def test_one_of_two_endpoints_killed_costs_no_answer(tmp_path: Path) -> None:
    """Requests that meet the dead endpoint are retried on the living one."""
    tritons = [await FakeTriton().start() for _ in range(2)]
    endpoints = [(f"e{i}", t.address) for i, t in enumerate(tritons)]
    async with running_router(tmp_path, mesh_toml(endpoints, router='policy = "random"')) as router:
        await tritons[0].stop()
        answers = [await generate(router) for _ in range(30)]
        assert {answer.completion.endpoint for answer in answers} == {"e1"}
        assert router.core.accounts.counts.on_time == 30
        assert sum(answer.completion.retry_count for answer in answers) > 0
    await tritons[1].stop()


# ---- monitor ----


@pytest.mark.parametrize("names", [("first", "second"), ("", "")])
async def test_two_routers_see_each_other_through_the_monitor(
    tmp_path: Path, triton: FakeTriton, free_port: Callable[[], int], names: tuple[str, str]
) -> None:
    """One router's load shows as others' load at the other one, and not in its own.

    Without names, too, although host name and process id are the same here.
    """
    gate = asyncio.Event()
    triton.default = Script(tokens=("a",), gate=gate)
    monitor = f"127.0.0.1:{free_port()}"
    toml = mesh_toml([("e0", triton.address)], monitor=monitor, deadline_s=20.0)
    async with running_monitor(tmp_path, toml, monitor), AsyncExitStack() as stack:
        first, second = [
            await stack.enter_async_context(
                running_router(
                    tmp_path, toml.replace("lame_duck", f'router_id = "{name}"\nlame_duck')
                )
            )
            for name in names
        ]
        tasks = [asyncio.ensure_future(generate(first, tier="small")) for _ in range(3)]

        def in_flight(router: RunningRouter) -> float:
            return router.core.view.load.other_in_flight(0)

        await until(lambda: in_flight(second) == 3.0, "the second router sees three requests")
        assert in_flight(first) == 0.0
        assert sum(first.core.view.load.current().in_flight_C) == 3.0
        found = await status(second)
        assert sum(candidate.other_in_flight_count for candidate in found.candidates) == 3
        assert found.HasField("state_age")
        gate.set()
        await asyncio.gather(*tasks)
        await until(lambda: in_flight(second) == 0.0, "the load goes away again")


async def test_a_second_router_of_the_same_name_serves_and_says_so(
    tmp_path: Path, triton: FakeTriton, free_port: Callable[[], int]
) -> None:
    """The monitor refuses its reports until the first one has gone; it sees that one's load."""
    gate = asyncio.Event()
    triton.default = Script(tokens=("a",), gate=gate)
    monitor = f"127.0.0.1:{free_port()}"
    toml = mesh_toml(
        [("e0", triton.address)],
        monitor=monitor,
        deadline_s=20.0,
        router='router_id = "same"\nreconnect_s = 0.2',
    )
    async with running_monitor(tmp_path, toml, monitor), AsyncExitStack() as stack:
        async with running_router(tmp_path, toml) as first:
            asking = asyncio.ensure_future(generate(first, tier="small"))
            await until(lambda: triton.received, "the first router has a request")
            second = await stack.enter_async_context(running_router(tmp_path, toml))

            async def reasons() -> list[str]:
                return list((await status(second)).degraded_reasons)

            async def is_refused() -> bool:
                return "REPORTS_REFUSED" in await reasons()

            await until(is_refused, "the second router says so")
            await until(
                lambda: second.core.view.load.other_in_flight(0) == 1.0, "it sees the other's load"
            )
            gate.set()
            await asking

        async def is_well() -> bool:
            return await reasons() == []

        await until(is_well, "the name is free again")


async def test_without_a_monitor_the_router_serves_and_says_so(
    tmp_path: Path, triton: FakeTriton, free_port: Callable[[], int]
) -> None:
    """Absent from the start: degraded. There: not. Killed: degraded again. Serving all along."""
    monitor = f"127.0.0.1:{free_port()}"
    toml = mesh_toml(
        [("e0", triton.address)], monitor=monitor, router="state_max_age_s = 0.5\nreconnect_s = 0.2"
    )

    async def reasons(router: RunningRouter) -> set[str]:
        await generate(router)
        return set((await status(router)).degraded_reasons)

    async with running_router(tmp_path, toml) as router:

        async def absent() -> bool:
            return await reasons(router) == {"MONITOR_UNREACHABLE", "NO_SYSTEM_STATE"}

        async def there() -> bool:
            return await reasons(router) == set()

        async def gone() -> bool:
            return await reasons(router) == {"MONITOR_UNREACHABLE", "STALE_SYSTEM_STATE"}

        await until(absent, "degraded without a monitor")
        async with running_monitor(tmp_path, toml, monitor):
            await until(there, "not degraded with a monitor")
        await until(gone, "degraded when it is gone")
        async with running_monitor(tmp_path, toml, monitor):
            await until(there, "recovered")
        counts = router.core.accounts.counts
        assert counts.on_time == counts.offered


async def test_endpoints_join_and_leave_while_it_runs(
    tmp_path: Path, triton: FakeTriton, free_port: Callable[[], int]
) -> None:
    """An endpoint added at the monitor gets requests; a removed one gets no more."""
    monitor = f"127.0.0.1:{free_port()}"
    toml = mesh_toml([("e0", triton.address)], monitor=monitor, router='policy = "round-robin"')
    other = await FakeTriton().start()
    async with (
        running_monitor(tmp_path, toml, monitor),
        running_router(tmp_path, toml) as router,
        grpc.aio.insecure_channel(monitor) as channel,
    ):
        stub: Any = monitor_grpc.LoadMonitorServiceStub(channel)
        endpoint = common_pb2.Endpoint(endpoint="e1", address=other.address)
        endpoint.tiers.add(tier="small")
        await stub.AddEndpoint(monitor_pb2.AddEndpointRequest(endpoint=endpoint), timeout=LIMIT_S)

        async def reaches(name: str) -> bool:
            return (await generate(router)).completion.endpoint == name

        await until(lambda: reaches("e1"), "the new endpoint is used")
        await stub.RemoveEndpoint(monitor_pb2.RemoveEndpointRequest(endpoint="e0"), timeout=LIMIT_S)

        async def only_e1() -> bool:
            return {(await generate(router)).completion.endpoint for _ in range(8)} == {"e1"}

        await until(only_e1, "the removed endpoint is left alone")
        counts = router.core.accounts.counts
        assert counts.on_time == counts.offered
    await other.stop()


# ---- trainer and Redis ----


async def test_promotions_come_from_the_trainer(tmp_path: Path, triton: FakeTriton) -> None:
    """By name, then a snapshot, then a broken snapshot (refused, counted), through a restart."""
    trainer = await FakeTrainer().start()
    toml = mesh_toml([("e0", triton.address)], trainer=trainer.address, router="reconnect_s = 0.2")
    async with running_router(tmp_path, toml) as router:

        async def uses(policy: str) -> bool:
            return (await generate(router)).completion.policy == policy

        await trainer.promote("static-small", 1)
        await until(lambda: uses("static-small"), "the promoted policy decides")
        await trainer.promote("dqn", 2, snapshot_bytes(tier_bias=1.0))
        await until(lambda: uses("dqn"), "the snapshot decides")
        await trainer.promote("dqn", 3, b"garbage" * 20)

        async def refusal() -> bool:
            return dict((await status(router)).refused_snapshot_counts) == {"SNAPSHOT_MALFORMED": 1}

        await until(refusal, "the broken snapshot is refused")
        assert await uses("dqn")
        # UsePolicy overrides until the next promotion, which comes after the trainer was away.
        await router.stub.UsePolicy(pb2.UsePolicyRequest(policy="greedy"), timeout=LIMIT_S)
        await trainer.stop()

        async def unreachable() -> bool:
            return "TRAINER_UNREACHABLE" in (await status(router)).degraded_reasons

        await until(unreachable, "the missing trainer is noticed")
        assert await uses("greedy")
        await trainer.promote("static-medium", 4)
        await trainer.start()
        await until(lambda: uses("static-medium"), "the promotion arrives after the restart")
        assert not await unreachable()
        code, reason, _ = await refused(
            router.stub.UsePolicy(pb2.UsePolicyRequest(policy="nonsense"), timeout=LIMIT_S)
        )
        assert (code.name, reason) == ("NOT_FOUND", "POLICY_NOT_FOUND")
    await trainer.stop()


async def test_a_trainer_that_is_back_needs_no_promotion(
    tmp_path: Path, triton: FakeTriton
) -> None:
    """That it is reached is known at once, though it has nothing new to say."""
    trainer = await FakeTrainer().start()
    toml = mesh_toml([("e0", triton.address)], trainer=trainer.address, router="reconnect_s = 0.2")
    async with running_router(tmp_path, toml) as router:

        async def gives(*reasons: str) -> bool:
            return (await status(router)).degraded_reasons == list(reasons)

        await until(gives, "the trainer is reached")
        await trainer.stop()
        await until(lambda: gives("TRAINER_UNREACHABLE"), "the missing trainer is noticed")
        await trainer.start()
        await until(gives, "the trainer is reached again")
    await trainer.stop()


async def test_redis_absent_at_start_and_back(
    tmp_path: Path, triton: FakeTriton, redis_server: RedisServer
) -> None:
    """Serves degraded; when Redis returns, experience arrives and the registry's policy is used."""
    redis_server.stop()
    toml = mesh_toml(
        [("e0", triton.address)], redis_url=redis_server.url, router="reconnect_s = 0.2"
    )
    async with running_router(tmp_path, toml) as router:
        await generate(router)

        async def degraded() -> bool:
            return "REDIS_UNREACHABLE" in (await status(router)).degraded_reasons

        await until(degraded, "the missing Redis is noticed")
        assert (await generate(router)).completion.on_time
        redis_server.start()
        stream = router.core.experience._stream
        assert stream is not None

        async def recovered() -> bool:
            return not await degraded()

        await until(recovered, "recovery")
        await until(lambda: router.core.experience.waiting_count == 0, "the buffer is written")

        async def is_written() -> bool:
            return await stream.count() >= 5

        await until(is_written, "it is in Redis")
        # Two records of each request, and that the router has begun.
        assert await stream.count() == 5
        assert router.core.experience.dropped_count == 0


async def test_the_registry_in_redis_gives_the_policy_at_start(
    tmp_path: Path,
    triton: FakeTriton,
    redis_server: RedisServer,
    redis_connection: RedisConnection,
) -> None:
    """No trainer needed: what was last activated is used, its snapshot checked."""
    toml = mesh_toml([("e0", triton.address)], redis_url=redis_server.url)
    async with running_router(tmp_path, toml):
        policies = RedisPolicyStore(redis_connection)
        await policies.put(b"info", snapshot_bytes(tier_bias=1.0), "dqn", "v1")
        await policies.activate("dqn", "v1")
        async with running_router(tmp_path, toml) as second:
            await until(lambda: second.core.slot.name == "dqn", "the registry's policy is used")
            assert (await generate(second)).completion.policy == "dqn"
