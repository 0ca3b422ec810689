"""The facts of the monitor's page, and that nothing but the page's own script runs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, replace
from typing import Any

from services.load_monitor.convert import report_from_message
from services.load_monitor.coordination import Role
from services.load_monitor.model import Picture, SharedLoads
from services.load_monitor.page import FACTS_PATH, HTML_PATH, MonitorPage
from services.load_monitor.targets import TargetOverride
from tests.unit.services.load_monitor.test_metrics import PICTURE, VIEW
from tiercel.common.v1 import common_pb2
from tiercel.load_monitor.v1 import system_state_pb2 as pb


def picture(on_time: int = 0, late: int = 0, at_s: int = 1_000) -> Picture:
    """A mesh with one router that has answered so much."""
    load = pb.RouterLoad(
        router_id="r1",
        epoch=1,
        sequence=1,
        policy="price",
        policy_version="1",
        outcomes=pb.OutcomeCounts(
            offered_count=on_time + late, on_time_count=on_time, late_count=late
        ),
        task_attainments=[pb.TaskAttainment(task="sort", target=0.9, on_time_count=3)],
        target_pressure=0.5,
    )
    loads = SharedLoads.of(PICTURE.loads.order, [report_from_message(load)])
    return replace(PICTURE, loads=loads, publish_wall_ns=at_s * 1_000_000_000)


@dataclass
class Monitor:
    """What a page asks for."""

    picture: Picture | None = None
    degraded: tuple[str, ...] = ()
    now_s: float = 0.0

    def __post_init__(self) -> None:
        """Makes the page once: it remembers what it saw."""
        self.page = MonitorPage(
            picture=lambda: self.picture,
            age_s=lambda: 0.25,
            role=lambda: Role.LEADER,
            degraded=lambda: self.degraded,
            now_s=lambda: self.now_s,
        )

    def facts(self, now_s: float) -> dict[str, Any]:
        """Returns the facts at a time."""
        self.now_s = now_s
        found: dict[str, Any] = json.loads(self.page.facts())
        return found


def test_before_the_first_picture_the_page_says_so() -> None:
    """It is served all the same, with what degrades the monitor."""
    facts = Monitor(degraded=("REDIS_UNREACHABLE",)).facts(0.0)
    assert facts == {
        "monitor": {"role": "leader", "degraded": ["REDIS_UNREACHABLE"]},
        "live": None,
    }


def test_rates_are_between_two_looks() -> None:
    """Counters only grow; what happened since the look before is what counts."""
    monitor = Monitor(picture(100, 100))
    assert monitor.facts(0.0)["live"]["on_time_share"] is None
    monitor.picture = picture(109, 101, at_s=1_001)
    live = monitor.facts(1.0)["live"]
    assert live["on_time_share"] == 0.9
    assert live["ended_rps"] == {"on_time": 9.0, "late": 1.0, "refused": 0.0, "failed": 0.0}


def test_goodput_of_deadlines_for_tokens_is_told_where_there_are_any() -> None:
    """As the router counts them: growth between two looks; an empty list else."""

    def told(on_time: int, at_s: int) -> Picture:
        outcomes = common_pb2.TokenOutcomes(
            slo_kind=common_pb2.SLO_KIND_PER_TOKEN,
            on_time_count=on_time,
            missed_count=2,
            smooth_answer_sum=on_time + 1.5,
        )
        task = pb.TaskOutcomes(task="chat", token_outcomes=[outcomes])
        load = pb.RouterLoad(router_id="r1", epoch=1, sequence=1, task_outcomes=[task])
        loads = SharedLoads.of(PICTURE.loads.order, [report_from_message(load)])
        return replace(PICTURE, loads=loads, publish_wall_ns=at_s * 1_000_000_000)

    monitor = Monitor(picture(1))
    assert monitor.facts(0.0)["live"]["tokens"] == []
    monitor = Monitor(told(10, 1_000))
    monitor.facts(0.0)
    monitor.picture = told(18, 1_002)
    (row,) = monitor.facts(1.0)["live"]["tokens"]
    assert (row["task"], row["slo_kind"], row["goodput_rps"]) == ("chat", "per_token", 4.0)


def test_facts_are_made_twice_a_second_at_most() -> None:
    """Many viewers cost the monitor no more than one."""
    monitor = Monitor(picture(1))
    first = monitor.page.facts()
    monitor.picture = picture(2, at_s=1_001)
    monitor.now_s = 0.4
    assert monitor.page.facts() is first
    monitor.now_s = 0.6
    assert monitor.page.facts() is not first


def test_endpoints_and_routers_are_told_with_what_is_wrong() -> None:
    """What is not known is null, not zero."""
    view = replace(VIEW, reason="small: slow")
    facts = Monitor(replace(picture(3, 1), endpoints=(view,))).facts(0.0)
    (endpoint,) = facts["endpoints"]
    assert (endpoint["endpoint"], endpoint["health"]) == ("e1", "ready")
    assert (endpoint["reason"], endpoint["weight"]) == ("small: slow", 0.5)
    small, large = endpoint["tiers"]
    assert (small["tier"], small["queued"], small["mean_queue_s"]) == ("small", 3, 0.25)
    assert (large["tier"], large["ready"], large["queued"]) == ("large", False, None)
    (router,) = facts["routers"]
    assert (router["policy"], router["on_time_share"], router["ended"]) == ("price", 0.75, 4)
    assert facts["live"]["pressure"] == 0.5


def test_who_set_a_target_and_why_is_not_on_the_page() -> None:
    """Whoever may read metrics may read it, and metrics name nobody."""
    override = TargetOverride("sort", 0.999, 1, "alice", "because of bob")
    text = Monitor(replace(picture(1), targets=(override,))).page.facts().decode()
    (task,) = json.loads(text)["live"]["tasks"]
    assert (task["task"], task["target"]) == ("sort", 0.999)
    assert task["set_time"]
    assert "alice" not in text
    assert "bob" not in text


def test_a_browser_runs_the_pages_own_script_alone() -> None:
    """The policy names style and script by what they hold, and nothing comes from elsewhere."""
    page = Monitor().page.pages()[HTML_PATH]
    html = page.read().decode()
    headers = dict(page.headers)
    for element in ("style", "script"):
        (content,) = re.findall(f"<{element}>(.*?)</{element}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}'" in headers["Content-Security-Policy"]
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", html)
    assert "innerHTML" not in html
    assert FACTS_PATH.lstrip("/") in html
