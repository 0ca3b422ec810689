"""Ejection by silence: a black hole is left alone, an overloaded or an idle candidate is not.

So is one that refuses everything.
"""

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


def test_one_that_has_room_for_nobody_is_doubted() -> None:
    """It refuses at once, looks idle, and would be sent everything; a token opens it again."""
    breaker = Breaker(LIMITS, lambda: None)
    for number in range(32):
        breaker.on_dispatch(600.0 + 0.1 * number)
        ejects = breaker.on_refusal(600.0 + 0.1 * number, "QUEUE_FULL")
        assert ejects is (number == 31)
    assert (breaker.state, breaker.last_reason) == (BreakerState.EJECTED, "QUEUE_FULL")
    assert 0.0 < breaker.availability(603.2) < 0.01
    breaker.on_sign_of_life(603.3)
    assert breaker.state is BreakerState.RAMPING


def test_a_busy_candidate_is_not_blamed() -> None:
    """It refuses nine of ten, and somebody gets a token now and then."""
    breaker = Breaker(LIMITS, lambda: None)
    for number in range(600):
        now_s = 600.0 + 0.02 * number
        breaker.on_dispatch(now_s)
        if number % 100:
            assert not breaker.on_refusal(now_s, "QUEUE_FULL")
        else:
            breaker.on_sign_of_life(now_s)
    assert breaker.state is BreakerState.CLOSED


def test_refusals_long_ago_do_not_add_to_those_of_a_burst() -> None:
    """One an hour ago, and now more requests at once than it has room for."""
    breaker = Breaker(LIMITS, lambda: None)
    breaker.on_refusal(600.0, "QUEUE_FULL")
    for number in range(50):
        assert not breaker.on_refusal(4_200.0 + 0.001 * number, "QUEUE_FULL")
    assert breaker.state is BreakerState.CLOSED


def test_one_that_has_room_for_nobody_is_ejected_however_seldom_it_is_asked() -> None:
    """Where each request comes long after the one before."""
    breaker = Breaker(LIMITS, lambda: None)
    for number in range(5):
        breaker.on_dispatch(600.0 + 60.0 * number)
        breaker.on_refusal(600.0 + 60.0 * number, "QUEUE_FULL")
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
