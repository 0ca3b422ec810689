"""Open-loop runs against a fake router: how requests end and what is kept of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from services.loadgen.records import summarize
from services.loadgen.run import LoadRun, LoadRunError
from tests.fakes.router import FakeRouter, serve
from tests.unit.services.loadgen.specs import spec_of
from tiercel.common.v1 import common_pb2


async def run(router: Any, **fields: Any) -> Any:
    """Runs a spec against a router."""
    server, address = await serve(router)
    try:
        return await LoadRun(spec_of(address, **fields)).run()
    finally:
        await server.stop(0)


async def test_answers_are_on_time_scored_and_labelled() -> None:
    """Each answer carries tier, endpoint, policy version and its exact-match score."""
    records = await run(FakeRouter(tier="small"))
    summary = summarize(records)
    assert summary["offered"] == summary["on_time"] > 10
    assert summary["mix"] == {"small": 1.0}
    assert records.names["policy_version"] == ("greedy@1",)
    assert 0.3 < summary["exact_performance"] < 0.7
    assert summary["performance"] == pytest.approx(0.5)


async def test_priorities_are_drawn_told_and_kept() -> None:
    """Every request has the class that its row says; without a mix nothing is said of it."""
    router = FakeRouter()
    records = await run(router, priority_mix={"high": 1.0, "low": 1.0})
    told = sorted(spec.priority for spec in router.specs)
    assert set(told) == {common_pb2.PRIORITY_HIGH, common_pb2.PRIORITY_LOW}
    kept = records.columns["priority"]
    assert told.count(common_pb2.PRIORITY_HIGH) == np.sum(kept == -1)
    assert told.count(common_pb2.PRIORITY_LOW) == np.sum(kept == 1)
    silent = FakeRouter()
    assert set((await run(silent)).columns["priority"]) == {0}
    assert {spec.priority for spec in silent.specs} == {common_pb2.PRIORITY_UNSPECIFIED}


async def test_the_router_is_told_the_time_left() -> None:
    """The deadline sent counts from the intended send time, less the way back."""
    router = FakeRouter()
    await run(router)
    told = [spec.deadline.ToNanoseconds() * 1e-9 for spec in router.specs]
    assert max(told) <= 0.498
    assert min(told) > 0.3


async def test_latency_counts_from_the_intended_send_time_and_lateness_is_seen() -> None:
    """Answers after the deadline are late although the router calls them on time."""
    records = await run(FakeRouter(delay_s=0.12), deadline_s=0.1)
    summary = summarize(records)
    assert summary["late"] == summary["offered"]
    assert summary["p50_ms"] >= 120


@pytest.mark.parametrize(("interval_s", "status"), [(5.0, "on_time"), (0.001, "late")])
async def test_each_token_of_a_stream_may_have_a_due_time(interval_s: float, status: str) -> None:
    """By the generator's clock, whatever the router says; the router is told what is asked.

    The end comes after the deadline either way.
    """
    router = FakeRouter(answer=lambda _: "abcd", token_s=0.6)
    fields = {"stream": True, "max_output_tokens": 4, "deadline_s": 2.0, "grace_s": 30.0}
    records = await run(router, token_interval_s=interval_s, **fields)
    summary = summarize(records)
    assert summary[status] == summary["offered"]
    assert records.columns["latency_s"].min() > 2.0
    assert {spec.slo_kind for spec in router.specs} == {common_pb2.SLO_KIND_PER_TOKEN}
    assert {spec.token_interval.ToNanoseconds() for spec in router.specs} == {interval_s * 1e9}


async def test_a_hanging_router_makes_requests_late() -> None:
    """A call cut off by its own limit is late and the run ends by itself."""
    records = await run(FakeRouter(delay_s=30), deadline_s=0.1, grace_s=0.05)
    assert summarize(records)["late"] == len(records)
    assert records.columns["latency_s"].max() < 1.0


async def test_refusals_keep_their_reason() -> None:
    """RESOURCE_EXHAUSTED is refused, with ErrorInfo's reason."""
    records = await run(FakeRouter(refuse=lambda spec: "TOO_LATE" if spec.prompt == "ab" else ""))
    summary = summarize(records)
    assert summary["refused"] == summary["reasons"]["TOO_LATE"] > 0
    assert summary["refused"] + summary["on_time"] == summary["offered"]


async def test_cancelled_requests_are_counted_as_such() -> None:
    """The client's own cancellations are neither late nor failed, and reach the router."""
    router = FakeRouter(delay_s=0.3)
    records = await run(router, cancel_share=0.5, cancel_after_s=0.02, deadline_s=20.0)
    summary = summarize(records)
    assert summary["cancelled"] > 5
    assert summary["cancelled"] + summary["on_time"] == summary["offered"]
    assert router.cancelled_count > 0


async def test_streams_are_put_together_and_first_tokens_timed() -> None:
    """A streamed answer scores like a unary one."""
    records = await run(FakeRouter(), stream=True)
    assert summarize(records)["on_time"] == len(records)
    assert np.nanmean(records.columns["exact"]) > 0.3
    assert np.all(records.columns["first_token_s"] <= records.columns["latency_s"])


async def test_a_router_that_is_gone_is_skipped() -> None:
    """With one of two routers down, every request is answered by the other."""
    gone, gone_address = await serve(FakeRouter())
    await gone.stop(0)
    server, address = await serve(FakeRouter())
    spec = spec_of(address, router_addresses=[gone_address, address], deadline_s=2.0)
    try:
        records = await LoadRun(spec).run()
    finally:
        await server.stop(0)
    assert summarize(records)["on_time"] == len(records)


async def test_without_failover_a_router_that_is_gone_shows() -> None:
    """Failures are counted with the transport's status."""
    gone, gone_address = await serve(FakeRouter())
    await gone.stop(0)
    server, address = await serve(FakeRouter())
    spec = spec_of(address, router_addresses=[gone_address, address], failover=False)
    try:
        summary = summarize(await LoadRun(spec).run())
    finally:
        await server.stop(0)
    assert summary["failed"] == summary["reasons"]["TRANSPORT_UNAVAILABLE"] > 0


async def test_no_router_at_all_is_an_error(monkeypatch: Any) -> None:
    """A run that cannot start says so instead of counting failures."""
    monkeypatch.setattr("services.loadgen.run.CONNECT_TIMEOUT_S", 0.2)
    gone, address = await serve(FakeRouter())
    await gone.stop(0)
    with pytest.raises(LoadRunError, match=address):
        await LoadRun(spec_of(address)).run()


async def test_a_stopped_run_accounts_for_what_it_sent() -> None:
    """An interrupted run offers fewer requests and says so."""
    server, address = await serve(FakeRouter())
    long = [{"name": "calm", "duration_s": 600, "rate_rps": 20}]
    work = LoadRun(spec_of(address, phases=long, progress_interval_s=0.1))
    try:
        records = await work.run(lambda progress: work.stop() if progress.offered > 3 else None)
    finally:
        await server.stop(0)
    assert records.meta["interrupted"]
    assert 3 < len(records) < 100
    assert summarize(records)["offered"] == len(records)


async def test_a_long_pause_ends_when_it_should(monkeypatch: Any) -> None:
    """What each sleep takes beyond its time does not add up to a late burst."""
    work = LoadRun(spec_of("127.0.0.1:1"))
    now_s = 0.0

    async def late(delay_s: float) -> None:
        nonlocal now_s
        now_s += delay_s + 0.002

    monkeypatch.setattr("services.loadgen.run.time", SimpleNamespace(monotonic=lambda: now_s))
    monkeypatch.setattr("services.loadgen.run.asyncio", SimpleNamespace(sleep=late))
    assert not await work._stopped_until(60.0)
    assert 60.0 <= now_s < 60.01
    await work._pool.close()
