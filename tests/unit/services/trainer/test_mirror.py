"""Memory and store of the registry: one serves while the other is away, then they agree again."""

from __future__ import annotations

import asyncio
import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.common.log import get_logger
from services.common.state.errors import StateUnavailableError, VersionMismatchError
from services.common.state.policy_store import Activation, MemoryPolicyStore
from services.trainer.metrics import TrainerMetrics
from services.trainer.mirror import PolicyMirror
from services.trainer.model import PolicyRecord, RolloutState, Stage
from tests.fakes.state_store import SwitchableStore


def check(blob: bytes) -> Any:
    """Takes any bytes for the snapshot of the version they name."""
    return SimpleNamespace(version=blob.decode())


class Bench:
    """A mirror on a store that can be switched off."""

    def __init__(self) -> None:
        self.store: Any = SwitchableStore(MemoryPolicyStore())
        self.prometheus = CollectorRegistry()
        self.mirror = self.another(self.prometheus)

    def another(self, prometheus: CollectorRegistry | None = None) -> PolicyMirror:
        """Returns one more mirror of the store, as another or a restarted trainer has."""
        return PolicyMirror(
            store=self.store,
            check=check,
            log=get_logger("test"),
            metrics=TrainerMetrics(prometheus or CollectorRegistry()),
            kept_limit=3,
        )


def record(version: str) -> PolicyRecord:
    """Returns what is known about a published policy; a higher version is a newer one."""
    return PolicyRecord(
        policy="dqn", version=version, stage=Stage.PROPOSED, publish_ns=1 + int(version)
    )


def pinned(state: RolloutState, number: int) -> RolloutState:
    """Notes that an activation is pinned."""
    return replace(state, pinned_activation=number)


@pytest.fixture
def bench() -> Bench:
    """A fresh bench."""
    return Bench()


async def present(mirror: PolicyMirror) -> Activation:
    """Returns the activation a mirror finds in the store."""
    await mirror.pull()
    return mirror.history[-1]


async def test_memory_serves_alone_and_says_so(bench: Bench) -> None:
    """While the store is away policies are taken in, found and activated all the same."""
    bench.store.is_down = True
    await bench.mirror.add(record("1"), b"1")
    assert not await bench.mirror.activate("dqn", "1", None)
    assert bench.mirror.activation == 1
    assert [each.version for each in await bench.mirror.records()] == ["1"]
    assert bench.mirror.is_degraded
    assert bench.prometheus.get_sample_value("tiercel_trainer_store_reachable") == 0.0


async def test_a_store_that_is_back_gets_what_it_missed(bench: Bench) -> None:
    """Policies and the activation reach it, and others find both there."""
    bench.store.is_down = True
    await bench.mirror.add(record("1"), b"1")
    await bench.mirror.activate("dqn", "1", None)
    bench.store.is_down = False
    await bench.mirror.pull()
    assert not bench.mirror.is_degraded
    assert bench.prometheus.get_sample_value("tiercel_trainer_store_reachable") == 1.0
    other = bench.another()
    assert (await present(other)).version == "1"
    found = await other.find("dqn", "1")
    assert found is not None
    assert found.snapshot == b"1"


async def test_an_emptied_store_gets_everything_back_under_the_same_number(bench: Bench) -> None:
    """The active policy, which is no other one for that, and what is known beside it."""
    await bench.mirror.add(record("1"), b"1")
    for _ in range(4):
        await bench.mirror.activate("dqn", "1", None)
    await bench.mirror.keep_rollout(RolloutState(pinned_activation=4))
    bench.store.target = MemoryPolicyStore()
    for _ in range(2):
        assert (await present(bench.mirror)).activation == 4
        assert len(bench.mirror.history) == 4
    other = bench.another()
    assert await present(other) == Activation(4, "dqn", "1")
    assert await other.find("dqn", "1") is not None
    assert other.rollout.pinned_activation == 4


async def test_a_store_that_lost_its_last_writes_gets_them_back(bench: Bench) -> None:
    """As after a failover: what it still knows of the rollout is older than what we know."""
    await bench.mirror.activate("price", "", None)
    await bench.mirror.keep_rollout(RolloutState(pinned_activation=1))
    older = copy.deepcopy(bench.store.target)
    await bench.mirror.activate("dqn", "1", None)
    await bench.mirror.keep_rollout(RolloutState(pinned_activation=2))
    bench.store.target = older
    other = bench.another()
    await bench.mirror.pull()
    assert await present(other) == Activation(2, "dqn", "1")
    assert other.rollout == bench.mirror.rollout == RolloutState(pinned_activation=2)


@pytest.mark.parametrize("is_pinned", [False, True])
@pytest.mark.parametrize("is_away", [False, True])
async def test_a_number_that_a_failover_gave_twice_is_given_up(
    bench: Bench, is_away: bool, is_pinned: bool
) -> None:
    """Routers at either trainer hear of a new number; what the later one activated holds."""
    other = bench.another()
    await bench.mirror.activate("price", "", None)
    await other.pull()
    older = copy.deepcopy(bench.store.target)
    await bench.mirror.activate("dqn", "1", None, pinned)
    bench.store.target = older
    await other.activate("greedy", "", None, pinned if is_pinned else None)
    assert bench.mirror.history[-1].activation == other.history[-1].activation == 2
    activate = older.activate

    async def unheard(*_arguments: Any, **_named: Any) -> int:
        raise StateUnavailableError("did not answer in time")

    if is_away:
        older.activate = unheard
        assert await present(bench.mirror) == Activation(2, "dqn", "1")
        older.activate = activate
    for mirror in (bench.mirror, other, bench.another()):
        assert await present(mirror) == Activation(3, "greedy", "")
        assert mirror.rollout.pinned_activation == (3 if is_pinned else 0)
    assert [each.activation for each in await bench.store.history()] == [1, 2, 3]


async def test_an_activation_made_meanwhile_keeps_its_number(bench: Bench) -> None:
    """It is the same one when the store is back, unless another trainer took the number."""
    bench.store.is_down = True
    await bench.mirror.activate("price", "", None)
    bench.store.is_down = False
    assert await present(bench.mirror) == Activation(1, "price", "")
    bench.store.is_down = True
    await bench.mirror.activate("dqn", "1", None)
    bench.store.is_down = False
    await bench.store.activate("greedy", "")
    assert await present(bench.mirror) == Activation(3, "dqn", "1")
    assert await present(bench.another()) == Activation(3, "dqn", "1")


async def test_an_activation_whose_answer_was_lost_is_not_made_twice(bench: Bench) -> None:
    """The store had taken it in, as its history shows."""
    activate = bench.store.target.activate

    async def without_an_answer(*arguments: Any, **named: Any) -> int:
        await activate(*arguments, **named)
        raise StateUnavailableError("did not answer in time")

    bench.store.target.activate = without_an_answer
    assert not await bench.mirror.activate("price", "", 0)
    bench.store.target.activate = activate
    assert await present(bench.mirror) == Activation(1, "price", "")
    assert await bench.store.history() == [Activation(1, "price", "")]


async def test_two_trainers_at_an_emptied_store_activate_once(bench: Bench) -> None:
    """The one that looks later finds what the other has written back."""
    await bench.mirror.activate("price", "", None)
    other = bench.another()
    await other.pull()
    bench.store.target = MemoryPolicyStore()
    history, is_first = bench.store.target.history, True

    async def after_the_other() -> list[Activation]:
        nonlocal is_first
        found: list[Activation] = await history()
        if is_first:
            is_first = False
            await other.pull()
        return found

    bench.store.target.history = after_the_other
    for _ in range(2):
        assert await present(bench.mirror) == Activation(1, "price", "")
    assert await bench.store.history() == [Activation(1, "price", "")]


async def test_a_store_that_takes_nothing_is_not_called_well(bench: Bench) -> None:
    """One that is full, or read-only, still answers what it is asked."""
    put = bench.store.target.put

    async def full(*arguments: Any) -> None:
        raise StateUnavailableError("Redis refused: OOM")

    bench.store.target.put = full
    await bench.mirror.add(record("1"), b"1")
    name = "tiercel_trainer_store_reachable"
    for _ in range(2):
        await bench.mirror.pull()
        assert bench.mirror.is_degraded
        assert bench.prometheus.get_sample_value(name) == 0.0
    bench.store.target.put = put
    await bench.mirror.pull()
    assert not bench.mirror.is_degraded
    assert bench.prometheus.get_sample_value(name) == 1.0


async def test_an_activation_of_somebody_else_is_followed(bench: Bench) -> None:
    """The newer activation in the store becomes ours, with what came before it."""
    await bench.mirror.activate("dqn", "1", None)
    await bench.store.activate("price", "")
    assert await present(bench.mirror) == Activation(2, "price", "")
    assert bench.mirror.history[0] == Activation(1, "dqn", "1")


async def test_an_activation_that_was_overtaken_changes_nothing(bench: Bench) -> None:
    """The store compares with its own number."""
    await bench.mirror.activate("dqn", "1", None)
    await bench.store.activate("price", "")
    with pytest.raises(VersionMismatchError, match="expected 1, found 2"):
        await bench.mirror.activate("dqn", "2", 1)
    assert bench.mirror.activation == 1


async def test_what_changed_is_stored_again(bench: Bench) -> None:
    """A changed record replaces the stored one; its snapshot stays."""
    await bench.mirror.add(record("1"), b"1")
    kept = await bench.mirror.find("dqn", "1")
    assert kept is not None
    await bench.mirror.change(kept, PolicyRecord(policy="dqn", version="1", stage=Stage.REJECTED))
    found = await bench.another().find("dqn", "1")
    assert found is not None
    assert (found.record.stage, found.snapshot) == (Stage.REJECTED, b"1")


async def test_memory_is_bounded_by_what_is_stored(bench: Bench) -> None:
    """Beyond the bound the oldest stored snapshots go; the active one stays."""
    await bench.mirror.add(record("0"), b"0")
    await bench.mirror.activate("dqn", "0", None)
    for number in range(1, 10):
        await bench.mirror.add(record(str(number)), b"%d" % number)
    bench.store.is_down = True
    assert {each.version for each in await bench.mirror.records()} == {"0", "8", "9"}


async def test_of_two_trainers_that_change_a_rollout_one_hears_of_the_other(bench: Bench) -> None:
    """The second one stores nothing, and knows then what the first one stored."""
    assert await bench.mirror.keep_rollout(RolloutState(number=1, reason="a"))
    other = bench.another()
    await other.pull()
    assert await other.keep_rollout(replace(other.rollout, reason="b"))
    assert not await bench.mirror.keep_rollout(replace(bench.mirror.rollout, reason="c"))
    assert bench.mirror.rollout == other.rollout
    assert bench.mirror.rollout.reason == "b"
    assert await bench.mirror.keep_rollout(replace(bench.mirror.rollout, reason="c"))
    await other.pull()
    assert other.rollout.reason == "c"


async def test_what_is_beside_a_rollout_makes_it_no_other_one(bench: Bench) -> None:
    """A step that was judged before the gate noted an anchor is still one of the same rollout."""
    await bench.mirror.keep_rollout(RolloutState(number=1))
    before = bench.mirror.rollout.revision
    await bench.mirror.keep_rollout(replace(bench.mirror.rollout, anchor="dqn"))
    assert bench.mirror.rollout.revision == before
    await bench.mirror.keep_rollout(pinned(bench.mirror.rollout, 3))
    assert bench.mirror.rollout.revision == before + 1


async def test_a_rollout_whose_answer_was_lost_is_known_as_our_own(bench: Bench) -> None:
    """What we stored ourselves stands in nobody's way."""
    put = bench.store.target.put_rollout

    async def without_an_answer(*arguments: Any) -> bool:
        await put(*arguments)
        raise StateUnavailableError("did not answer in time")

    bench.store.target.put_rollout = without_an_answer
    await bench.mirror.keep_rollout(RolloutState(number=1, reason="a"))
    bench.store.target.put_rollout = put
    assert await bench.mirror.keep_rollout(RolloutState(number=1, reason="b"))
    other = bench.another()
    await other.pull()
    assert other.rollout.reason == "b"


async def test_what_was_changed_while_the_store_was_away_gives_way(bench: Bench) -> None:
    """To what another trainer, who reached it, has made of the rollout meanwhile."""
    await bench.mirror.keep_rollout(RolloutState(number=1))
    other = bench.another()
    await other.pull()
    bench.store.is_down = True
    await bench.mirror.keep_rollout(RolloutState(number=1, reason="a"))
    bench.store.is_down = False
    await other.keep_rollout(RolloutState(number=1, reason="b"))
    await bench.mirror.pull()
    assert bench.mirror.rollout.reason == "b"


async def test_nonsense_in_the_place_of_a_rollout_gives_way(bench: Bench) -> None:
    """It is nobody's step."""
    await bench.mirror.keep_rollout(RolloutState(number=1))
    bench.store.target._rollout = b"\xff\xff"
    assert await bench.mirror.keep_rollout(RolloutState(number=2))
    bench.store.target._rollout = b"\xff\xff"
    await bench.mirror.pull()
    other = bench.another()
    await other.pull()
    assert other.rollout.number == 2


async def test_an_activation_and_what_is_noted_with_it_are_stored_in_one_step(
    bench: Bench,
) -> None:
    """A trainer that is killed right behind the activation leaves both."""

    async def killed(*_arguments: Any) -> bool:
        raise asyncio.CancelledError

    bench.store.target.put_rollout = killed
    with pytest.raises(asyncio.CancelledError):
        await bench.mirror.activate("price", "", None, pinned)
    other = bench.another()
    assert await present(other) == Activation(1, "price", "")
    assert other.rollout.pinned_activation == 1


async def test_what_is_noted_with_an_activation_keeps_what_another_trainer_did(
    bench: Bench,
) -> None:
    """Where that one was quicker it is stored behind the activation."""
    await bench.another().keep_rollout(RolloutState(number=1, reason="b"))
    await bench.mirror.activate("price", "", None, pinned)
    other = bench.another()
    await other.pull()
    assert (other.rollout.reason, other.rollout.pinned_activation) == ("b", 1)
    assert bench.mirror.rollout == other.rollout


async def test_a_pin_goes_with_an_activation_that_gets_another_number(bench: Bench) -> None:
    """Another trainer took its number while the store was away from this one."""
    bench.store.is_down = True
    await bench.mirror.activate("price", "", None, pinned)
    bench.store.is_down = False
    await bench.store.activate("greedy", "")
    assert await present(bench.mirror) == Activation(2, "price", "")
    assert bench.mirror.rollout.pinned_activation == 2


async def test_a_pin_of_an_outage_stands_beside_what_another_trainer_did(bench: Bench) -> None:
    """That one reached the store, and went on with a rollout."""
    other = bench.another()
    await other.keep_rollout(RolloutState(number=1))
    await bench.mirror.pull()
    bench.store.is_down = True
    await bench.mirror.activate("price", "", None, pinned)
    bench.store.is_down = False
    await other.keep_rollout(replace(other.rollout, reason="b"))
    await bench.mirror.pull()
    third = bench.another()
    assert await present(third) == Activation(1, "price", "")
    assert (third.rollout.reason, third.rollout.pinned_activation) == ("b", 1)
    assert bench.mirror.rollout == third.rollout


async def test_a_store_emptied_while_it_was_away_gets_its_policies_back(bench: Bench) -> None:
    """Also where something was activated meanwhile: that policy above all."""
    await bench.mirror.add(record("1"), b"1")
    await bench.mirror.activate("price", "", None)
    bench.store.is_down = True
    await bench.mirror.activate("dqn", "1", None)
    bench.store.is_down = False
    bench.store.target = MemoryPolicyStore()
    await bench.mirror.pull()
    other = bench.another()
    assert await present(other) == Activation(2, "dqn", "1")
    assert await other.find("dqn", "1") is not None


async def test_what_another_trainer_knows_of_a_policy_is_read_anew(bench: Bench) -> None:
    """Its rejection, for one: what it rejected is not promoted here."""
    await bench.mirror.add(record("1"), b"1")
    other = bench.another()
    for stage, read in ((Stage.REJECTED, "list"), (Stage.PROPOSED, "one")):
        kept = await other.find("dqn", "1")
        assert kept is not None
        await other.change(kept, replace(record("1"), stage=stage))
        if read == "list":
            [known] = await bench.mirror.records()
        else:
            found = await bench.mirror.read("dqn", "1")
            assert found is not None
            known = found.record
        assert known.stage is stage
