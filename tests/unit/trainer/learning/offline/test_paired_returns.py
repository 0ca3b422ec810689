"""Paired returns: what actions are worth on the same future."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from router.policies.table import make_policy
from tests.unit.trainer.simulation.test_scenarios import PROFILE, QUALITY, TASKS
from trainer.learning.offline import paired_returns as paired
from trainer.learning.offline.paired_returns import paired_samples
from trainer.learning.offline.samples import PairedSamples
from trainer.simulation.scenarios import Mesh, training_scenario
from trainer.simulation.simulate import PolicySpec

# The first test of a run compiles the simulator.
pytestmark = pytest.mark.timeout(300)


def _mesh() -> Mesh:
    return Mesh.build(profile=PROFILE, quality=QUALITY, tasks=TASKS, deadline_s=0.3, devices=1)


def _samples(seed: int, rate_factor: float) -> PairedSamples:
    """Returns samples of steady traffic under the price policy."""
    mesh = _mesh()
    rng = np.random.default_rng(seed)
    scenario = training_scenario(mesh, rng, int(400 * rate_factor))
    price = PolicySpec.of(make_policy("price", mesh.catalog))
    return paired_samples(
        scenario,
        price,
        np.random.default_rng(seed),
        sample_count=10,
        horizon_s=0.6,
        epsilon=0.1,
        mix_T=(1.0, 1.0),
    )


def test_paired_returns_are_reproducible_and_paired() -> None:
    """The same seed gives the same returns; trying changes nothing but the action tried."""
    one, two = _samples(3, 1.0), _samples(3, 1.0)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(one.x_BCF) >= 5
    assert (one.tried_BC.sum(axis=1) >= 2).all()
    assert not (one.tried_BC & ~one.allowed_BC).any()
    assert not one.return_BC[~one.tried_BC].any()


def test_idle_mesh_gains_the_quality() -> None:
    """Where nobody else is there, the difference between actions is their own quality."""
    mesh = _mesh()
    base = training_scenario(mesh, np.random.default_rng(0), 50)
    workload = base.workload
    count = len(workload)
    # One request per two seconds: no two ever meet.
    alone = type(workload)(
        np.arange(count, dtype=np.float64) * 2.0,
        workload.task_N,
        workload.prompt_N,
        workload.output_N,
        np.full(count, 1.0),
        2.0 * count,
    )
    scenario = type(base)(base.config, alone, 1)
    spec = PolicySpec.of(make_policy("static-small", mesh.catalog))
    found = paired_samples(
        scenario, spec, np.random.default_rng(0), sample_count=8, horizon_s=1.5,
        epsilon=0.0, mix_T=(1.0, 1.0),
    )  # fmt: skip
    gap_B = found.return_BC[:, 1] - found.return_BC[:, 0]
    quality_B = found.x_BCF[:, 1, 0] - found.x_BCF[:, 0, 0]
    np.testing.assert_allclose(gap_B, quality_B, atol=1e-5)


def _arrays(part: Any) -> list[Any]:
    """Returns the arrays of a part of a world, which may be a tuple of parts."""
    return [each for one in part for each in _arrays(one)] if isinstance(part, tuple) else [part]


def test_copied_world_equals_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy a future starts from is the source, though only parts of it are copied."""
    refill = paired._Copy.refill
    checked = 0

    def check(self: Any, start_s: float, end_s: float) -> Any:
        nonlocal checked
        world, source = refill(self, start_s, end_s), self._source
        used = {"heap_s": "heap", "heap_id": "heap", "pending_N": "pending"}
        for name in world._fields:
            own, new = getattr(world, name), getattr(source, name)
            if name in used:
                count = int(source.clock[used[name]][0])
                own, new = own[:count], new[:count]
            for a, b in zip(_arrays(own), _arrays(new), strict=True):
                assert a.tobytes() == b.tobytes(), name
        checked += 1
        return world

    monkeypatch.setattr(paired._Copy, "refill", check)
    for seed in range(6):
        _samples(seed, 2.0)
    assert checked > 50
