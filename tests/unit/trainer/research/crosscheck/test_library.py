"""The library's learners, and what happens without it."""

from __future__ import annotations

import pytest

from tests.unit.trainer.research.crosscheck.arenas import SMALL_PLAN, arena, needs_library
from trainer.research.crosscheck import library
from trainer.research.crosscheck.arena import play
from trainer.research.crosscheck.library import LibraryMissingError

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles


@needs_library
def test_ppo_stays_within_the_budget() -> None:
    """Whole rollouts only: the last step lies at or below the budget, not far from it."""
    seen: list[int] = []
    library.train_library("sb3-ppo", arena(), SMALL_PLAN, 1, seen.append)
    assert 0.9 * SMALL_PLAN.steps < seen[-1] <= SMALL_PLAN.steps


@needs_library
@pytest.mark.parametrize("learner", library.LIBRARY_LEARNERS)
def test_library_learners_are_functions_of_their_seed(learner: str) -> None:
    """The same seed gives the same choices on the same requests."""
    where = arena()
    offered = where.test(60.0, 900_001, 2.0)
    scores = [
        play(where, library.train_library(learner, where, SMALL_PLAN, 5), offered, 0.0)
        for _ in range(2)
    ]
    assert scores[0] == scores[1]


def test_a_missing_library_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library the error says how to get it."""
    monkeypatch.setattr(library, "is_installed", lambda: False)
    with pytest.raises(LibraryMissingError, match=r"pip install 'tiercel\[crosscheck\]'"):
        library.train_library("sb3-dqn", arena(), SMALL_PLAN, 1)
