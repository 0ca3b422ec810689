"""How far a profile is off, from what was predicted and what came."""

from __future__ import annotations

import math

import numpy as np
import pytest

from router import profile_error
from router.fleet import FleetArrays
from router.profile_error import FEWEST, LARGEST_RATIO, MEMORY_S, RANGE_COUNT, Compared, RangeError


def taught(ratios: list[float], *, finished: bool = True, at_s: float = 0.0) -> Compared:
    """Answers that took so many times a predicted second, all at one time."""
    compared = Compared()
    for ratio in ratios:
        compared.add(at_s, ratio, 1.0, finished=finished)
    return compared


def test_the_error_is_the_geometric_mean_of_predicted_over_observed() -> None:
    """Twice as long and half as long cancel; half as slow as predicted is an error of 1."""
    (even, _range) = profile_error.errors_of("small", {0: taught([2.0, 0.5] * 20)}, 0.0)
    assert (even.tier, even.range, even.answers) == ("small", "", 40.0)
    assert even.error == pytest.approx(0.0)
    (early, _range) = profile_error.errors_of("small", {0: taught([0.5] * 40)}, 0.0)
    assert early.error == pytest.approx(1.0)
    (late, _range) = profile_error.errors_of("small", {0: taught([2.0] * 40)}, 0.0)
    assert late.error == pytest.approx(-0.5)


def test_few_answers_tell_nothing_and_old_ones_fade() -> None:
    """An error is told from FEWEST answers on, as long as they still count."""
    compared = taught([2.0] * int(FEWEST))
    assert profile_error.errors_of("small", {0: compared}, 0.0)
    assert not profile_error.errors_of("small", {0: compared}, 1.0)
    many = taught([2.0] * 100)
    whole, _ = profile_error.errors_of("small", {0: many}, MEMORY_S)
    assert whole.answers == pytest.approx(100.0 / math.e)
    assert whole.error == pytest.approx(-0.5)
    for _ in range(200):
        many.add(3 * MEMORY_S, 1.0, 1.0, finished=True)
    whole, _ = profile_error.errors_of("small", {0: many}, 3 * MEMORY_S)
    assert whole.error == pytest.approx(0.0, abs=0.03)


def test_one_straggler_counts_little() -> None:
    """However long one answer took, it counts as LARGEST_RATIO times the prediction."""
    whole, _ = profile_error.errors_of("small", {0: taught([1.0] * 99 + [1e9])}, 0.0)
    assert whole.error == pytest.approx(LARGEST_RATIO**-0.01 - 1.0)


def test_what_was_cut_off_counts_only_where_it_shows_more_than_is_known() -> None:
    """Cut off early says nothing; cut off later than predicted says that it was slow."""
    assert not profile_error.errors_of("small", {0: taught([0.5] * 40, finished=False)}, 0.0)
    whole, _ = profile_error.errors_of("small", {0: taught([2.0] * 40, finished=False)}, 0.0)
    assert whole.error == pytest.approx(-0.5)
    compared = taught([2.0] * 40)
    compared.add(0.0, 1.5, 1.0, finished=False)
    assert compared.count == 40.0


@pytest.mark.parametrize("times", [(0.0, 1.0), (1.0, 0.0), (math.nan, 1.0), (1.0, math.nan)])
def test_times_that_are_none_teach_nothing(times: tuple[float, float]) -> None:
    """Neither an answer without a prediction nor one that took no time."""
    compared = Compared()
    compared.add(0.0, *times, finished=True)
    assert compared == Compared()


def test_ranges_have_words_of_their_own() -> None:
    """Load and length each split; every range is told apart by its words."""
    texts = [profile_error.range_text(number) for number in range(RANGE_COUNT)]
    assert len(set(texts)) == RANGE_COUNT
    assert profile_error.range_text(profile_error.range_of(0.0, 1)) == (
        "idle device, prompts of 1 to 64 tokens"
    )
    assert profile_error.range_text(profile_error.range_of(0.1, 65)) == (
        "device under half full, prompts of 65 to 512 tokens"
    )
    assert profile_error.range_text(profile_error.range_of(0.5, 513)) == (
        "device half full or more, prompts above 512 tokens"
    )


def test_a_device_is_as_full_as_its_tiers_together() -> None:
    """Own and others' requests over the batch limits, of the device's tiers and no others."""
    fleet = FleetArrays(
        *(np.zeros(3) for _ in FleetArrays._fields)  # type: ignore[arg-type]
    )._replace(
        peers_CP=np.array([[0, 1], [0, 1], [2, -1]]),
        max_batch_C=np.array([4.0, 8.0, 4.0]),
    )
    own_C, others_C = np.array([1.0, 0.0, 4.0]), np.array([1.0, 4.0, 0.0])
    fills = [profile_error.device_fill(fleet, c, own_C, others_C) for c in range(3)]
    assert fills == [1.0, 1.0, 1.0]
    assert profile_error.device_fill(fleet, 0, np.zeros(3), np.zeros(3)) == 0.0


def test_a_longer_answer_than_expected_is_not_the_profiles_fault() -> None:
    """All but the fixed part of a prediction is in proportion to the tokens."""
    assert profile_error.actual_length_s(1.0, 0.2, 8.0, 16.0) == pytest.approx(1.8)
    assert profile_error.actual_length_s(1.0, 0.2, 8.0, 4.0) == pytest.approx(0.6)
    assert profile_error.actual_length_s(1.0, 0.2, 8.0, 0.0) == 1.0
    assert profile_error.actual_length_s(0.1, 0.2, 8.0, 16.0) == 0.1


def test_what_is_off_is_told_the_farthest_first() -> None:
    """A limit leaves out what is within it; of two ratios the larger one is farther off."""
    errors = [
        RangeError("small", "", -0.1, 30.0),
        RangeError("small", "a", 0.5, 30.0),
        RangeError("large", "", -0.5, 30.0),
        RangeError("large", "b", -0.6, 30.0),
        RangeError("large", "c", 0.1, 30.0),
    ]
    assert [each.error for each in profile_error.off_beyond(errors, 0.2)] == [-0.6, -0.5, 0.5]
    assert profile_error.farthest(errors) == errors[3]
    assert profile_error.farthest([]) is None
    assert profile_error.briefest(errors) == (errors[0], errors[1], errors[2], errors[3])
