"""What worker processes run, in this process."""

from __future__ import annotations

import pytest

from router.types import Task
from services.trainer.jobs import MeshSpec, SimulationJob
from tests.unit.router import fleets
from trainer.evaluation.past import PastRequest

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles


def test_past_requests_are_reckoned_on_the_devices_that_there_are() -> None:
    """Not on those of the settings, which may be fewer; each task gets its part of the bound."""
    spec = MeshSpec(
        profile=fleets.profile(),
        quality=fleets.quality(),
        tasks=tuple(Task(task.name, 0.4) for task in fleets.catalog().tasks),
        deadline_s=0.4,
        devices=(fleets.TIERS,),
    )
    names = [task.name for task in spec.tasks]
    requests = [PastRequest(names[i % 2], 0.004 * i, 100, 8, 0.4, 0.5) for i in range(300)]
    one = SimulationJob().look_back(spec, spec.devices, requests)
    three = SimulationJob().look_back(spec, spec.devices * 3, requests)
    assert set(one.parts) == set(names)
    assert sum(one.parts.values()) < sum(three.parts.values()) <= len(requests)
    assert one.static_large[0] == three.static_large[0]
    assert one.static_large[0][1] < one.static_large[-1][1]
