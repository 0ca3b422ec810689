"""How a soak goes on and ends, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest

from tests.fakes.virtual_time import run_virtual
from tests.soak import hour
from tests.soak.hour import Run
from tests.soak.readings import Held
from tests.soak.test_verdict import FLAT, GOOD

WINDOWS, WINDOW_S = 12, 5.0


async def forever() -> None:
    """Goes on."""
    await asyncio.get_running_loop().create_future()


async def broken() -> None:
    """Cannot go on."""
    raise TimeoutError("soak-1 has not left")


def watched(
    patch: pytest.MonkeyPatch,
    held: Callable[[int], Held],
    *work: Callable[[], Any],
    look_s: float = 0.0,
) -> tuple[Run, str, list[str]]:
    """Returns a run that holds so much at its looks, why it ended early, and what it said."""
    run, said, looks = Run(WINDOWS * WINDOW_S, 0.0, 10.0, WINDOW_S), list[str](), 0
    crowd: Any = SimpleNamespace(take=lambda: GOOD)
    manifest: Any = dict

    async def read(_: Any) -> Mapping[str, Held]:
        nonlocal looks
        looks += 1
        await asyncio.sleep(look_s)
        return {"trainer": held(looks)}

    async def watch() -> str:
        tasks = [asyncio.create_task(each(), name="changes") for each in (forever, *work)]
        try:
            return await hour._watch(run, manifest, crowd, tasks, said.append)
        finally:
            for task in tasks:
                task.cancel()

    patch.setattr(hour, "_read_once", read)
    clock = SimpleNamespace(monotonic=lambda: asyncio.get_running_loop().time())
    patch.setattr(hour, "time", clock)
    return run, run_virtual(watch()), said


def test_every_window_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """At its end, with a line; nothing cuts the run short."""
    run, why, said = watched(monkeypatch, lambda _: FLAT)
    assert why == ""
    assert len(run.windows) == len(run.held) == len(said) == WINDOWS
    assert run.ends_s == pytest.approx([WINDOW_S * (number + 1) for number in range(WINDOWS)])
    assert run.past_s == pytest.approx(WINDOWS * WINDOW_S)
    assert not any("grown" in line for line in said)


def test_slow_looks_make_windows_longer_and_no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next window ends where one would have ended, the last one when the last look is over."""
    run, why, _ = watched(monkeypatch, lambda _: FLAT, look_s=1.5 * WINDOW_S)
    assert why == ""
    assert run.ends_s == pytest.approx([5.0, 15.0, 25.0, 35.0, 45.0, 55.0, 62.5])


def test_what_runs_away_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its time; from the half on, lines say what has grown."""

    def held(look: int) -> Held:
        return FLAT if look <= 4 else {**FLAT, "descriptors": 200.0}

    run, why, said = watched(monkeypatch, held)
    assert why == "trainer runs away: descriptors from 30 to 200"
    assert len(run.windows) == 7
    assert said[-1].endswith("; grown: trainer: descriptors from 30 to 200")


def test_changes_that_fail_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what failed, instead of a traceback."""
    _, why, _ = watched(monkeypatch, lambda _: FLAT, broken)
    assert why == "changes: TimeoutError('soak-1 has not left')"


def test_a_process_that_tells_nothing_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at once: it may just be starting again."""

    def held(look: int) -> Held:
        if look in (2, 3) or look > 5:
            raise ConnectionRefusedError("nobody listens")
        return FLAT

    run, why, _ = watched(monkeypatch, held)
    assert why.startswith("a process does not tell what it holds: ConnectionRefusedError")
    assert len(run.held) == 3


@pytest.mark.parametrize(
    ("before", "said"),
    [("", "endpoints do not leave: soak-3"), ("the load: gone", "the load: gone")],
)
async def test_endpoints_that_do_not_leave_at_the_end_are_said(
    before: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the last of them, which is taken out when nobody watches any more."""
    crowd = SimpleNamespace(
        offer=AsyncMock(), close=AsyncMock(), take=lambda: GOOD, client_count=1, errors={}, asked={}
    )
    churn = SimpleNamespace(
        run=AsyncMock(), close=AsyncMock(return_value="soak-3"), connections_left=0,
        endpoint_count=3, policy_count=0,
    )  # fmt: skip
    monkeypatch.setattr(hour, "Crowd", lambda *_, **__: crowd)
    monkeypatch.setattr(hour, "Churn", lambda *_: churn)
    monkeypatch.setattr(hour, "_watch", AsyncMock(return_value=before))
    addresses = dict.fromkeys(("load_monitor", "trainer", "triton_grpc"), "")
    manifest: Any = SimpleNamespace(routers=[], addresses=addresses, processes={})
    run = await hour.soak_mesh(lambda: manifest, 10.0, 5.0, print)
    assert run.cut_short == said
