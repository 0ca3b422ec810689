"""Runs the load generator as a process of its own and follows its progress."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pathlib
import signal
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from services.common.files import write_whole
from services.loadgen.records import RunRecords
from services.loadgen.spec import LoadSpec
from services.local.launch import module_command, tied_command

EXTRA_TIME_S = 60.0
"""What the process may take beyond the run and its deadline: start, stragglers, writing."""
END_WAIT_S = 10.0
MAX_LINE_BYTES = 1 << 20


class LoadProcessError(Exception):
    """The load generator ended without records; the text is its own last line."""


async def run_load(
    spec: LoadSpec,
    out: pathlib.Path,
    *,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
    cores: Sequence[int] = (),
    stop: asyncio.Event | None = None,
) -> RunRecords:
    """Runs a spec in a process of its own; cancelling ends the process.

    Several may have one `out` at the same time, as runs that name none do: each gets the records of
    its own requests, and the last one's stay.

    Args:
        spec: What to do.
        out: Records file to write; the spec is kept beside it.
        on_progress: Gets the counts about twice a second, see ``run.Progress``.
        cores: Processors the generator may use; empty means all.
        stop: Ends the sending early once it is set; what was sent is waited for and recorded.

    Raises:
        LoadProcessError: No router was reached, or the process failed or hung.
        OSError: A file cannot be written.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        own = pathlib.Path(folder, out.name)
        try:
            return await _run(spec, own, on_progress, cores, stop)
        except LoadProcessError as error:  # the file that the user knows
            raise LoadProcessError(str(error).replace(str(own), str(out))) from None
        finally:
            for made, kept in ((own, out), (_spec_of(own), _spec_of(out))):
                if made.exists():
                    write_whole(kept, made.read_bytes())


def _spec_of(out: pathlib.Path) -> pathlib.Path:
    return out.with_suffix(".spec.json")


async def _run(
    spec: LoadSpec,
    out: pathlib.Path,
    on_progress: Callable[[dict[str, Any]], None] | None,
    cores: Sequence[int],
    stop: asyncio.Event | None,
) -> RunRecords:
    spec_path = _spec_of(out)
    spec_path.write_text(spec.model_dump_json(), encoding="utf-8")
    program = module_command("services.loadgen", "--spec", str(spec_path), "--out", str(out))
    process = await asyncio.create_subprocess_exec(
        *tied_command(program, cores=cores),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=MAX_LINE_BYTES,
        start_new_session=True,
    )
    limit_s = spec.arrivals().duration_s + spec.longest_answer_s + spec.grace_s + EXTRA_TIME_S
    stopping = asyncio.create_task(_stop_on(stop, process)) if stop is not None else None
    try:
        async with asyncio.timeout(limit_s):
            complaint = await _follow(process, on_progress)
    except TimeoutError:
        raise LoadProcessError(f"the load generator did not end within {limit_s:.0f} s") from None
    finally:
        if stopping is not None:
            stopping.cancel()
        await _end(process)
    if process.returncode:
        raise LoadProcessError(complaint.removeprefix("error: ") or f"exit {process.returncode}")
    return await asyncio.to_thread(RunRecords.load, out)


async def _follow(
    process: asyncio.subprocess.Process, on_progress: Callable[[dict[str, Any]], None] | None
) -> str:
    """Reads progress until the process ends; returns the last line of its standard error."""
    assert process.stdout is not None
    assert process.stderr is not None
    errors = asyncio.create_task(_last_line(process.stderr))
    try:
        async for line in process.stdout:
            event = json.loads(line)
            if on_progress is not None and event["event"] == "progress":
                on_progress(event)
        await process.wait()
        return await errors
    finally:
        errors.cancel()


async def _last_line(stream: asyncio.StreamReader) -> str:
    """Returns the last line of a stream, of which no more is kept than its end."""
    kept = b""
    while part := await stream.read(MAX_LINE_BYTES):  # as it comes, not all of it
        kept = (kept + part)[-MAX_LINE_BYTES:]
    lines = kept.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


async def _stop_on(stop: asyncio.Event, process: asyncio.subprocess.Process) -> None:
    await stop.wait()
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ends a process that still runs, gracefully first."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(END_WAIT_S):
            await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()
