"""Priority classes: what one costs, what it is refused for, and what it is owed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import priority
from router.priority import CAUTION, HIGH, LOW, OWED, PRICE, Classes

PLACES = st.sampled_from([-1, 0, 1])
SEEN = st.lists(st.tuples(PLACES, st.booleans()), max_size=300)


def after(seen: list[tuple[int, bool]]) -> Classes:
    """Returns what is known after these requests: their places, and whether each was refused."""
    classes = Classes()
    for place, refused in seen:
        priority.arrive(classes, place)
        priority.learn(classes, place, refused)
    return classes


@given(st.lists(st.booleans(), max_size=300))
def test_normal_alone_changes_nothing(refused: list[bool]) -> None:
    """Not by one digit, whatever admission does."""
    classes = after([(0, each) for each in refused])
    assert priority.log_price(classes, 0) == 0.0
    assert priority.log_caution(classes, 0) == 0.0
    assert priority.factor(0.0) == 1.0
    assert not priority.is_owed(classes, 0)


def test_normal_alone_changes_nothing_while_all_is_refused() -> None:
    """However long that lasts."""
    classes = after([(0, True)] * 20_000)
    assert classes.refused > 1.0 - 1e-12
    assert priority.log_caution(classes, 0) == 0.0


@pytest.mark.parametrize("place", [HIGH, LOW])
def test_one_class_alone_comes_to_mean_nothing(place: int) -> None:
    """Who calls everything high gains nothing by it."""
    classes = after([(place, False)] * 1_000)
    assert abs(priority.log_price(classes, place)) < 1e-3
    assert abs(priority.log_caution(classes, place)) < 1e-3


@pytest.mark.parametrize("place", [HIGH, 0, LOW])
def test_a_class_that_is_alone_again_is_known_to_be(place: int) -> None:
    """One request of another one, long ago, is forgotten to the last digit."""
    others = [(other, False) for other in (HIGH, 0, LOW) if other != place]
    assert not priority.is_alone(after([*others, (place, False)]), place)
    assert priority.is_alone(after([*others, *[(place, False)] * 5_000]), place)


@given(SEEN)
def test_classes_keep_their_order(seen: list[tuple[int, bool]]) -> None:
    """A lower class pays more; it is counted more cautiously, unless it is owed an admission."""
    classes = after(seen)
    prices = [priority.log_price(classes, place) for place in (-1, 0, 1)]
    assert np.diff(prices) == pytest.approx([PRICE, PRICE])
    cautions = [priority.log_caution(classes, p) for p in (-1, 0, 1)]
    assert all(abs(each) <= 2.0 * CAUTION for each in cautions)
    assert cautions[0] <= min(cautions[1:])


@given(SEEN)
def test_the_mean_log_price_of_requests_is_none(seen: list[tuple[int, bool]]) -> None:
    """By the weights with which requests are remembered, those before the first were normal."""
    classes, mean = Classes(), 0.0
    for place, _ in seen:
        priority.arrive(classes, place)
        mean += (place - mean) / priority.MEMORY
    assert classes.mean_place == mean
    assert -1.0 <= mean <= 1.0


def admitted_shares(mix: tuple[float, float, float], level: float) -> dict[int, float]:
    """Returns the share admitted of each class where what is predicted hovers about a level.

    Args:
        mix: share of high, normal and low.
        level: middle of the predictions, in units of the slack over admission's own factor.
    """
    rng, classes = np.random.default_rng(1), Classes()
    counts: dict[int, list[bool]] = {-1: [], 0: [], 1: []}
    for _ in range(20_000):
        place = int(rng.choice((-1, 0, 1), p=mix))
        priority.arrive(classes, place)
        counted = priority.factor(priority.log_caution(classes, place))
        refused = bool(counted * level * math.exp(rng.normal(0.0, 0.05)) > 1.0)
        priority.learn(classes, place, refused)
        counts[place].append(not refused)
    return {place: float(np.mean(found)) for place, found in counts.items() if found}


@pytest.mark.parametrize("mix", [(0.2, 0.6, 0.2), (0.05, 0.05, 0.9), (0.6, 0.1, 0.3)])
@pytest.mark.parametrize("level", [0.95, 1.0, 1.05])
def test_no_class_is_starved(mix: tuple[float, float, float], level: float) -> None:
    """Each is admitted at least the owed part of what all are; the high one the most."""
    found = admitted_shares(mix, level)
    every = sum(share * found[place] for share, place in zip(mix, (-1, 0, 1), strict=True))
    # Shares are known over MEMORY requests only.
    assert min(found.values()) >= OWED * every - 0.02
    assert found[-1] == max(found.values())


@given(SEEN, PLACES)
def test_a_class_alone_means_nothing_to_the_last_digit(
    seen: list[tuple[int, bool]], place: int
) -> None:
    """Whoever finds a class alone may leave everything else out."""
    for classes in (after(seen), after([(0, refused) for _, refused in seen])):
        if priority.is_alone(classes, place):
            assert priority.log_price(classes, place) == 0.0
            assert priority.log_caution(classes, place) == 0.0
            assert not priority.is_owed(classes, place)
            before = classes.mean_place
            priority.arrive(classes, place)
            assert classes.mean_place == before


@given(st.lists(st.booleans(), max_size=300))
def test_normal_alone_is_found(refused: list[bool]) -> None:
    """Whatever admission does; and no other class is, beside it."""
    classes = after([(0, each) for each in refused])
    assert priority.is_alone(classes, 0)
    assert not priority.is_alone(classes, HIGH)
    assert not priority.is_alone(classes, LOW)


@pytest.mark.parametrize("place", [HIGH, 0, LOW])
def test_what_fades_ends_at_none(place: int) -> None:
    """Not among the smallest numbers there are, which take a processor many times as long."""
    classes = after([(place, True)] * 50 + [(place, False)] * 10_000)
    assert classes.refused == 0.0
    assert priority.refused_share(classes, place) == 0.0
