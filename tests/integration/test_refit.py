"""``tiercel calibrate --from-production``: real tiers, router and Redis, and the command itself."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from router.profile import format_profile, parse_profile
from services.calibrate.served import read_entries
from services.common.state.experience_stream import RedisExperienceStream
from services.common.state.redis_connection import RedisConnection
from tests.conftest import RedisServer
from tests.fakes.router_process import router_process
from tests.integration.conftest import PacedTriton
from tests.integration.test_router_paced import toml_of
from tests.unit.deploy.manifests import ROOT
from tests.waiting import LIMIT_S, until
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2
from tiercel.router_inference.v1 import router_inference_service_pb2_grpc as pb2_grpc

pytestmark = [pytest.mark.triton, pytest.mark.timeout(240)]

TIER = "large"
OFF = 1.5
"""How much slower than it is the tier is believed to be."""
# Answers that find their device idle, then answers with company.
ALONE, TOGETHER, TIMES = 40, 8, 12
COUNT = ALONE + TOGETHER * TIMES
WORDS = (8, 60, 240)
# A machine that stands still for a moment spoils what was served; a wrong method spoils all of it.
ATTEMPTS = 5
END_OF_TIME_S = 4e9


async def test_real_traffic_puts_a_profile_right_that_was_off(
    paced_triton: PacedTriton,
    redis_server: RedisServer,
    redis_connection: RedisConnection,
    tmp_path: Path,
) -> None:
    """The costs of the tier that was asked come back; those of the others are kept."""
    shipped = parse_profile(paced_triton.profile.read_text(), "shipped")
    truth = shipped.tiers[TIER]
    believed = replace(shipped, tiers={**shipped.tiers, TIER: truth.scaled(OFF)})
    (tmp_path / "believed.toml").write_text(format_profile(believed))
    toml = toml_of(paced_triton, redis_url=redis_server.url, mesh="bytes_per_token = 5.0")
    toml = toml.replace(str(paced_triton.profile), str(tmp_path / "believed.toml"))
    out = tmp_path / "refitted.toml"
    with router_process(tmp_path, toml) as router:
        nothing = await asyncio.to_thread(refit, tmp_path, out)
        assert nothing.returncode == 1
        assert "too little was served" in nothing.stderr
        assert not out.exists()
        for _ in range(ATTEMPTS):
            redis_server.flush()
            await serve(router.address)
            stream = RedisExperienceStream(redis_connection)

            async def is_written(stream: RedisExperienceStream = stream) -> bool:
                entries = await read_entries(stream, 0.0, END_OF_TIME_S)
                return sum(each.HasField("outcome") for each in entries) >= COUNT

            await until(is_written, "every answer is in the stream")
            done = await asyncio.to_thread(refit, tmp_path, out, "--keep-others")
            found = None if done.returncode else parse_profile(out.read_text(), "refitted")
            if found and found.tiers[TIER].token_s == pytest.approx(truth.token_s, rel=0.15):
                break
    assert found is not None, done.stderr
    assert found.tiers[TIER].token_s == pytest.approx(truth.token_s, rel=0.15), done.stdout
    assert found.tiers["small"] == shipped.tiers["small"]
    told = json.loads(done.stdout)
    assert told["requests"] == COUNT
    assert told["whole_answers"] > 0.9 * COUNT
    assert [tier for tier, each in told["tiers"].items() if each["refitted"]] == [TIER]
    # The profile in use was far off on the same answers.
    before = told["tiers"][TIER]["misfits_before"]
    assert before
    assert all(off > 0.2 for kind, off in before.items() if kind.startswith("decoding")), before


async def serve(address: str) -> None:
    """Has the tier answer: one request after the other, then several at a time."""
    numbers = itertools.count()
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = pb2_grpc.RouterInferenceServiceStub(channel)

        async def ask() -> None:
            number = next(numbers)
            # A prompt of its own has an answer of its own length.
            prompt = f"{number:4} " + "word " * WORDS[number % len(WORDS)]
            spec = pb2.GenerationSpec(prompt=prompt, task="piqa", tier=TIER, max_output_tokens=16)
            spec.deadline.FromSeconds(20)
            await stub.Generate(pb2.GenerateRequest(spec=spec), timeout=LIMIT_S)

        for _ in range(ALONE):
            await ask()
        for _ in range(TIMES):
            await asyncio.gather(*(ask() for _ in range(TOGETHER)))


def refit(folder: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs the command as a user does, with the router's own settings file."""
    command = [sys.executable, "-m", "services.cli", "calibrate", "--from-production", "--json"]
    return subprocess.run(
        [*command, "--config", str(folder / "tiercel.toml"), "--out", str(out), *options],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ROOT,
        env={**os.environ, "TIERCEL_STATE": str(folder / "state")},
    )
