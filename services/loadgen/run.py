"""The open-loop run itself: sends on schedule whatever the mesh does, decodes at the end."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np

from services.common.access.caller import Caller, CallerError
from services.common.priorities import MESSAGE
from services.common.times import set_duration
from services.loadgen.prompts import Prompt
from services.loadgen.records import CANCELLED, FAILED, LATE, ON_TIME, REFUSED, RunRecords
from services.loadgen.rows import Row, latest_token_s, make_records
from services.loadgen.spec import LoadSpec
from tiercel import convert, errors
from tiercel.channels import Connection, RouterPool
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb

CONNECT_TIMEOUT_S = 5.0
END_WAIT_S = 5.0
"""Time stragglers get beyond their own limit before they are cancelled and counted as failed."""
METHOD = "/tiercel.router_inference.v1.RouterInferenceService/"


class LoadRunError(Exception):
    """A run that could not start."""


@dataclasses.dataclass(slots=True)
class Progress:
    """Counts so far, for the live view; all monotonic but ``in_flight``."""

    elapsed_s: float
    planned: int
    offered: int
    on_time: int
    late: int
    refused: int
    cancelled: int
    failed: int
    in_flight: int


class LoadRun:
    """One run of a spec; made and used inside one event loop."""

    def __init__(self, spec: LoadSpec) -> None:
        """Draws arrivals and prompts; nothing is sent yet."""
        self._spec = spec
        self._arrivals = spec.arrivals()
        count = len(self._arrivals.arrival_s)
        self._prompts = spec.drawn_prompts(self._arrivals)
        self._specs = {id(each): self._message(each) for each in self._prompts}
        self._priorities = spec.priorities(count)
        draws = np.random.default_rng([spec.seed, 2]).random(count)
        self._cancels = draws < spec.cancel_share
        self._rows: list[Row] = []
        self._counts = [0] * 5
        self._start_s = 0.0
        self._stop = asyncio.Event()
        self._pool = RouterPool(spec.router_addresses, credentials=_credentials(spec))
        self._calls = {each: self._callable(each) for each in self._pool.connections}

    def stop(self) -> None:
        """Ends the sending early; what was sent is still waited for and counted."""
        self._stop.set()

    async def run(self, on_progress: Callable[[Progress], None] | None = None) -> RunRecords:
        """Sends everything on schedule and returns the records.

        Raises:
            LoadRunError: No router can be reached at the start.
        """
        await self._connect()
        started_unix_s = time.time()
        self._start_s = time.monotonic() + 0.05
        reporter = asyncio.create_task(self._report(on_progress)) if on_progress else None
        tasks = await self._send_all()
        if tasks:
            limit_s = self._spec.longest_answer_s + self._spec.grace_s + END_WAIT_S
            _, pending = await asyncio.wait(tasks, timeout=limit_s)
            for task in pending:
                task.cancel()
            if pending:
                await asyncio.wait(pending, timeout=1.0)
        if reporter:
            reporter.cancel()
        if on_progress:
            on_progress(self._progress())
        await self._pool.close()
        return self._records(started_unix_s)

    async def _connect(self) -> None:
        waits = [connection.channel.channel_ready() for connection in self._pool.connections]
        tasks = [asyncio.ensure_future(wait) for wait in waits]
        done, pending = await asyncio.wait(
            tasks, timeout=CONNECT_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
        )
        for task in pending:
            task.cancel()
        if not done:
            addresses = ", ".join(self._spec.router_addresses)
            await self._pool.close()
            raise LoadRunError(f"no router answers at {addresses}")

    async def _send_all(self) -> list[asyncio.Task[None]]:
        tasks = []
        send_s = self._arrivals.arrival_s.tolist()
        for index, offset_s in enumerate(send_s):
            if await self._stopped_until(self._start_s + offset_s):
                break
            row = Row()
            self._rows.append(row)
            tasks.append(asyncio.create_task(self._one(index, row)))
        return tasks

    async def _stopped_until(self, at_s: float) -> bool:
        """Sleeps until a time; a stop is noticed before it, at the latest after half a second.

        Each sleep takes a little longer than asked for, so what is left is told by the clock.
        """
        left_s = at_s - time.monotonic()
        while left_s > 0.5 and not self._stop.is_set():
            await asyncio.sleep(0.5)
            left_s = at_s - time.monotonic()
        if left_s > 0.0 and not self._stop.is_set():
            await asyncio.sleep(left_s)
        return self._stop.is_set()

    async def _one(self, index: int, row: Row) -> None:
        intended_s = self._start_s + float(self._arrivals.arrival_s[index])
        deadline_s = self._spec.deadline_of(self._prompts[index].task)
        due_s = intended_s + deadline_s
        row.lag_s = max(0.0, time.monotonic() - intended_s)
        try:
            if self._cancels[index]:
                left_s = intended_s + self._spec.cancel_after_s - time.monotonic()
                async with asyncio.timeout(max(left_s, 0.0)):
                    await self._attempt(index, row, intended_s, due_s)
            else:
                await self._attempt(index, row, intended_s, due_s)
        except TimeoutError:
            row.status = CANCELLED
        except asyncio.CancelledError:
            row.status, row.reason = FAILED, "NO_END"
        except grpc.aio.AioRpcError as error:
            row.error = error
            row.status = _status_of(error)
        row.latency_s = time.monotonic() - intended_s
        if row.status == -1:
            event_s = row.latency_s
            if self._spec.token_interval_s is not None and row.message_s:
                event_s = latest_token_s(row, self._spec.token_interval_s)
            row.status = ON_TIME if event_s <= deadline_s else LATE
        self._counts[row.status] += 1

    async def _attempt(self, index: int, row: Row, intended_s: float, due_s: float) -> None:
        failure: grpc.aio.AioRpcError | None = None
        for connection in self._pool.attempts():
            left_s = due_s - time.monotonic()
            told_s = left_s - self._spec.network_allowance_s
            if told_s <= 0:
                break
            row.attempts += 1
            request = self._request(index, told_s)
            further_s = self._spec.further_s(self._prompts[index].max_output_tokens)
            limit_s = left_s + further_s + self._spec.grace_s
            call = self._calls[connection](request, timeout=limit_s)
            try:
                if self._spec.stream:
                    await self._read_stream(call, row, intended_s)
                else:
                    row.payload = await call
                return
            except grpc.aio.AioRpcError as error:
                if not self._spec.failover or row.payload:
                    raise
                may_go_on = errors.is_transport_failure(error)
                if may_go_on or errors.is_silence(error):
                    self._pool.avoid(connection)
                if not may_go_on:
                    raise
                failure = error
        if failure is not None:
            raise failure
        row.status, row.reason = LATE, "SENT_TOO_LATE"

    async def _read_stream(self, call: Any, row: Row, intended_s: float) -> None:
        messages: list[bytes] = []
        row.payload = messages
        is_paced = self._spec.token_interval_s is not None
        async for message in call:
            if not messages:
                row.first_token_s = time.monotonic() - intended_s
            messages.append(message)
            if is_paced:
                row.message_s.append(time.monotonic() - intended_s)

    def _message(self, prompt: Prompt) -> pb.GenerationSpec:
        return convert.generation_spec(
            prompt.text,
            task=prompt.task,
            max_output_tokens=prompt.max_output_tokens,
            quality_floor=self._spec.quality_floor,
            tier=self._spec.tier,
            slo_kind="" if self._spec.token_interval_s is None else "per_token",
            token_interval_s=self._spec.token_interval_s,
        )

    def _request(self, index: int, deadline_s: float) -> bytes:
        """Serializes a request; Generate and GenerateStream have the same layout."""
        message = pb.GenerateRequest(spec=self._specs[id(self._prompts[index])])
        if self._spec.priority_mix:
            message.spec.priority = MESSAGE[self._priorities[index]]
        set_duration(message.spec.deadline, deadline_s)
        return message.SerializeToString()

    def _callable(self, connection: Connection) -> Any:
        """A bare method of raw bytes: nothing is parsed while the run lasts."""
        if self._spec.stream:
            return connection.channel.unary_stream(METHOD + "GenerateStream")
        return connection.channel.unary_unary(METHOD + "Generate")

    async def _report(self, on_progress: Callable[[Progress], None]) -> None:
        while True:
            await asyncio.sleep(self._spec.progress_interval_s)
            on_progress(self._progress())

    def _progress(self) -> Progress:
        offered = len(self._rows)
        ended = sum(self._counts)
        elapsed_s = max(0.0, time.monotonic() - self._start_s)
        planned = len(self._arrivals.arrival_s)
        on_time, late, refused, cancelled, failed = self._counts
        return Progress(
            elapsed_s, planned, offered, on_time, late, refused, cancelled, failed, offered - ended
        )

    def _records(self, started_unix_s: float) -> RunRecords:
        count = len(self._rows)
        meta = {
            "deadline_s": self._spec.deadline_s,
            "started_unix_s": started_unix_s,
            "duration_s": self._arrivals.duration_s,
            "planned": len(self._arrivals.arrival_s),
            "interrupted": count < len(self._arrivals.arrival_s),
            "spec": self._spec.model_dump(mode="json"),
        }
        return make_records(self._rows, self._prompts, self._arrivals, self._priorities, meta)


def _credentials(spec: LoadSpec) -> grpc.ChannelCredentials | None:
    """Returns who calls, by the environment, as for every command.

    Raises:
        LoadRunError: It names what cannot be used, or a key would cross a network in plain text.
    """
    caller = Caller.of_environment(os.environ)
    try:
        found = [caller.credentials(address) for address in spec.router_addresses]
    except CallerError as error:
        raise LoadRunError(str(error)) from None
    return found[0]


def _status_of(error: grpc.aio.AioRpcError) -> int:
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return LATE
    return REFUSED if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED else FAILED
