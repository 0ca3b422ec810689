"""The monitor's own page: what the mesh does now, for a browser, read-only, beside the metrics.

One HTML file that loads nothing from elsewhere asks for one JSON document once a second. Who may
see it is who may read the metrics.
"""

from __future__ import annotations

import base64
import hashlib
import json
import pathlib
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any

from services.common.live import LiveFacts, StateTracker, facts_json, tier_order
from services.common.metrics import Page
from services.common.times import seconds_of
from services.load_monitor.convert_state import state_of_picture
from services.load_monitor.coordination import Role
from services.load_monitor.model import Picture
from tiercel.load_monitor.v1 import system_state_pb2 as pb

HTML_PATH, FACTS_PATH = "/", "/mesh.json"
_FILE = pathlib.Path(__file__).with_name("page.html")
_LEAST_S = 0.5
_WHO = ("set_by", "reason")
"""What is said of targets and stays out: names of people and what they wrote are in no metric."""
_SAFE = (("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"))


class MonitorPage:
    """The page and its facts, which are made at most twice a second, and only for who asks.

    Runs in threads of the metrics server and therefore reads only immutable objects.

    Args:
        picture: Returns the newest picture served, None before the first.
        age_s: Returns its age, seconds.
        role: Returns the monitor's role.
        degraded: Returns the reasons for which the monitor is degraded.
        now_s: Returns the present, monotonic seconds.
    """

    def __init__(
        self,
        *,
        picture: Callable[[], Picture | None],
        age_s: Callable[[], float],
        role: Callable[[], Role],
        degraded: Callable[[], tuple[str, ...]],
        now_s: Callable[[], float],
    ) -> None:
        self._picture = picture
        self._age_s = age_s
        self._role = role
        self._degraded = degraded
        self._now_s = now_s
        self._tracker = StateTracker()
        self._lock = threading.Lock()
        self._made: tuple[float, bytes] | None = None

    def pages(self) -> Mapping[str, Page]:
        """Returns what is served, by path."""
        html = _FILE.read_bytes()
        # The page runs its own script and no other, whatever a name in the facts looks like.
        policy = (
            f"default-src 'none'; connect-src 'self'; style-src {_hash(html, b'style')};"
            f" script-src {_hash(html, b'script')}; base-uri 'none'; frame-ancestors 'none'"
        )
        head = [("Content-Type", "text/html; charset=utf-8"), ("Content-Security-Policy", policy)]
        json_head = [("Content-Type", "application/json")]
        return {
            HTML_PATH: Page([*head, *_SAFE], lambda: html),
            FACTS_PATH: Page([*json_head, *_SAFE], self.facts),
        }

    def facts(self) -> bytes:
        """Returns the facts as JSON; without `live` while there is no picture yet."""
        with self._lock:
            now_s = self._now_s()
            if self._made is None or now_s - self._made[0] >= _LEAST_S:
                text = json.dumps(self._facts(), allow_nan=False)
                self._made = now_s, text.encode()
            return self._made[1]

    def _facts(self) -> dict[str, Any]:
        monitor: dict[str, Any] = {"role": self._role().value, "degraded": list(self._degraded())}
        picture = self._picture()
        if picture is None:
            return {"monitor": monitor, "live": None}
        state = state_of_picture(picture)
        live = self._tracker.push(state)
        monitor |= {"id": state.monitor_id, "state_age_s": self._age_s()}
        shown = facts_json(live)
        for task in shown["tasks"]:
            for name in _WHO:
                del task[name]
        return {
            "monitor": monitor,
            "live": shown,
            "tiers": tier_order(state),
            "endpoints": [_endpoint(each, live) for each in state.endpoints],
            "routers": [_router(each) for each in state.routers],
        }


def _endpoint(state: pb.EndpointState, live: LiveFacts) -> dict[str, Any]:
    name = state.endpoint.endpoint
    gauges = {gauge.tier: gauge for gauge in state.gauges}
    tiers = []
    for served in state.endpoint.tiers:
        gauge = gauges.get(served.tier, pb.TierGauges())
        tiers.append(
            {
                "tier": served.tier,
                "ready": gauge.ready,
                "in_flight": live.in_flight.get((served.tier, name), 0),
                "queued": gauge.queue_depth if gauge.HasField("queue_depth") else None,
                "mean_queue_s": _span_s(gauge, "mean_queue"),
                "mean_compute_s": _span_s(gauge, "mean_compute"),
            }
        )
    health, _, reason = live.health[name].partition(": ")
    return {
        "endpoint": name,
        "health": health,
        "reason": reason,
        "weight": state.ramp_weight,
        "tiers": tiers,
    }


def _span_s(gauge: pb.TierGauges, field: str) -> float | None:
    return seconds_of(getattr(gauge, field)) if gauge.HasField(field) else None  # type: ignore[arg-type]


def _router(load: pb.RouterLoad) -> dict[str, Any]:
    counts = load.outcomes
    ended = counts.on_time_count + counts.late_count + counts.refused_count + counts.failed_count
    return {
        "router": load.router_id,
        "policy": load.policy,
        "policy_version": load.policy_version,
        "policy_refusal": load.policy_refusal,
        "arrival_rps": load.arrival_rate_rps,
        "in_flight": sum(each.in_flight_count for each in load.loads),
        "ended": ended,
        "on_time_share": counts.on_time_count / ended if ended else None,
        "target_pressure": load.target_pressure,
    }


def _hash(html: bytes, element: bytes) -> str:
    """Names what stands in an element, so that a browser takes that and nothing else."""
    found = re.search(b"<%b>(.*?)</%b>" % (element, element), html, re.DOTALL)
    assert found is not None
    digest = base64.b64encode(hashlib.sha256(found[1]).digest()).decode()
    return f"'sha256-{digest}'"
