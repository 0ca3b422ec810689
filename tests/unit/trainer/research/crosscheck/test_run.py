"""Every learner with the same budget."""

from __future__ import annotations

import pytest

from tests.unit.trainer.research.crosscheck.arenas import SMALL_PLAN, arena, needs_library
from trainer.research.crosscheck.run import LEARNERS, crosscheck, overall

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles


@needs_library
def test_every_learner_gets_the_same_budget_and_rows() -> None:
    """One row per learner and rate, references beside them; progress ends at 1."""
    shares: list[float] = []
    rows = crosscheck(
        arena(),
        rates_rps=(20.0, 60.0),
        seeds=(1,),
        plan=SMALL_PLAN,
        test_seeds=(900_001,),
        test_requests=50,
        large_held_rps=40.0,
        on_progress=lambda text, share: shares.append(share),
    )
    learned = [row for row in rows if row["steps"] > 0]
    assert [row["learner"] for row in learned] == [name for name in LEARNERS for _ in range(2)]
    assert {row["steps"] for row in learned} == {200}
    assert {row["seed_count"] for row in learned} == {1}
    assert [row["load"] for row in learned[:2]] == [0.5, 1.5]
    assert all(row["seconds"] > 0 for row in learned)
    assert {"random", "price", "static-small", "static-large"} <= set(overall(rows))
    for row in rows:
        assert 0.0 <= row["availability"] <= 1.0
        assert row["performance_ci95"] is None  # one seed tells of none
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
