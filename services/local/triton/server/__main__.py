"""Runs one Triton server in the foreground until a signal."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from pathlib import Path

from services.local.triton.errors import TritonServerError, TritonStoppedError
from services.local.triton.server.config import TritonServerConfig
from services.local.triton.server.process import TritonServer

_WATCH_S = 0.1
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
TRACE_VARIABLE = "TIERCEL_TRITON_TRACE_ENDPOINT"
"""Where spans go if `--trace-endpoint` does not say so."""


def main(arguments: list[str] | None = None) -> None:
    """Runs Triton until SIGTERM or SIGINT; exits 1 with one line when it fails.

    Exit code 2 is kept for wrong arguments: a supervisor starts again after any other code, and a
    port that the last server still held, or a crash, is worth another try.
    """
    config, shows_log = _parse(arguments)
    server = TritonServer(config)
    shown = _Shown(server.log_path if shows_log else None)
    received: list[int] = []

    def on_signal(number: int, _: object) -> None:
        # Nothing with a lock in it, and no exception: the handler may run inside itself, and
        # between the birth of a child and the line that remembers it.
        received.append(number)

    def is_stopping() -> bool:
        shown.go_on()
        return bool(received)

    for name in _SIGNALS:
        signal.signal(name, on_signal)
    try:
        server.start(
            lambda loaded, total: _say(f"loading models: {loaded}/{total}"),
            stopping=is_stopping,
        )
        _say(
            f"ready: grpc {server.grpc_address} http {server.http_address} "
            f"metrics {server.metrics_address} log {server.log_path}"
        )
        while server.running and not is_stopping():
            time.sleep(_WATCH_S)
        if not received:
            raise TritonServerError(f"Triton ended: {server.exit_reason()}")
    except TritonStoppedError:
        pass
    except TritonServerError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)
    finally:
        server.stop()
        shown.go_on()
        for name in _SIGNALS:
            signal.signal(name, signal.SIG_IGN)  # it ends in any case, with its own exit code


class _Shown:
    """Shows on standard output what a log gets, for whoever has no other way to see it.

    Args:
        path: The log; None shows nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._shown_bytes = 0

    def go_on(self) -> None:
        """Shows what came since the last time."""
        if self._path is None:
            return
        with contextlib.suppress(OSError):  # nothing is there yet, or nobody reads
            with self._path.open("rb") as log:
                if os.fstat(log.fileno()).st_size < self._shown_bytes:
                    self._shown_bytes = 0  # that of another start
                log.seek(self._shown_bytes)
                new = log.read()
            self._shown_bytes += len(new)
            sys.stdout.buffer.write(new)
            sys.stdout.flush()


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n".encode("ascii", "backslashreplace").decode())
    sys.stdout.flush()


def _parse(arguments: list[str] | None) -> tuple[TritonServerConfig, bool]:
    """Returns how to run it, and whether its log is shown."""
    parser = argparse.ArgumentParser(
        prog="python -m services.local.triton.server", description=__doc__
    )
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--environment", type=Path, help="default: TIERCEL_TRITON_ENV")
    parser.add_argument("--host", default="127.0.0.1")
    for name in ("grpc", "http", "metrics"):
        parser.add_argument(f"--{name}-port", type=int, default=0, help="0: any free port")
    parser.add_argument("--cpu-cores", default="", help="for example 0,1; default: all")
    parser.add_argument("--nice", type=int, default=0)
    parser.add_argument(
        "--trace-endpoint",
        default=os.environ.get(TRACE_VARIABLE, ""),
        help=f"OTLP/HTTP address for spans; default: {TRACE_VARIABLE}",
    )
    parser.add_argument("--tls-folder", type=Path, help="ca.crt, tls.crt, tls.key; default: none")
    parser.add_argument("--log", type=Path, help="default: a file in the work folder")
    parser.add_argument("--show-log", action="store_true", help="print what Triton logs, too")
    parser.add_argument("--ready-timeout-s", type=float, default=120.0)
    options = parser.parse_args(arguments)
    try:
        cores = tuple(int(core) for core in options.cpu_cores.split(",") if core)
    except ValueError:
        parser.error(f"--cpu-cores: not a list of core numbers: {options.cpu_cores}")
    config = TritonServerConfig(
        repository=options.repository,
        environment=options.environment,
        host=options.host,
        grpc_port=options.grpc_port,
        http_port=options.http_port,
        metrics_port=options.metrics_port,
        cpu_cores=cores,
        nice=options.nice,
        trace_endpoint=options.trace_endpoint,
        tls_folder=options.tls_folder,
        log_path=options.log,
        ready_timeout_s=options.ready_timeout_s,
    )
    return config, options.show_log


if __name__ == "__main__":
    main()
