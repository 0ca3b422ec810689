"""The live view: what the mesh does now, drawn for a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from services.local.live import LiveFacts

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
    return Group(*lines, head, mix_bar(facts.mix, tiers), queues, *policies)


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


def _rank(key: tuple[str, str], tiers: tuple[str, ...]) -> int:
    return tiers.index(key[0]) if key[0] in tiers else len(tiers)


def _fraction(value: float | None) -> str:
    return "  -  " if value is None else f"{value:.3f}"
