"""The process around Triton: whenever a signal arrives, it stops Triton and ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.local.triton.server import __main__ as launcher

WRAPPER = """
import sys, time
from services.local.triton.server import __main__ as wrapper

class Server:
    running, log_path, grpc_address, http_address, metrics_address = True, "", "", "", ""
    def __init__(self, config): pass
    def start(self, progress, **more):
        if "starting" in sys.argv:
            print("starting", flush=True)
            stopping = more["stopping"]
            end_s = time.monotonic() + 60
            while not stopping() and time.monotonic() < end_s:
                time.sleep(0.01)
            if stopping():
                raise wrapper.TritonStoppedError("stopped")
    def stop(self):
        time.sleep(0.05)
        print("stopped", flush=True)

wrapper.TritonServer = Server
wrapper.main(["--repository", "none"])
"""


@pytest.mark.parametrize("instant", ["starting", "running"])
@pytest.mark.parametrize("round_number", range(5))
def test_signals_in_any_number_end_it(instant: str, round_number: int) -> None:
    """A signal inside a signal's handling does not lock the process up; Triton is stopped."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRAPPER, instant], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    assert first.startswith("starting" if instant == "starting" else "ready")
    end_s = time.monotonic() + 0.5
    while process.poll() is None and time.monotonic() < end_s:
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
    try:
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert output.endswith("stopped\n")
    assert process.returncode == 0


def test_the_environment_says_where_spans_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the command line does: a layer of Compose adds it without repeating a command."""
    monkeypatch.setenv(launcher.TRACE_VARIABLE, "http://collector:4318/v1/traces")
    words = ["--repository", "none"]
    assert launcher._parse(words)[0].trace_endpoint == "http://collector:4318/v1/traces"
    assert launcher._parse([*words, "--trace-endpoint", ""])[0].trace_endpoint == ""


def test_what_triton_says_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A container's log is its standard output; a file begun anew is shown from its start."""
    log = tmp_path / "log"
    shown = launcher._Shown(log)
    shown.go_on()
    for text in ("one\n", "one\ntwo\n", "3\n"):
        log.write_text(text)
        shown.go_on()
        shown.go_on()
    launcher._Shown(None).go_on()
    assert capsys.readouterr().out == "one\ntwo\n3\n"
