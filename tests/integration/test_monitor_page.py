"""The load monitor's page in a real browser, of a real monitor with a router that reports."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.browser import rendered
from tests.conftest import RedisServer
from tests.integration.test_load_monitor import report, serving, write_settings
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
    async with serving(path, metrics_listen=f"127.0.0.1:{port}") as served:
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
                    )
                ],
                task_latencies=[latency("reverse", 56)],
                target_pressure=1.25,
            )
        )
        await served.wait_for(lambda state: len(state.routers) == 1)
        url = f"http://127.0.0.1:{port}"
        dom = await asyncio.to_thread(rendered, url, width=width)
        assert '<td class="left">reverse</td>' in dom
        cells = re.findall(r"<td[^>]*>([^<]*)</td>", dom)
        assert cells[:6] == ["reverse", "0.99", "0.900 !", "100", "200", "123"]
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
