"""Starting, failing and ending a real Triton process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
import pytest
from tritonclient.grpc import service_pb2 as kserve
from tritonclient.grpc import service_pb2_grpc as kserve_grpc

from services.common.access.tls import Tls
from services.common.log import get_logger
from services.common.triton.client import TritonClient
from services.local.triton.errors import (
    ModelLoadError,
    PortInUseError,
    TritonEnvironmentError,
    TritonServerError,
)
from services.local.triton.repository.paced import PacedFleet, write_paced_repository
from services.local.triton.server.config import TritonServerConfig
from services.local.triton.server.ports import choose_ports
from services.local.triton.server.process import TritonServer
from tests import certificates
from tests.fakes.otlp_sink import OtlpSink
from tests.unit.deploy.manifests import ROOT
from tests.waiting import LIMIT_S, until

pytestmark = pytest.mark.triton
START_LIMIT_S = 120.0


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one paced tier."""
    fleet = PacedFleet(profile=ROOT / "profiles" / "opt-a100.toml", tiers=("small",))
    return write_paced_repository(tmp_path / "fleet", fleet).servers[0].path


def _config(repository: Path, tmp_path: Path, **changes: object) -> TritonServerConfig:
    settings: dict[str, object] = {"repository": repository, "log_path": tmp_path / "log"}
    return TritonServerConfig(**{**settings, **changes})  # type: ignore[arg-type]


def test_triton_starts_in_a_folder_that_a_shell_would_take_apart(tmp_path: Path) -> None:
    """Spaces, quotes, `;` and an umlaut do no harm, to models and backends alike."""
    folder = tmp_path / "a \u00fc'b\";c"
    fleet = PacedFleet(profile=ROOT / "profiles" / "opt-a100.toml", tiers=("small",))
    repository = write_paced_repository(folder / "fleet", fleet).servers[0].path
    with TritonServer(_config(repository, folder, build_directory=folder / "build")) as server:
        assert server.running


def test_missing_environment_is_one_clear_line(tmp_path: Path, repository: Path) -> None:
    """It names the place and the command that makes it."""
    server = TritonServer(_config(repository, tmp_path, environment=tmp_path / "none"))
    with pytest.raises(TritonEnvironmentError, match=r"none.*make setup"):
        server.start()


def test_environment_without_triton_is_named(tmp_path: Path, repository: Path) -> None:
    """An environment that exists but holds no Triton says what to install."""
    (tmp_path / "empty" / "bin").mkdir(parents=True)
    (tmp_path / "empty" / "bin" / "python").symlink_to(sys.executable)
    server = TritonServer(_config(repository, tmp_path, environment=tmp_path / "empty"))
    with pytest.raises(TritonEnvironmentError, match=r"complete it with `make setup`"):
        server.start()


def test_missing_repository_is_named(tmp_path: Path) -> None:
    """A repository that is not there is named."""
    with pytest.raises(TritonServerError, match="no model repository at"):
        TritonServer(_config(tmp_path / "none", tmp_path)).start()


def test_port_in_use_is_named(tmp_path: Path, repository: Path) -> None:
    """A fixed port that somebody has is one line with address and port."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        port = other.getsockname()[1]
        server = TritonServer(_config(repository, tmp_path, grpc_port=port))
        with pytest.raises(PortInUseError, match=f"127.0.0.1:{port}"):
            server.start()
    assert not server.running


def test_port_lost_to_another_process_is_chosen_again(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A free port that somebody takes before Triton does costs a second attempt, not the start."""
    attempts: list[tuple[int, ...]] = []
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)

        def choose(host: str, wanted: tuple[int, ...]) -> tuple[int, ...]:
            ports = choose_ports(host, wanted)
            attempts.append(ports if attempts else (other.getsockname()[1], *ports[1:]))
            return attempts[-1]

        monkeypatch.setattr("services.local.triton.server.process.choose_ports", choose)
        with TritonServer(_config(repository, tmp_path)) as server:
            assert server.running
            assert server.grpc_address == f"127.0.0.1:{attempts[1][0]}"
    assert len(attempts) == 2


def test_model_that_fails_to_load_says_why(tmp_path: Path, repository: Path) -> None:
    """Triton's own reason reaches the caller, and nothing is left running."""
    (repository / "gpu0_small" / "1" / "profile.toml").write_text('name = "broken"\n')
    server = TritonServer(_config(repository, tmp_path))
    with pytest.raises(ModelLoadError, match=r"gpu0_small.*'tiers' is missing") as caught:
        server.start()
    assert "\n" not in str(caught.value)
    assert not server.running


@pytest.fixture
def sink() -> Iterator[OtlpSink]:
    """A collector."""
    opened = OtlpSink()
    yield opened
    opened.close()


async def test_triton_joins_a_sampled_trace(
    tmp_path: Path, repository: Path, sink: OtlpSink
) -> None:
    """Triton's spans are children of the caller's span; requests without a context make none.

    Several sampled ones, because Triton overlooks some: see docs/operations.md.
    """
    endpoint = f"{sink.endpoint}/v1/traces"
    loaded: list[tuple[int, int]] = []
    core = min(os.sched_getaffinity(0))
    server = TritonServer(
        _config(repository, tmp_path, trace_endpoint=endpoint, nice=1, cpu_cores=(core,))
    )
    await server.start_async(lambda done, total: loaded.append((done, total)))
    try:
        assert loaded[-1] == (1, 1)
        process = psutil.Process(server.pid)
        for member in (process, *process.children()):
            assert member.nice() == os.nice(0) + 1
            assert member.cpu_affinity() == [core]
        async with TritonClient(server.grpc_address) as client:
            sampled = [(f"{index:x}" * 32, "1" * 16, "01") for index in range(1, 9)]
            for trace, span, flags in (*sampled, ("", "", "")):
                metadata = [("traceparent", f"00-{trace}-{span}-{flags}")] if trace else []
                async for _ in client.generate(
                    "gpu0_small", "w", 2, timeout_s=LIMIT_S, metadata=metadata
                ):
                    pass
        # It comes within five seconds. A stop that is quicker once had only parts exported.
        await until(
            lambda: any(span.parent_id == "1" * 16 for span in sink.spans), "a span that joined"
        )
    finally:
        # Stopping flushes what was not exported yet.
        await server.stop_async()
    joined = {span.trace_id for span in sink.spans}
    assert joined <= {trace for trace, _, _ in sampled}
    # Of one or the other it sends a part alone.
    whole = {span.trace_id for span in sink.spans if span.parent_id == "1" * 16}
    assert whole
    for trace in whole:
        own = sink.of_trace(trace)
        [root] = [span for span in own if span.parent_id == "1" * 16]
        assert root.name == "InferRequest"
        children = [span.name for span in own if span.parent_id == root.span_id]
        assert children == ["gpu0_small"]


async def test_triton_by_tls_answers_callers_with_a_certificate(
    tmp_path: Path, repository: Path
) -> None:
    """The mesh's client is answered; plain text and a caller without a certificate are not."""
    server = TritonServer(
        _config(repository, tmp_path, tls_folder=certificates.folder() / "triton")
    )
    await server.start_async()
    try:
        own = certificates.tls_settings("router-inference")
        tls = Tls(own, monotonic_s=time.monotonic, wall_s=time.time, log=get_logger("test"))
        async with TritonClient(server.grpc_address, tls=tls) as client:
            assert await client.is_ready("gpu0_small")
            text = [
                chunk.text
                async for chunk in client.generate("gpu0_small", "w", 2, timeout_s=LIMIT_S)
            ]
            assert text
        async with TritonClient(server.grpc_address, control_timeout_s=5.0) as plain:
            assert not await plain.is_live()
        roots = grpc.ssl_channel_credentials(tls.current().roots)
        async with grpc.aio.secure_channel(server.grpc_address, roots) as channel:
            stub: Any = kserve_grpc.GRPCInferenceServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.ServerLive(kserve.ServerLiveRequest(), timeout=5.0)
    finally:
        await server.stop_async()


async def test_command_serves_until_its_parent_dies(tmp_path: Path, repository: Path) -> None:
    """The command prints where it listens; killed hard, it takes Triton and stubs with it."""
    command = [sys.executable, "-m", "services.local.triton.server", "--repository"]
    process = await asyncio.create_subprocess_exec(
        *command,
        str(repository),
        "--log",
        str(tmp_path / "log"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    line = b""
    while not line.startswith(b"ready:"):
        line = await asyncio.wait_for(process.stdout.readline(), START_LIMIT_S)
        assert line, "the command ended"
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 2
    async with TritonClient(line.split()[2].decode()) as client:
        assert await client.is_ready("gpu0_small")
    process.send_signal(signal.SIGKILL)
    await process.wait()
    await until(lambda: not any(map(_is_alive, family)), "Triton and its stubs end")


def _is_alive(process: psutil.Process) -> bool:
    """Whether a process still runs; one that waits to be reaped does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False
