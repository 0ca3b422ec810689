"""Triton that lives, but not as it should: between it and the mesh stands what misbehaves."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable

from tests.faults.case import Case, Expect
from tests.faults.cases.processes import NO_TIER
from tests.faults.mesh import FaultMesh
from tests.faults.surroundings import AROUND, START
from tests.faults.triton_proxy import TritonProxy

FAULT_S = 1.2
SILENCE_S = 2.5
"""Longer than requests have, so that those under way cannot just wait for its end."""
# A request meets at most one bad server, as the retry goes to the other one, even if that is only
# coming back from the case before. (The endpoint that is added is another name of the first one.)
_OTHER = Expect(on_time_share=0.97, recovery_s=3.0, whole_s=15.0)
# What is under way at an endpoint that falls silent is rescued at the last moment, if it can be.
_SILENT = dataclasses.replace(
    _OTHER, reasons=frozenset({"DEADLINE_EXCEEDED", "DEADLINE_NOT_REACHABLE"}), on_time_share=0.9
)
# Requests that would come too late are refused at once; on a busy machine the router's word that a
# deadline has passed may come after the client's own.
_NOBODY = Expect(
    reasons=NO_TIER | {"DEADLINE_NOT_REACHABLE", "TRANSPORT_DEADLINE_EXCEEDED"},
    on_time_share=0.4,
    recovery_s=10.0,
    whole_s=20.0,
)


def _at(
    count: int, change: Callable[[TritonProxy], None], lasts_s: float
) -> Callable[[FaultMesh], Awaitable[None]]:
    async def fault(_: FaultMesh) -> None:
        for proxy in list(AROUND.proxies.values())[:count]:
            change(proxy)
        try:
            await asyncio.sleep(lasts_s)
        finally:
            AROUND.mend()

    return fault


def _slow(proxy: TritonProxy) -> None:
    proxy.slow_factor = 3.0


def _stuck(proxy: TritonProxy) -> None:
    proxy.is_stuck = True


def _stuck_unseen(proxy: TritonProxy) -> None:
    proxy.is_stuck, proxy.probes_too = True, False


def _garbles(proxy: TritonProxy) -> None:
    proxy.garbles, proxy.probes_too = True, False


def _garbles_all(proxy: TritonProxy) -> None:
    proxy.garbles = True


def _cuts(proxy: TritonProxy) -> None:
    proxy.cut_after, proxy.probes_too = 1, False


def _refuses(proxy: TritonProxy) -> None:
    proxy.refuses = True


def _case(
    name: str, done: str, count: int, change: Callable[[TritonProxy], None], expect: Expect
) -> Case:
    lasts_s = SILENCE_S if change in (_stuck, _stuck_unseen) else FAULT_S
    return Case(name, done, f"after {lasts_s:g} s", _at(count, change, lasts_s), expect, START)


CASES = [
    _case("triton-slow", "every tier 3x slow", 2, _slow, Expect(on_time_share=0.99, whole_s=15.0)),
    _case("triton-stuck", "Triton answers nothing, at one of two endpoints", 1, _stuck, _SILENT),
    _case(
        "triton-stuck-unseen", "the same, but health probes are answered", 1, _stuck_unseen, _SILENT
    ),
    _case("triton-stuck-all", "Triton answers nothing at both endpoints", 2, _stuck, _NOBODY),
    _case("triton-garbage", "one of two endpoints answers garbage", 1, _garbles, _OTHER),
    _case(
        "triton-garbage-all", "both answer garbage, to health probes too", 2, _garbles_all, _NOBODY
    ),
    _case("triton-cut", "one of two endpoints cuts streams in the middle", 1, _cuts, _OTHER),
    _case("triton-refuse", "one of two endpoints refuses every call", 1, _refuses, _OTHER),
]
