"""What somebody with a mesh wants to know first: which policy, up to which load, how many GPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.evaluation.rows import Row
from trainer.simulation.setting import HOLDS


def best_policy(sweep: Sequence[Row], zeroed: Sequence[str], small: str, learned: str = "") -> str:
    """Returns the policy with the highest mean performance, safety net on.

    Over the loads at which always-small is on time: beyond them nobody is, and what is earned there
    would drown the rest. Where nothing tells the learned one and another apart, the learned one.

    Args:
        sweep: rows of the sweep.
        zeroed: policies that are there to show something else.
        small: name of always-small.
        learned: name of the learned policy; empty if there is none.
    """
    rows = [row for row in sweep if row["safety_net"] and row["policy"] not in zeroed]
    held = {row["load"] for row in rows if row["policy"] == small and row["availability"] >= HOLDS}
    held = held or {min(row["load"] for row in rows)}
    means: dict[str, list[float]] = {}
    for row in rows:
        if row["load"] in held:
            means.setdefault(row["policy"], []).append(row["performance"])
    by_mean = {name: sum(found) / len(found) for name, found in means.items()}
    return max(by_mean, key=lambda name: (round(by_mean[name], 4), name == learned))


def answer(report: Mapping[str, Any], best: str, large: str) -> Row:
    """Returns the answer, from a report's own rows.

    Args:
        report: the results so far, `per_gpu` of the best policy among them.
        best: the policy `best_policy` found.
        large: name of static-large.
    """

    def with_net(part: str, policy: str) -> list[Row]:
        return [row for row in report[part] if row["policy"] == policy and row["safety_net"]]

    held = {
        name: max((row["held_rps"] for row in with_net("load_ratio", name)), default=0.0)
        for name in (best, large)
    }
    loads = [row for row in with_net("sweep", best) if row["rate_rps"] <= held[best] * 1.001]
    gpus = [row for row in with_net("per_gpu", best) if row["rate_rps"] <= held[best] * 1.001]
    at = gpus[-1] if gpus else None
    found: Row = {
        "policy": best,
        "target": HOLDS,
        "held_rps": round(held[best], 3),
        "static_large": large,
        "static_large_held_rps": round(held[large], 3),
        "performance": loads[-1]["performance"] if loads else None,
        "performance_rps": loads[-1]["rate_rps"] if loads else None,
        "gpus_rps": at["rate_rps"] if at else None,
        "devices": at["devices"] if at else None,
        "static_large_devices": at["static_large_devices"] if at else None,
        "most_devices_tried": at["most_devices_tried"] if at else None,
    }
    return {**found, "sentence": sentence(found)}


def sentence(found: Row) -> str:
    """Returns the answer in words."""
    best, large, target = found["policy"], found["static_large"], f"{found['target']:.0%}"
    held, static = found["held_rps"], found["static_large_held_rps"]
    if not held:
        return (
            f"No rate is held at {target} in time: {best} does best, and what it earns is below. "
            "Give longer deadlines, smaller tiers or more devices."
        )
    said = f"Use {best}: it answers {target} in time up to {rate_text(held)} requests/s"
    if best != large:
        more = f", {held / static:.1f} times as many as {large}" if static else ""
        said += f"{more or f', where {large} holds no rate'}"
    if found["performance"] is not None:
        there = rate_text(found["performance_rps"])
        at = "there" if there == rate_text(held) else f"at {there}"
        said += f", and earns {found['performance']:.3f} of the peak {at}"
    said += "."
    needed, own = found["static_large_devices"], found["devices"]
    if own is None:
        return said
    said += f" At {rate_text(found['gpus_rps'])} requests/s"
    if needed is None:
        most = found["most_devices_tried"]
        return f"{said} its {own} GPUs earn what {large} does not with {most}."
    saved = max(0.0, needed - own)
    return (
        f"{said} {large} needs {needed:.3g} GPUs to earn as much as its {own}: {saved:.3g} saved."
    )


def rate_text(rate_rps: float) -> str:
    """Returns a rate, requests/s, in three digits at least and without an exponent."""
    return f"{rate_rps:,.0f}" if rate_rps >= 100.0 else f"{rate_rps:.3g}"
