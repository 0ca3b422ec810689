"""Spans: whose, when, with which names; only for sampled and for bad requests."""

from __future__ import annotations

import random
from typing import Any

import pytest
import yaml
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased

from services.common.errors import DeadlineExceededError
from services.common.telemetry import Telemetry
from services.common.tiers.errors import TierUnavailableError
from tests.unit.deploy.manifests import ROOT
from tests.unit.services.router_inference.parts import Behaviour, Rig, make_rig
from tests.unit.services.router_inference.scenario import scenario

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def traced_rig(sampled: bool, **own: Any) -> tuple[Rig, InMemorySpanExporter]:
    """A router whose spans stay in memory."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ParentBased(ALWAYS_ON if sampled else ALWAYS_OFF))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return make_rig(telemetry=Telemetry(provider, random.Random(5)), **own), exporter


@scenario
async def test_a_sampled_request_has_its_three_spans() -> None:
    """Request, decision and dispatch, nested, in order, under the caller's span."""
    rig, exporter = traced_rig(sampled=False)
    job = rig.job(metadata=(("traceparent", f"00-{TRACE}-{PARENT}-01"),))
    await rig.answer(job)
    spans: dict[str, Any] = {span.name: span for span in exporter.get_finished_spans()}
    assert spans.keys() == {"tiercel.request", "tiercel.decision", "tiercel.dispatch"}
    request, decision, dispatch = (
        spans[f"tiercel.{name}"] for name in ("request", "decision", "dispatch")
    )
    assert f"{request.context.trace_id:032x}" == TRACE
    assert f"{request.parent.span_id:016x}" == PARENT
    assert decision.parent.span_id == dispatch.parent.span_id == request.context.span_id
    assert request.start_time <= decision.start_time <= dispatch.start_time
    assert dispatch.end_time <= request.end_time
    assert [event.name for event in request.events] == ["gen_ai.first_token"]
    # Triton continues the dispatch span.
    [(key, value)] = rig.tier().calls[0]["metadata"]
    assert (key, value) == ("traceparent", f"00-{TRACE}-{dispatch.context.span_id:016x}-01")


@scenario
async def test_the_decision_span_explains_the_choice() -> None:
    """Candidates, scores, predictions, choice, slack, version, all parallel and plain."""
    rig, exporter = traced_rig(sampled=True)
    await rig.answer(rig.job())
    [span] = [s for s in exporter.get_finished_spans() if s.name == "tiercel.decision"]
    attributes: dict[str, Any] = dict(span.attributes or {})
    assert list(attributes["tiercel.decision.candidates"]) == ["small@e0", "medium@e0", "large@e0"]
    assert attributes["tiercel.decision.choice"] == "large@e0"
    predicted = list(attributes["tiercel.decision.predicted_latency_s"])
    assert predicted == pytest.approx([0.016, 0.04, 0.08])
    assert len(attributes["tiercel.decision.scores"]) == 3
    assert attributes["tiercel.policy_version"] == "static-large@least-work"
    assert attributes["tiercel.slack_s"] == pytest.approx(0.4)


@scenario
async def test_an_unsampled_good_request_leaves_nothing() -> None:
    """No spans, and nothing for Triton to continue."""
    rig, exporter = traced_rig(sampled=False)
    await rig.answer(rig.job())
    assert not exporter.get_finished_spans()
    assert rig.tier().calls[0]["metadata"] == ()


@scenario
async def test_a_bad_request_is_traced_although_not_sampled() -> None:
    """A miss, and a retry that saved the day, both leave their spans."""
    rig, exporter = traced_rig(sampled=False, safety_net=False)
    rig.tier().default = Behaviour(hang=True)
    with pytest.raises(DeadlineExceededError):
        await rig.answer(rig.job())
    [request] = [s for s in exporter.get_finished_spans() if s.name == "tiercel.request"]
    assert not request.status.is_ok
    assert dict(request.attributes or {})["error.type"] == "DEADLINE_EXCEEDED"
    rig, exporter = traced_rig(sampled=False)
    rig.tier().behaviours["large"] = Behaviour(error=TierUnavailableError("UNAVAILABLE", "gone"))
    await rig.answer(rig.job())
    kinds = [
        (dict(s.attributes or {})["tiercel.attempt_kind"], s.status.is_ok)
        for s in exporter.get_finished_spans()
        if s.name == "tiercel.dispatch"
    ]
    assert kinds == [("first", False), ("retry", True)]


@scenario
async def test_bad_requests_cannot_flood_the_exporter() -> None:
    """Beyond so many per second only the head's sample is traced."""
    rig, exporter = traced_rig(sampled=False, bad_traces_per_s=5.0, safety_net=False)
    for _ in range(50):
        with pytest.raises(DeadlineExceededError):
            await rig.answer(rig.job(deadline_s=0.001))
    traced = [s for s in exporter.get_finished_spans() if s.name == "tiercel.request"]
    assert 5 <= len(traced) <= 6


@scenario
async def test_every_name_emitted_is_registered() -> None:
    """Spans, attributes, events and metrics stand in the telemetry registry."""
    text = (ROOT / "deploy" / "telemetry" / "registry.yaml").read_text()
    registry = yaml.safe_load(text)
    spans = {span["name"]: span for span in registry["spans"]}
    known = {attribute["name"] for attribute in registry["attributes"]}
    rig, exporter = traced_rig(sampled=True)
    rig.tier().behaviours["large"] = Behaviour(error=TierUnavailableError("UNAVAILABLE", "gone"))
    from tests.unit.services.router_inference.policy.test_slot import snapshot_bytes

    rig.core.slot._snapshots["dqn"] = snapshot_bytes(tier_bias=1.0)
    rig.core.slot.use("dqn")
    await rig.answer(rig.job())
    for span in exporter.get_finished_spans():
        names = set(span.attributes or {})
        assert names <= set(spans[span.name]["attributes"]), span.name
        assert names <= known
    metrics = {metric["name"]: metric for metric in registry["metrics"]}
    for family in rig.app.registry.collect():
        if not family.name.startswith("tiercel_"):
            continue
        name = family.name + ("_total" if family.type == "counter" else "")
        assert name in metrics, name
        assert "router-inference" in metrics[name]["services"], name
        assert metrics[name]["type"] == family.type, name
        for sample in family.samples:
            assert set(sample.labels) - {"le"} <= set(metrics[name]["labels"]), name
