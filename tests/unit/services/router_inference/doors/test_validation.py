"""Bad input: every field with its limit, all at once; the deadline rule; estimates."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from router.catalog import Catalog
from router.estimators import OutputLengthPredictor
from router.types import TOKEN_INTERVAL_S, SloKind
from services.common.errors import InvalidArgumentError, NotFoundError
from services.router_inference.doors.validation import Limits, Validator
from services.router_inference.job import Ask, Job
from tests.unit.services.router_inference.parts import QUALITY, TASKS, TIERS

LIMITS = Limits(100, 64, 3600.0, 20.0, 30.0, 4.0)


def validator() -> Validator:
    """A validator over three tasks and three tiers."""
    return Validator(
        catalog=Catalog.build(TIERS, TASKS, QUALITY),
        limits=LIMITS,
        lengths=OutputLengthPredictor({task.name: 8.0 for task in TASKS}),
        new_id=lambda: "made",
        new_seed=lambda: 5,
    )


def job(**fields: Any) -> Job:
    """Checks a request, by default a good one, that arrived at 100 s."""
    return validator().job(Ask(**{"task": "hard", "prompt": "hello", **fields}), 100.0, 10**18)


@pytest.mark.parametrize(
    ("fields", "field", "limit"),
    [
        ({"prompt": ""}, "spec.prompt", "1 to 100 bytes"),
        ({"prompt": "x" * 101}, "spec.prompt", "1 to 100 bytes"),
        ({"prompt": "é" * 51}, "spec.prompt", "1 to 100 bytes"),
        ({"task": ""}, "spec.task", "a task of the mesh"),
        ({"deadline_s": 0.0}, "spec.deadline", "above 0 to 3600 s"),
        ({"deadline_s": -1.0}, "spec.deadline", "above 0 to 3600 s"),
        ({"deadline_s": 3601.0}, "spec.deadline", "above 0 to 3600 s"),
        ({"max_output_tokens": 0}, "spec.max_output_tokens", "1 to 64"),
        ({"max_output_tokens": -3}, "spec.max_output_tokens", "1 to 64"),
        ({"max_output_tokens": 65}, "spec.max_output_tokens", "1 to 64"),
        ({"quality_floor": -0.1}, "spec.quality_floor", "0 to 1"),
        ({"quality_floor": 1.1}, "spec.quality_floor", "0 to 1"),
        ({"quality_floor": math.nan}, "spec.quality_floor", "0 to 1"),
        ({"quality_floor": 0.9, "tier": "small"}, "spec.quality_floor", "0 to 0.5"),
        ({"temperature": 2.5}, "spec.sampling.temperature", "0 to 2"),
        ({"temperature": math.inf}, "spec.sampling.temperature", "0 to 2"),
        ({"slo_kind": 99}, "spec.slo_kind", "a named value"),
        ({"priority": 7}, "spec.priority", "a named value"),
        (
            {"prompt": None, "prompt_tokens": 5, "deadline_s": 20.1},
            "spec.deadline",
            "above 0 to 20 s",
        ),
        ({"deadline_s": math.nan}, "spec.deadline", "above 0 to 3600 s"),
        ({"seed": -1}, "spec.sampling.seed", "0 to 9223372036854775807"),
        ({"request_id": "x" * 129}, "spec.request_id", "0 to 128 characters"),
    ],
)
def test_bad_fields_are_named_with_their_limit(
    fields: dict[str, Any], field: str, limit: str
) -> None:
    """Each bad field gives INVALID_ARGUMENT that names it and what would be right."""
    with pytest.raises(InvalidArgumentError) as caught:
        job(**fields)
    assert caught.value.metadata["field"] == field
    assert caught.value.metadata["limit"] == limit


def test_a_request_without_a_task_is_of_the_default_task() -> None:
    """At every door; without a default the error says that there is none."""
    checker = validator()
    checker.configure(
        Catalog.build(TIERS, TASKS, QUALITY), dataclasses.replace(LIMITS, default_task="soft")
    )
    assert checker.job(Ask(task="", prompt="hello"), 100.0, 10**18).task.name == "soft"
    assert checker.job(Ask(task="hard", prompt="hello"), 100.0, 10**18).task.name == "hard"
    assert checker.tasks() == (("hard", "soft", "first"), "soft")
    with pytest.raises(InvalidArgumentError, match="is empty, and there is no default task"):
        job(task="")


def test_all_bad_fields_are_named_at_once() -> None:
    """Three mistakes, one answer."""
    with pytest.raises(InvalidArgumentError) as caught:
        job(prompt="", max_output_tokens=0, temperature=9.0)
    names = [name for name, _ in caught.value.violations]
    assert names == ["spec.prompt", "spec.max_output_tokens", "spec.sampling.temperature"]


@pytest.mark.parametrize(("field", "kind"), [("task", "TASK"), ("tier", "TIER")])
def test_unknown_names_list_the_known_ones(field: str, kind: str) -> None:
    """NOT_FOUND says what there is."""
    with pytest.raises(NotFoundError) as caught:
        job(**{field: "nonsense"})
    assert caught.value.reason == f"{kind}_NOT_FOUND"
    known = TIERS if field == "tier" else [task.name for task in TASKS]
    assert all(name in caught.value.metadata["known"] for name in known)


@pytest.mark.parametrize(
    ("own", "call", "slack_s"),
    [
        (None, None, 0.4),  # the task's default
        (0.2, None, 0.2),  # its own
        (None, 30.0, 0.4),  # a library's time limit is no deadline
        (None, 0.3, 0.3),  # but nothing goes beyond it
        (0.2, 0.3, 0.2),
        (0.5, 0.3, 0.3),
    ],
)
def test_the_deadline_rule(own: float | None, call: float | None, slack_s: float) -> None:
    """The request's own, else the task's; never later than the call's end."""
    made = job(deadline_s=own, call_left_s=call)
    assert made.request.slack_s == pytest.approx(slack_s)
    assert made.deadline_s == pytest.approx(100.0 + slack_s)


def test_work_stops_at_a_hard_deadline_and_later_at_a_soft_one() -> None:
    """Hard: at the deadline. Soft: `soft_late_s` after it, but never after the call's end."""
    assert job().cutoff_s == pytest.approx(100.4)
    assert job(task="soft").cutoff_s == pytest.approx(130.4)
    assert job(task="soft", call_left_s=2.0, deadline_s=0.4).cutoff_s == pytest.approx(102.0)


def test_a_first_token_deadline_needs_a_stream() -> None:
    """In one piece the first token comes with the last, so the whole answer has to be in time."""
    assert job(task="first", is_stream=True).request.slo_kind is SloKind.FIRST_TOKEN
    assert job(task="first").request.slo_kind is SloKind.COMPLETE_ANSWER


def test_due_times_of_tokens_need_a_stream() -> None:
    """In one piece all tokens come with the last, and the first one is due at the deadline."""
    told = {"slo_kind": SloKind.PER_TOKEN, "token_interval_s": 0.05}
    streamed, whole = job(is_stream=True, **told), job(**told)
    assert streamed.request.slo_kind is SloKind.PER_TOKEN
    assert streamed.request.token_interval_s == 0.05
    assert streamed.request.event_tokens == streamed.request.output_tokens
    assert (whole.request.slo_kind, whole.request.token_interval_s) == (
        SloKind.COMPLETE_ANSWER,
        0.0,
    )
    assert (whole.deadline_s, whole.cutoff_s) == (streamed.deadline_s, whole.deadline_s)


def test_an_interval_that_is_not_given_is_the_tasks() -> None:
    """Reading speed, where the task's settings have none."""
    made = job(slo_kind=SloKind.PER_TOKEN, is_stream=True)
    assert made.request.token_interval_s == TOKEN_INTERVAL_S


def test_a_gateway_is_held_to_the_first_token() -> None:
    """It tells of the beginning and of the end, and of no token between."""
    made = job(prompt=None, by_gateway=True, is_stream=True, slo_kind=SloKind.PER_TOKEN)
    assert (made.request.slo_kind, made.request.token_interval_s) == (SloKind.FIRST_TOKEN, 0.0)


@pytest.mark.parametrize("interval_s", [0.0, -0.1, 60.5, math.nan, math.inf])
def test_an_interval_has_limits(interval_s: float) -> None:
    """The error names field and limit."""
    with pytest.raises(InvalidArgumentError) as caught:
        job(slo_kind=SloKind.PER_TOKEN, is_stream=True, token_interval_s=interval_s)
    assert caught.value.field == "spec.token_interval"
    assert "above 0 to 60 s" in str(caught.value)


@pytest.mark.parametrize("kind", [None, SloKind.FIRST_TOKEN, SloKind.COMPLETE_ANSWER])
def test_an_interval_is_for_deadlines_of_each_token(kind: SloKind | None) -> None:
    """It would be kept by nobody otherwise, and its client would not know."""
    with pytest.raises(InvalidArgumentError) as caught:
        job(slo_kind=kind, is_stream=True, token_interval_s=0.05)
    assert caught.value.field == "spec.token_interval"
    assert "slo_kind per_token" in str(caught.value)


def test_tokens_are_estimated_and_limits_default() -> None:
    """Prompt tokens from bytes; output tokens from the task's mean, capped by the limit."""
    made = job(prompt="x" * 40, max_output_tokens=3)
    assert made.request.prompt_tokens == 10.0
    assert made.request.output_tokens == 3.0
    assert job().max_output_tokens == 16
    assert (made.request_id, made.seed) == ("made", 5)


@given(
    st.builds(
        Ask,
        task=st.sampled_from(["hard", "soft", "first", "", "\ud800", "x" * 300]),
        prompt=st.one_of(st.none(), st.text(max_size=120)),
        prompt_tokens=st.one_of(st.none(), st.integers()),
        max_output_tokens=st.one_of(st.none(), st.integers()),
        temperature=st.floats(),
        seed=st.one_of(st.none(), st.integers()),
        deadline_s=st.one_of(st.none(), st.floats()),
        quality_floor=st.floats(),
        tier=st.sampled_from(["", "small", "huge"]),
        request_id=st.text(max_size=140),
        call_left_s=st.one_of(st.none(), st.floats(allow_nan=False)),
    )
)
@example(Ask(task="hard", call_left_s=0.0))
def test_whatever_comes_is_taken_or_refused_cleanly(ask: Ask) -> None:
    """Any input gives a job with a finite, positive deadline, or one of the two errors."""
    try:
        made = validator().job(ask, 100.0, 10**18)
    except (InvalidArgumentError, NotFoundError):
        return
    assert 0.0 < made.request.slack_s <= 3600.0
    # A call whose time is over, or all but, is taken too: it is late.
    given_s = [each for each in (ask.deadline_s, ask.call_left_s) if each is not None]
    if min(given_s, default=1.0) > 1e-9:
        assert made.cutoff_s > 100.0
    assert 1 <= made.max_output_tokens <= 64


@pytest.mark.parametrize("deadline_s", [0.4, None])
def test_a_deadline_is_the_callers(deadline_s: float | None) -> None:
    """What the call waited before it was seen here is spent."""
    checked = job(deadline_s=deadline_s, call_left_s=5.0, waited_s=0.3)
    assert checked.deadline_s == pytest.approx(100.1)
    assert checked.request.slack_s == pytest.approx(0.1)


def test_a_deadline_may_have_passed_on_the_way() -> None:
    """That is no bad input: admission refuses it, or it is late."""
    for fields in ({"call_left_s": 0.25, "waited_s": 0.5}, {"call_left_s": -0.1}):
        checked = job(deadline_s=0.4, **fields)
        assert checked.deadline_s == pytest.approx(99.9)
        assert checked.request.slack_s > 0.0
