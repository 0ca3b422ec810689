"""The report in a sentence or two."""

from __future__ import annotations

from typing import Any


def verdict(facts: dict[str, Any]) -> str:
    """Returns the report in one sentence or two."""
    total, devices = facts["total"], facts["devices"]
    if not facts["watched_s"]:
        return "Nothing is known of this time: no load monitor has watched the mesh in it."
    if not total["ended"]:
        return "No request ended in this time."
    said = (
        f"{total['in_time']:.4f} of {total['ended']:,} requests were in time, at a quality of"
        f" {total['quality']:.3f} where always-large would be {total['largest_quality']:.3f}"
    )
    needed, had = devices["static_large"], devices["mesh"]
    if devices["is_unreachable"]:
        said += "; the largest tier alone would not have earned that on any number of devices"
    elif needed is not None:
        said += f"; the largest tier alone would have needed {needed} {_devices_word(needed)}"
        said += f" for that, the mesh has {had:g}: {_saved(devices['saved'])}"
    said += "."
    if total["regret"] is not None:
        said += f" Knowing all requests beforehand could have earned {total['regret']:.3f} more"
        said += " at most."
    missed = [name for name, each in facts["tasks"].items() if each["target_is_missed"]]
    if missed:
        said += f" Below target: {', '.join(missed)}."
    return said


def _saved(count: float) -> str:
    return f"{count:g} saved" if count > 0 else "none saved"


def _devices_word(count: float) -> str:
    return "device" if count == 1 else "devices"
