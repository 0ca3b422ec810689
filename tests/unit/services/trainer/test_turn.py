"""Whose turn it is, also while the store that says so is away."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.log import get_logger
from services.common.state.shared_state import MemorySharedState
from services.trainer.turn import TTL_S, Turn, TurnLostError
from tests.fakes.clock import FakeClock
from tests.fakes.state_store import SwitchableStore


class Line:
    """A store that comes and goes, and trainers in line before it."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store: Any = SwitchableStore(MemorySharedState(self.clock))

    def turn(self, owner: str) -> Turn:
        """Returns a trainer's place."""
        return Turn(store=self.store, owner=owner, clock=self.clock, log=get_logger("test"))


async def test_while_the_store_is_away_one_trainer_has_the_turn() -> None:
    """The one that had it; the other one could not know that it is over."""
    line = Line()
    one, other = line.turn("one"), line.turn("other")
    await one.check()
    for is_down in (False, True):
        line.store.is_down = is_down
        await one.check()
        with pytest.raises(TurnLostError):
            await other.check()
    line.store.is_down = False
    line.clock.move(TTL_S + 1.0)
    await other.check()
    line.store.is_down = True
    await other.check()


async def test_a_trainer_that_never_heard_the_store_has_the_turn() -> None:
    """As one without Redis has: nobody has told it of another."""
    line = Line()
    line.store.is_down = True
    await line.turn("one").check()
