"""Memory and store of the registry: one serves while the other is away, then they agree again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.common.log import get_logger
from services.common.state.errors import VersionMismatchError
from services.common.state.policy_store import Activation, MemoryPolicyStore
from services.trainer.metrics import TrainerMetrics
from services.trainer.mirror import PolicyMirror
from services.trainer.model import PolicyRecord, Stage
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


async def test_an_emptied_store_gets_everything_back_and_numbers_do_not_fall(bench: Bench) -> None:
    """A store that lost its memory has the active policy again, under a higher number."""
    await bench.mirror.add(record("1"), b"1")
    for _ in range(4):
        await bench.mirror.activate("dqn", "1", None)
    bench.store.target = MemoryPolicyStore()
    assert (await present(bench.mirror)).activation == 5
    other = bench.another()
    assert await present(other) == Activation(5, "dqn", "1")
    assert await other.find("dqn", "1") is not None


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
