"""A stop waits within limits, and says what it did not wait for."""

from __future__ import annotations

import asyncio

import pytest

from services.common import stopping
from services.common.log import get_logger
from services.common.stopping import end, within

LOG = get_logger("test")


async def _for_ever() -> None:
    await asyncio.Event().wait()


async def _deaf(cancellations: int) -> None:
    """Goes on after so many cancellations."""
    for _ in range(cancellations):
        try:
            await _for_ever()
        except asyncio.CancelledError:
            continue
    await _for_ever()


async def test_a_part_that_does_not_end_is_told_and_left(caplog: pytest.LogCaptureFixture) -> None:
    """The log names it and where it waited; it is cancelled."""
    part = asyncio.create_task(_for_ever())
    await within(part, 0.0, "flush", LOG)
    fields = caplog.records[0].__dict__["tiercel_fields"]
    assert caplog.messages == ["stop_goes_on"]
    assert fields["without"] == "flush"
    (place,) = fields["waiting"]
    assert [step.partition(":")[0] for step in place.split(" > ")] == ["_for_ever", "Event.wait"]
    await asyncio.wait([part])
    assert part.cancelled()


async def test_a_part_that_fails_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """Its error is the caller's."""

    async def fail() -> None:
        raise KeyError("cause")

    with pytest.raises(KeyError, match="cause"):
        await within(fail(), 30.0, "flush", LOG)
    assert not caplog.messages


async def test_a_stop_that_is_cut_off_leaves_no_part_behind() -> None:
    """The part ends with whoever waits for it."""
    part = asyncio.create_task(_for_ever())
    stop = asyncio.create_task(within(part, 30.0, "flush", LOG))
    await asyncio.sleep(0)
    stop.cancel()
    await asyncio.wait([stop, part])
    assert part.cancelled()


async def test_tasks_end(caplog: pytest.LogCaptureFixture) -> None:
    """One cancellation is enough as a rule; no task is none to wait for."""
    tasks = [asyncio.create_task(_deaf(0)) for _ in range(2)]
    await asyncio.sleep(0)
    await end(tasks, LOG)
    await end([], LOG)
    assert all(task.cancelled() for task in tasks)
    assert not caplog.messages


async def test_a_lost_cancellation_is_followed_by_another(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What goes on is named."""
    monkeypatch.setattr(stopping, "AGAIN_S", 0.0)
    task = asyncio.create_task(_deaf(2), name="poll")
    await asyncio.sleep(0)
    await end([task], LOG)
    assert task.cancelled()
    assert caplog.messages[0] == "tasks_go_on"
    assert caplog.records[0].__dict__["tiercel_fields"]["tasks"] == ["poll"]


async def test_what_a_task_waits_for_is_cancelled_again_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A group of tasks cancels its own only once."""
    monkeypatch.setattr(stopping, "AGAIN_S", 0.0)

    async def group() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_deaf(1))

    task = asyncio.create_task(group())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await end([task], LOG)
    assert task.cancelled()
