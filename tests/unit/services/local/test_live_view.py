"""The live view on a terminal."""

from __future__ import annotations

import dataclasses
import io
import math

from rich.console import Console

from router.profile_error import RangeError
from services.common.live import LiveFacts, TaskLatency
from services.common.profile_facts import ProfileFacts
from services.common.task_targets import TaskTarget
from services.common.token_goodput import TokenGoodput
from services.local.live_view import MOST_QUEUES, TASK_CELLS, render
from tiercel.load_monitor.v1 import system_state_pb2 as pb

TASK = TaskTarget("sort", {0.99: 2}, 0.99, 199, 1, 0.095, None)
LATENCY = TaskLatency(deadline_s=0.2, is_first_token=False, p50_s=0.045, p99_s=0.118)
FACTS = LiveFacts(
    rate_rps=20.0,
    on_time_share=1.0,
    quality=0.9,
    performance=0.9,
    ended_rps={"on_time": 20.0, "refused": 0.0},
    mix={"small": 0.5, "large": 0.5},
    in_flight={("large", "e"): 3},
    queue_depth={("large", "e"): 2},
    policies={"r": "price 1"},
    health={"e": "ready"},
    tasks=[TASK],
    latencies={"sort": LATENCY},
    pressure=0.25,
    wall_s=1_800_000_000.0,
)


def shown(facts: LiveFacts, width: int = 80) -> str:
    """The view as text, without colour."""
    out = Console(width=width, record=True, file=io.StringIO(), highlight=False)
    out.print(render(facts, ("small", "large"), "mesh default"))
    return out.export_text(styles=False)


def test_the_view_shows_rate_mix_tasks_queues_health_and_policy() -> None:
    """What operators look for is on the screen, with the mesh's name and the time."""
    text = shown(FACTS)
    for part in ("20.0 req/s", "in time 1.000", "quality 0.900", "large 0.50", "ready"):
        assert part in text
    assert text.startswith("mesh default  2027-01-15 08:00:00 UTC")
    assert "policy price 1  (r)" in text
    assert row_of(text, "sort") == ["sort", "0.99", "0.995", "0.095", "200", "200", "45", "118"]
    assert "last minute; target pressure 0.25  lost: quality given up" in text


def test_a_profile_is_told_with_its_age_and_what_is_off_by_too_much() -> None:
    """By tier over all answers; one without an error yet is there too; of many the first."""
    errors = (
        RangeError("small", "", 0.02, 100.0),
        RangeError("large", "", -0.31, 100.0),
        RangeError("large", "idle device, prompts above 512 tokens", -0.5, 30.0),
    )
    day_s = 86_400.0
    profiles = [
        ProfileFacts("gpu", "measured", "m", FACTS.wall_s - 9 * day_s, errors),
        ProfileFacts("old", "published", "", None, ()),
    ]
    text = shown(dataclasses.replace(FACTS, profiles=profiles))
    assert "profile gpu (measured 9 days ago)  off by small +0.02, large -0.31!" in text
    assert "profile old (published, age unknown)" in text
    assert "and 2 more profiles" in shown(
        dataclasses.replace(FACTS, profiles=[*profiles, *profiles, profiles[0]])
    )


def test_tiers_are_told_apart_without_colour() -> None:
    """Each has a shade of its own, in the bar and beside its name."""
    bar = next(line for line in shown(FACTS).splitlines() if line.startswith("mix"))
    assert bar.split() == ["mix", "░" * 15 + "▒" * 15, "░", "small", "0.50", "▒", "large", "0.50"]


def test_what_is_not_as_usual_is_marked() -> None:
    """Not by colour: by signs, which are explained below."""
    tasks = [
        TaskTarget("sort", {0.9: 1, 0.999: 1}, 0.9, 9, 1, 0.5, pb.TargetOverride(target=0.999)),
        TaskTarget("chat", {0.0: 2}, 0.0, 0, 0, None, None),
    ]
    latencies = {
        "sort": TaskLatency(0.2, False, 0.045, math.inf),
        "chat": TaskLatency(0.8, True, None, None),
    }
    text = shown(dataclasses.replace(FACTS, tasks=tasks, latencies=latencies))
    assert row_of(text, "sort") == [
        "sort",
        "0.999~*",
        "0.900!",
        "0.500",
        "10",
        "200",
        "45",
        "cut",
        "off",
    ]
    assert row_of(text, "chat") == ["chat", "none", "-", "-", "0", "800'", "-", "-"]
    for sign in ("! below", "* set: tiercel target", "~ not at", "' of the first"):
        assert sign in " ".join(text.split())
        assert sign not in shown(FACTS)


def test_deadlines_for_tokens_have_a_table_where_there_are_any() -> None:
    """In time, the same with late answers discounted, and both per second; else not a word."""
    tokens = [
        TokenGoodput("chat", "per_token", 120, 30, 138.0, 60.0),
        TokenGoodput("chat", "first_token", 0, 0, 0.0, 60.0),
        TokenGoodput("d" * 64, "first_token", 10**7, 0, 1e7, 60.0),
    ]
    text = shown(dataclasses.replace(FACTS, tokens=tokens))
    rows = [line.split() for line in text.splitlines() if line.startswith("chat")]
    assert rows == [
        ["chat", "each", "token", "0.800", "0.920", "150", "2.00", "2.30"],
        ["chat", "first", "token", "-", "-", "0", "0.00", "0.00"],
    ]
    assert "smooth: a late answer counts" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "166666.67" in text
    assert "smooth" not in shown(FACTS)


def test_a_router_of_the_last_release_tells_no_latencies() -> None:
    """What is not known is a dash; without tasks there is no table."""
    assert row_of(shown(dataclasses.replace(FACTS, latencies={})), "sort")[-3:] == ["-", "-", "-"]
    assert "deadline" not in shown(dataclasses.replace(FACTS, tasks=[], latencies={}))


def row_of(text: str, name: str) -> list[str]:
    """The words of the line that begins with a name."""
    return next(line.split() for line in text.splitlines() if line.startswith(name))


def test_long_names_and_reasons_do_not_push_numbers_off_the_screen() -> None:
    """80 columns hold every number; what is long is cut."""
    keys = [("a" * 64, "b" * 64)]
    wide = dataclasses.replace(
        FACTS,
        in_flight=dict.fromkeys(keys, 1_000_000),
        queue_depth=dict.fromkeys(keys, 1_000_000),
        health={"b" * 64: "partial: " + "c" * 200},
        tasks=[TaskTarget("d" * 64, {0.9999: 64}, 0.9999, 1_000_000_000, 0, 0.5, None)],
        latencies={"d" * 64: dataclasses.replace(LATENCY, deadline_s=86_400.0, p99_s=3_600.0)},
    )
    lines = shown(wide).splitlines()
    assert max(map(len, lines)) <= 80
    numbers = ["0.9999", "1.000", "0.500", "1000000000", "86400000", "45", "3600000"]
    assert row_of("\n".join(lines), "d") == ["d" * (TASK_CELLS - 1) + "…", *numbers]
    assert "1000000  1000000  partial" in next(line for line in lines if line.startswith("aa"))


def test_a_large_mesh_is_shown_by_tier() -> None:
    """Hundreds of endpoints do not fit 24 lines."""
    keys = [(tier, f"e{n}") for n in range(MOST_QUEUES) for tier in ("small", "large")]
    text = shown(
        dataclasses.replace(
            FACTS,
            in_flight=dict.fromkeys(keys, 2),
            queue_depth=dict.fromkeys(keys, 1),
            health={f"e{n}": "down: gone" if n == 0 else "ready" for n in range(MOST_QUEUES)},
            policies={f"r{n}": "price 1" for n in range(64)},
        )
    )
    assert "8 endpoints" in text
    assert "7 ready, 1 down" in text
    assert "policy price 1  (64 routers)" in text
    assert len(text.splitlines()) <= 24
