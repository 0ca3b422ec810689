"""What a benchmark stands on: its share of the suite, a folder, children, a line of progress."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import psutil

from services.live.cpu import tree_cpu_s
from services.local import probes
from services.local.child import Child, ChildError, ChildSpec
from services.local.errors import CommandError
from services.local.launch import module_command
from services.local.ports import HOST, free_port
from services.local.processes import THREAD_VARIABLES


@dataclasses.dataclass(frozen=True)
class Suite:
    """How long to measure.

    Attributes:
        rounds: Turns that both sides of a ratio take.
        share: Requests and seconds in each, as a share of the full suite's.
    """

    rounds: int
    share: float


SUITES: Mapping[str, Suite] = {
    "smoke": Suite(1, 0.02),
    "quick": Suite(3, 0.3),
    "full": Suite(7, 1.0),
}
"""smoke only shows that everything runs; nobody should quote it."""


@dataclasses.dataclass(frozen=True)
class Server:
    """A child process that serves.

    Attributes:
        address: Where it serves, by gRPC or HTTP.
        metrics: Address of its metrics; empty if it has none.
        pid: Its process id.
    """

    address: str
    metrics: str
    pid: int

    def cpu_s(self) -> float:
        """CPU seconds of the process and all processes below it, exact to nanoseconds."""
        return tree_cpu_s(self.pid)

    def memory_mb(self) -> float:
        """Resident memory of the process, MB."""
        return float(psutil.Process(self.pid).memory_info().rss) / 1e6

    def tree_memory_mb(self) -> float:
        """The same with all processes below it; what they share counts for each of them."""
        total_bytes = 0
        for each in (root := psutil.Process(self.pid), *root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                total_bytes += each.memory_info().rss
        return total_bytes / 1e6


def free_address() -> str:
    """Returns an address of this machine that nobody listens on now."""
    return f"{HOST}:{free_port(HOST, 0)}"


async def save(report: Mapping[str, Any], path: pathlib.Path) -> None:
    """Writes a report as JSON."""
    text = json.dumps(report, indent=1) + "\n"
    await asyncio.to_thread(path.write_text, text, encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class Bench:
    """One group's run.

    Attributes:
        wanted: Names of the metrics asked for; a group may leave out what only others need.
        suite: How long to measure.
        folder: Scratch folder of the group.
        stack: Closes what the group opened.
        say: Takes how much of the group is done, 0 to 1, and a few words.
        missing: Takes the metrics that cannot be measured here, each with the reason.
    """

    wanted: frozenset[str]
    suite: Suite
    folder: pathlib.Path
    stack: contextlib.AsyncExitStack
    say: Callable[[float, str], None]
    missing: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def is_quick(self) -> bool:
        """True unless the whole length was asked for."""
        return self.suite.share < 1.0

    @property
    def rounds(self) -> int:
        """Turns that both sides of a ratio take."""
        return self.suite.rounds

    def part(self, whole: float) -> float:
        """Returns the suite's share of what the full suite does (requests, seconds)."""
        return whole * self.suite.share

    async def start(
        self,
        name: str,
        module: str,
        *arguments: str,
        cores: Sequence[int] = (),
        variables: Mapping[str, str] | None = None,
    ) -> Server:
        """Starts ``python -m MODULE ARGUMENTS --ready-file FILE``, tied to this process.

        Raises:
            CommandError: It did not start.
        """
        ready = self.folder / f"{name}.ready.json"
        program = module_command(module, *arguments, "--ready-file", str(ready))
        pid = await self.start_program(
            name, program, lambda: probes.file_exists(ready), cores=cores, variables=variables
        )
        addresses = json.loads(ready.read_text(encoding="utf-8"))["addresses"]
        address = addresses["grpc"] if "grpc" in addresses else addresses["http"]
        return Server(address, addresses.get("metrics", ""), pid)

    def address_of(self, name: str, place: str) -> str:
        """Returns another address of a server that was started: that of a place by its name."""
        ready = self.folder / f"{name}.ready.json"
        return str(json.loads(ready.read_text(encoding="utf-8"))["addresses"][place])

    async def start_program(
        self,
        name: str,
        program: Sequence[str],
        is_ready: Callable[[], Awaitable[bool]],
        *,
        cores: Sequence[int] = (),
        variables: Mapping[str, str] | None = None,
    ) -> int:
        """Starts a program, absolute path and arguments, tied to this process; returns its pid.

        Raises:
            CommandError: It did not start.
        """
        child = Child(
            ChildSpec(
                name=name,
                command=tuple(program),
                is_ready=is_ready,
                log_path=self.folder / f"{name}.log",
                stage=0,
                variables={**THREAD_VARIABLES, **(variables or {})},
                cores=tuple(cores),
                ready_timeout_s=240.0,  # the first start of a version compiles
            )
        )
        try:
            await child.start()
        except ChildError as error:
            raise CommandError(str(error)) from None
        self.stack.push_async_callback(child.stop)
        assert child.pid is not None
        return child.pid
