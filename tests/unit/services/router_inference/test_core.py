"""How a router is put together from its settings."""

from __future__ import annotations

from router.catalog import Catalog
from router.profile import LatencyProfile, TierProfile
from services.common.mesh_settings import MeshFiles
from services.router_inference.core import profiles_by_name
from tests.unit.services.router_inference.parts import (
    PROFILE,
    QUALITY,
    TASKS,
    TIERS,
    make_rig,
)
from tests.unit.services.router_inference.scenario import scenario


def test_profiles_are_found_by_endpoint_by_name_and_by_default() -> None:
    """An endpoint's own profile goes by the endpoint's name and by its own."""
    other = LatencyProfile("other", "assumed", {"small": TierProfile(0.001, 0.0, 0.0)})
    files = MeshFiles(
        catalog=Catalog.build(TIERS, TASKS, QUALITY),
        quality=QUALITY,
        profile=PROFILE,
        endpoint_profiles={"e1": other},
    )
    assert profiles_by_name(files) == {
        "": PROFILE, PROFILE.name: PROFILE, "e1": other, "other": other,
    }  # fmt: skip


@scenario
async def test_two_routers_with_one_seed_decide_alike() -> None:
    """Request ids, sampling seeds and the draws of a policy come from the seed."""
    chosen = []
    for _ in range(2):
        rig = make_rig(endpoint_count=2, policy="random")
        jobs = [rig.job() for _ in range(20)]
        for job in jobs:
            await rig.answer(job)
        chosen.append([(job.request_id, job.seed, job.tier, job.endpoint) for job in jobs])
    assert chosen[0] == chosen[1]
    assert len({tier for _, _, tier, _ in chosen[0]}) > 1
