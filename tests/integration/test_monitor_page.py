"""The load monitor's page in a real browser, of a real monitor with a router that reports."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.browser import rendered
from tests.conftest import RedisServer
from tests.fakes.router_process import mesh_toml, running_router
from tests.fakes.triton import FakeTriton, Script
from tests.integration.test_load_monitor import report, serving, write_settings
from tests.integration.test_targets import write_monitor
from tests.waiting import until
from tiercel import AsyncClient
from tiercel.common.v1 import common_pb2
from tiercel.load_monitor.v1 import system_state_pb2 as pb


@pytest.fixture
def path(tmp_path: Path, redis_server: RedisServer, free_port: Callable[[], int]) -> Path:
    """A settings file beside a real Redis."""
    return write_settings(tmp_path, redis_server.url, free_port())


def latency(name: str, bucket: int) -> pb.TaskLatency:
    """A task whose answers came in one bucket."""
    made = pb.TaskLatency(
        task=name,
        slo_kind=common_pb2.SLO_KIND_COMPLETE_ANSWER,
        answer_counts=[100],
        first_bucket=bucket,
    )
    made.default_deadline.FromMilliseconds(200)
    return made


@pytest.mark.parametrize("width", [1_300, 800])
async def test_a_browser_shows_the_mesh(
    path: Path, free_port: Callable[[], int], width: int
) -> None:
    """Tasks beside target and deadline, routers, endpoints, charts; a name is text, not markup."""
    port = free_port()
    # The router reports once, and a browser may take its time to start.
    more = {"metrics_listen": f"127.0.0.1:{port}", "router_silence_s": "300.0"}
    async with serving(path, **more) as served:
        call = served.stub.ReportTraffic()
        await call.write(
            report(
                policy="<img src=x onerror=alert(1)>",
                policy_version="7",
                outcomes=pb.OutcomeCounts(offered_count=4, on_time_count=3, late_count=1),
                task_attainments=[
                    pb.TaskAttainment(
                        task="reverse",
                        target=0.99,
                        settings_target=0.99,
                        on_time_count=90,
                        missed_count=10,
                        delivered_reward_sum=80.0,
                        largest_quality=1.0,
                    )
                ],
                task_latencies=[latency("reverse", 56)],
                task_outcomes=[
                    pb.TaskOutcomes(
                        task="reverse",
                        token_outcomes=[
                            common_pb2.TokenOutcomes(
                                slo_kind=common_pb2.SLO_KIND_PER_TOKEN, on_time_count=4
                            )
                        ],
                    )
                ],
                target_pressure=1.25,
            )
        )
        await served.wait_for(lambda state: len(state.routers) == 1)
        url = f"http://127.0.0.1:{port}"
        dom = await asyncio.to_thread(rendered, url, width=width)
        assert '<td class="left">reverse</td>' in dom
        cells = re.findall(r"<td[^>]*>([^<]*)</td>", dom)
        assert cells[:8] == ["reverse", "0.99", "0.900 !", "0.200", "100", "200", "123", "128"]
        # Nothing ended since the page was opened, so there is no share yet.
        assert cells[8:13] == ["reverse", "each token", "-", "-", "0"]
        assert '<div id="due">' in dom
        assert "&lt;img src=x onerror=alert(1)&gt;" in dom
        assert "down: does not answer" in dom
        assert "1.25" in dom
        charts = re.findall(r"<svg id=\"(\w+)\"[^>]*>(.*?)</svg>", dom, re.DOTALL)
        assert [name for name, _ in charts] == [
            "rates",
            "shares",
            "mix",
            "tails",
            "running",
            "queues",
        ]
        assert all("now" in content for _, content in charts)
        assert "does not answer since" not in dom
        async with httpx.AsyncClient(trust_env=False) as http:
            assert "tiercel_monitor_routers 1.0" in (await http.get(f"{url}/metrics")).text
        await call.done_writing()


async def test_a_request_of_a_real_router_comes_to_the_page(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    """Its task's latency and share in time, as the router counts them, beside its deadline."""
    port, page = free_port(), free_port()
    triton = await FakeTriton(default=Script(tokens=("a",), step_s=0.001)).start()
    toml = mesh_toml([("e0", triton.address)], monitor=f"127.0.0.1:{port}")
    path = write_monitor(tmp_path, toml, port)
    try:
        async with (
            serving(path, metrics_listen=f"127.0.0.1:{page}"),
            running_router(tmp_path, toml) as router,
            AsyncClient(router.address) as client,
            httpx.AsyncClient(trust_env=False, base_url=f"http://127.0.0.1:{page}") as http,
        ):
            for _ in range(3):
                await client.generate("hi", task="copa")

            async def copa() -> dict[str, Any]:
                facts = (await http.get("/mesh.json")).json()
                tasks = facts["live"]["tasks"] if facts["live"] else []
                found: dict[str, Any] = next((t for t in tasks if t["task"] == "copa"), {})
                return found

            async def is_told() -> bool:
                task = await copa()
                return task.get("on_time_count") == 3 and task["p99_s"] is not None

            await until(is_told, "the page tells the latency")
            task = await copa()
            assert (task["deadline_s"], task["target"], task["attained"]) == (3.0, 0.99, 1.0)
            assert 0.0 < task["p50_s"] <= task["p99_s"] < 3.0

            async def goodput() -> list[dict[str, Any]]:
                return list((await http.get("/mesh.json")).json()["live"]["tokens"])

            assert await goodput() == []
            for _ in range(2):
                stream = client.generate_stream("hi", task="copa", slo_kind="per_token")
                assert [event async for event in stream]

            async def is_counted() -> bool:
                return [each["on_time_count"] for each in await goodput()] == [2]

            await until(is_counted, "the page tells of deadlines for tokens")
            (row,) = await goodput()
            assert (row["task"], row["slo_kind"], row["attained"]) == ("copa", "per_token", 1.0)
            assert row["goodput_rps"] == row["smooth_goodput_rps"] > 0.0
    finally:
        await triton.stop()
