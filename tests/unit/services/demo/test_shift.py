"""What the shift story sends and starts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from router.dqn.snapshot import load_snapshot
from router.features import SCHEMA
from services.demo.shift import BEFORE, LIMIT_S, MIX, SLOW, ShiftPlan
from services.local.triton.repository.paced import (
    PacedFleet,
    PacedRepository,
    write_paced_repository,
)

ADDRESSES = ("127.0.0.1:7410",)


def test_the_tasks_change_where_the_second_phase_begins() -> None:
    """Before it all come alike; from then on most are of the one at which small tiers are worst."""
    spec = ShiftPlan().spec(ADDRESSES, 95.0)
    arrivals = spec.arrivals()
    assert [each.name for each in arrivals.phases] == [BEFORE, MIX, SLOW]
    tasks: dict[int, Counter[str]] = {0: Counter(), 1: Counter(), 2: Counter()}
    for prompt, phase in zip(spec.drawn_prompts(arrivals), arrivals.phase_index, strict=True):
        tasks[int(phase)][prompt.task] += 1
    shares = [found["hellaswag"] / found.total() for found in tasks.values()]
    assert abs(shares[0] - 0.25) < 0.05
    assert all(abs(share - 0.7) < 0.05 for share in shares[1:])


def test_the_runs_take_less_than_the_story_may() -> None:
    """Three of them, and a minute of starting for each."""
    plan = ShiftPlan()
    assert 3.0 * (plan.slow_from_s + plan.slow_s + 60.0) < LIMIT_S


def test_every_policy_meets_the_same_mesh_with_a_trainer() -> None:
    """Its routers start with `price`; the snapshot comes by the trainer, which is told to learn."""
    options = ShiftPlan().options()
    assert options.trainer
    assert options.policy == "price"
    assert options.fresh
    assert not options.sections["trainer"].get("autostart_online", False)
    assert load_snapshot(ShiftPlan().snapshot.read_bytes(), SCHEMA).policy == "dqn"


def test_a_device_of_a_fleet_that_is_there_is_slowed(tmp_path: Path) -> None:
    """By its folder alone, as whoever started the mesh knows it."""
    plan = ShiftPlan()
    fleet = PacedFleet(profile=plan.mesh().profile, tiers=("small",), device_count=1)
    written = write_paced_repository(tmp_path / "triton", fleet)
    PacedRepository.at(tmp_path / "triton").set_device("gpu0", slow_down=2.0)
    told = json.loads((written.state_directory / "gpu0.control.json").read_text())
    assert told == {"slow_down": 2.0, "state": "ok"}
