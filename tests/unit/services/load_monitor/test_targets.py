"""Targets set while the mesh runs: which word counts, and what is read back from the store."""

from __future__ import annotations

import json

import pytest

from services.load_monitor.convert_targets import message_of_target
from services.load_monitor.targets import (
    MAX_OVERRIDES,
    TargetOverride,
    decode,
    encode,
    in_force,
    merged,
)

NOW_NS = 1_700_000_000_000_000_000
DAY_NS = 24 * 3600 * 1_000_000_000


def said(task: str, target: float | None, at: int, **fields: int) -> TargetOverride:
    """Returns an override, stamped so much after the present."""
    return TargetOverride(task, target, NOW_NS + at, "ops", "", **fields)


def test_the_newest_word_on_each_task_counts_in_whatever_order_it_comes() -> None:
    """Giving a task back to the settings is a word, too."""
    old, new = said("copa", 0.9, 1), said("copa", None, 2)
    other = said("piqa", 0.999, 1)
    for one, two in (([old], [new, other]), ([new, other], [old])):
        assert merged(one, two, NOW_NS) == {"copa": new, "piqa": other}
    assert in_force(merged([old], [new, other], NOW_NS), NOW_NS) == (other,)


def test_of_two_stamped_alike_all_take_the_same() -> None:
    """Whichever they heard of first."""
    one, two = said("copa", 0.9, 0), said("copa", 0.95, 0)
    assert merged([one], [two], NOW_NS) == merged([two], [one], NOW_NS)


def test_what_was_set_for_a_time_ends_and_is_forgotten_much_later() -> None:
    """Until then it stands against older words of monitors that were away."""
    override = said("copa", 0.9, 0, expire_wall_ns=NOW_NS + 5)
    assert override.is_in_force(NOW_NS + 4)
    assert not override.is_in_force(NOW_NS + 5)
    assert merged([override], [], NOW_NS + 29 * DAY_NS)
    assert not merged([override], [], NOW_NS + 31 * DAY_NS)
    assert merged([said("copa", 0.9, 0)], [], NOW_NS + 400 * DAY_NS)


def test_no_more_tasks_are_remembered_than_a_state_has_room_for() -> None:
    """The newest stay."""
    many = [said(f"t{index:03d}", 0.9, index) for index in range(MAX_OVERRIDES + 5)]
    found = merged(many, [], NOW_NS)
    assert len(found) == MAX_OVERRIDES
    assert min(found) == "t005"


def test_what_is_stored_is_read_back() -> None:
    """With everything that is shown of it."""
    overrides = merged([said("copa", None, 0), said("piqa", 0.9, 1, expire_wall_ns=NOW_NS)], [], 0)
    assert decode(encode(overrides), NOW_NS) == (list(overrides.values()), [])


def test_a_broken_entry_is_left_out_and_named() -> None:
    """The others are kept; anybody might have written there."""
    good = json.loads(encode({"copa": said("copa", 0.9, 0)}))[0]
    for wrong in (
        {"target": 1.5},
        {"target": "much"},
        {"target": float("nan")},
        {"target": 10**400},
        {"target": "0.9"},
        {"target": True},
        {"task": "no such name"},
        {"task": ["a"]},
        {"set_wall_ns": -1},
        {"set_wall_ns": NOW_NS + 400 * DAY_NS},
        {"expire_wall_ns": 2**63},
        {"set_wall_ns": 0.5},
    ):
        found, problems = decode(json.dumps([good, good | wrong]).encode(), NOW_NS)
        assert [each.task for each in found] == ["copa"]
        assert len(problems) == 1
    assert decode(b'[1, null, {}, "x"]', NOW_NS)[0] == []


def test_half_a_character_in_a_reason_becomes_another() -> None:
    """A state could not be sent with it."""
    ((found,), _) = decode(
        b'[{"task": "copa", "target": 0.9, "set_wall_ns": 1, "set_by": "\\ud800", '
        b'"reason": "\\udfff why", "expire_wall_ns": 0}]',
        NOW_NS,
    )
    assert (found.set_by, found.reason) == ("?", "? why")
    assert message_of_target(found).reason == "? why"


@pytest.mark.parametrize("payload", [b"", b"{}", b"null", b"\xff", b"[" * 100_000])
def test_bytes_that_are_no_list_are_refused(payload: bytes) -> None:
    """The caller sets them aside."""
    with pytest.raises(ValueError, match=r"stored|Expecting|decode"):
        decode(payload, NOW_NS)
