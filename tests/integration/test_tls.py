"""A mesh of processes by TLS: monitor, router, Triton, client, probe and command line."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from services.cli.app import run
from services.common import health_probe
from services.common.access.caller import CERTIFICATE_VARIABLE, KEY_VARIABLE, ROOTS_VARIABLE
from services.common.access.tls import Tls
from services.common.clock import SystemClock
from services.common.log import get_logger
from services.local.calls import call
from tests import certificates
from tests.fakes.router_process import mesh_toml, router_process
from tests.fakes.triton import FakeTriton
from tests.waiting import until
from tiercel import AsyncClient, TiercelError, UnavailableError
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb


def named(name: str) -> dict[str, str]:
    """Returns the environment that names somebody's certificates."""
    own = certificates.folder() / name
    return {
        ROOTS_VARIABLE: str(own / "ca.crt"),
        CERTIFICATE_VARIABLE: str(own / "tls.crt"),
        KEY_VARIABLE: str(own / "tls.key"),
    }


@pytest_asyncio.fixture
async def triton() -> AsyncIterator[FakeTriton]:
    """A fake Triton that asks callers for certificates."""
    held = Tls(
        certificates.tls_settings("triton"),
        monotonic_s=SystemClock().monotonic_s,
        wall_s=time.time,
        log=get_logger("test"),
    )
    credentials = held.server_credentials(with_client_certificates=True)
    fake = await FakeTriton(credentials=credentials).start()
    yield fake
    await fake.stop()


async def test_a_mesh_by_tls_answers(
    tmp_path: Path,
    triton: FakeTriton,
    free_port: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The router hears the monitor and reaches Triton; a client with the roots is answered."""
    monitor = f"127.0.0.1:{free_port()}"
    toml = mesh_toml([("e0", triton.address)], monitor=monitor)
    toml += f'[load_monitor]\nlisten = "{monitor}"\nmetrics_listen = ""\nlame_duck_s = 0.0\n'
    toml += "shared_router_certificate = true\n"
    folders = {name: tmp_path / name for name in ("load-monitor", "router-inference")}
    for folder in folders.values():
        folder.mkdir()

    def start(name: str) -> Any:
        return router_process(
            folders[name], toml, service=name.replace("-", "_"), environ=named(name)
        )

    with start("load-monitor"), start("router-inference") as router:
        roots = certificates.folder() / "operator/ca.crt"
        async with AsyncClient(router.address, root_certificates=roots) as client:

            async def answers() -> bool:
                try:
                    return (await client.generate("hello", task="piqa")).text == "abc"
                except UnavailableError as error:
                    return error.reason != "NO_USABLE_ENDPOINT"

            await until(answers, "the monitor finds Triton well, and the router asks it")
        for name, value in named("operator").items():
            monkeypatch.setenv(name, value)

        async def is_seen() -> bool:
            request = pb.GetRouterStatusRequest()
            found = await asyncio.to_thread(
                call, "router", router.address, "GetRouterStatus", request
            )
            return not found.degraded_reasons

        await until(is_seen, "the router hears the monitor")
        assert await asyncio.to_thread(run, ["endpoint", "list", "--monitor", monitor]) == 0
        assert await asyncio.to_thread(health_probe.main, [monitor, "--timeout-s", "30"]) == 0
        async with AsyncClient(router.address) as stranger:
            with pytest.raises(TiercelError):
                await stranger.generate("hello", task="piqa")
