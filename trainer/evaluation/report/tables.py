"""An evaluation's tables: the same rows for the terminal, the page and the record.

A table is a title, columns and cells of text, so that each of the three shows the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.evaluation.gpus import SERVES_NOTHING
from trainer.evaluation.windows import WINDOW_LEVELS

Row = Mapping[str, Any]
NETS = ((True, "on"), (False, "off"))


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text.

    Attributes:
        title: what it shows.
        columns: headings.
        rows: cells.
        numeric_from: first column that is aligned to the right.
        open: shown unfolded on the page.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric_from: int = 1
    open: bool = False


def number(value: float | None, digits: int = 3) -> str:
    """A number; a dash for none."""
    return "-" if value is None else f"{value:.{digits}f}"


def with_interval(row: Row, column: str, digits: int = 3) -> str:
    """A mean with half the width of its interval."""
    if row.get(column) is None:
        return "-"
    ends = row.get(f"{column}_ci95")
    if not ends or ends[0] is None:
        return number(row[column], digits)
    return f"{row[column]:.{digits}f} ±{(ends[1] - ends[0]) / 2:.{digits}f}"


def headline_table(rows: Sequence[Row]) -> Table:
    """Targets, what was found, and whether it is met."""
    words = {True: "met", False: "MISSED", None: "not judged"}
    return Table(
        "Targets",
        ("target", "goal", "found", "", "detail"),
        tuple(
            (r["name"], r["target"], found(r["value"]), words[r["met"]], r["detail"]) for r in rows
        ),
        numeric_from=99,
    )


def found(value: Any) -> str:
    """A headline's value."""
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def sweep_tables(rows: Sequence[Row], title: str = "Load sweep") -> list[Table]:
    """Policies by load: performance, availability, share of the bound; net on and off."""
    bounded = any(row["bound_share"] is not None for row in rows)
    parts: list[tuple[str, str]] = [
        ("performance", "performance"),
        ("availability", "availability"),
    ]
    parts += [("bound_share", "share of the bound")] if bounded else []
    return [
        matrix(
            [row for row in rows if row["safety_net"] is net],
            f"{title}: {label}, safety net {word}",
            lambda row, column=column: number(row[column]),  # type: ignore[misc]
            unfolded=net and column == "performance",
        )
        for column, label in parts
        for net, word in NETS
    ]


def matrix(
    rows: Sequence[Row], title: str, cell: Callable[[Row], str], *, unfolded: bool = False
) -> Table:
    """One line per policy, one column per load; loads are multiples of what static-large holds."""
    loads = sorted({row["load"] for row in rows})
    cells: dict[str, dict[float, str]] = {}
    for row in rows:
        cells.setdefault(row["policy"], {})[row["load"]] = cell(row)
    return Table(
        title,
        ("policy", *(f"{load:.3g}x" for load in loads)),
        tuple((name, *(line.get(load, "-") for load in loads)) for name, line in cells.items()),
        open=unfolded,
    )


def ratio_table(rows: Sequence[Row]) -> Table:
    """Highest load each policy holds."""
    return Table(
        "Highest load held (availability at least 0.99)",
        ("policy", "safety net", "requests/s", "load", "of static-large, same net", "in the sweep"),
        tuple(
            (
                row["policy"],
                "on" if row["safety_net"] else "off",
                number(row["held_rps"], 0),
                f"{row['load']:.2f}x",
                "-" if row["ratio"] is None else f"{row['ratio']:.2f}x",
                f"every rate to {row['held_in_sweep']:g}x" if row["held_in_sweep"] else "none",
            )
            for row in rows
        ),
        numeric_from=2,
        open=True,
    )


def window_tables(rows: Sequence[Row], bounds: Sequence[Row]) -> list[Table]:
    """Highest load with 90 % of its windows above each level, by policy and workload.

    Args:
        rows: of the policies.
        bounds: of what is possible at all; the last line.
    """
    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    columns = [(w, level) for w in workloads for level in WINDOW_LEVELS]
    tables = []
    for net, word in NETS:
        lines: dict[str, dict[tuple[str, float], str]] = {}
        for row in rows:
            if row["safety_net"] is net:
                own = lines.setdefault(row["policy"], {})
                own[row["workload"], row["level"]] = _open_load(row)
        if bounds:
            own = {(row["workload"], row["level"]): _open_load(row) for row in bounds}
            lines["bound, first seeds"] = own
        tables.append(
            Table(
                "Highest load with 90 % of 10 s windows above a share of peak performance, "
                f"safety net {word}",
                ("policy", *(f"{w} {level:g}" for w, level in columns)),
                tuple(
                    (name, *(line.get(key, "-") for key in columns)) for name, line in lines.items()
                ),
                open=net,
            )
        )
    return tables


def _open_load(row: Row) -> str:
    return f"{row['load']:.2f}{'+' if row['open_end'] else ''}"


def window_count_table(rows: Sequence[Row]) -> Table:
    """How many windows the shares are of."""
    return Table(
        "Windows with requests in them, all seeds: the fewest at any load",
        ("workload", "windows", "at load"),
        tuple((row["workload"], str(row["windows"]), f"{row['load']:g}x") for row in rows),
    )


def gpu_table(rows: Sequence[Row]) -> Table:
    """GPUs static-large needs, by load."""
    return Table(
        "GPUs static-large needs to equal the policy's fleet",
        ("policy", "net", "load", "performance", "GPUs needed", "8 static GPUs", "per GPU, ratio"),
        tuple(
            (
                row["policy"],
                "on" if row["safety_net"] else "off",
                f"{row['load']:g}x",
                with_interval(row, "performance"),
                with_interval(row, "static_large_devices", 1)
                if row["static_large_devices"] is not None
                else f"> {row['most_devices_tried']}",
                with_interval(row, "paper_devices_performance"),
                f"static serves < {SERVES_NOTHING:.1%}"
                if row["static_serves_nothing"]
                else f"{row['per_gpu_ratio']:.2f}x",
            )
            for row in rows
        ),
        numeric_from=2,
    )


def shift_table(rows: Sequence[Row], policies: Sequence[str]) -> Table:
    """Chosen policies in every shift, safety net on: availability / performance."""
    lines: dict[tuple[str, float], dict[str, str]] = {}
    loads: dict[tuple[str, float], float] = {}
    for row in rows:
        if row["safety_net"] and row["policy"] in policies:
            key = (row["shift"], row["share_of_always_small"])
            loads[key] = row["load"]
            lines.setdefault(key, {})[row["policy"]] = (
                f"{row['availability']:.3f} / {row['performance']:.3f}"
            )
            if row["bound"] is not None:
                lines[key]["bound"] = number(row["bound"])
    return Table(
        "Shifts, not retrained: availability / performance, safety net on",
        ("shift", "of always-small", "load", *policies, "bound"),
        tuple(
            (
                shift,
                f"{share:.2f}",
                f"{loads[shift, share]:.1f}x",
                *(line.get(name, "-") for name in policies),
                line.get("bound", "-"),
            )
            for (shift, share), line in lines.items()
        ),
    )


def regret_table(rows: Sequence[Row], where: str = "") -> Table:
    """Share of the baseline's regret each policy removes; `where` says over which points."""
    return Table(
        f"Regret removed (1 = all of price's; negative: regret added){where}",
        ("family", "net", "policy", "regret", "price's regret", "removed"),
        tuple(
            (
                row["family"],
                "on" if row["safety_net"] else "off",
                row["policy"],
                with_interval(row, "regret", 4),
                with_interval(row, "baseline_regret", 4),
                with_interval(row, "removed"),
            )
            for row in rows
        ),
        numeric_from=3,
        open=True,
    )


def regret_point_table(rows: Sequence[Row], learned: str, zeroed: str) -> Table:
    """Where the learned policy removes regret, and whether its network does it; safety net on."""
    lines: dict[tuple[str, float], dict[str, Row]] = {}
    for row in rows:
        if row["safety_net"] and row["policy"] in (learned, zeroed):
            lines.setdefault((row["shift"], row["load"]), {})[row["policy"]] = row
    found = [(key, line[learned], line.get(zeroed)) for key, line in lines.items()]
    return Table(
        f"Regret removed by {learned}, by shift and load, safety net on",
        ("shift", "load", "price's regret", "regret", "removed", "zeroed", "always-small copes"),
        tuple(
            (
                shift,
                f"{load:.2f}x",
                number(own["baseline_regret"], 4),
                with_interval(own, "regret", 4),
                with_interval(own, "removed"),
                "-" if twin is None else with_interval(twin, "removed"),
                "yes" if own["small_copes"] else "no",
            )
            for (shift, load), own, twin in found
        ),
    )
