"""Ejection by silence: a black hole is left alone, an overloaded or an idle candidate is not."""

from __future__ import annotations

from services.router_inference.view.breaker import SILENT, Breaker, BreakerLimits, BreakerState

LIMITS = BreakerLimits(eject_after_failures=2, silent_eject_s=3.0, eject_s=0.5, eject_max_s=1.0)


def test_an_idle_candidate_is_not_blamed_for_its_first_misses() -> None:
    """Never heard of for minutes, then three misses within a second: overload, not silence."""
    breaker = Breaker(LIMITS, lambda: None)
    for number in range(3):
        breaker.on_dispatch(600.0 + 0.1 * number)
        assert not breaker.on_silence(600.4 + 0.1 * number)
    assert breaker.state is BreakerState.CLOSED


def test_a_black_hole_is_ejected() -> None:
    """Misses that go on for longer than the limit, without one token, count as failures."""
    breaker = Breaker(LIMITS, lambda: None)
    breaker.on_dispatch(600.0)
    assert not breaker.on_silence(602.0)
    assert not breaker.on_silence(603.1)
    assert breaker.on_silence(603.2)
    assert breaker.availability(603.3) == 0.0


def test_a_pause_is_no_silence() -> None:
    """A client gave up long ago, and nothing was asked since: the next misses are overload."""
    breaker = Breaker(LIMITS, lambda: None)
    breaker.on_dispatch(600.0)
    breaker.on_unknown()
    for number in range(3):
        breaker.on_dispatch(900.0 + 0.1 * number)
        assert not breaker.on_silence(900.4 + 0.1 * number)
    assert breaker.state is BreakerState.CLOSED


def test_a_black_hole_is_ejected_however_seldom_it_is_asked() -> None:
    """What was waited for in vain adds up over the pauses between."""
    breaker = Breaker(LIMITS, lambda: None)
    for number in range(12):
        breaker.on_dispatch(600.0 + 10.0 * number)
        breaker.on_silence(600.5 + 10.0 * number)
    assert breaker.state is BreakerState.EJECTED


def test_one_token_ends_the_silence() -> None:
    """An overloaded tier that answers some requests is alive."""
    breaker = Breaker(LIMITS, lambda: None)
    breaker.on_dispatch(600.0)
    breaker.on_sign_of_life(602.9)
    breaker.on_dispatch(603.0)
    assert not breaker.on_silence(605.9)
    assert not breaker.on_silence(605.95)


def test_ejections_double_up_to_their_limit() -> None:
    """0.5 s, then 1 s, then 1 s again."""
    breaker = Breaker(LIMITS, lambda: None)
    breaker.on_failure(0.0, "X")
    assert breaker.on_failure(0.0, "X")
    now_s, waits = 0.0, []
    for _ in range(3):
        waits.append(breaker.retry_after_s(now_s))
        now_s += waits[-1]
        assert breaker.availability(now_s) > 0.0
        breaker.on_dispatch(now_s)
        assert breaker.availability(now_s) == 0.0
        breaker.on_failure(now_s, "X")
    assert waits == [0.5, 1.0, 1.0]


def test_a_doubted_candidate_keeps_a_small_share_until_it_answers() -> None:
    """What may have been the requests' fault never closes it, and one answer brings it back."""
    breaker = Breaker(LIMITS, lambda: None)
    for _ in range(2):
        breaker.on_failure(0.0, "X", is_doubt=True)
    assert breaker.state is BreakerState.EJECTED
    assert 0.0 < breaker.availability(0.1) < 0.01
    breaker.on_sign_of_life(0.2)
    assert breaker.availability(0.3) >= 0.1


def test_a_doubt_opens_no_candidate_that_has_failed() -> None:
    """One that is ejected for good reason stays so; a failure closes one that was doubted."""
    breaker = Breaker(LIMITS, lambda: None)
    for _ in range(2):
        breaker.on_failure(0.0, "X")
    breaker.on_failure(0.1, "X", is_doubt=True)
    assert breaker.availability(0.2) == 0.0
    doubted = Breaker(LIMITS, lambda: None)
    for _ in range(2):
        doubted.on_failure(0.0, "X", is_doubt=True)
    doubted.on_failure(0.1, "X")
    assert doubted.availability(0.2) == 0.0


def test_every_change_of_state_is_told() -> None:
    """Its owner hears of ejection, probe, ramp and recovery, and of nothing else."""
    told: list[BreakerState] = []
    breaker = Breaker(LIMITS, lambda: told.append(breaker.state))
    breaker.on_dispatch(0.0)
    breaker.on_failure(0.1, "UNAVAILABLE")
    breaker.on_failure(0.2, "UNAVAILABLE")
    breaker.availability(0.8)
    breaker.on_sign_of_life(0.9)
    breaker.availability(1.0)
    breaker.availability(9.0)
    assert [state.value for state in told] == ["ejected", "probing", "ramping", "closed"]


def test_answers_that_break_off_eject() -> None:
    """Only a complete answer undoes failures; a token does not."""
    breaker = Breaker(LIMITS, lambda: None)
    for is_last in (False, True):
        breaker.on_dispatch(1.0)
        breaker.on_sign_of_life(1.1)
        assert breaker.on_failure(1.2, "X") is is_last
    well = Breaker(LIMITS, lambda: None)
    for _ in range(5):
        assert not well.on_failure(1.0, "X")
        well.on_answer(1.1)


def test_requests_from_before_say_nothing_of_a_probe() -> None:
    """They were sent to what was ejected; whether that is back only the probe tells."""
    for sent_s, state in ((9.9, BreakerState.RAMPING), (10.6, BreakerState.EJECTED)):
        breaker = Breaker(LIMITS, lambda: None)
        for _ in range(2):
            breaker.on_failure(10.0, SILENT)
        assert breaker.is_silent
        assert breaker.availability(10.6) > 0.0
        breaker.on_dispatch(10.6)
        assert breaker.on_silence(10.8, sent_s) is (state is BreakerState.EJECTED)
        breaker.on_answer(10.9)
        assert breaker.state is state
