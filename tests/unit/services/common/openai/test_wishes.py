"""Task, deadline and floor as headers and as metadata."""

from __future__ import annotations

import pytest

from router.types import Priority, SloKind
from services.common.errors import InvalidArgumentError
from services.common.openai.wishes import wishes_of


def test_both_ways_say_the_same() -> None:
    """Metadata of OpenAI's clients are texts; numbers are taken too."""
    headers = {
        "x-tiercel-task": "chat",
        "x-tiercel-deadline-ms": "800",
        "x-tiercel-quality-floor": "0.5",
        "x-tiercel-slo-kind": "per_token",
        "x-tiercel-token-interval-ms": "62.5",
        "x-tiercel-priority": "high",
    }
    by_header = wishes_of(headers, {})
    by_metadata = wishes_of(
        {},
        {
            "tiercel_task": "chat",
            "tiercel_deadline_ms": 800,
            "tiercel_quality_floor": "0.5",
            "tiercel_slo_kind": "per_token",
            "tiercel_token_interval_ms": 62.5,
            "tiercel_priority": 1,
            "session": "the client's own",
        },
    )
    assert by_header.slo_kind is SloKind.PER_TOKEN
    for wishes in (by_header, by_metadata):
        assert wishes.token_interval_ms == 62.5
        assert (wishes.task, wishes.deadline_ms, wishes.quality_floor) == ("chat", 800.0, 0.5)
    assert by_metadata.slo_kind is by_header.slo_kind
    assert by_metadata.priority is by_header.priority is Priority.HIGH
    assert by_metadata.name_of("deadline_ms") == "metadata.tiercel_deadline_ms"
    assert wishes_of({}, {}).name_of("deadline_ms") == "x-tiercel-deadline-ms"


def test_a_header_goes_before_metadata() -> None:
    """A gateway sets headers over what a client says."""
    wishes = wishes_of({"x-tiercel-task": "a"}, {"tiercel_task": "b"})
    assert (wishes.task, wishes.name_of("task")) == ("a", "x-tiercel-task")


@pytest.mark.parametrize(
    ("headers", "metadata", "field"),
    [
        ({"x-tiercel-deadline-ms": "soon"}, {}, "x-tiercel-deadline-ms"),
        ({"x-tiercel-deadline-ms": "0"}, {}, "x-tiercel-deadline-ms"),
        ({"x-tiercel-deadline-ms": "nan"}, {}, "x-tiercel-deadline-ms"),
        ({"x-tiercel-deadline-ms": "inf"}, {}, "x-tiercel-deadline-ms"),
        ({"x-tiercel-quality-floor": "1.5"}, {}, "x-tiercel-quality-floor"),
        ({"x-tiercel-target": "0.99"}, {}, "x-tiercel-target"),
        ({"x-tiercel-slo-kind": "none"}, {}, "x-tiercel-slo-kind"),
        ({}, {"tiercel_task": ["a"]}, "metadata.tiercel_task"),
        ({}, {"tiercel_task": "A B"}, "metadata.tiercel_task"),
        ({}, {"tiercel_deadline_ms": True}, "metadata.tiercel_deadline_ms"),
        ({}, {"tiercel_deadline_ms": 10**400}, "metadata.tiercel_deadline_ms"),
        ({}, {"tiercel_slo_kind": {}}, "metadata.tiercel_slo_kind"),
        ({"x-tiercel-priority": "highest"}, {}, "x-tiercel-priority"),
        ({"x-tiercel-priority": "-1"}, {}, "x-tiercel-priority"),
        ({}, {"tiercel_priority": -1}, "metadata.tiercel_priority"),
        ({}, {"tiercel_priority": True}, "metadata.tiercel_priority"),
        ({}, {"tiercel_priority": 1.5}, "metadata.tiercel_priority"),
        ({}, {"tiercel_deadline": 1}, "metadata.tiercel_deadline"),
    ],
)
def test_what_is_wrong_or_unknown_is_named(
    headers: dict[str, str], metadata: dict[str, object], field: str
) -> None:
    """A misspelled deadline must not be passed over."""
    with pytest.raises(InvalidArgumentError) as caught:
        wishes_of(headers, metadata)
    assert caught.value.field == field
