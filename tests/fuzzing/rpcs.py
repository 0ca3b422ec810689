"""Wrong calls of every method of every service (`make fuzz`), and what they must not do.

Methods are asked of the servers, messages are made from their descriptors: a new RPC is covered
without a change here. After each call its status is judged, after each batch the log and a good
request, after each service memory, descriptors, tasks and what is in flight.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import ctypes
import dataclasses
import gc
import hashlib
import json
import logging
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from services.common.errors import ERROR_DOMAIN, STATUS_BY_ERROR, NotServedError
from services.local.launch import tied_command
from services.local.run import run_owning_children
from services.router_inference.reconnect import END_OF_STREAM
from tests.conftest import RedisServer
from tests.fuzzing.meshes import (
    SERVICES,
    SLOW,
    Mesh,
    Served,
    request_type,
    response_type,
    running_mesh,
)
from tests.fuzzing.messages import MessageMaker

KEPT = Path(__file__).parent / "kept" / "rpcs"
"""Calls that once found a defect; every run sends them first."""
DOCUMENTED = (frozenset(STATUS_BY_ERROR.values()) | {grpc.StatusCode.OK}) - {
    grpc.StatusCode.UNIMPLEMENTED
}
"""Statuses an answer may have."""
MEMORY_BAND_BYTES = 64 * 1024 * 1024
"""Growth of the process from a quarter of the calls to their end; its bounded stores are full by
then."""
DESCRIPTOR_BAND, TASK_BAND = 8, 4
_BATCH = 200
_AT_ONCE = 8
_PATIENCE_S = 60.0
_SLOW_PATIENCE_S = 3.0
_OF_AGE = "Debug Text: max_age"
"""In the library's words for a call that was sent just as its connection ended by its age. It tries
such a call again unseen, unless the message is larger than what it keeps for that (256 KiB)."""
_LEFT_OPEN_S = 0.2
_NEXT_ANSWER_S = 0.05
_MOST_ANSWERS = 20
_LONGEST_SAID = 600
_MOST_SHRINKS = 200
_TIDY_EVERY = 1_000
_TURNS = 10
"""Turns of the other methods to one of those that start processes, which take seconds each."""
_WARM_SHARE = 0.25
"""Of its calls, or of its time: from then on a service may hold no more than it does."""
# What the library itself says, without our details: the caller's deadline, and too much metadata.
_LIBRARYS_OWN = (
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
)
_CLIENTS_OWN = "Internal error from Core"
"""How the client's library names its own write to a call that has ended."""
_LIBRARYS_LOG, _UNSENT = "grpc._cython.cygrpc", "ExecuteBatchError"
_OURS = ("tiercel.", "inference.", "envoy.")
_TRAILERS_BYTES = 8 * 1024
_TIMEOUTS_S = (*[None, 5.0] * 6, 0.5, 0.05, 0.001, 1e-6, 0.0, -1.0, 1e9)
_SHORT_S = 1.0
_METADATA: tuple[tuple[tuple[str, str | bytes], ...], ...] = (
    (("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),),
    (("traceparent", "00-zz-zz-01"), ("tracestate", "a=b,,=,")),
    (("traceparent", "ff-" + "f" * 32 + "-" + "f" * 16 + "-ff"),),
    (("traceparent", ""), ("traceparent", "x" * 500)),
    (("baggage", "a=b;c=d,=,%ff%00"),),
    (("authorization", "Bearer tck_000000000000_x"), ("authorization", "Basic ~")),
    (("authorization", "Bearer " + "e" * 5_000),),
    (("x-bin", bytes(range(256))), ("traceparent-bin", b"\xff\xfe")),
    (("x", "y" * 6_000),),
    (("x", "y" * 60_000),),
    (("x-bin", b"\0" * 7_000),),
    tuple((f"x-{number}", "y") for number in range(100)),
    (("x", "same"),) * 60,
    (("user-agent", "\u007e"), ("te", "trailers")),
)


@dataclasses.dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        method: its full name.
        payloads: the request's messages.
        metadata: pairs.
        timeout_s: the call's deadline, seconds from its start; None: none.
        leaves: True leaves a stream in its middle.
    """

    method: str
    payloads: tuple[bytes, ...]
    metadata: tuple[tuple[str, str | bytes], ...] = ()
    timeout_s: float | None = None
    leaves: bool = False

    def to_json(self) -> str:
        """Returns the form it is kept in."""
        fields = {
            "method": self.method,
            "payloads": [base64.b64encode(each).decode() for each in self.payloads],
            "metadata": [
                [
                    key,
                    value if isinstance(value, str) else {"b64": base64.b64encode(value).decode()},
                ]
                for key, value in self.metadata
            ],
            "timeout_s": self.timeout_s,
            "leaves": self.leaves,
        }
        return json.dumps(fields, indent=1) + "\n"

    @classmethod
    def of_json(cls, text: str) -> Call:
        """Reads what `to_json` wrote."""
        fields = json.loads(text)
        return cls(
            fields["method"],
            tuple(base64.b64decode(each) for each in fields["payloads"]),
            tuple(
                (key, value if isinstance(value, str) else base64.b64decode(value["b64"]))
                for key, value in fields["metadata"]
            ),
            fields["timeout_s"],
            fields["leaves"],
        )


@dataclasses.dataclass
class Tally:
    """What came of the calls of one method."""

    count: int = 0
    slowest_s: float = 0.0
    codes: Counter[str] = dataclasses.field(default_factory=Counter)


@dataclasses.dataclass
class Report:
    """What came of a run.

    Attributes:
        tallies: by a method's full name.
        sent: calls drawn for each service.
        problems: one line each.
    """

    tallies: dict[str, Tally] = dataclasses.field(default_factory=dict)
    sent: dict[str, int] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)


class Faults(logging.Handler):
    """Collects what should never be in a log: tracebacks.

    One is the library's own and says nothing of us: an answer that it could not send, since its
    call ended in that instant (a deadline, a client that left). Services do not log it either.
    """

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a record with a traceback."""
        kind = record.exc_info[0] if record.exc_info else None
        has_ended = record.name == _LIBRARYS_LOG and getattr(kind, "__name__", "") == _UNSENT
        if record.exc_info and kind is not None and not has_ended:
            trace = logging.Formatter().formatException(record.exc_info)
            self.texts.append(f"{record.name}: {record.getMessage()[:200]}\n{trace}")

    def taken(self) -> list[str]:
        """Returns what was collected, and starts anew."""
        found, self.texts = self.texts, []
        return found

    @contextlib.contextmanager
    def listening(self) -> Iterator[Faults]:
        """Listens to every logger."""
        logging.getLogger().addHandler(self)
        try:
            yield self
        finally:
            logging.getLogger().removeHandler(self)


class Caller:
    """Makes calls of a mesh and sends them.

    Args:
        mesh: the mesh.
        seed: of every choice.
        faults: hears the log.
        slow: True also calls the methods that start processes.
        kept: folder for calls that find a defect.
    """

    def __init__(
        self, mesh: Mesh, seed: int, faults: Faults, *, slow: bool = True, kept: Path = KEPT
    ) -> None:
        self.mesh = mesh
        self.report = Report()
        self._rng = random.Random(seed)
        self._maker = MessageMaker(self._rng, mesh.words, mesh.blobs)
        self._faults = faults
        self._slow = slow
        self._kept = kept
        self._methods: dict[str, tuple[Served, MethodDescriptor]] = {
            method.full_name: (served, method)
            for served in mesh.services.values()
            for method in served.methods
        }

    def method_names(self, served: Served) -> list[str]:
        """Returns the methods of a service that are called."""
        return [
            method.full_name for method in served.methods if self._slow or method.name not in SLOW
        ]

    def turns(self, served: Served) -> list[str]:
        """Returns the methods of a service in the order in which they take turns, over and over."""
        names = self.method_names(served)
        slow = [name for name in names if self._methods[name][1].name in SLOW]
        others = [name for name in names if name not in slow]
        return [*slow, *others * _TURNS] if slow else others

    def drawn(self, name: str) -> Call:
        """Returns a wrong call of a method."""
        rng = self._rng
        method = self._methods[name][1]
        seeds = self.mesh.seeds[name]
        count = rng.choice((0, 1, 2, 3, 5)) if method.client_streaming else 1
        first = rng.randrange(len(seeds))
        # Messages of a stream in their order, mostly.
        chosen = [
            seeds[(first + number) % len(seeds)] if rng.random() < 0.7 else rng.choice(seeds)
            for number in range(count)
        ]
        payloads = tuple(
            self._maker.wrong(each) if rng.random() < 0.8 else each.SerializeToString()
            for each in chosen
        )
        metadata = rng.choice(_METADATA) if rng.random() < 0.1 else ()
        timeout_s = rng.choice(_TIMEOUTS_S)
        return Call(name, payloads, metadata, timeout_s, rng.random() < 0.1)

    async def verdict(self, call: Call) -> str:
        """Sends a call; returns what is wrong with its end, nothing for nothing."""
        tally = self.report.tallies.setdefault(call.method, Tally())
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(_PATIENCE_S):
                code, problem = await self._sent(call)
        except TimeoutError:
            code, problem = "none", f"no answer within {_PATIENCE_S:g} s"
        tally.count += 1
        tally.codes[code] += 1
        tally.slowest_s = max(tally.slowest_s, time.monotonic() - began_s)
        return problem

    async def _sent(self, call: Call) -> tuple[str, str]:
        served, method = self._methods[call.method]
        path = f"/{method.containing_service.full_name}/{method.name}"
        options: dict[str, Any] = {"timeout": call.timeout_s, "metadata": call.metadata or None}
        if method.name in SLOW and (call.timeout_s is None or call.timeout_s > _SLOW_PATIENCE_S):
            options["timeout"] = _SLOW_PATIENCE_S
        channel: Any = served.channel
        kind = "stream" if method.client_streaming else "unary"
        kind += "_stream" if method.server_streaming else "_unary"
        begin = getattr(channel, kind)(path)
        request: Any = _each(call) if method.client_streaming else call.payloads[0]
        if method.client_streaming and call.leaves:
            options["timeout"] = min(_LEFT_OPEN_S, call.timeout_s or _LEFT_OPEN_S)
        rpc = begin(request, **options)
        answers: list[bytes] = []
        try:
            if method.server_streaming:
                is_whole = await _read(rpc, answers, 1 if call.leaves else _MOST_ANSWERS)
                if not is_whole:
                    rpc.cancel()
                    return "left", _wrong_answers(method, answers)
            else:
                answers.append(await rpc)
        except grpc.aio.AioRpcError as error:
            problem = _wrong_status(method, error)
            if problem.endswith(_CLIENTS_OWN):
                return "write failed", ""
            return error.code().name, problem or _wrong_answers(method, answers)
        except asyncio.CancelledError:
            if asyncio.current_task().cancelling():  # type: ignore[union-attr]
                raise
            # The client's library cancels a stream whose time is up before it was sent.
            is_short = options["timeout"] is not None and options["timeout"] < _SHORT_S
            if method.client_streaming and is_short:
                return "CANCELLED", ""
            return "CANCELLED", "ended as cancelled, and nobody did so"
        return "OK", _wrong_answers(method, answers)

    async def batch(self, served: Served, calls: Sequence[Call]) -> None:
        """Sends calls, several at a time, then judges what they left."""
        room = asyncio.Semaphore(_AT_ONCE)

        async def send(call: Call) -> tuple[Call, str]:
            async with room:
                return call, await self.verdict(call)

        for call, problem in await asyncio.gather(*map(send, calls)):
            if problem:
                await self._found(call, problem)
        if traces := self._faults.taken():
            await self._find(calls, traces)
        try:
            await served.good()
        except (AssertionError, grpc.aio.AioRpcError) as error:
            await self.mesh.tidy()
            try:
                await served.good()
            except (AssertionError, grpc.aio.AioRpcError):
                self.report.problems.append(f"{served.name}: a good request fails: {error!r:.500}")

    async def _find(self, calls: Sequence[Call], traces: list[str]) -> None:
        """Finds which call left tracebacks, by sending each alone."""
        for call in calls:
            await self.verdict(call)
            await asyncio.sleep(0)
            if again := self._faults.taken():
                await self._found(call, again[0])
                return
        self.report.problems.append(f"{calls[0].method} and others together: {traces[0]}")

    async def _found(self, call: Call, problem: str) -> None:
        smallest = await self._shrunk(call)
        digest = hashlib.sha256(smallest.to_json().encode()).hexdigest()[:8]
        name = call.method.rpartition(".")[2]
        self._kept.mkdir(parents=True, exist_ok=True)
        path = self._kept / f"{name}-{digest}.json"
        path.write_text(smallest.to_json())
        self.report.problems.append(f"{call.method} ({path.name}): {problem}")

    async def _shrunk(self, call: Call) -> Call:
        """Returns a smaller call with a problem, the call itself if there is none."""
        tries = 0

        async def fails(candidate: Call) -> bool:
            nonlocal tries
            tries += 1
            problem = await self.verdict(candidate)
            await asyncio.sleep(0)
            return bool(problem or self._faults.taken())

        changed = True
        while changed and tries < _MOST_SHRINKS:
            changed = False
            for candidate in _smaller(call, request_type(self._methods[call.method][1])):
                if tries >= _MOST_SHRINKS:
                    break
                if await fails(candidate):
                    call, changed = candidate, True
                    break
        return call


async def _each(call: Call) -> AsyncIterator[bytes]:
    for payload in call.payloads:
        yield payload
    if call.leaves:
        await asyncio.sleep(2 * _LEFT_OPEN_S)  # the call has ended by then


async def _read(rpc: Any, answers: list[bytes], most: int) -> bool:
    """Reads a stream's answers; returns whether it ended by itself."""
    while len(answers) < most:
        try:
            # The first may take its time; a watch says nothing more then.
            async with asyncio.timeout(_NEXT_ANSWER_S if answers else 1.0):
                answer = await rpc.read()
        except TimeoutError:
            return False
        if answer is END_OF_STREAM:
            return True
        answers.append(answer)
    return False


def _wrong_answers(method: MethodDescriptor, answers: Sequence[bytes]) -> str:
    """Returns what is wrong with answers, which must be messages of the method's type."""
    kind = response_type(method)
    for answer in answers:
        try:
            kind.FromString(answer)
        except DecodeError:
            return f"an answer that is no {kind.DESCRIPTOR.name}"
    return ""


def _wrong_status(method: MethodDescriptor, error: grpc.aio.AioRpcError) -> str:
    """Returns what is wrong with a status; ours carry an ErrorInfo and fit a header."""
    code = error.code()
    is_ours = method.containing_service.full_name.startswith(_OURS)
    if code not in DOCUMENTED and code is not grpc.StatusCode.UNIMPLEMENTED:
        return f"{code.name}: {error.details()}"
    trailers = error.trailing_metadata() or ()
    size = sum(len(key) + len(value) for key, value in trailers)
    if size > _TRAILERS_BYTES:
        return f"{code.name} with {size} bytes of details"
    if not is_ours or code in _LIBRARYS_OWN:
        return ""
    if code is grpc.StatusCode.UNAVAILABLE and _OF_AGE in (error.details() or ""):
        return ""
    rich = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    if rich is None or not any(d.Unpack(info) for d in rich.details if d.Is(info.DESCRIPTOR)):
        return f"{code.name} without an ErrorInfo: {error.details()}"
    if code is grpc.StatusCode.UNIMPLEMENTED and info.reason != NotServedError.default_reason:
        return f"{code.name}: {error.details()}"
    return "" if info.domain == ERROR_DOMAIN and info.reason else f"a bare ErrorInfo: {info}"


def _smaller(call: Call, kind: Any) -> Iterator[Call]:
    """Yields calls that are a little less than a call."""
    if call.metadata:
        yield dataclasses.replace(call, metadata=())
    if call.timeout_s != 5.0:
        yield dataclasses.replace(call, timeout_s=5.0)
    if call.leaves:
        yield dataclasses.replace(call, leaves=False)
    for place, payload in enumerate(call.payloads):
        before, after = call.payloads[:place], call.payloads[place + 1 :]
        if len(call.payloads) > 1:
            yield dataclasses.replace(call, payloads=before + after)
        for less in _less(payload, kind):
            if len(less) < len(payload):
                yield dataclasses.replace(call, payloads=(*before, less, *after))


def _less(payload: bytes, kind: Any) -> Iterator[bytes]:
    """Yields smaller forms of a message's bytes: fields left out, lists halved, texts cut."""
    try:
        message = kind.FromString(payload)
    except DecodeError:
        step = max(1, len(payload) // 8)
        for start in range(0, len(payload), step):
            yield payload[:start] + payload[start + step :]
        return
    waiting = [message]
    while waiting:
        owner = waiting.pop(0)
        for field, value in owner.ListFields():
            kept = type(owner)()
            kept.CopyFrom(owner)
            owner.ClearField(field.name)
            yield message.SerializeToString()
            if isinstance(value, str | bytes) and len(value) > 1:
                setattr(owner, field.name, value[: len(value) // 2])
                yield message.SerializeToString()
            elif field.is_repeated and len(value) > 1 and not hasattr(value, "items"):
                owner.CopyFrom(kept)
                items = getattr(owner, field.name)
                del items[len(items) // 2 :]
                yield message.SerializeToString()
            owner.CopyFrom(kept)
            if field.message_type is not None and not field.is_repeated:
                waiting.append(getattr(owner, field.name))


def _kept_calls() -> list[Call]:
    return [Call.of_json(path.read_text()) for path in sorted(KEPT.glob("*.json"))]


@dataclasses.dataclass(frozen=True)
class Held:
    """What the process holds."""

    memory_bytes: int
    descriptor_count: int
    tasks: Counter[str]

    @property
    def task_count(self) -> int:
        """How many tasks there are."""
        return self.tasks.total()

    @classmethod
    def now(cls) -> Held:
        """Looks, after whatever can go has gone."""
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        process = psutil.Process()
        tasks = Counter(
            getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()
        )
        return cls(process.memory_info().rss, process.num_fds(), tasks)


async def fuzz(
    mesh: Mesh,
    *,
    count: int,
    seed: int,
    end_s: float,
    slow: bool = True,
    kept: Path = KEPT,
    say: Any = lambda _: None,
) -> Report:
    """Sends `count` calls to each service.

    Args:
        mesh: the mesh.
        count: calls per service.
        seed: of every choice.
        end_s: starts no further batch after this, by the monotonic clock; services share the time
            that is left, so that each has its part.
        slow: True also calls the methods that start processes.
        kept: folder for calls that find a defect.
        say: told how far it is.
    """
    with Faults().listening() as faults:
        caller = Caller(mesh, seed, faults, slow=slow, kept=kept)
        report = caller.report
        problems = report.problems
        for place, served in enumerate(mesh.services.values()):
            began_s = time.monotonic()
            own_s = (end_s - began_s) / (len(mesh.services) - place)
            turns = caller.turns(served)
            names = set(turns)
            first = [call for call in _kept_calls() if call.method in names]
            warm: Held | None = None
            done = 0
            while done < count and (past_s := time.monotonic() - began_s) < own_s:
                size = min(_BATCH, count - done)
                calls = first + [caller.drawn(turns[(done + i) % len(turns)]) for i in range(size)]
                first = []
                known = len(problems)
                await caller.batch(served, calls)
                for problem in problems[known:]:
                    say(problem[:_LONGEST_SAID])  # at once: the run may be interrupted
                done += size
                if done % _TIDY_EVERY == 0:
                    say(f"{served.name}: {done:,} calls, {len(problems)} problems")
                if done % _TIDY_EVERY == 0 or done >= count:
                    await mesh.tidy()
                if warm is None and max(done / count, past_s / own_s) >= _WARM_SHARE:
                    await _settled(mesh, served, problems)
                    warm = Held.now()
            report.sent[served.name] = done
            await mesh.tidy()
            await _settled(mesh, served, problems)
            if not done:
                problems.append(f"{served.name}: no call was sent: the time was up")
            growth = "what it holds is not judged: too few for that"
            if warm is not None:
                held = await _fewer(warm)
                growth = _growth(warm, held)
                problems += _leaks(served.name, warm, held)
            say(f"{served.name}: {done:,} of {count:,} calls; {growth}")
            problems += [f"{served.name}: {trace}" for trace in faults.taken()]
        return report


async def _settled(mesh: Mesh, served: Served, problems: list[str]) -> None:
    """Waits until nothing of what was sent is held any more."""
    end_s = time.monotonic() + _PATIENCE_S
    running: Any = served.running.server

    def held() -> int:
        watching = len(running._calls._watches)
        return int(running._calls.count) - watching + served.in_flight()

    while held() > 0 and time.monotonic() < end_s:
        await asyncio.sleep(0.05)
    if held() > 0:
        problems.append(f"{served.name}: {held()} calls or leases are still held")


async def _fewer(before: Held) -> Held:
    """Returns what is held, as soon as that is within the bands or for long no less."""
    end_s = time.monotonic() + _PATIENCE_S
    while any(_leaks("", before, found := Held.now())) and time.monotonic() < end_s:
        await asyncio.sleep(0.5)
    return found


def _growth(before: Held, after: Held) -> str:
    return (
        f"memory {before.memory_bytes / 1e6:.1f} to {after.memory_bytes / 1e6:.1f} MB, descriptors"
        f" {before.descriptor_count} to {after.descriptor_count},"
        f" tasks {before.task_count} to {after.task_count}"
    )


def _leaks(name: str, before: Held, after: Held) -> Iterator[str]:
    leaks = (
        after.memory_bytes - before.memory_bytes > MEMORY_BAND_BYTES
        or after.descriptor_count - before.descriptor_count > DESCRIPTOR_BAND
        or after.task_count - before.task_count > TASK_BAND
    )
    if leaks:
        more = after.tasks - before.tasks
        yield f"{name}: leaks: {_growth(before, after)}; tasks more: {dict(more)}"


def table(report: Report) -> str:
    """Returns what came of each method's calls, as a table."""
    lines = ["| method | calls | slowest, s | ended |", "|---|---|---|---|"]
    for name, tally in sorted(report.tallies.items()):
        codes = ", ".join(f"{code} {number}" for code, number in tally.codes.most_common())
        lines.append(f"| {name} | {tally.count:,} | {tally.slowest_s:.2f} | {codes} |")
    return "\n".join(lines)


def main() -> int:
    """Runs the long form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="calls per service")
    parser.add_argument("--seconds", type=float, default=3_600.0, help="start nothing after this")
    parser.add_argument("--service", default="", help="only services of such names (an expression)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--jobs", type=int, default=2, help="processes with a mesh each")
    arguments = parser.parse_args()
    names = [name for name in SERVICES if re.search(arguments.service, name)]
    if not names:
        parser.error(f"--service: there are {', '.join(SERVICES)}")
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger().addHandler(logging.NullHandler())
    started_s = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started_s:6.0f} s  {text}", flush=True)

    say(f"calls: seed {arguments.seed}")
    # Redis and what the trainer starts are ended whichever signal ends this.
    if arguments.jobs > 1 and len(names) > 1:
        return run_owning_children(_run_all(names, arguments), say)
    return run_owning_children(_run(names, arguments, started_s + arguments.seconds, say), say)


async def _run_all(names: Sequence[str], arguments: argparse.Namespace) -> int:
    """Has a process fuzz each service, so many at a time; returns 0 if none found anything.

    All that a mesh does is one thread's work here, so the processes are as many times as fast.
    """
    jobs = min(arguments.jobs, len(names))
    room = asyncio.Semaphore(jobs)
    own_s = arguments.seconds * jobs / len(names)

    async def one(name: str) -> int:
        command = [sys.executable, "-m", "tests.fuzzing.rpcs", "--service", f"^{re.escape(name)}$"]
        command += ["--count", str(arguments.count), "--seed", str(arguments.seed)]
        async with room:
            process = await asyncio.create_subprocess_exec(
                *tied_command([*command, "--seconds", f"{own_s:.0f}"]), start_new_session=True
            )
            try:
                return await process.wait()
            finally:
                if process.returncode is None:
                    process.send_signal(signal.SIGINT)
                    await process.wait()

    codes = await asyncio.gather(*map(one, names))
    return 1 if any(codes) else 0


async def _run(
    names: Sequence[str],
    arguments: argparse.Namespace,
    end_s: float,
    say: Callable[[str], None],
) -> int:
    with tempfile.TemporaryDirectory() as name:
        redis = RedisServer(Path(name))
        redis.start()
        try:
            async with running_mesh(Path(name), redis.url) as mesh:
                mesh.services = {name: mesh.services[name] for name in names}
                report = await fuzz(
                    mesh,
                    count=arguments.count,
                    seed=arguments.seed,
                    end_s=end_s,
                    say=say,
                )
        finally:
            redis.stop()
    print(table(report))
    for problem in report.problems:
        print(problem)
    total = sum(tally.count for tally in report.tallies.values())
    short = [f"{name} {sent:,}" for name, sent in report.sent.items() if sent < arguments.count]
    if short:
        print(f"the time was up before {arguments.count:,} calls: {', '.join(short)}")
    say(
        f"{total:,} calls of {len(report.tallies)} methods, seed {arguments.seed}:"
        f" {len(report.problems)} problems"
    )
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
