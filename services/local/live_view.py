"""The live view: what the mesh does now, drawn for a terminal of 80 columns.

Nothing is told by colour alone: a tier has a shade of its own, a missed target a mark.
"""

from __future__ import annotations

import datetime
import math
from collections import Counter
from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from router.profile_error import MOST_ERROR
from services.common.live import LiveFacts, TaskLatency
from services.common.profile_facts import source_and_age
from services.common.task_targets import TaskTarget, target_text
from services.common.token_goodput import DUE

BAR_CELLS = 30
TIER_SHADES = "░▒▓█▚"
"""Lowest quality first: a larger tier is denser."""
MOST_QUEUES = 8
"""Candidates listed one by one; of more there is one row per tier."""
MOST_POLICIES = 3
MOST_PROFILES = 3
NAME_CELLS, TASK_CELLS = 18, 16
SMOOTH_WORDS = "last minute; smooth: a late answer counts exp(-lateness / 0.2 s)"
MISSED, SET, PARTLY, FIRST_TOKEN = "!", "*", "~", "'"
"""Behind a share below its target or a profile that is off by too much, a target set while the mesh
runs, one that not every router holds, and a deadline of the first token."""


def render(facts: LiveFacts, tiers: tuple[str, ...], title: str = "") -> RenderableType:
    """Draws the view.

    Args:
        facts: What to draw.
        tiers: All tiers, lowest quality first.
        title: Stands at the head, before the time.
    """
    when = datetime.datetime.fromtimestamp(facts.wall_s, datetime.UTC)
    head = Text(f"{title}  {when:%Y-%m-%d %H:%M:%S} UTC".strip(), style="bold")
    totals = Text(
        f"{facts.rate_rps:.1f} req/s  in time {_fraction(facts.on_time_share)}"
        f"  quality {_fraction(facts.quality)}  performance {_fraction(facts.performance)}"
        f"  refused {facts.ended_rps['refused']:.1f}/s"
    )
    lines: list[RenderableType] = [head, totals, mix_bar(facts.mix, tiers)]
    if facts.tasks:
        lines += [_tasks(facts), _remarks(facts)]
    if facts.tokens:
        lines += [_tokens(facts), Text(SMOOTH_WORDS, style="dim")]
    return Group(*lines, _queues(facts, tiers), *_policies(facts.policies), *_profiles(facts))


def mix_bar(mix: Mapping[str, float], tiers: tuple[str, ...]) -> Text:
    """A bar of the tiers' shares with its legend."""
    shades = {tier: TIER_SHADES[i % len(TIER_SHADES)] for i, tier in enumerate(tiers)}
    bar = Text("mix ")
    bar.append("".join(shades[tier] * round(mix.get(tier, 0.0) * BAR_CELLS) for tier in tiers))
    for tier in tiers:
        bar.append(f"  {shades[tier]} {tier} {mix.get(tier, 0.0):.2f}")
    return bar


def _tasks(facts: LiveFacts) -> Table:
    """Every task over about a minute: target, quality given up, latency with the deadline."""
    table = _table("task", "target", "in time", "lost", "requests", "deadline", "p50", "p99 ms")
    for task in facts.tasks:
        is_missed = task.attained is not None and task.attained < (task.wanted or 0.0)
        latency = facts.latencies.get(task.task)
        table.add_row(
            _short(task.task, TASK_CELLS),
            _target(task),
            _fraction(task.attained) + (MISSED if is_missed else " "),
            _fraction(task.given_up),
            str(task.on_time_count + task.missed_count),
            _deadline(latency),
            *(("-", "-") if latency is None else _percentiles(latency)),
        )
    return table


def _tokens(facts: LiveFacts) -> Table:
    """Every task with deadlines for tokens over about a minute: share in time and goodput."""
    names = ("task", "due", "in time", "smooth", "requests", "in time/s", "smooth/s")
    table = _table(*names, left=(0, 1))
    for each in facts.tokens:
        table.add_row(
            _short(each.task, TASK_CELLS),
            DUE[each.slo_kind],
            _fraction(each.attained),
            _fraction(each.smooth_share),
            str(each.ended_count),
            _rate(each.goodput_rps),
            _rate(each.smooth_goodput_rps),
        )
    return table


def _target(task: TaskTarget) -> str:
    """The target that is to be in force, and whether it is that of the settings, and everywhere."""
    said = target_text(task.wanted)
    said += PARTLY if len(task.targets) > 1 else ""
    return said + (SET if task.override is not None else " ")


def _deadline(latency: TaskLatency | None) -> str:
    if latency is None:
        return "- "
    return f"{latency.deadline_s * 1e3:.0f}" + (FIRST_TOKEN if latency.is_first_token else " ")


def _percentiles(latency: TaskLatency) -> tuple[str, ...]:
    found = []
    for value_s in (latency.p50_s, latency.p99_s):
        if value_s is None:
            found.append("-")
        elif math.isinf(value_s):
            found.append("cut off")
        else:
            found.append(f"{value_s * 1e3:.0f}")
    return tuple(found)


def _remarks(facts: LiveFacts) -> Text:
    """The pressure, and what the signs in the table mean, as far as there are any."""
    tasks = facts.tasks
    said = [f"last minute; target pressure {facts.pressure:.2f}"]
    if any(each.given_up is not None for each in tasks):
        said.append("lost: quality given up against always-large")
    if any(each.attained is not None and each.attained < (each.wanted or 0.0) for each in tasks):
        said.append(f"{MISSED} below target")
    if any(each.override is not None for each in tasks):
        said.append(f"{SET} set: tiercel target show")
    if any(len(each.targets) > 1 for each in tasks):
        said.append(f"{PARTLY} not at every router")
    if any(each.is_first_token for each in facts.latencies.values()):
        said.append(f"{FIRST_TOKEN} of the first token")
    return Text("  ".join(said), style="dim")


def _queues(facts: LiveFacts, tiers: tuple[str, ...]) -> Table:
    """One row per candidate, or per tier if they are many."""
    table = _table("tier", "endpoint", "in flight", "queued", left=(0, 1))
    table.expand = True
    # Whatever is left of the line: a reason may be long.
    table.add_column("health", ratio=1, no_wrap=True, overflow="ellipsis")
    keys = sorted(
        facts.queue_depth.keys() | facts.in_flight.keys(),
        key=lambda key: (key[1], _rank(key[0], tiers)),
    )
    if len(keys) > MOST_QUEUES:
        healths = Counter(health.partition(":")[0] for health in facts.health.values())
        health = ", ".join(f"{count} {name}" for name, count in healths.most_common())
        for tier in sorted({tier for tier, _ in keys}, key=lambda tier: _rank(tier, tiers)):
            mine = [key for key in keys if key[0] == tier]
            in_flight = sum(facts.in_flight.get(key, 0) for key in mine)
            queue = sum(facts.queue_depth.get(key, 0) for key in mine)
            table.add_row(
                _short(tier), f"{len(mine)} endpoints", str(in_flight), str(queue), health
            )
        return table
    for tier, endpoint in keys:
        table.add_row(
            _short(tier),
            _short(endpoint),
            str(facts.in_flight.get((tier, endpoint), 0)),
            str(facts.queue_depth.get((tier, endpoint), "-")),
            facts.health.get(endpoint, "-"),
        )
    return table


def _policies(policies: Mapping[str, str]) -> list[Text]:
    """A line per policy in use, with the routers that use it."""
    routers: dict[str, list[str]] = {}
    for router, policy in sorted(policies.items()):
        routers.setdefault(policy or "none yet", []).append(router)
    lines = []
    for policy, names in list(routers.items())[:MOST_POLICIES]:
        who = names[0] if len(names) == 1 else f"{len(names)} routers"
        lines.append(Text(f"policy {policy}  ({who})", overflow="ellipsis", no_wrap=True))
    if len(routers) > MOST_POLICIES:
        lines.append(Text(f"and {len(routers) - MOST_POLICIES} more policies"))
    return lines


def _profiles(facts: LiveFacts) -> list[Text]:
    """A line per latency profile: its age, and by tier how far predictions are off."""
    lines = []
    for profile in facts.profiles[:MOST_PROFILES]:
        age = source_and_age(profile.source, profile.measured_s, facts.wall_s)
        said = f"profile {_short(profile.profile)} ({age})"
        known = [each for each in profile.errors if not each.range]
        if known:
            off = (
                f"{each.tier} {each.error:+.2f}{MISSED if abs(each.error) > MOST_ERROR else ''}"
                for each in known
            )
            said += f"  off by {', '.join(off)}"
        lines.append(Text(said, overflow="ellipsis", no_wrap=True))
    if len(facts.profiles) > MOST_PROFILES:
        lines.append(Text(f"and {len(facts.profiles) - MOST_PROFILES} more profiles"))
    return lines


def _table(*columns: str, left: tuple[int, ...] = (0,)) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index in left else "right", no_wrap=True)
    return table


def _short(name: str, cells: int = NAME_CELLS) -> str:
    return name if len(name) <= cells else f"{name[: cells - 1]}…"


def _rank(tier: str, tiers: tuple[str, ...]) -> int:
    return tiers.index(tier) if tier in tiers else len(tiers)


def _fraction(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
