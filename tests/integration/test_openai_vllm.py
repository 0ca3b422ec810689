"""A mesh before a real vLLM: `tests/vllm_model.py` says how to start one. Skipped without."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.common.openai.client import OpenAIClient
from tests.fakes.router_process import mesh_toml, running_router
from tests.integration.test_openai_endpoints import OPENAI, failure_of, request_of, stream_of
from tests.waiting import LIMIT_S, until
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2

ADDRESS = os.environ.get("TIERCEL_TEST_VLLM", "")
PATIENT_S = 250.0

pytestmark = pytest.mark.skipif(not ADDRESS, reason="TIERCEL_TEST_VLLM names no vLLM")


def toml(*lines: str) -> str:
    """Returns the settings of a mesh of it."""
    own = "\n".join(lines)
    return mesh_toml([("e0", ADDRESS)], endpoint=OPENAI, router=own, deadline_s=PATIENT_S)


async def running_count() -> float:
    """Returns how many requests vLLM works on, by its own account."""
    async with httpx.AsyncClient(trust_env=False, timeout=LIMIT_S) as client:
        page = (await client.get(f"http://{ADDRESS}/metrics")).text
    lines = [line for line in page.split("\n") if line.startswith("vllm:num_requests_running{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


async def test_answers_are_complete_and_counted(tmp_path: Path) -> None:
    """In one piece and streamed; tokens by its own count, though some have no text of their own."""
    async with running_router(tmp_path, toml()) as router:
        request = request_of(max_output_tokens=12)
        answer = await router.stub.Generate(request, timeout=PATIENT_S)
        assert answer.text
        done = answer.completion
        assert (done.output_token_count, done.finish_reason) in {(12, "length")} or (
            done.finish_reason == "stop" and done.output_token_count < 12
        )
        messages = await stream_of(router, max_output_tokens=12)
        counted = sum(each.chunk.token_count for each in messages)
        assert counted == messages[-1].completion.output_token_count > 0
        assert "".join(each.chunk.text for each in messages) == answer.text  # greedy


@pytest.mark.parametrize("end", ["the client leaves", "the deadline comes"])
async def test_its_work_ends_with_the_request(tmp_path: Path, end: str) -> None:
    """By the closed connection: nothing runs on."""
    async with running_router(tmp_path, toml("safety_net = false")) as router:
        deadline_ms = 0 if end == "the client leaves" else 3_000
        request: Any = request_of(
            pb2.GenerateStreamRequest, max_output_tokens=400, deadline_ms=deadline_ms
        )
        call = router.stub.GenerateStream(request, timeout=PATIENT_S)
        await until(running_count, "it works on the request")
        if deadline_ms:
            assert (await failure_of(_rest_of(call)))[0] == "DEADLINE_EXCEEDED"
        else:
            call.cancel()

        async def is_idle() -> bool:
            return await running_count() == 0.0

        await until(is_idle, "it works on nothing")


async def _rest_of(call: Any) -> None:
    async for _ in call:
        pass


async def test_what_it_refuses(tmp_path: Path) -> None:
    """A prompt that does not fit is the request's fault; the endpoint stays open."""
    async with running_router(tmp_path, toml()) as router:
        call = router.stub.Generate(request_of(prompt="x" * 4_000), timeout=PATIENT_S)
        assert await failure_of(call) == ("INVALID_ARGUMENT", "TIER_REFUSED_REQUEST")
        answer = await router.stub.Generate(request_of(max_output_tokens=2), timeout=PATIENT_S)
        assert answer.completion.output_token_count == 2


async def test_what_it_says_of_itself() -> None:
    """Health, models, and the tokens of a prompt: bytes, here."""
    async with OpenAIClient(ADDRESS, control_timeout_s=LIMIT_S) as client:
        assert await client.is_live()
        assert {"small", "medium", "large"} <= set(await client.loaded_models())
        assert await client.prompt_token_count("small", "hello", timeout_s=PATIENT_S) == 5
