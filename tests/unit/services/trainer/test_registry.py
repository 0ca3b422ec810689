"""The policy registry over a store that comes and goes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from router.dqn.snapshot import (
    FORMAT,
    Snapshot,
    SnapshotError,
    Weights,
    load_snapshot,
    save_snapshot,
    zero_weights,
)
from router.features import FEATURES, SCHEMA
from services.common.errors import AbortedError, FailedPreconditionError, NotFoundError
from services.common.log import get_logger
from services.common.state.policy_store import MemoryPolicyStore
from services.trainer.metrics import TrainerMetrics
from services.trainer.model import RolloutStep, Stage
from services.trainer.registry import ActivePolicy, PolicyRegistry
from services.trainer.rollout_verdicts import Verdict
from tests.fakes.clock import FakeClock, settle
from tests.fakes.state_store import SwitchableStore
from tests.waiting import LIMIT_S
from tiercel.trainer.v1 import trainer_service_pb2 as pb

NAMES = tuple(feature.name for feature in FEATURES)


def snapshot(
    seed: int, schema: str = SCHEMA, names: tuple[str, ...] = NAMES, **facts: Any
) -> bytes:
    """Returns a small snapshot; another seed is another version."""
    weights = zero_weights(len(names), 2)._replace(b3=np.float32(seed))
    facts = {"evaluation": {"performance": 0.9}, **facts}
    return save_snapshot(Snapshot(weights, schema, names, **facts))


def written(blob: bytes, facts: dict[str, Any]) -> bytes:
    """Returns a snapshot with facts that a careful writer would refuse."""
    found = load_snapshot(blob)
    meta = {
        "format": FORMAT, "policy": "dqn", "feature_schema": SCHEMA, "feature_names": list(NAMES),
        "fleet": {}, "base": {}, "schedule": {}, **facts,
    }  # fmt: skip
    text = json.dumps(meta)
    data = b""
    header: dict[str, Any] = {}
    for name in Weights._fields:
        array = np.asarray(getattr(found.weights, name), "<f4")
        end = len(data) + array.nbytes
        header[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": [len(data), end],
        }
        data += array.tobytes()
    digest = hashlib.sha256(text.encode() + b"\0" + data).hexdigest()
    header["__metadata__"] = {"tiercel": text, "sha256": digest}
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


class Bench:
    """A registry on a fake store, and a second one on the same store."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store: Any = SwitchableStore(MemoryPolicyStore())
        self.prometheus = CollectorRegistry()
        self.registry = self.another(self.prometheus)

    def refused(self, reason: str) -> float:
        """Returns how many snapshots were refused for a reason."""
        name = "tiercel_trainer_snapshots_refused_total"
        return self.prometheus.get_sample_value(name, {"reason": reason}) or 0.0

    def another(self, prometheus: CollectorRegistry | None = None) -> PolicyRegistry:
        """Returns one more registry on the store, as another or a restarted trainer has."""
        return PolicyRegistry(
            store=self.store,
            built_in=("price", "greedy"),
            clock=self.clock,
            log=get_logger("test"),
            metrics=TrainerMetrics(prometheus or CollectorRegistry()),
        )

    async def publish(self, seed: int) -> str:
        """Publishes a snapshot a moment after the last one; returns its version."""
        self.clock.move(1.0)
        return (await self.registry.publish(snapshot(seed))).version


@pytest.fixture
def bench() -> Bench:
    """A fresh bench."""
    return Bench()


async def first(stream: AsyncIterator[ActivePolicy]) -> ActivePolicy:
    """Returns the next element."""
    return await asyncio.wait_for(anext(stream), LIMIT_S)


async def test_publish_list_and_promote(bench: Bench) -> None:
    """A snapshot is proposed, then active; the former one retires; built-in ones come first."""
    one, two = await bench.publish(1), await bench.publish(2)
    await bench.registry.promote("dqn", one)
    active = await bench.registry.promote("dqn")  # newest
    assert (active.record.version, active.activation) == (two, 2)
    assert active.snapshot == snapshot(2)
    listed = [(r.policy, r.version, r.stage) for r in await bench.registry.policies()]
    assert listed == [
        ("price", "", Stage.BUILT_IN),
        ("greedy", "", Stage.BUILT_IN),
        ("dqn", two, Stage.ACTIVE),
        ("dqn", one, Stage.RETIRED),
    ]


async def test_built_in_policy_can_be_active(bench: Bench) -> None:
    """A policy without a snapshot is activated by name."""
    active = await bench.registry.promote("price")
    assert (active.record.stage, active.snapshot) == (Stage.ACTIVE, b"")


async def test_a_name_that_cannot_be_stored_stops_nothing(bench: Bench) -> None:
    """Half a surrogate pair is no text; the registry goes on as if it had never been sent."""
    await bench.publish(1)
    with pytest.raises(SnapshotError, match="not text") as caught:
        await bench.registry.publish(snapshot(2, evaluation={"\ud800": 0.9}))
    assert caught.value.reason == "SNAPSHOT_MALFORMED"
    assert len(await bench.registry.policies()) == 3
    await bench.registry.promote("price")


async def test_bad_snapshot_is_refused_and_counted(bench: Bench) -> None:
    """Damage and a foreign schema never enter the registry."""
    for blob, reason in (
        (snapshot(1)[:-1] + b"\x01", "SNAPSHOT_CHECKSUM_MISMATCH"),
        (snapshot(1, "other"), "SNAPSHOT_SCHEMA_MISMATCH"),
        (b"", "SNAPSHOT_MALFORMED"),
        (snapshot(1, names=NAMES[::-1]), "SNAPSHOT_SCHEMA_MISMATCH"),
        (snapshot(1, names=(*NAMES[:-1], "x")), "SNAPSHOT_SCHEMA_MISMATCH"),
        (snapshot(1, names=NAMES[:-1]), "SNAPSHOT_SHAPE_MISMATCH"),
        (snapshot(1, policy="static-small"), "SNAPSHOT_POLICY_UNKNOWN"),
        (snapshot(1, policy="dqn-paper"), "SNAPSHOT_POLICY_UNKNOWN"),
        (snapshot(1, base={"nobody's": 1.0}), "SNAPSHOT_BASE_INVALID"),
        (snapshot(1, schedule={"rows": 3}), "SNAPSHOT_BASE_INVALID"),
    ):
        before = bench.refused(reason)
        with pytest.raises(SnapshotError) as caught:
            await bench.registry.publish(blob)
        assert caught.value.reason == reason
        assert bench.refused(reason) == before + 1.0
    assert await bench.store.policies() == []


async def test_what_a_snapshot_says_of_itself_is_bounded(bench: Bench) -> None:
    """Numbers that are none, and more scores than anybody reads, do not enter the registry."""
    scores = {"inf": 1e999, "text": "x", "n" * 100: 1.0, **{str(n): 0.5 for n in range(100)}}
    for count in (1e999, -5, 2**80, "many"):
        facts = {"training": {"transition_count": count}, "evaluation": scores}
        blob = written(snapshot(1), facts)
        record = await bench.another().publish(blob)
        assert record.transition_count == 0
        assert len(record.scores) == 32


@pytest.mark.parametrize("garbage", [b"", b"garbage", snapshot(9)])
async def test_damaged_snapshot_in_the_store_is_set_aside(bench: Bench, garbage: bytes) -> None:
    """What went bad in the store is no policy any more; the active one stays."""
    version = await bench.publish(1)
    await bench.registry.promote("price")
    stored = await bench.store.get("dqn", version)
    assert stored is not None
    await bench.store.put(stored[0], garbage, "dqn", version)
    restarted = bench.another()
    with pytest.raises(NotFoundError):
        await restarted.promote("dqn", version)
    assert [letter.payload for letter in bench.store.target.dead_letters] == [garbage]
    active = await restarted.active()
    assert active is not None
    assert active.record.policy == "price"


async def test_garbage_in_the_store_is_set_aside_once_and_the_rest_serves(bench: Bench) -> None:
    """A stage 99 and bytes that are none leave listing and promoting as they are."""
    version = await bench.publish(1)
    bad = pb.PolicyInfo(policy="dqn", policy_version="bad", stage=99)  # type: ignore[arg-type]
    await bench.store.put(bad.SerializeToString(), b"x", "dqn", "bad")
    await bench.store.put(b"\xff\xff", b"x", "dqn", "worse")
    restarted = bench.another()
    for _ in range(2):
        assert [r.version for r in await restarted.policies()] == ["", "", version]
    assert len(bench.store.target.dead_letters) == 2
    assert (await restarted.promote("dqn")).record.version == version


async def test_what_memory_knows_better_is_stored_again(bench: Bench) -> None:
    """A running trainer mends what was broken beside it."""
    version = await bench.publish(1)
    await bench.store.put(b"\xff\xff", b"x", "dqn", version)
    await bench.registry.policies()
    await bench.registry.policies()
    found = await bench.another().get("dqn", version)
    assert found[1] == snapshot(1)


async def test_withdrawn_means_the_one_before_or_none(bench: Bench) -> None:
    """A policy that routers refused is rejected; without one before it nothing is active."""
    one, two = await bench.publish(1), await bench.publish(2)
    refused = await bench.registry.promote("dqn", one)
    stream = bench.registry.watch(refused.activation)
    waiting = asyncio.ensure_future(anext(stream))
    await bench.registry.withdraw(refused, "refused by r0")
    assert await bench.registry.active() is None
    assert (await asyncio.wait_for(waiting, LIMIT_S)).record.policy == ""
    await bench.registry.promote("price")
    await bench.registry.withdraw(await bench.registry.promote("dqn", two), "refused by r0")
    active = await bench.another().active()
    assert active is not None
    assert active.record.policy == "price"
    stages = {r.version: r.stage for r in await bench.registry.policies()}
    assert stages[one] is stages[two] is Stage.REJECTED


async def test_unknown_policy_lists_the_known(bench: Bench) -> None:
    """The error names what there is, by name or by version."""
    version = await bench.publish(1)
    with pytest.raises(NotFoundError, match="price, greedy, dqn"):
        await bench.registry.promote("nope")
    with pytest.raises(NotFoundError, match=version):
        await bench.registry.promote("dqn", "nope")


async def test_promotion_race_is_aborted(bench: Bench) -> None:
    """Of two callers who saw the same activation only one wins, on one trainer or on two."""
    await bench.registry.promote("price", expected_activation=0)
    with pytest.raises(AbortedError, match="expected 0, found 1"):
        await bench.registry.promote("greedy", expected_activation=0)
    other = bench.another()
    await other.promote("greedy", expected_activation=1)
    with pytest.raises(AbortedError, match="expected 1, found 2"):
        await bench.registry.promote("price", expected_activation=1)


async def test_rollback_goes_to_the_policy_before(bench: Bench) -> None:
    """Rollback is an activation of what served before; where nothing else did it is refused."""
    with pytest.raises(FailedPreconditionError):
        await bench.registry.rollback()
    await bench.registry.promote("price")
    version = await bench.publish(1)
    await bench.registry.promote("dqn", version)
    await bench.registry.promote("dqn", version)
    back = await bench.registry.rollback("test")
    assert (back.record.policy, back.activation) == ("price", 4)


async def test_the_first_rollback_goes_to_the_policy_of_the_settings(bench: Bench) -> None:
    """Routers served by it before anything was activated, and are told to do so again."""
    await bench.registry.promote("greedy")
    back = await bench.registry.rollback("first incident")
    assert (back.record.policy, back.activation) == ("", 2)
    assert (await first(bench.registry.watch(1))).record.policy == ""
    await bench.registry.promote("price")
    assert (await bench.another().rollback()).record.policy == ""


async def test_watch_is_resumable(bench: Bench) -> None:
    """A watcher gets the present activation if it is newer than its own, then every newer one."""
    await bench.registry.promote("price")
    stream = bench.registry.watch(0)
    assert (await first(stream)).activation == 1
    waiting = asyncio.ensure_future(anext(stream))
    resumed = asyncio.ensure_future(anext(bench.registry.watch(1)))
    await settle()
    assert not waiting.done()
    assert not resumed.done()
    await bench.registry.promote("greedy")
    assert (await asyncio.wait_for(waiting, LIMIT_S)).record.policy == "greedy"
    assert (await asyncio.wait_for(resumed, LIMIT_S)).activation == 2


async def test_watcher_from_another_life_gets_the_present(bench: Bench) -> None:
    """A caller with a number this registry never gave is brought up to date."""
    await bench.registry.promote("price")
    assert (await first(bench.registry.watch(77))).activation == 1


async def test_activation_by_another_process_is_seen(bench: Bench) -> None:
    """The poll tells watchers what another trainer or a command activated in the store."""
    stream = bench.registry.watch(0)
    waiting = asyncio.ensure_future(anext(stream))
    await bench.another().promote("greedy")
    poll = bench.registry.poll(1.0)
    assert await anext(poll) is True
    assert (await asyncio.wait_for(waiting, LIMIT_S)).record.policy == "greedy"


async def test_rejected_stays_rejected(bench: Bench) -> None:
    """A policy that failed its gate is listed as such, after a restart too."""
    version = await bench.publish(1)
    await bench.registry.reject("dqn", version, "too slow")
    for registry in (bench.registry, bench.another()):
        record = (await registry.policies())[-1]
        assert (record.stage, record.rejection) == (Stage.REJECTED, "too slow")
    await bench.registry.accept("dqn", version)
    record = (await bench.another().policies())[-1]
    assert (record.stage, record.rejection) == (Stage.PROPOSED, "")


async def test_the_newest_is_the_newest_that_was_not_rejected(bench: Bench) -> None:
    """A name alone never means a rejected version; where there is no other, it says why not."""
    good, bad = await bench.publish(1), await bench.publish(2)
    await bench.registry.reject("dqn", bad, "too slow")
    assert (await bench.registry.promote("dqn")).record.version == good
    assert (await bench.registry.get("dqn"))[0].version == good
    await bench.registry.promote("price")
    await bench.registry.reject("dqn", good, "too slow as well")
    with pytest.raises(FailedPreconditionError, match="too slow") as caught:
        await bench.registry.promote("dqn")
    assert caught.value.reason == "POLICY_REJECTED"


async def test_a_rejected_policy_is_activated_for_a_reason_that_is_kept(bench: Bench) -> None:
    """Then it is like any other: the way back leads to it too. Routers may still refuse it."""
    version = await bench.publish(1)
    await bench.registry.reject("dqn", version, "too slow")
    with pytest.raises(FailedPreconditionError):
        await bench.registry.promote("dqn", version)
    active = await bench.registry.promote("dqn", version, force_reason="a test of ours")
    assert (active.record.stage, active.record.force_reason) == (Stage.ACTIVE, "a test of ours")
    await bench.registry.promote("price")
    record = (await bench.another().policies())[-1]
    assert (record.stage, record.rejection) == (Stage.RETIRED, "too slow")
    assert record.force_reason == "a test of ours"
    assert (await bench.registry.rollback()).record.version == version
    await bench.registry.promote("price")
    await bench.registry.reject("dqn", version, "refused by r0")
    record = (await bench.another().get("dqn", version))[0]
    assert (record.rejection, record.force_reason) == ("refused by r0", "")


async def test_publishing_again_changes_nothing(bench: Bench) -> None:
    """A restart that publishes its shipped snapshot again keeps stage and time."""
    version = await bench.publish(1)
    await bench.registry.promote("dqn", version)
    bench.clock.move(60.0)
    again = await bench.another().publish(snapshot(1))
    assert again == replace(again, version=version, publish_ns=again.publish_ns)
    assert (await bench.registry.policies())[-1].stage is Stage.ACTIVE
    assert len(await bench.store.policies()) == 1


async def test_what_was_rolled_back_is_no_anchor(bench: Bench) -> None:
    """Somebody went back from it: the gate measures nothing by it any more."""
    version = await bench.publish(1)
    await bench.registry.promote("price")
    await bench.registry.promote("dqn", version)
    await bench.registry.change_rollout(
        lambda state: replace(state, anchor="dqn", anchor_version=version)
    )
    found = await bench.another().anchor()
    assert found is not None
    assert (found[0].version, found[1]) == (version, snapshot(1))
    await bench.registry.rollback("bad")
    assert await bench.registry.anchor() is None
    await bench.registry.change_rollout(
        lambda state: replace(state, anchor="dqn", anchor_version=version)
    )
    await bench.registry.reject("dqn", version, "worse")
    assert await bench.another().anchor() is None


async def test_a_rollback_leaves_out_what_another_trainer_has_rejected(bench: Bench) -> None:
    """It is none that is good."""
    one, two = await bench.publish(1), await bench.publish(2)
    await bench.registry.promote("price")
    await bench.registry.promote("dqn", one)
    await bench.registry.promote("dqn", two)
    await bench.another().reject("dqn", one, "worse")
    assert (await bench.registry.rollback()).record.policy == "price"


async def test_what_was_used_or_tried_is_not_forgotten(bench: Bench) -> None:
    """A proposal that nobody took up is."""
    used, tried, idle = [await bench.publish(number) for number in (1, 2, 3)]
    await bench.registry.promote("dqn", used)
    await bench.registry.promote("price")
    step = RolloutStep(1, Stage.SHADOW, Verdict.NONE, "passed")
    await bench.registry.note_step("dqn", tried, step)
    for version in (used, tried, idle, "nope"):
        await bench.registry.forget("dqn", version)
    for registry in (bench.registry, bench.another()):
        assert [record.version for record in (await registry.policies())[2:]] == [tried, used]
