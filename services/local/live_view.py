"""The live view: what the mesh does now, drawn for a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from services.local.live import LiveFacts
from services.local.task_targets import in_force_text

BAR_CELLS = 30
TIER_COLORS = ("green", "yellow", "red", "magenta", "cyan")


def render(facts: LiveFacts, tiers: tuple[str, ...], title: str = "") -> RenderableType:
    """Draws the view; ``tiers`` fixes their order and colours."""
    head = Table.grid(padding=(0, 2))
    head.add_row(
        f"{facts.rate_rps:7.1f} requests/s",
        f"on time {_fraction(facts.on_time_share)}",
        f"quality {_fraction(facts.quality)}",
        f"performance {_fraction(facts.performance)}",
        f"refused {facts.refused_rps:.1f}/s",
    )
    queues = Table(box=None, padding=(0, 2), header_style="dim")
    for index, column in enumerate(
        ("tier", "endpoint", "in flight", "in Triton's queue", "health")
    ):
        queues.add_column(column, justify="right" if index in (2, 3) else "left")
    for tier, endpoint in sorted(
        facts.queue_depth.keys() | facts.in_flight.keys(),
        key=lambda key: (key[1], _rank(key, tiers)),
    ):
        queues.add_row(
            tier,
            endpoint,
            str(facts.in_flight.get((tier, endpoint), 0)),
            str(facts.queue_depth.get((tier, endpoint), "-")),
            facts.health.get(endpoint, "-"),
        )
    policies = [Text(f"{router}: {policy}") for router, policy in sorted(facts.policies.items())]
    lines: list[RenderableType] = [Text(title, style="bold")] if title else []
    return Group(*lines, head, mix_bar(facts.mix, tiers), queues, *_targets(facts), *policies)


def mix_bar(mix: Mapping[str, float], tiers: tuple[str, ...]) -> Text:
    """A coloured bar of the tiers' shares with its legend."""
    bar = Text("mix ")
    for index, tier in enumerate(tiers):
        cells = round(mix.get(tier, 0.0) * BAR_CELLS)
        bar.append("█" * cells, style=TIER_COLORS[index % len(TIER_COLORS)])
    for index, tier in enumerate(tiers):
        style = TIER_COLORS[index % len(TIER_COLORS)]
        bar.append(f"  {tier} {mix.get(tier, 0.0):.2f}", style=style)
    return bar


def _targets(facts: LiveFacts) -> list[RenderableType]:
    """Draws targets beside what was attained; nothing where no router tells."""
    if not facts.tasks:
        return []
    targets = Table(box=None, padding=(0, 2), header_style="dim")
    for index, column in enumerate(("task", "target", "attained, 1 min", "of requests")):
        targets.add_column(column, justify="right" if index else "left")
    for task in facts.tasks:
        is_missed = task.attained is not None and task.attained < (task.wanted or 0.0)
        targets.add_row(
            task.task,
            ("* " if task.override is not None else "") + in_force_text(task.targets),
            Text(_fraction(task.attained), style="red" if is_missed else ""),
            str(task.on_time_count + task.missed_count),
        )
    if all(task.override is None for task in facts.tasks):
        return [targets]
    return [targets, Text("* set while the mesh runs: tiercel target show", style="dim")]


def _rank(key: tuple[str, str], tiers: tuple[str, ...]) -> int:
    return tiers.index(key[0]) if key[0] in tiers else len(tiers)


def _fraction(value: float | None) -> str:
    return "  -  " if value is None else f"{value:.3f}"
