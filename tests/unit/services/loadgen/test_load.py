"""The open-loop load generator against an in-process router."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from services.loadgen import __main__ as load
from services.loadgen.prompts import Prompt, draw_prompts
from services.loadgen.records import RunRecords, run_summary, summarize
from services.loadgen.run import LoadRun, LoadRunError
from services.loadgen.spec import LoadSpecError, parse_spec, read_spec
from tests.fakes.router import FakeRouter, serve


def spec_of(address: Any, **fields: Any) -> Any:
    """A run of about 40 requests in 0.2 s."""
    base = {
        "router_addresses": [address],
        "phases": [{"name": "burst", "duration_s": 0.2, "rate_rps": 200}],
        "deadline_s": 0.5,
        "task_mix": {"sort": 1.0},
        "prompts": {"sort": [{"text": "ab", "answer": "AB"}, {"text": "cd", "answer": "XX"}]},
        "seed": 5,
    }
    return parse_spec({**base, **fields})


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
    records = await run(router, cancel_share=0.5, cancel_after_s=0.02)
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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"router_addresses": ["10.0.0.1:7410"]}, "loopback addresses only"),
        ({"router_addresses": ["example.com:7410"]}, "loopback addresses only"),
        ({"router_addresses": ["127.0.0.1"]}, "not host:port"),
        ({"router_addresses": []}, "router_addresses"),
        ({"deadline_s": 0}, "deadline_s"),
        ({"deadline_s": math.inf}, "deadline_s"),
        ({"task_mix": {"sort": 0.0}}, "task_mix: at least one share"),
        ({"phases": [{"name": "a", "duration_s": 1, "rate_rps": -1}]}, "phases.0.rate_rps"),
        ({"surprise": 1}, "surprise"),
        ({"phases": [{"name": "a", "duration_s": 3000, "rate_rps": 9000}]}, "more than 200000"),
    ],
)
def test_bad_specs_name_their_field(fields: Any, message: Any) -> None:
    """Every mistake is refused before anything is sent."""
    with pytest.raises(LoadSpecError, match=message):
        spec_of("127.0.0.1:7410", **fields)


def test_several_mistakes_are_told_together() -> None:
    """One run of the command shows all that is wrong."""
    with pytest.raises(LoadSpecError) as caught:
        spec_of("127.0.0.1:7410", deadline_s=-1, cv=0, seed=-1)
    assert all(name in str(caught.value) for name in ("deadline_s", "cv", "seed"))


def test_spec_files_may_be_toml_or_json(tmp_path: Any) -> None:
    """Both formats give the same spec."""
    spec = spec_of("127.0.0.1:7410")
    json_path, toml_path = tmp_path / "a.json", tmp_path / "a.toml"
    json_path.write_text(spec.model_dump_json())
    assert read_spec(json_path) == spec
    toml_path.write_text(
        'router_addresses = ["127.0.0.1:7410"]\ndeadline_s = 0.5\ntask_mix = {sort = 1}\n'
        '[[phases]]\nname = "a"\nduration_s = 1\nrate_rps = 2\n'
    )
    assert read_spec(toml_path).phases[0].rate_rps == 2
    json_path.write_text("{")
    with pytest.raises(LoadSpecError, match="not JSON"):
        read_spec(json_path)


def test_prompts_follow_the_mix() -> None:
    """Tasks come in their shares, prompts of a task in the pool's order."""
    pools = {name: [Prompt(name, f"{name}{i}", None) for i in range(5000)] for name in "ab"}
    prompts = draw_prompts({"a": 3, "b": 1}, pools, 4000, seed=1)
    share = sum(each.task == "a" for each in prompts) / 4000
    assert share == pytest.approx(0.75, abs=0.03)
    assert [each.text for each in prompts if each.task == "b"][:2] == ["b0", "b1"]


def test_the_process_writes_records_and_a_summary(
    tmp_path: Any, capsys: Any, monkeypatch: Any
) -> None:
    """The command runs a spec file to its end, and bad input exits with 2 and one line."""
    spec_path = tmp_path / "spec.json"
    spec_path.write_text(json.dumps({"phases": []}))
    assert load.main(["--spec", str(spec_path), "--out", str(tmp_path / "r.npz")]) == 2
    assert capsys.readouterr().err.count("\n") == 1

    spec_path.write_text(spec_of("127.0.0.1:7410", nice=0).model_dump_json())

    class Done:
        def __init__(self, spec: Any) -> None:
            self.spec = spec

        def stop(self) -> Any:
            pass

        async def run(self, report: Any) -> Any:
            server, address = await serve(FakeRouter())
            work = LoadRun(self.spec.model_copy(update={"router_addresses": [address]}))
            try:
                return await work.run(report)
            finally:
                await server.stop(0)

    monkeypatch.setattr(load, "LoadRun", Done)
    assert load.main(["--spec", str(spec_path), "--out", str(tmp_path / "r.npz")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-1]["event"] == "summary"
    records = RunRecords.load(tmp_path / "r.npz")
    assert run_summary(records)["total"] == lines[-1]["total"]
