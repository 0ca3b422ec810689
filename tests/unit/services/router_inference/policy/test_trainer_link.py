"""Without a trainer the active policy comes from the registry."""

from __future__ import annotations

import asyncio

from services.common.log import get_logger
from services.common.state.policy_store import MemoryPolicyStore
from services.router_inference.policy.slot import Promoted
from services.router_inference.policy.trainer_link import PolicyLink
from tests.fakes.state_store import SwitchableStore
from tests.unit.services.router_inference.parts import Rig, make_rig
from tests.unit.services.router_inference.scenario import scenario


def link(rig: Rig, store: object) -> PolicyLink:
    """Returns a link to a registry alone."""
    return PolicyLink(
        channel=None,
        store=store,  # type: ignore[arg-type]
        slot=rig.core.slot,
        notes=rig.core.notes,
        clock=rig.clock,
        log=get_logger("test"),
        longest_wait_s=1.0,
    )


async def registry(policy: str) -> SwitchableStore:
    """Returns a registry with an active policy."""
    store = MemoryPolicyStore()
    await store.put(b"", None, policy, "")
    await store.activate(policy, "")
    return SwitchableStore(store)


@scenario
async def test_the_active_policy_is_taken_once_the_store_answers() -> None:
    """A registry that is away at first is asked until it is back."""
    rig = make_rig()
    store = await registry("greedy")
    store.is_down = True
    reading = asyncio.ensure_future(link(rig, store).read_registry())
    await asyncio.sleep(5.0)
    assert rig.core.slot.name == "static-large"
    store.is_down = False
    await reading
    assert (rig.core.slot.name, rig.core.slot.activation) == ("greedy", 1)


@scenario
async def test_what_the_trainer_said_meanwhile_wins() -> None:
    """An activation that came by the stream is not undone by an older one in the registry."""
    rig = make_rig()
    store = await registry("greedy")
    store.is_down = True
    reading = asyncio.ensure_future(link(rig, store).read_registry())
    await asyncio.sleep(0.5)
    rig.core.slot.promote(Promoted("random", "", b"", b"", 7))
    store.is_down = False
    await reading
    assert (rig.core.slot.name, rig.core.slot.activation) == ("random", 7)


@scenario
async def test_an_empty_registry_changes_nothing() -> None:
    """A mesh in which nothing was ever promoted keeps the policy of its settings."""
    rig = make_rig()
    await link(rig, SwitchableStore(MemoryPolicyStore())).read_registry()
    assert (rig.core.slot.name, rig.core.slot.activation) == ("static-large", 0)


@scenario
async def test_a_registry_that_starts_anew_is_followed() -> None:
    """The trainer's order is the order, whatever its numbers; nothing promoted is told as well."""
    rig = make_rig()
    taking = link(rig, None)
    taking.take(Promoted("greedy", "", b"", b"", 2**52))
    taking.take(Promoted("random", "", b"", b"", 1))
    assert (rig.core.slot.name, rig.core.slot.activation) == ("random", 1)
    taking.take(Promoted("", "", b"", b"", 2))
    assert (rig.core.slot.name, rig.core.slot.activation) == ("static-large", 2)
