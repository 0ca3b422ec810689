"""Paired returns: what actions are worth on the same future."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from router.features import BAND_DISTANCE
from router.policies.dqn import PRICE_DEFAULTS_P
from router.policies.table import make_policy
from router.types import SloKind
from tests.unit.trainer.simulation.test_scenarios import PROFILE, QUALITY, TASKS
from trainer.learning.offline import paired_returns as paired
from trainer.learning.offline.config import PriceSearchConfig
from trainer.learning.offline.paired_returns import paired_samples
from trainer.learning.offline.price_search import spec_of, start_table
from trainer.learning.offline.samples import PairedSamples
from trainer.simulation import loop
from trainer.simulation.scenarios import TRUE_COSTS, Mesh, training_scenario
from trainer.simulation.simulate import SOFT_GRACE, PolicySpec, SimulationConfig, make_world
from trainer.simulation.state import RUNNING
from trainer.simulation.workload import Workload

# The first test of a run compiles the simulator.
pytestmark = pytest.mark.timeout(300)


def _mesh(**changes: Any) -> Mesh:
    """Returns one device; changes are of its tasks."""
    tasks = [replace(task, **changes) for task in TASKS]
    return Mesh.build(profile=PROFILE, quality=QUALITY, tasks=tasks, deadline_s=0.3, devices=1)


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


def test_features_are_those_of_the_policy_that_learns() -> None:
    """A scheduled price reads none: where it drives, they follow the table that is corrected.

    Of two devices one at least is outside of a tier's band, and features say so.
    """
    mesh = Mesh.build(profile=PROFILE, quality=QUALITY, tasks=TASKS, deadline_s=0.3, devices=2)
    table_P = start_table(mesh, PRICE_DEFAULTS_P, PriceSearchConfig())
    scenario = training_scenario(mesh, np.random.default_rng(3), 400)
    calm = replace(scenario.config, routers=1, staleness_s=0.0, events=())
    found, without = (
        paired_samples(
            replace(scenario, config=calm), spec_of(table_P), np.random.default_rng(3),
            sample_count=10, horizon_s=0.6, epsilon=0.1, mix_T=(1.0, 1.0), base_P=base_P,
        )
        for base_P in (table_P, PRICE_DEFAULTS_P)
    )  # fmt: skip
    assert len(found.x_BCF) >= 5
    assert (found.x_BCF[:, :, BAND_DISTANCE].max(axis=1) > 0.0).all()
    assert not without.x_BCF[:, :, BAND_DISTANCE].any()
    # What is measured is the same: features change no decision.
    np.testing.assert_array_equal(found.tried_BC, without.tried_BC)
    np.testing.assert_array_equal(found.return_BC, without.return_BC)


def _idle(mesh: Mesh, slack_s: float = 1.0, output_tokens: int = 0) -> PairedSamples:
    """Returns samples of one request per two seconds."""
    base = training_scenario(mesh, np.random.default_rng(0), 50)
    workload = base.workload
    count = len(workload)
    alone = type(workload)(
        np.arange(count, dtype=np.float64) * 2.0,
        workload.task_N,
        workload.prompt_N,
        np.full(count, output_tokens) if output_tokens else workload.output_N,
        np.full(count, slack_s),
        2.0 * count,
    )
    scenario = type(base)(base.config, alone, 1)
    spec = PolicySpec.of(make_policy("static-small", mesh.catalog))
    return paired_samples(
        scenario, spec, np.random.default_rng(0), sample_count=8, horizon_s=1.5,
        epsilon=0.0, mix_T=(1.0, 1.0),
    )  # fmt: skip


def _assert_gaps_are_the_qualities(found: PairedSamples) -> None:
    assert len(found.x_BCF) >= 3
    gap_B = found.return_BC[:, 1] - found.return_BC[:, 0]
    quality_B = found.x_BCF[:, 1, 0] - found.x_BCF[:, 0, 0]
    np.testing.assert_allclose(gap_B, quality_B, atol=1e-5)


@pytest.mark.parametrize(
    ("slack_s", "output_tokens"),
    [
        pytest.param(1.0, 0, id="due within the horizon"),
        pytest.param(5.0, 0, id="due after it"),
        pytest.param(60.0, 400, id="under way at its end"),
    ],
)
def test_idle_mesh_gains_the_quality(slack_s: float, output_tokens: int) -> None:
    """Where nobody else is harmed, the difference between actions is their own quality."""
    _assert_gaps_are_the_qualities(_idle(_mesh(), slack_s, output_tokens))


@pytest.mark.parametrize(
    ("kind", "most_s"),
    [
        (SloKind.COMPLETE_ANSWER, 0.0),
        (SloKind.FIRST_TOKEN, 0.0),
        (SloKind.PER_TOKEN, 16 * 0.05),
    ],
)
def test_futures_end_when_it_has_come_out_what_was_earned(
    kind: SloKind, most_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams that go on are not waited for beyond the last moment that counts."""
    after_s = []
    advance_to = paired._advance_to

    def note(world: Any, i: int, action: int, explores: bool, *rest: Any) -> Any:
        if not explores:
            soft_s = SOFT_GRACE * float(world.requests["decay_s"].max())
            after_s.append(rest[1] - 1.5 - soft_s - float(world.clock["now_s"][0]))
        return advance_to(world, i, action, explores, *rest)

    monkeypatch.setattr(paired, "_advance_to", note)
    _assert_gaps_are_the_qualities(_idle(_mesh(slo_kind=kind, token_interval_s=0.05)))
    assert max(after_s) <= most_s + 1e-9


@pytest.mark.parametrize(("slack_s", "earned"), [(0.3, 1.0), (0.001, 0.0)])
def test_a_first_token_tells_what_a_request_earns(slack_s: float, earned: float) -> None:
    """It is known while the answer goes on."""
    mesh = _mesh(slo_kind=SloKind.FIRST_TOKEN)
    config = SimulationConfig(mesh.fleet, mesh.catalog, {"": PROFILE, TRUE_COSTS: PROFILE})
    offered = Workload(
        np.array([0.0, 1.0]),
        np.zeros(2, np.int64),
        np.full(2, 10.0),
        np.full(2, 400),
        np.full(2, slack_s),
        2.0,
    )
    world = make_world(replace(config, safety=False), offered, 0)
    loop.apply(world, loop.advance(world), 1)
    assert loop.advance(world) == 1
    assert world.requests["status"][0] == RUNNING
    assert paired._earned(world, world.requests)[0] == earned


def _arrays(part: Any) -> list[Any]:
    """Returns the arrays of a part of a world, which may be a tuple of parts."""
    return [each for one in part for each in _arrays(one)] if isinstance(part, tuple) else [part]


def test_copied_world_equals_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy a future starts from is the source, though only parts of it are copied."""
    refill = paired._Copy.refill
    checked = 0

    def check(self: Any) -> Any:
        nonlocal checked
        world, source = refill(self), self._source
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
