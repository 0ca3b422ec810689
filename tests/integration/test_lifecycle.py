"""The life of a service process, with a small service and real signals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from services.common import lifecycle, stopping
from services.common.clock import SystemClock
from services.common.lifecycle import Running, remove_ready_file, serve
from services.common.log import get_logger
from services.common.server import GrpcServer, ServerSettings, build_server
from services.common.settings import SettingsError
from services.common.start_error import StartError
from services.common.supervision import Supervisor
from tests.waiting import LIMIT_S, until

LOG = get_logger("test")
Task = Callable[[], Coroutine[Any, Any, None]]


class App:
    """A service without methods of its own, which notes what happens to it."""

    name = "test-service"

    def __init__(
        self,
        task: Task | None = None,
        error: Exception | None = None,
        ready: Task | None = None,
        flush: Task | None = None,
        broken_after_s: float = 0.1,
    ) -> None:
        self.events: list[str] = []
        self.address = ""
        self.server: GrpcServer | None = None
        self._task = task
        self._error = error
        self._broken_after_s = broken_after_s
        self._ready = ready or self._note("ready")
        self._flush = flush or self._note("flush")
        self._registry = CollectorRegistry()

    @property
    def server_settings(self) -> ServerSettings:
        """Settings with a short drain."""
        return ServerSettings(
            listen="127.0.0.1:0", metrics_listen="", lame_duck_s=0.05, grace_s=1.0
        )

    def _note(self, event: str) -> Callable[[], Coroutine[Any, Any, None]]:
        async def note() -> None:
            self.events.append(event)

        return note

    async def _work(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.events.append("task cancelled")

    async def start(self, stack: AsyncExitStack) -> Running:
        """Builds a server, or fails."""
        stack.push_async_callback(self._note("first part closed"))
        stack.push_async_callback(self._note("second part closed"))
        if self._error is not None:
            raise self._error
        server = await build_server(
            services=[],
            settings=self.server_settings,
            registry=self._registry,
            clock=SystemClock(),
            log=LOG,
        )
        self.server, self.address = server, str(server.address)
        return Running(
            server=server,
            supervisor=Supervisor(
                registry=self._registry,
                clock=SystemClock(),
                log=LOG,
                broken_after_s=self._broken_after_s,
                steady_s=0.2,
            ),
            tasks={"work": self._work} | ({"extra": self._task} if self._task else {}),
            ready=self._ready,
            flush=self._flush,
        )


ORDER = ["ready", "flush", "task cancelled", "second part closed", "first part closed"]


async def serving_status(address: str) -> str:
    """Returns what the health service says."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=LIMIT_S)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


async def says(address: str, status: str) -> bool:
    """Returns whether the health service says that."""
    return await serving_status(address) == status


async def wait_for_file(path: Path) -> dict[str, Any]:
    """Returns the ready file's content once it is there."""
    await until(path.exists, "the ready file is there")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


async def test_signal_stops_in_order(tmp_path: Path) -> None:
    """Flush, tasks, then parts in reverse order; the ready file tells the address."""
    app, path = App(), tmp_path / "ready.json"
    path.write_text("left by a crash")
    running = asyncio.create_task(serve(app, log=LOG, ready_file=path))
    await until(
        lambda: path.exists() and not path.read_text().startswith("left"), "the ready file is new"
    )
    ready = await wait_for_file(path)
    assert ready == {
        "service": "test-service",
        "pid": os.getpid(),
        "addresses": {"grpc": app.address},
    }
    assert await serving_status(app.address) == "SERVING"
    os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.wait_for(running, LIMIT_S) == 0
    assert app.events == ORDER
    assert not path.exists()


async def test_failing_task_does_not_end_the_service(caplog: pytest.LogCaptureFixture) -> None:
    """A bug in a long task is logged, and everything else goes on."""

    async def fail() -> None:
        raise KeyError("bug")

    app = App(task=fail, broken_after_s=100 * LIMIT_S)
    running = asyncio.create_task(serve(app, log=LOG))
    await until(lambda: "KeyError: 'bug'" in caplog.text, "the bug is logged")
    await until(lambda: says(app.address, "SERVING"), "the service serves")
    os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.wait_for(running, LIMIT_S) == 0
    assert app.events == ORDER


async def test_a_broken_task_costs_readiness_until_it_is_well() -> None:
    """Health follows what the supervisor says."""
    fails = True

    async def work() -> None:
        if fails:
            raise KeyError("bug")
        await asyncio.Event().wait()

    app = App(task=work)
    running = asyncio.create_task(serve(app, log=LOG))
    await until(lambda: app.address, "the service is built")
    await until(lambda: says(app.address, "NOT_SERVING"), "readiness is lost")
    fails = False
    await until(lambda: says(app.address, "SERVING"), "readiness is back")
    os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.wait_for(running, LIMIT_S) == 0


async def test_getting_ready_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """What a service reads at its start may be broken, or away, and come right later."""
    fails = True

    async def ready() -> None:
        if fails:
            raise KeyError("bug")

    app = App(ready=ready)
    running = asyncio.create_task(serve(app, log=LOG))
    await until(lambda: "KeyError: 'bug'" in caplog.text, "the bug is logged")
    assert await says(app.address, "NOT_SERVING")
    fails = False
    await until(lambda: says(app.address, "SERVING"), "it is ready")
    os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.wait_for(running, LIMIT_S) == 0


async def test_a_flush_that_fails_shows_in_the_exit_code(caplog: pytest.LogCaptureFixture) -> None:
    """The cause is logged and the parts are closed all the same."""

    async def flush() -> None:
        raise KeyError("bug")

    app = App(flush=flush)
    running = asyncio.create_task(serve(app, log=LOG))
    await until(lambda: app.address, "the service is built")
    await until(lambda: says(app.address, "SERVING"), "it is ready")
    os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.wait_for(running, LIMIT_S) == 1
    assert "KeyError: 'bug'" in caplog.text
    assert app.events[-2:] == ["second part closed", "first part closed"]


async def test_a_stop_that_finds_something_hang_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Server and flush are left behind, and a task that goes on is cancelled again."""
    app, stop = App(task=_lose_one_cancellation, flush=_for_ever), asyncio.Event()

    async def ask_to_stop() -> None:
        await until(lambda: app.address, "the service is built")
        await until(lambda: says(app.address, "SERVING"), "the service serves")
        assert app.server is not None
        await app.server.stop(0.0)  # nothing of the library's is left behind
        monkeypatch.setattr(app.server, "stop", _for_ever)
        stop.set()

    monkeypatch.setattr(lifecycle, "_SERVER_S", -app.server_settings.grace_s)
    monkeypatch.setattr(lifecycle, "_FLUSH_S", 0.0)
    monkeypatch.setattr(stopping, "AGAIN_S", 0.05)
    asking = asyncio.create_task(ask_to_stop())
    async with asyncio.timeout(LIMIT_S):
        assert await serve(app, log=LOG, stop=stop) == 0
    await asking
    told = [record.__dict__.get("tiercel_fields", {}) for record in caplog.records]
    assert [each["without"] for each in told if "without" in each] == ["server", "flush"]
    assert [each["tasks"] for each in told if "after_s" in each and "tasks" in each] == [["extra"]]
    assert app.events == [each for each in ORDER if each != "flush"]


async def _for_ever(*_: object) -> None:
    await asyncio.Event().wait()


async def _lose_one_cancellation() -> None:
    with suppress(asyncio.CancelledError):
        await _for_ever()
    await _for_ever()


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (StartError("cannot listen on x: the port is in use"), 1, "test-service: cannot listen"),
        (SettingsError(["f: a.b: wrong"]), 2, "f: a.b: wrong\n"),
    ],
)
def test_start_that_fails_is_one_line(
    error: Exception, code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Expected reasons come without a traceback, and what was built is closed."""
    app = App(error=error)
    if code == 2:
        with pytest.raises(SystemExit) as caught:
            lifecycle.run(app, log=LOG)
        assert caught.value.code == code
    else:
        assert lifecycle.run(app, log=LOG) == code
    err = capsys.readouterr().err
    assert err.startswith(text)
    assert "Traceback" not in err
    assert app.events == ["second part closed", "first part closed"]


def test_unexpected_error_at_start_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A bug ends with code 1 and its traceback in the log."""
    assert lifecycle.run(App(error=KeyError("bug")), log=LOG) == 1
    assert "KeyError: 'bug'" in caplog.text


async def test_ready_file_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    """Nobody would ever learn the address."""
    with pytest.raises(StartError, match="no such writable folder"):
        await serve(App(), log=LOG, ready_file=tmp_path / "none" / "ready.json")


async def test_ready_file_without_room_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full or read-only disk ends no service: calls are answered, and the file comes with room.

    What no file can be written over or removed from stands for such a disk.
    """
    monkeypatch.setattr(lifecycle, "_READY_FILE_RETRY_S", 0.01)
    app, path = App(), tmp_path / "ready.json"
    path.mkdir()
    stop = asyncio.Event()
    running = asyncio.create_task(serve(app, log=LOG, ready_file=path, stop=stop))
    await until(lambda: app.address, "the service listens")
    await until(lambda: says(app.address, "SERVING"), "the service serves")
    path.rmdir()
    assert (await wait_for_file(path))["addresses"] == {"grpc": app.address}
    path.unlink()
    path.mkdir()
    stop.set()
    assert await asyncio.wait_for(running, LIMIT_S) == 0
    assert app.events == ORDER
    assert [each.name for each in tmp_path.iterdir()] == ["ready.json"]


def test_only_an_ordinary_file_is_removed_as_the_ready_file(tmp_path: Path) -> None:
    """`/dev/null` and `/dev/stdout` are everybody's."""
    pipe, file, link = tmp_path / "pipe", tmp_path / "file", tmp_path / "link"
    os.mkfifo(pipe)
    file.touch()
    link.symlink_to(file)
    for path in (pipe, link, file, tmp_path / "none", tmp_path / ("x" * 300), None):
        remove_ready_file(path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["link", "pipe"]
