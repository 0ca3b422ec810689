"""Runs docs/tutorial.md line by line (`make tutorial`).

The lines of its `sh` blocks go one after the other into one shell, in an empty folder. Ports that
the page names are replaced by free ones. A line that ends in `&` counts as done once what it starts
says that it serves. Two lines do not run as they stand: training is one round instead of minutes,
and the gate may refuse what one round has learned.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fakes.ports import free_port
from tests.waiting import until_sync

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "tutorial.md"
PORTS = {8001: "Triton", 7410: "router", 7411: "monitor", 7412: "trainer"}
LISTENS = {7410: "ROUTER_INFERENCE", 7411: "LOAD_MONITOR", 7412: "TRAINER"}
LONGEST_S, START_S = 3_600.0, 300.0
SERVES = re.compile(r"^ready: |\bserving\b", re.MULTILINE)
QUICK = (r"--budget-s \d+", "--rounds 1 --no-answer")
MAY_FAIL = ("tiercel policy promote", "GATE_REFUSED")


def commands(text: str) -> list[str]:
    """Returns the commands of sh blocks; a quote or a here-document keeps lines together."""
    found: list[str] = []
    for block in re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        waiting = ""
        for line in block.splitlines():
            waiting += f"{line}\n"
            started = re.search(r"<<'(\w+)'", waiting)
            is_whole = line == started[1] if started else waiting.count("'") % 2 == 0
            if is_whole:
                found.append(waiting.strip())
                waiting = ""
        assert not waiting, waiting
    return found


class Shell:
    """One bash that is given a command after the other, as a reader would."""

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        """Starts it in a folder; it leads a process group that `close` ends."""
        self._folder, self._number = folder, 0
        self._bash = subprocess.Popen(
            ["bash", "--norc"], cwd=folder, env=variables, stdin=subprocess.PIPE, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def run(self, command: str) -> tuple[int, str]:
        """Runs a command; returns its exit code and what it printed.

        One in the background has exit code 0 once it serves.
        """
        self._number += 1
        said = self._folder / f".{self._number}.said"
        done = self._folder / f".{self._number}.done"
        is_background = command.endswith("&")
        body = command.removesuffix("&").strip()
        told = f"{{ {body}\n}} > {said.name} 2>&1"
        if is_background:
            # As a job of its own name, so that %?router finds it.
            told = f"{body} > {said.name} 2>&1 &"
        said.touch()  # before a job in the background has opened it
        assert self._bash.stdin is not None
        self._bash.stdin.write(f"set -m\n{told}\necho $? > {done.name}.tmp\n")
        self._bash.stdin.write(f"mv {done.name}.tmp {done.name}\n")
        self._bash.stdin.flush()
        until_sync(
            lambda: done.exists() or self._bash.poll() is not None, command, limit_s=LONGEST_S
        )
        if is_background:
            until_sync(lambda: SERVES.search(said.read_text()), f"{command} serves", START_S)
        return int(done.read_text()), said.read_text(errors="replace")

    def close(self) -> None:
        """Ends everything that it has started."""
        assert self._bash.stdin is not None
        self._bash.stdin.write("kill $(jobs -p) 2> /dev/null; wait\nexit\n")
        self._bash.stdin.close()
        try:
            self._bash.wait(60.0)
        except subprocess.TimeoutExpired:
            os.killpg(self._bash.pid, signal.SIGKILL)


def environment(ports: dict[int, int], state: Path) -> dict[str, str]:
    """Returns a reader's environment, in which services listen at free ports."""
    here = Path(sys.executable).parent
    listens = {f"TIERCEL_{LISTENS[port]}__LISTEN": f"127.0.0.1:{ports[port]}" for port in LISTENS}
    metrics = {f"TIERCEL_{name}__METRICS_LISTEN": "" for name in LISTENS.values()}
    paths = os.pathsep.join([str(ROOT), str(ROOT / "services" / "client")])
    return {
        **os.environ, **listens, **metrics, "PATH": f"{here}:{os.environ['PATH']}",
        "PYTHONPATH": paths, "TIERCEL_STATE": str(state),
    }  # fmt: skip


def run_page(page: Path, folder: Path, *, quick: bool = True) -> list[str]:
    """Runs a page in a folder; returns a line for each command that failed."""
    ports = {port: free_port() for port in PORTS}
    shell = Shell(folder, environment(ports, folder / "state"))
    failed = []
    try:
        for command in commands(page.read_text(encoding="utf-8")):
            told = command
            for port, free in ports.items():
                told = told.replace(f":{port}", f":{free}").replace(f"port {port}", f"port {free}")
            if quick:
                told = re.sub(*QUICK, told)
            start_s = time.monotonic()
            code, said = shell.run(told)
            print(f"$ {told}\n{said.rstrip()}\n  [{code}, {time.monotonic() - start_s:.1f} s]")
            if code and not (told.startswith(MAY_FAIL[0]) and MAY_FAIL[1] in said):
                failed.append(f"{told}: exit code {code}: {said.strip()[-300:]}")
    finally:
        shell.close()
    return failed


def main() -> int:
    """Runs the tutorial in a temporary folder; exit code 1 if a line failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.tutorial", description=__doc__)
    parser.add_argument("--whole", action="store_true", help="train as long as the page says")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        failed = run_page(PAGE, Path(folder), quick=not options.whole)
    for line in failed:
        print(f"FAILED: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
