"""The rule that compares a policy with the last figures of the one it replaced."""

from __future__ import annotations

import math

import numpy as np
import pytest

from router.watch import (
    CLASSES,
    FAILED,
    LEAST_KNOWN,
    MISSED,
    REASON_ERRORS,
    REASON_FAULTS,
    REASON_MISSES,
    REASON_SLOW,
    REQUESTS,
    SLOW,
    WIDTH,
    Broken,
    Figures,
    Watcher,
    WatchLimits,
    allowed,
    largest_share,
    load_class,
)

LIMITS = WatchLimits(0.05, 0.02)
CALM, BUSY = load_class(4.0, 1.0), load_class(64.0, 1.0)


def figures(*classes: tuple[int, float, float, float], timed_s: float = 0.0) -> Figures:
    """Returns figures of classes: which, requests, missed, failed; decisions of `timed_s` each."""
    made = Figures()
    for at, *counts in classes:
        made.ends_LE[at, :SLOW] = counts
    made.decisions = made.requests
    made.decision_s = made.decisions * timed_s
    return made


def reason(before: Figures, after: Figures) -> str:
    """Returns which limit a first look finds broken, empty for none."""
    found = Watcher(LIMITS).look(before, after)
    return found.reason if found is not None else ""


def test_classes_are_half_octaves_of_arrivals_per_device() -> None:
    """More devices, less load; what is no number is the lowest, infinitely many the highest."""
    assert load_class(8.0, 2.0) == load_class(4.0, 1.0) == load_class(4.0, 0.0)
    assert load_class(8.0, 1.0) == load_class(4.0, 1.0) + 2
    assert [load_class(rate, 1.0) for rate in (0.0, math.nan, -1.0)] == [0, 0, 0]
    assert load_class(math.inf, 1.0) == load_class(1e9, 1.0) == CLASSES - 1


def test_misses_beyond_what_the_replaced_policy_leaves_possible_break_the_limit() -> None:
    """Fifty of fifty are enough; the text says how many there were, and how many it may have."""
    before = figures((CALM, 1_000, 10, 0))
    found = Watcher(LIMITS).look(before, figures((CALM, 50, 50, 0)))
    assert found is not None
    assert found.reason == REASON_MISSES
    assert "misses 1.000 of 50 requests" in found.detail
    assert reason(before, figures((CALM, 50, 3, 0))) == ""


def test_failures_have_a_limit_of_their_own() -> None:
    """One that fails a tenth is sent back, though it misses no more than its limit lets it."""
    before = figures((CALM, 5_000, 0, 0))
    assert reason(before, figures((CALM, 600, 24, 24))) == ""
    assert reason(before, figures((CALM, 800, 64, 64))) == REASON_ERRORS


def test_the_same_misses_at_more_load_are_no_fault() -> None:
    """Each request is compared with what the replaced policy had in its own class."""
    before = figures((CALM, 1_000, 0, 0), (BUSY, 1_000, 500, 0))
    assert reason(before, figures((BUSY, 400, 200, 0))) == ""
    assert reason(before, figures((CALM, 400, 200, 0))) == REASON_MISSES


def test_a_class_that_is_hardly_known_takes_in_those_above() -> None:
    """More load misses no less, so it may have what they have; above all that is known, all."""
    before = figures((CALM, 2, 0, 0), (BUSY, LEAST_KNOWN, 30, 0))
    assert reason(before, figures((CALM, 50, 15, 0))) == ""
    assert reason(before, figures((CALM, 100, 100, 0))) == REASON_MISSES
    assert reason(before, figures((BUSY + 1, 500, 500, 0))) == ""
    assert allowed(before.ends_LE, MISSED, 0.0)[BUSY + 1] == 1.0


def test_few_figures_allow_much() -> None:
    """Nothing missed of five says little of what comes; of nothing, nothing at all."""
    shares = [largest_share(count, 0.0, 7.0) for count in (5.0, 50.0, 500.0)]
    assert shares == [pytest.approx(1.0 - math.exp(-7.0 / n)) for n in (5.0, 50.0, 500.0)]
    assert reason(figures(), figures((CALM, 500, 500, 0))) == ""


def test_a_policy_as_good_as_the_one_before_stays_whatever_the_load_does() -> None:
    """Two hundred watches of 3,000 requests, looked at after every tenth: none is sent back."""
    rng = np.random.default_rng(5)
    share = {CALM: 0.02, BUSY: 0.3}
    for _ in range(200):
        before = figures(*((at, 500, rng.binomial(500, p), 0) for at, p in share.items()))
        watcher, after = Watcher(LIMITS), Figures()
        for _ in range(300):
            at = BUSY if rng.random() < 0.7 else CALM
            after.ends_LE[at, :SLOW] += (10, rng.binomial(10, share[at]), 0)
            assert watcher.look(before, after) is None


def test_a_fault_after_long_calm_shows_as_soon() -> None:
    """Windows forget the calm: within 150 requests of the fault, after ten thousand good ones."""
    before = figures((CALM, 2_000, 20, 0))
    watcher, after = Watcher(LIMITS), Figures()
    for _ in range(1_000):
        after.ends_LE[CALM, REQUESTS] += 10
        assert watcher.look(before, after) is None
    found: list[Broken | None] = []
    for _ in range(15):
        after.ends_LE[CALM, :SLOW] += (10, 10, 0)
        found.append(watcher.look(before, after))
    assert any(found)


def test_three_faults_need_no_load() -> None:
    """A healthy policy has none, whatever comes."""
    assert reason(Figures(), Figures(faults=2.0)) == ""
    assert reason(Figures(), Figures(faults=3.0)) == REASON_FAULTS


def test_a_policy_that_decides_slowly_nearly_always_is_sent_back() -> None:
    """One that does so now and then, as on a machine that is busy for a second, is not."""
    before, after = figures((CALM, 500, 0, 0)), figures((CALM, 100, 0, 0))
    for count, expected in ((40, ""), (95, REASON_SLOW)):
        after.ends_LE[CALM, SLOW] = count
        assert reason(before, after) == expected
    before.ends_LE[CALM, SLOW] = 450
    assert reason(before, after) == ""


def test_figures_add_up_and_fit_a_row() -> None:
    """As those of workers and of routers do."""
    one, other = figures((CALM, 5, 2, 1), timed_s=0.5), Figures(faults=1.0)
    other.add(BUSY, is_missed=True, is_failed=False)
    both = one.plus(other)
    assert both.requests == 6.0
    assert both.on_time_share == 0.5
    row = both.row()
    assert row.shape == (WIDTH,)
    assert Figures.of_row(row).row().tolist() == row.tolist()
    assert both.plus(other, -1.0).row().tolist() == one.row().tolist()
    assert str(both) == "6 requests, in time 0.5000, failed 0.1667, 500000 us a decision"
    assert both.ends_LE[CALM, FAILED] == 1.0


def test_a_process_that_is_gone_leaves_no_negative_figures() -> None:
    """What is left is judged from its beginning."""
    before = figures((CALM, 1_000, 10, 0))
    watcher = Watcher(LIMITS)
    assert watcher.look(before, figures((CALM, 1_200, 12, 0))) is None
    assert watcher.look(before, figures((CALM, 600, 6, 0))) is None
    found = watcher.look(before, figures((CALM, 700, 306, 0)))
    assert found is not None
