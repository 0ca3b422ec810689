"""The study of targets: its verdict, its table, its cases."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.evaluation.jobs import Context
from trainer.research import promise
from trainer.research.scale import spec_of
from trainer.research.tuning import profile_of
from trainer.simulation.setting import Setting, shared_fleet_setting


def row(policy: str, *missed: float) -> promise.Row:
    """Returns what one policy missed of each task."""
    return {
        "case": "Poisson",
        "load": 4.0,
        "target": 0.99,
        "policy": policy,
        "seed": 1,
        "missed_K": list(missed),
        "availability": 1.0 - sum(missed) / len(missed),
        "performance": 0.8,
    }


def setting() -> Setting:
    """Returns a small fleet of the evaluation's profile."""
    profile, quality = profile_of(promise.parser().parse_args([]))
    return shared_fleet_setting(profile.name, profile, quality, device_count=2)


@pytest.mark.parametrize(
    ("small", "missed", "held"),
    [
        ((0.0, 0.0), (0.0, 0.013), True),
        ((0.0, 0.0), (0.0, 0.014), False),  # one task is enough
        ((0.1, 0.1), (0.12, 0.12), True),  # always-small keeps no more
    ],
)
def test_a_case_is_held_if_every_task_is(
    small: tuple[float, ...], missed: tuple[float, ...], held: bool
) -> None:
    """Against the target, or against always-small where that misses more."""
    found = promise.judged([row(promise.SMALL, *small), row("dqn", *missed)])
    assert [each["held"] for each in found] == [True, held]


def test_the_table_counts_what_was_missed() -> None:
    """What was missed is bold, and counted below."""
    found = promise.judged([row(promise.SMALL, 0.0), row("dqn", 0.5)])
    text = promise.table(found, (promise.SMALL, "dqn"), 0.99)
    assert "| Poisson | 4x | 1.0000 / 0.800 | **0.5000 / 0.800** |" in text
    assert "| *cases missed* | | 0 | 1 |" in text


def test_a_target_is_held_on_slower_devices(tmp_path: Path) -> None:
    """Of two runs over the same requests the one with a target is in time."""
    settings = promise.settings_of(setting())
    context = Context(settings, {"price": spec_of("price", settings[""])})
    trials = promise.trials(settings, (0.99,), (1,), ("price",), 4_000)
    trial = next(each for each in trials if each.setting == "1.6 times as slow")
    held = trial.run(context)
    assert held["availability"] > 0.97
    assert len(held["missed_K"]) == len(settings[""].catalog.tasks)
    with pytest.raises(SystemExit):
        promise.main(["--no-such-option"])
