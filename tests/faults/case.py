"""What a case of the fault matrix is: how the mesh starts, what is done to it, what must hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.faults.mesh import FaultMesh

SHARE_BAND = 0.05
"""Service is as before once every following second has at least the share in time of the seconds
before the fault, less this."""
MARGIN_S = 2.0
"""How long after its deadline (and the client's own grace) a request may end at the latest."""


@dataclasses.dataclass(frozen=True)
class Start:
    """How a mesh is started; cases that follow each other with the same share one.

    Attributes:
        sections: Keys of settings sections, for instance ``{"router_inference": {"workers": 2}}``.
        variables: Environment variables per process (``router-inference-0``, ``load-monitor``,
            ``trainer``, ``redis``, ``triton``).
        device_count: Paced devices.
        time_scale: Factor on every time of theirs.
        doors: Whether an OpenAI-shaped door stands before the routers, and an Envoy where one is
            installed.
        has_additions: Whether an endpoint is added and a policy published, which only Redis keeps.
        settings: Changes the settings' document before it is written: gets the mesh and the
            document.
        beneath: Entered once the mesh's folder is there and before anything starts, left last of
            all: what the processes stand on.
        around: Entered once Redis and Triton are up and before the services start, left after the
            mesh has stopped: proxies and the like.
    """

    sections: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    variables: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    device_count: int = 2
    time_scale: float = 1.0
    doors: bool = False
    has_additions: bool = True
    settings: Callable[[FaultMesh, dict[str, Any]], None] | None = None
    beneath: Callable[[FaultMesh], AbstractAsyncContextManager[None]] | None = None
    around: Callable[[FaultMesh], AbstractAsyncContextManager[None]] | None = None


@dataclasses.dataclass(frozen=True)
class Expect:
    """What must hold in every run.

    Attributes:
        reasons: Reasons of requests without an answer in time that may occur; none: every request
            is answered in time but for ``spare_share``.
        on_time_share: Lowest share in time over the whole run, fault included.
        recovery_s: Longest time from the end of the fault until service is as before, seconds.
        whole_s: Longest time from the end of the fault until every process runs, every router
            sees a fresh state, Redis and trainer, and every tier is usable, seconds.
        restarts: How often the supervisor starts which process again.
        may_lose: What may be gone afterwards: ``experience``, ``policies``, ``endpoints``, or
            ``counts``, those that a killed worker had not told its parent.
    """

    reasons: frozenset[str] = frozenset()
    on_time_share: float = 0.95
    recovery_s: float = 2.0
    whole_s: float = 20.0
    restarts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    may_lose: frozenset[str] = frozenset()


def _nothing() -> str:
    return ""


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the matrix.

    Attributes:
        name: Unique, of [a-z0-9-].
        done: What is done, for the table.
        ends: How it ends, for the table.
        fault: Does it; returns when it has been lifted (a kill: at once).
        expect: What must hold.
        start: How the mesh is started.
        door: Where the load asks: ``kserve``, ``openai`` or ``envoy``; empty: the routers' own.
        rate_rps: Load, requests per second.
        deadline_s: Deadline of every request, seconds.
        limit_s: Longest time of one run, seconds.
        needs: Says why this machine cannot run it; empty if it can.
        check: Looks for more at the end of a run; returns complaints.
    """

    name: str
    done: str
    ends: str
    fault: Callable[[FaultMesh], Awaitable[None]]
    expect: Expect = Expect()
    start: Start = Start()
    door: str = ""
    rate_rps: float = 30.0
    deadline_s: float = 2.0
    limit_s: float = 60.0
    needs: Callable[[], str] = _nothing
    check: Callable[[FaultMesh], Awaitable[list[str]]] | None = None
