"""Triton's own load generator, unchanged, at the router: unary, streaming, Poisson arrivals."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.fakes.router_process import RunningRouter, mesh_toml, running_router
from tests.fakes.triton import FakeTriton, Script
from tests.unit.deploy.manifests import ROOT

ENVIRONMENT = Path(os.environ.get("TIERCEL_DOORS_ENV") or ROOT / ".venv-doors")
PROGRAM = ENVIRONMENT / "bin" / "perf_analyzer"
LIBRARIES = (
    ROOT / "build" / "tools" / "usr" / "lib" / "x86_64-linux-gnu",
    *ENVIRONMENT.glob("lib/python3*/site-packages/nvidia/cuda_runtime/lib"),
)
WAIT_S = 120.0
COUNT = 24

pytestmark = pytest.mark.skipif(
    not PROGRAM.exists(), reason="perf_analyzer is not installed: make test-doors installs it"
)


@pytest_asyncio.fixture
async def router(tmp_path: Path) -> AsyncIterator[RunningRouter]:
    """A router before a tier that answers in three pieces."""
    triton = await FakeTriton(default=Script(tokens=("a", "b", "c"), step_s=0.02)).start()
    text = mesh_toml([("e0", triton.address)], deadline_s=30.0)
    async with running_router(tmp_path, text) as running:
        yield running
    await triton.stop()


async def analyze(router: RunningRouter, folder: Path, *arguments: str, stream: bool) -> Any:
    """Runs it for `COUNT` requests and returns the requests of its report."""
    inputs: dict[str, Any] = {
        "text_input": ["hello"],
        "stream": [stream],
        "sampling_parameters": ['{"max_tokens": 3}'],
        "exclude_input_in_output": [True],
        "return_finish_reason": [True],
        "return_num_output_tokens": [True],
    }
    (folder / "input.json").write_text(json.dumps({"data": [inputs]}), encoding="utf-8")
    report = folder / "report.json"
    options = {
        "-u": router.address,
        "-i": "grpc",
        "--input-data": folder / "input.json",
        "--request-count": COUNT,
        "--request-parameter": "tiercel_task:piqa:string",
        "--profile-export-file": report,
    }
    process = await asyncio.create_subprocess_exec(
        str(PROGRAM), *(str(each) for pair in options.items() for each in pair), *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        env={"LD_LIBRARY_PATH": ":".join(map(str, LIBRARIES))},
    )  # fmt: skip
    said = (await asyncio.wait_for(process.communicate(), WAIT_S))[0].decode()
    if "libb64.so.0d: cannot open" in said:
        pytest.skip("libb64 is not installed: make test-doors installs it")
    assert process.returncode == 0, said
    # What it asks of the router's statistics are the requests it sent.
    assert f"Successful request count: {COUNT}\n" in said
    [experiment] = json.loads(report.read_text(encoding="utf-8"))["experiments"]
    return experiment["requests"]


async def test_unary(router: RunningRouter, tmp_path: Path) -> None:
    """Every request is answered once; its task reaches the router as a parameter."""
    found = await analyze(
        router, tmp_path, "-m", "tiercel_unary", "--concurrency-range", "2", stream=False
    )
    assert len(found) >= COUNT
    assert all(len(each["response_timestamps"]) == 1 for each in found)
    assert router.core.accounts.counts.on_time == router.core.accounts.counts.offered >= COUNT


@pytest.mark.parametrize(
    "arguments",
    [
        ("--concurrency-range", "4"),
        ("--request-rate-range", "20", "--request-distribution", "poisson"),
    ],
)
async def test_streaming(router: RunningRouter, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """It sees each piece when it comes, and every request's end."""
    found = await analyze(router, tmp_path, "-m", "tiercel", "--streaming", *arguments, stream=True)
    assert len(found) >= COUNT
    for each in found:
        pieces = [answer["text_output"] for answer in each["response_outputs"]]
        assert "".join(pieces) == "abc"
        stamps = each["response_timestamps"]
        assert stamps == sorted(stamps)
        assert len(stamps) > 1
    assert router.core.accounts.counts.on_time == router.core.accounts.counts.offered >= COUNT
