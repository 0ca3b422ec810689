"""Prompts of a load run."""

from __future__ import annotations

import math

import pytest

from services.loadgen.prompts import Prompt, draw_prompts


def test_prompts_follow_the_mix() -> None:
    """Tasks come in their shares, prompts of a task in the pool's order."""
    pools = {name: [Prompt(name, f"{name}{i}", None) for i in range(5000)] for name in "ab"}
    prompts = draw_prompts({"a": 3, "b": 1}, pools, 4000, seed=1)
    share = sum(each.task == "a" for each in prompts) / 4000
    assert share == pytest.approx(0.75, abs=0.03)
    assert [each.text for each in prompts if each.task == "b"][:2] == ["b0", "b1"]


def test_an_answer_that_never_came_is_not_the_right_one() -> None:
    """Where there is a right one; where there is none, nothing can be scored."""
    scorable, other = Prompt("a", "1+1=", "2"), Prompt("a", "hello", None)
    assert [scorable.score(text) for text in (" 2\n", "3", None)] == [1.0, 0.0, 0.0]
    assert all(math.isnan(other.score(text)) for text in ("2", None))


def test_a_stretch_may_have_shares_of_its_own() -> None:
    """Before and behind it, tasks come as they would without it."""
    pools = {name: [Prompt(name, name, None)] for name in "ab"}
    plain = draw_prompts({"a": 1, "b": 1}, pools, 300, seed=1)
    where = slice(100, 200)
    drawn = draw_prompts({"a": 1, "b": 1}, pools, 300, seed=1, stretches=[(where, {"b": 1.0})])
    assert {each.task for each in drawn[where]} == {"b"}
    for rest in (slice(0, 100), slice(200, 300)):
        assert drawn[rest] == plain[rest]
        assert {each.task for each in drawn[rest]} == {"a", "b"}
