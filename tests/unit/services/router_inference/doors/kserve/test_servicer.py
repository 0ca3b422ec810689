"""The KServe door as handlers: what there is, answers in one piece, what is not served."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as kserve

from router.types import SloKind
from services.common.errors import (
    InvalidArgumentError,
    NotFoundError,
    NotServedError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.common.tiers.errors import TierInvalidError
from services.router_inference.doors.kserve.models import TensorError
from services.router_inference.doors.kserve.servicer import SERVICE_NAME
from services.router_inference.job import Job
from tests.kserve_requests import infer_request, outputs_of, said
from tests.unit.services.router_inference.doors.test_servicer import CALL
from tests.unit.services.router_inference.parts import Behaviour, make_rig
from tests.unit.services.router_inference.scenario import scenario

DEFAULT: dict[str, Any] = {"default_task": "hard"}


@scenario
async def test_a_prompt_is_answered_in_one_piece() -> None:
    """Text, id, and what the router knows of the answer."""
    rig = make_rig(**DEFAULT)
    request = infer_request(
        "tiercel", request_id="7", exclude_input_in_output=True, return_finish_reason=True,
        return_num_output_tokens=True,
    )  # fmt: skip
    response = await rig.core.kserve.ModelInfer(request, CALL)
    assert (response.model_name, response.model_version, response.id) == ("tiercel", "1", "7")
    assert outputs_of(response) == {
        "text_output": b"ab", "finish_reason": b"stop", "num_output_tokens": 2,
    }  # fmt: skip
    told = said(response)
    assert told["tiercel_tier"] == "large"
    assert told["tiercel_endpoint"] == "e0"
    assert told["tiercel_policy"] == "static-large"
    assert told["tiercel_on_time"] is True
    assert told["tiercel_request_id"] == "7"
    assert told["tiercel_dispatch_us"] <= told["tiercel_first_token_us"] < told["tiercel_total_us"]
    assert told["tiercel_early_us"] == 400_000 - told["tiercel_total_us"]
    parts = ("queue", "prefill", "decode", "hop")
    assert sum(told[f"tiercel_{part}_us"] for part in parts) == told["tiercel_total_us"]
    assert "triton_final_response" not in told
    assert "tiercel_step_down_reason" not in told
    rig.assert_settled()


@scenario
async def test_an_answer_begins_with_the_prompt_unless_told_otherwise() -> None:
    """As the vLLM backend does it."""
    rig = make_rig(**DEFAULT)
    response = await rig.core.kserve.ModelInfer(infer_request(), CALL)
    assert outputs_of(response) == {"text_output": b"helloab"}


@scenario
async def test_a_tiers_name_pins_the_tier() -> None:
    """And the answer says so."""
    rig = make_rig(**DEFAULT)
    response = await rig.core.kserve.ModelInfer(infer_request("small"), CALL)
    told = said(response)
    assert (told["tiercel_tier"], told["tiercel_step_down_reason"]) == ("small", "pinned")


@scenario
async def test_wishes_reach_the_request() -> None:
    """Task, deadline, kind, floor, limit: nothing is lost on the way."""
    rig = make_rig()
    request = infer_request(
        sampling=b'{"max_tokens": 5, "temperature": 0.5, "seed": 9}',
        stream=True,
        parameters={
            "tiercel_task": "soft", "tiercel_deadline_ms": 300, "tiercel_quality_floor": 0.8,
            "tiercel_slo_kind": "first_token",
        },
    )  # fmt: skip
    _, job = rig.core.kserve._read(request, call_left_s=None, waited_s=0.0, metadata=(), client="c")
    assert (job.task.name, job.max_output_tokens, job.temperature, job.seed) == ("soft", 5, 0.5, 9)
    assert job.request.slack_s == pytest.approx(0.3)
    assert job.request.quality_floor == 0.8
    assert job.request.slo_kind is SloKind.FIRST_TOKEN
    assert (job.is_stream, job.client) == (True, "c")


@pytest.mark.parametrize(
    ("parameters", "same"),
    [
        ({"tiercel_conversation_id": "a"}, {"tiercel_conversation_id": "a", "priority": 1}),
        ({"sequence_id": 7}, {"sequence_id": 7, "sequence_start": True}),
        ({"tiercel_conversation_id": "a", "sequence_id": 7}, {"tiercel_conversation_id": "a"}),
    ],
)
@scenario
async def test_a_conversation_is_named(parameters: dict[str, Any], same: dict[str, Any]) -> None:
    """By our own parameter, else by Triton's own id of a sequence."""
    rig = make_rig()

    def read(**given: Any) -> Job:
        request = infer_request(parameters={"tiercel_task": "hard", **given})
        told = {"call_left_s": None, "waited_s": 0.0, "metadata": (), "client": "c"}
        return rig.core.kserve._read(request, **told)[1]  # type: ignore[arg-type]

    assert read(**parameters).conversation == read(**same).conversation != b""
    assert read().conversation == read(sequence_id=0).conversation == b""
    assert read(sequence_id=8).conversation != read(sequence_id=7).conversation


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"prompt": b""}, "text_input: is empty"),
        ({"parameters": {"tiercel_conversation_id": 7}}, "tiercel_conversation_id: is no text"),
        (
            {"parameters": {"tiercel_conversation_id": "x" * 129}},
            "tiercel_conversation_id: has 129",
        ),
        ({"prompt": b"\xff"}, "text_input: is not UTF-8 at byte 0"),
        ({"parameters": {"tiercel_task": ""}}, "tiercel_task: is empty"),
        ({"parameters": {"tiercel_deadline_ms": -1}}, "tiercel_deadline_ms: is -0.001 s"),
        ({"parameters": {"timeout": 10**12}}, "timeout: is 1e+06 s (limit: above 0 to 3600 s)"),
        ({"parameters": {"tiercel_quality_floor": 2}}, "tiercel_quality_floor: is 2"),
        ({"sampling": b'{"max_tokens": 0}'}, "sampling_parameters.max_tokens: is 0"),
        ({"sampling": b'{"seed": -1}'}, "sampling_parameters.seed: is -1"),
        ({"sampling": b'{"temperature": 3}'}, "sampling_parameters.temperature: is 3"),
        ({"request_id": "x" * 129}, "id: has 129 characters (limit: 0 to 128 characters)"),
        ({"stream": True, "exclude_input_in_output": False}, "exclude_input_in_output: must not"),
    ],
)
def test_what_is_wrong_is_named_as_clients_of_triton_know_it(
    fields: dict[str, Any], text: str
) -> None:
    """Field and limit; counted as bad input."""

    @scenario
    async def check() -> None:
        rig = make_rig(**({} if "tiercel_task" in str(fields) else DEFAULT))
        with pytest.raises(InvalidArgumentError) as caught:
            await rig.core.kserve.ModelInfer(infer_request(**fields), CALL)
        assert text in caught.value.message
        assert rig.core.accounts.counts.invalid == 1

    check()


@scenario
async def test_streams_are_not_for_a_call_with_one_answer() -> None:
    """The error says which method is."""
    rig = make_rig(**DEFAULT)
    with pytest.raises(TensorError, match="call ModelStreamInfer for stream = true"):
        await rig.core.kserve.ModelInfer(infer_request(stream=True), CALL)


@scenario
async def test_a_floor_that_no_tier_reaches_and_an_unknown_task_are_named() -> None:
    """Reasons stay what they are at every door."""
    rig = make_rig(**DEFAULT)
    request = infer_request("small", parameters={"tiercel_quality_floor": 0.9})
    with pytest.raises(InvalidArgumentError, match=r"tiercel_quality_floor: is 0\.9") as caught:
        await rig.core.kserve.ModelInfer(request, CALL)
    assert caught.value.reason == "QUALITY_FLOOR_NOT_REACHABLE"
    with pytest.raises(NotFoundError, match="unknown task 'x'; known: hard, soft, first"):
        await rig.core.kserve.ModelInfer(infer_request(parameters={"tiercel_task": "x"}), CALL)


@scenario
async def test_what_a_tier_refuses_is_told_of_the_prompt() -> None:
    """The router's own name of the field does not show."""
    rig = make_rig(**DEFAULT)
    error = TierInvalidError("INVALID_REQUEST", "text_input: 99 characters, the limit is 48")
    rig.tier().default = Behaviour(error=error)
    with pytest.raises(InvalidArgumentError, match=r"^text_input: the tier refused the request"):
        await rig.core.kserve.ModelInfer(infer_request(), CALL)


@scenario
async def test_a_full_router_refuses_here_too() -> None:
    """Limits hold for every door."""
    rig = make_rig(max_in_flight=1, **DEFAULT)
    rig.tier().default = Behaviour(hang=True)
    first = asyncio.ensure_future(rig.core.kserve.ModelInfer(infer_request(), CALL))
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhaustedError):
        await rig.core.kserve.ModelInfer(infer_request(), CALL)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    rig.assert_settled()


@scenario
async def test_statistics_count_what_came_through_this_door() -> None:
    """Successes and failures with their times, per model that was asked for."""
    rig = make_rig(**DEFAULT)
    door = rig.core.kserve
    await door.ModelInfer(infer_request("tiercel"), CALL)
    await door.ModelInfer(infer_request("small"), CALL)
    with pytest.raises(ResourceExhaustedError):
        await door.ModelInfer(infer_request("small", parameters={"timeout": 1}), CALL)
    reply = await door.ModelStatistics(kserve.ModelStatisticsRequest(), CALL)
    found = {each.name: each for each in reply.model_stats}
    assert list(found) == ["large", "medium", "small", "tiercel", "tiercel_unary"]
    assert (found["tiercel"].inference_count, found["tiercel"].execution_count) == (1, 1)
    stats = found["small"].inference_stats
    assert (stats.success.count, stats.fail.count) == (1, 1)
    assert stats.success.ns == stats.queue.ns + stats.compute_infer.ns > 15_000_000
    counts = {getattr(stats, f"compute_{part}").count for part in ("input", "infer", "output")}
    assert counts == {1}
    assert found["small"].last_inference > 0
    assert found["large"].inference_count == 0
    [one] = (
        await door.ModelStatistics(kserve.ModelStatisticsRequest(name="small"), CALL)
    ).model_stats
    assert one == found["small"]
    with pytest.raises(InvalidArgumentError, match="unknown model: 'nope'"):
        await door.ModelStatistics(kserve.ModelStatisticsRequest(name="nope"), CALL)


@scenario
async def test_models_say_what_they_take_and_give() -> None:
    """Metadata, configuration and index of what there is, and of nothing else."""
    door = make_rig(**DEFAULT).core.kserve
    about = await door.ServerMetadata(kserve.ServerMetadataRequest(), CALL)
    assert (about.name, list(about.extensions)) == (
        "tiercel", ["model_configuration", "parameters", "statistics"],
    )  # fmt: skip
    meta = await door.ModelMetadata(kserve.ModelMetadataRequest(name="tiercel"), CALL)
    assert {each.name: each.datatype for each in meta.outputs} == {
        "text_output": "BYTES", "finish_reason": "BYTES", "num_output_tokens": "UINT32",
    }  # fmt: skip
    config = (await door.ModelConfig(kserve.ModelConfigRequest(name="small"), CALL)).config
    assert config.model_transaction_policy.decoupled
    assert [each.name for each in config.input if not each.optional] == ["text_input"]
    assert {key: value.string_value for key, value in config.parameters.items()} == {
        "tiercel_tier": "small", "tiercel_tasks": "hard,soft,first", "tiercel_default_task": "hard",
    }  # fmt: skip
    unary = await door.ModelConfig(kserve.ModelConfigRequest(name="tiercel_unary"), CALL)
    assert not unary.config.model_transaction_policy.decoupled
    index = await door.RepositoryIndex(kserve.RepositoryIndexRequest(ready=True), CALL)
    assert [(each.name, each.version, each.state) for each in index.models] == [
        (name, "1", "READY") for name in ("large", "medium", "small", "tiercel", "tiercel_unary")
    ]
    with pytest.raises(NotServedError):
        await door.RepositoryIndex(kserve.RepositoryIndexRequest(repository_name="x"), CALL)
    with pytest.raises(NotFoundError):
        await door.ModelConfig(kserve.ModelConfigRequest(name="nope"), CALL)


@scenario
async def test_readiness_ends_with_the_stop() -> None:
    """Live to the end, ready only while requests are taken; new streams are sent elsewhere."""
    door = make_rig(**DEFAULT).core.kserve
    ready, model = kserve.ServerReadyRequest(), kserve.ModelReadyRequest(name="tiercel")
    assert (await door.ServerReady(ready, CALL)).ready
    assert (await door.ModelReady(model, CALL)).ready
    assert not (await door.ModelReady(kserve.ModelReadyRequest(name="nope"), CALL)).ready
    door.leave()
    assert (await door.ServerLive(kserve.ServerLiveRequest(), CALL)).live
    assert not (await door.ServerReady(ready, CALL)).ready
    assert not (await door.ModelReady(model, CALL)).ready
    index = await door.RepositoryIndex(kserve.RepositoryIndexRequest(), CALL)
    assert {each.state for each in index.models} == {"UNAVAILABLE"}
    no_requests: Any = None
    with pytest.raises(UnavailableError):
        await door.ModelStreamInfer(no_requests, CALL)


@scenario
async def test_every_other_method_says_why_it_is_not_served() -> None:
    """UNIMPLEMENTED with a reason, never without a word."""
    door = make_rig().core.kserve
    service = kserve.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert service.full_name == SERVICE_NAME
    served = {
        "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer",
        "ModelStreamInfer", "ModelConfig", "ModelStatistics", "RepositoryIndex",
    }  # fmt: skip
    others = [method.name for method in service.methods if method.name not in served]
    assert len(others) == 10
    for name in others:
        with pytest.raises(NotServedError) as caught:
            await getattr(door, name)(None, CALL)
        assert len(caught.value.message) > 30
