"""The load monitor's probes against a real Triton with paced tiers."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w

from services.common.triton.client import TritonClient
from tests.integration.conftest import TIERS, PacedTriton
from tests.integration.test_load_monitor import Served, endpoint, serving
from tests.waiting import LIMIT_S
from tiercel.common.v1 import common_pb2
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as pb
from tiercel.load_monitor.v1 import system_state_pb2 as state_pb2

pytestmark = pytest.mark.triton


def write_settings(folder: Path, triton: PacedTriton, count: int) -> Path:
    """Writes the settings of a mesh of the first `count` paced endpoints, without Redis."""
    document = {
        "mesh": {
            "tiers": list(TIERS),
            "profile": str(triton.profile),
            "quality": "q.toml",
            "tasks": [{"name": "reverse", "default_deadline_s": 0.5}],
            "endpoints": triton.endpoints[:count],
        },
        "load_monitor": {"listen": "127.0.0.1:0", "metrics_listen": ""},
    }
    path = folder / "tiercel.toml"
    path.write_text(tomli_w.dumps(document))
    return path


def all_ready(state: state_pb2.SystemState) -> bool:
    """Returns whether every endpoint is ready."""
    ready = common_pb2.ENDPOINT_HEALTH_READY
    return all(entry.health == ready for entry in state.endpoints)


async def wait_gauge(
    served: Served, good: Callable[[state_pb2.TierGauges], bool]
) -> state_pb2.TierGauges:
    """Returns the first gauges of the first endpoint's large tier that are good."""
    state = await served.wait_for(lambda s: good(s.endpoints[0].gauges[2]))
    found: state_pb2.TierGauges = state.endpoints[0].gauges[2]
    return found


async def test_gauges_follow_what_triton_serves(paced_triton: PacedTriton, tmp_path: Path) -> None:
    """Kind, readiness, queue depth and counters are Triton's own; means need served requests."""
    path = write_settings(tmp_path, paced_triton, 1)
    async with serving(path) as served:
        # A state may be published in the middle of a probe: readiness comes first, kinds after it.
        state = await served.wait_for(
            lambda s: all_ready(s) and all(gauge.kind for gauge in s.endpoints[0].gauges)
        )
        (seen,) = state.endpoints
        assert [gauge.kind for gauge in seen.gauges] == ["paced"] * 3
        assert all(gauge.ready for gauge in seen.gauges)
        await wait_gauge(served, lambda g: g.HasField("queue_depth"))
        before = (await wait_gauge(served, lambda g: not g.HasField("mean_compute"))).success_count
        model = seen.endpoint.tiers[2].model_name
        async with TritonClient(paced_triton.address) as client:
            answer = client.generate(model, "w", 4, timeout_s=20.0)
            async with contextlib.aclosing(answer) as chunks:
                async for _ in chunks:
                    pass
        gauge = await wait_gauge(served, lambda g: g.HasField("mean_compute"))
        assert gauge.success_count > before


async def test_endpoint_that_joins_is_probed(paced_triton: PacedTriton, tmp_path: Path) -> None:
    """A second real endpoint, added while running, becomes ready; a wrong model is partial."""
    path = write_settings(tmp_path, paced_triton, 1)
    second = paced_triton.endpoints[1]
    tiers = [common_pb2.ServedTier(tier=t, model_name=m) for t, m in second["models"].items()]
    good = endpoint("good", address=paced_triton.address, tiers=tiers)
    missing = [*tiers[:2], common_pb2.ServedTier(tier="large", model_name="nothing")]
    partial = endpoint("partial", address=paced_triton.address, tiers=missing)
    async with serving(path) as served:
        for definition in (good, partial):
            request = pb.AddEndpointRequest(endpoint=definition)
            await served.stub.AddEndpoint(request, timeout=LIMIT_S)

        def are_told(state: state_pb2.SystemState) -> bool:
            by_name = {entry.endpoint.endpoint: entry for entry in state.endpoints}
            health = {name: entry.health for name, entry in by_name.items()}
            return (
                len(by_name) == 3
                and health["good"] == common_pb2.ENDPOINT_HEALTH_READY
                and health["partial"] == common_pb2.ENDPOINT_HEALTH_PARTIAL
                and by_name["partial"].reason == "not ready: large"
            )

        await served.wait_for(are_told)


async def test_hung_triton_is_down_and_ramps_up_again(
    paced_triton: PacedTriton, tmp_path: Path
) -> None:
    """A stopped process takes connections and answers nothing; states keep coming meanwhile."""
    path = write_settings(tmp_path, paced_triton, 2)
    pid = paced_triton.server.pid
    assert pid is not None
    async with serving(path, probe_timeout_s="1.0", ramp_s="600.0") as served:
        await served.wait_for(all_ready)
        os.kill(pid, signal.SIGSTOP)
        try:
            down = common_pb2.ENDPOINT_HEALTH_DOWN
            await served.wait_for(lambda s: all(e.health == down for e in s.endpoints))
            version = (await served.state()).version
            await served.wait_for(lambda s: s.version > version)
        finally:
            os.kill(pid, signal.SIGCONT)
        state = await served.wait_for(all_ready)
        assert all(0.0 < entry.ramp_weight < 1.0 for entry in state.endpoints)
