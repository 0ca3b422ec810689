"""Starts, watches and stops a real Triton Inference Server as a child process.

The binary comes out of the `nvidia-pytriton` wheel; no container and no GPU is needed. Use
`TritonServer` from code, or `python -m services.local.triton.server --repository DIRECTORY`.
"""

from __future__ import annotations

import asyncio
import http.client
import logging
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from router.folders import work_folder
from services.local.launch import tied_command
from services.local.triton.environment import find_environment, prepare_environment
from services.local.triton.errors import PortInUseError, TritonServerError, TritonStoppedError
from services.local.triton.server import logs
from services.local.triton.server.config import TritonServerConfig, arguments
from services.local.triton.server.plain_paths import PlainPaths
from services.local.triton.server.ports import choose_ports

_SHARED_MEMORY = Path("/dev/shm")
_START_ATTEMPTS = 3
_POLL_S = 0.05
_READY_CALL_TIMEOUT_S = 2.0
_KILL_WAIT_S = 5.0
_REAP_WAIT_S = 1.0
# Variables of the parent's interpreter that would lead the stubs to the wrong packages.
_FOREIGN_VARIABLES = ("PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "VIRTUAL_ENV")
_QUIET_DEFAULTS = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}
_EXPLICIT_LOADING = "--model-control-mode=explicit"

Progress = Callable[[int, int], None]
_log = logging.getLogger(__name__)


class TritonServer:
    """One Triton process: `start`, then `stop`; or a context manager, plain or async.

    Attributes:
        config: What it was made with.
        token: Triton's id, and the prefix of its shared-memory segments.
        log_path: File that holds what Triton and its stubs print.
        grpc_address: `host:port` of gRPC, valid after the start; likewise `http_address` and
            `metrics_address`.
    """

    def __init__(self, config: TritonServerConfig) -> None:
        """Prepares nothing yet; all checks happen in `start`."""
        self.config = config
        self.token = f"tiercel_{os.getpid()}_{secrets.token_hex(4)}"
        directory = config.build_directory or work_folder("triton")
        self.log_path = config.log_path or directory / "logs" / f"{self.token}.log"
        self.grpc_address = self.http_address = self.metrics_address = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._paths = PlainPaths()

    @property
    def pid(self) -> int | None:
        """Process id of tritonserver, None when none was started."""
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        """Whether the process is alive, ready or not."""
        return self._process is not None and self._process.poll() is None

    def start(
        self, progress: Progress | None = None, *, stopping: Callable[[], bool] = lambda: False
    ) -> None:
        """Starts Triton and waits until every model is ready.

        Call it from a thread that lives as long as the server: Linux ties the child to the thread
        that made it, and Triton is told to stop when that thread ends.

        Args:
            progress: Called with (loaded, total) models whenever one more is loaded.
            stopping: Asked while it starts; True breaks the start off with TritonStoppedError.

        Raises:
            TritonServerError: It did not become ready; the subclass and text say why. Nothing
                is left running.
        """
        for attempt in range(1, _START_ATTEMPTS + 1):
            self._spawn()
            try:
                watch = _StartWatch(self, progress)
                while not watch.ready():
                    if stopping():
                        raise TritonStoppedError("stopped while starting")
                    time.sleep(_POLL_S)
                return
            except PortInUseError:
                self.stop()
                if attempt == _START_ATTEMPTS or self._ports_are_fixed():
                    raise
            except BaseException:
                self.stop()
                raise

    async def start_async(self, progress: Progress | None = None) -> None:
        """Does what `start` does without blocking the event loop, and can be cancelled."""
        for attempt in range(1, _START_ATTEMPTS + 1):
            # In the loop's own thread: the death signal follows the thread that forks, and a
            # worker thread may end long before this process does.
            self._spawn()
            try:
                watch = _StartWatch(self, progress)
                while not await asyncio.to_thread(watch.ready):
                    await asyncio.sleep(_POLL_S)
                return
            except PortInUseError:
                await self.stop_async()
                if attempt == _START_ATTEMPTS or self._ports_are_fixed():
                    raise
            except BaseException:
                await self.stop_async()
                raise

    def stop(self) -> None:
        """Stops Triton gracefully, then by force; removes what it left. Safe to call again."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(self.config.exit_timeout_s)
            except subprocess.TimeoutExpired:
                _log.warning("Triton did not stop in %.0f s: killed", self.config.exit_timeout_s)
        self._end_group(process)
        self._remove_shared_memory()
        self._paths.remove()
        self._process = None

    async def stop_async(self) -> None:
        """Does what `stop` does without blocking the event loop."""
        await asyncio.shield(asyncio.to_thread(self.stop))

    def __enter__(self) -> TritonServer:
        """Starts the server."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops the server."""
        self.stop()

    async def __aenter__(self) -> TritonServer:
        """Starts the server."""
        await self.start_async()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stops the server."""
        await self.stop_async()

    def exit_reason(self) -> str:
        """Returns why Triton is not running, one line, from its own log."""
        return logs.exit_reason(self.log_path, self._process.poll() if self._process else None)

    def start_error(self) -> TritonServerError:
        """Returns the error of a start that ended, named from Triton's own log."""
        return logs.start_error(self.log_path, self._process.poll() if self._process else None)

    def _ports_are_fixed(self) -> bool:
        config = self.config
        return 0 not in (config.grpc_port, config.http_port, config.metrics_port)

    def _spawn(self) -> None:
        """Starts the process in a session of its own, with its output in the log file."""
        config = self.config
        if not config.repository.is_dir():
            raise TritonServerError(f"no model repository at {config.repository}")
        if self.running:
            raise TritonServerError("this Triton server is running already")
        build = config.build_directory or work_folder("triton")
        build.mkdir(parents=True, exist_ok=True)
        environment = prepare_environment(
            self._paths.of(find_environment(config.environment), "environment"),
            self._paths.of(build, "build"),
        )
        ports = choose_ports(config.host, (config.grpc_port, config.http_port, config.metrics_port))
        self.grpc_address, self.http_address, self.metrics_address = (
            f"{config.host}:{port}" for port in ports
        )
        variables = {k: v for k, v in os.environ.items() if k not in _FOREIGN_VARIABLES}
        variables = _QUIET_DEFAULTS | variables | dict(config.variables)
        variables["PATH"] = f"{environment.bin_directory}:{variables.get('PATH', '')}"
        variables["LD_LIBRARY_PATH"] = environment.library_path
        command = [
            str(environment.binary),
            *arguments(config, self._paths.of(config.repository, "models"), ports, self.token),
            f"--backend-directory={environment.backends_directory}",
            f"--cache-directory={environment.cache_directory}",
            *config.extra_arguments,
        ]
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        logs.set_aside(self.log_path)
        with self.log_path.open("wb") as log:
            tied = tied_command(command, cores=config.cpu_cores, nice=config.nice)
            self._process = _popen(tied, variables, log)

    def _end_group(self, process: subprocess.Popen[bytes]) -> None:
        """Kills what is left of the server's own process group: itself, or orphaned stubs."""
        try:
            os.killpg(process.pid, signal.SIGKILL)
            _log.info("ended leftover processes of Triton's group %d", process.pid)
            process.wait(_KILL_WAIT_S)
            # Orphans are reaped by somebody else; wait for that, but not for ever.
            give_up_s = time.monotonic() + _REAP_WAIT_S
            while time.monotonic() < give_up_s:
                os.killpg(process.pid, 0)
                time.sleep(_POLL_S)
        except (ProcessLookupError, PermissionError):
            pass

    def _remove_shared_memory(self) -> None:
        """Removes this server's shared-memory segments, known by their prefix."""
        for segment in _SHARED_MEMORY.glob(f"{self.token}*"):
            segment.unlink(missing_ok=True)


class _StartWatch:
    """Follows one start: progress, readiness, failure, time."""

    def __init__(self, server: TritonServer, progress: Progress | None) -> None:
        self._server = server
        self._progress = progress
        self._deadline_s = time.monotonic() + server.config.ready_timeout_s
        # With explicit loading Triton is ready with the models that its arguments name.
        is_explicit = _EXPLICIT_LOADING in server.config.extra_arguments
        configs = server.config.repository.glob("*/config.pbtxt")
        self._total = 0 if is_explicit else sum(1 for _ in configs)
        self._reported = -1

    def ready(self) -> bool:
        """Returns whether every model is ready.

        Raises:
            TritonServerError: The process ended, or the time is over.
        """
        server = self._server
        loaded = logs.loaded_models(server.log_path)
        if self._progress and len(loaded) != self._reported:
            self._reported = len(loaded)
            self._progress(len(loaded), self._total)
        if not server.running:
            raise server.start_error()
        if len(loaded) >= self._total and _is_ready(server.http_address):
            return True
        if time.monotonic() > self._deadline_s:
            raise TritonServerError(
                f"Triton was not ready after {server.config.ready_timeout_s:.0f} s, "
                f"{len(loaded)} of {self._total} models loaded (log: {server.log_path})"
            )
        return False


def _popen(
    command: list[str], variables: Mapping[str, str], log: IO[bytes]
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise TritonServerError(f"Triton could not be started: {error}") from error


def _is_ready(http_address: str) -> bool:
    """Asks Triton's health endpoint once."""
    connection = http.client.HTTPConnection(http_address, timeout=_READY_CALL_TIMEOUT_S)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
