"""The requests of a load run as the simulator gets them."""

from __future__ import annotations

import numpy as np

from services.live.compare import Plan
from services.live.simulated import stretched_setting, workload_of
from services.loadgen.run import LoadRun
from services.loadgen.spec import LoadSpec
from tests.unit.services.live.subjects import PLAN
from trainer.simulation.setting import Setting


def requests(plan: Plan, seed: int = 3) -> tuple[LoadSpec, Setting]:
    """Returns the requests of a run in time stretched twentyfold, and its setting."""
    setting = stretched_setting(plan.mesh(20.0))
    tasks = [task.name for task in setting.catalog.tasks]
    return plan.spec(("127.0.0.1:1",), tasks, 20.0, 800.0, seed), setting


async def test_they_are_the_very_ones_that_are_sent() -> None:
    """Arrivals, tasks and lengths of prompts, one by one."""
    spec, setting = requests(PLAN)
    workload, sent = workload_of(spec, setting), LoadRun(spec)
    assert workload.arrival_N.tolist() == sent._arrivals.arrival_s.tolist()
    names = [setting.catalog.tasks[k].name for k in workload.task_N]
    assert names == [each.task for each in sent._prompts]
    # The router counts a token for every four bytes.
    tokens = [round(len(each.text) / 4.0 + 0.25) for each in sent._prompts]
    assert workload.prompt_N.tolist() == tokens
    assert set(workload.slack_N) == {8.0}


async def test_they_come_through_the_routers_that_they_are_sent_to() -> None:
    """In turn, as the generator's pool hands routers out."""
    spec, setting = requests(PLAN)
    addresses = [f"127.0.0.1:{port}" for port in (1, 2, 3)]
    spec = spec.model_copy(update={"router_addresses": addresses})
    router_N, pool = workload_of(spec, setting).router_N, LoadRun(spec)._pool
    assert router_N is not None
    sent = [addresses.index(next(pool.attempts()).address) for _ in range(30)]
    assert router_N[:30].tolist() == sent
    await pool.close()


def test_answers_are_as_long_as_paced_tiers_make_them() -> None:
    """About eight tokens, never more than the task's limit, the same for the same seed."""
    spec, setting = requests(PLAN)
    output_N = workload_of(spec, setting).output_N
    assert 7.5 < output_N.mean() < 8.5
    assert output_N.std() > 1.5
    assert output_N.max() <= 16
    assert np.array_equal(output_N, workload_of(spec, setting).output_N)


def test_the_simulated_mesh_is_stretched_as_the_live_one() -> None:
    """Deadline and costs grow by the factor; the profile keeps its name."""
    plain, slow = stretched_setting(PLAN.mesh()), stretched_setting(PLAN.mesh(20.0))
    assert slow.deadline_s == 20.0 * plain.deadline_s
    assert slow.profiles[""].name == plain.profiles[""].name
    assert np.allclose(slow.fleet.arrays.step_s_C, 20.0 * plain.fleet.arrays.step_s_C)
