"""How a router is put together from its settings."""

from __future__ import annotations

import asyncio
from typing import cast

from router.catalog import Catalog
from router.profile import LatencyProfile, TierProfile
from services.common.mesh_settings import MeshFiles
from services.common.tiers.client import ForbiddenClient
from services.common.triton.client import TritonClient
from services.router_inference.core import ClientPool, profiles_by_name
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


def test_one_client_per_address() -> None:
    """The same one for the same address, so that a channel is opened once."""

    async def run() -> None:
        pool = ClientPool()
        assert pool.get("127.0.0.1:1") is pool.get("127.0.0.1:1")
        assert pool.get("127.0.0.1:1") is not pool.get("127.0.0.1:2")
        await pool.close()

    asyncio.run(run())


class LeavingClient:
    """A client that has a request under way."""

    busy_count, is_closed = 1, False

    async def close(self) -> None:
        """Is closed."""
        self.is_closed = True


@scenario
async def test_clients_of_endpoints_that_left_are_closed_when_they_are_done() -> None:
    """Connections do not pile up while endpoints come and go; nothing under way is cut."""
    pool, gone, stays = ClientPool(), LeavingClient(), LeavingClient()
    pool._clients |= {"a:1": cast("TritonClient", gone), "b:1": cast("TritonClient", stays)}
    pool.keep({"b:1"})
    await asyncio.sleep(60.0)
    assert not gone.is_closed
    gone.busy_count = 0
    await asyncio.sleep(2.0)
    assert (gone.is_closed, stays.is_closed) == (True, False)
    assert list(pool._clients) == ["b:1"]
    await pool.close()
    assert stays.is_closed


def test_a_monitor_cannot_have_prompts_sent_elsewhere() -> None:
    """Whatever a system state names, an address that is not allowed gets a client that is none."""

    async def run() -> None:
        pool = ClientPool(is_allowed=lambda address: address.startswith("127."))
        assert type(pool.get("127.0.0.1:1")) is TritonClient
        assert type(pool.get("evil.example:8001")) is ForbiddenClient
        await pool.close()

    asyncio.run(run())


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
