"""What a demo says in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.demo.plan import LEARNED_POLICY

REFERENCE_POLICY = "static-large"
"""What people have without Tiercel; the others are held against it."""


def title(policy: str) -> str:
    """A policy's name as people read it."""
    return "learned (dqn)" if policy == LEARNED_POLICY else policy


def best_policy(policies: Mapping[str, Any]) -> str:
    """Returns the policy that earned most in the burst, of the valid runs; empty if there is none.

    Args:
        policies: `policies` of the report, in its order, the first of equals wins.
    """
    found = {
        name: each["phases"]["burst"]["performance"]
        for name, each in policies.items()
        if each["valid"] and each["phases"]["burst"]["offered"]
    }
    return max(found, key=lambda name: found[name], default="")


def verdict(report: Mapping[str, Any]) -> str:
    """Returns the sentence at the head of the report."""
    policies = report["policies"]
    best = best_policy(policies)
    if not best:
        return "No policy has a valid run: this machine was too busy to say anything."
    times = report["burst_rps"] / report["static_large_capacity_rps"]
    compared = [
        name
        for name in (REFERENCE_POLICY, LEARNED_POLICY)
        if name in policies and name != best and policies[name]["valid"]
    ]
    others = "".join(f"; {title(name)}: {_said(policies[name])}" for name in compared)
    return (
        f"In the burst of {report['burst_rps']:.0f} requests/s, {times:.1f} times what the largest"
        f" tier alone holds on this machine, {title(best)} earned most:"
        f" {_said(policies[best])}{others}."
    )


def devices_sentence(devices: Mapping[str, Any] | None) -> str:
    """Returns what the best policy saves in devices; empty if that was not reckoned."""
    if devices is None:
        return ""
    needed, most = devices["needed"], devices["most_tried"]
    said = f"{needed} such devices" if needed is not None else f"more than {most} such devices"
    return (
        f"To earn as much as {title(devices['policy'])} did on this one device"
        f" (performance {devices['performance']:.3f} over the whole run), {REFERENCE_POLICY} would"
        f" need {said}."
    )


def _said(policy: Mapping[str, Any]) -> str:
    burst = policy["phases"]["burst"]
    if not burst["offered"]:
        return "nothing was asked"
    share = 100.0 * burst["availability"]
    return f"{share:.1f} % in time, performance {burst['performance']:.3f}"
