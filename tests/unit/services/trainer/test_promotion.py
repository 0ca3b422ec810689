"""Promoted means that routers use it: they are asked, and what they refuse is undone."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.common.log import get_logger
from services.trainer.mesh_view import RouterSeen
from services.trainer.model import Stage
from services.trainer.promotion import Promoter, RoutersRefusedError
from tests.fakes.clock import FakeClock
from tests.unit.services.trainer.test_registry import Bench


class Routers:
    """Says what routers answer, one list after another; the last one stays."""

    def __init__(self, clock: FakeClock, *answers: list[RouterSeen]) -> None:
        self._clock = clock
        self._answers = answers

    async def watch(self, interval_s: float) -> AsyncIterator[list[RouterSeen]]:
        """Yields them."""
        for answer in (*self._answers, *[self._answers[-1]] * 1_000):
            yield answer
            self._clock.move(interval_s)


def router(name: str, activation: int, refusal: str = "") -> RouterSeen:
    """Returns a router that has taken in an activation."""
    return RouterSeen(name, 1, activation, refusal)


def promoter(bench: Bench, *answers: list[RouterSeen]) -> Promoter:
    """Returns a promoter of a mesh with routers."""
    return Promoter(
        registry=bench.registry,
        mesh=Routers(bench.clock, *answers),  # type: ignore[arg-type]
        clock=bench.clock,
        log=get_logger("test"),
    )


async def test_it_waits_until_every_router_has_taken_it_in() -> None:
    """The answer counts them."""
    slow = [[router("a", 1), router("b", 0)], [router("a", 1), router("b", 1)]]
    promotion = await promoter(Bench(), *slow).promote("price")
    assert (promotion.using, promotion.waiting) == (("a", "b"), ())


async def test_a_router_that_says_nothing_is_named() -> None:
    """It is waited for only so long, and the policy is active."""
    bench = Bench()
    promotion = await promoter(bench, [router("a", 1), router("b", 0)]).promote("price")
    assert (promotion.using, promotion.waiting) == (("a",), ("b",))
    assert bench.registry.activation == 1


async def test_what_a_router_refuses_is_not_promoted() -> None:
    """The call says who refused and why, and the registry says what routers use."""
    bench = Bench()
    await bench.registry.promote("price")
    version = await bench.publish(1)
    answer = [router("a", 2), router("b", 2, "SNAPSHOT_SCHEMA_MISMATCH")]
    with pytest.raises(RoutersRefusedError, match=r"1 of 2 routers.*b \(SNAPSHOT_SCHEMA_MISMATCH"):
        await promoter(bench, answer).promote("dqn", version)
    active = await bench.registry.active()
    assert active is not None
    assert active.record.policy == "price"
    assert (await bench.registry.get("dqn", version))[0].stage is Stage.REJECTED


async def test_a_mesh_of_many_refusals_is_told_briefly() -> None:
    """Eight are named, the others counted."""
    bench = Bench()
    answer = [router("r" * 128 + str(n), 1, "X" * 64) for n in range(100)]
    with pytest.raises(RoutersRefusedError, match="and 92 more"):
        await promoter(bench, answer).promote("price")
    assert await bench.registry.active() is None
