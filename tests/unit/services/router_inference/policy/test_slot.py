"""The policy in use: by name, from a snapshot, refused ones counted and the old one kept."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router.catalog import Catalog
from router.dqn.paper_snapshot import (
    PaperSnapshot,
    PaperWeights,
    feature_names,
    save_paper_snapshot,
)
from router.dqn.snapshot import Snapshot, save_snapshot, zero_weights
from router.features import FEATURE_COUNT, FEATURES, SCHEMA
from services.common.errors import FailedPreconditionError, NotFoundError
from services.common.settings import SettingsError
from services.router_inference.job import Outcome
from services.router_inference.policy.slot import Promoted
from tests.unit.services.router_inference.parts import (
    QUALITY,
    TASKS,
    TIERS,
    Behaviour,
    Rig,
    choice_of,
    make_rig,
)
from tests.unit.services.router_inference.scenario import scenario


def snapshot_bytes(schema: str = SCHEMA, tier_bias: float = 0.0) -> bytes:
    """Returns a snapshot of a linear network: the score is `tier_bias` times the quality."""
    weights = zero_weights(FEATURE_COUNT, 4)
    weights.w3_P[4] = tier_bias
    names = tuple(feature.name for feature in FEATURES)
    return save_snapshot(Snapshot(weights, schema, names))


def promoted(snapshot: bytes, name: str = "dqn", activation: int = 1) -> Promoted:
    """A promotion as the trainer sends it."""
    digest = hashlib.sha256(snapshot).digest()
    return Promoted(name, "", snapshot, digest, activation)


@scenario
async def test_a_policy_is_used_by_name() -> None:
    """The next decision is the new policy's, and says so."""
    rig = make_rig()
    rig.core.slot.use("static-small")
    job = rig.job()
    await rig.answer(job)
    assert (choice_of(job).policy, job.tier) == ("static-small", "small")


@scenario
async def test_an_unknown_policy_lists_the_known_ones() -> None:
    """NOT_FOUND with names, and the old one stays."""
    rig = make_rig()
    with pytest.raises(NotFoundError, match="static-small"):
        rig.core.slot.use("nonsense")
    assert rig.core.slot.name == "static-large"


@scenario
async def test_dqn_needs_a_snapshot() -> None:
    """By name it cannot be used before one has come."""
    rig = make_rig()
    with pytest.raises(FailedPreconditionError) as caught:
        rig.core.slot.use("dqn")
    assert caught.value.reason == "SNAPSHOT_MISSING"


@scenario
async def test_dqn_from_the_start_waits_on_the_fallback() -> None:
    """Named in the settings, without a snapshot: the fallback decides, and the status says so."""
    rig = make_rig(policy="dqn")
    job = rig.job()
    await rig.answer(job)
    status = rig.core.status.read()
    assert choice_of(job).policy == "greedy"
    assert status.fallback_active
    assert "POLICY_UNAVAILABLE" in status.degraded_reasons
    assert rig.core.slot.promote(promoted(snapshot_bytes()))
    assert not rig.core.status.read().fallback_active


@scenario
async def test_an_endpoint_picker_follows_a_policys_name() -> None:
    """`static-small+round-robin` decides live; an unknown picker lists the known ones."""
    rig = make_rig()
    rig.core.slot.use("static-small+round-robin")
    job = rig.job()
    await rig.answer(job)
    assert (choice_of(job).policy, job.tier) == ("static-small+round-robin", "small")
    with pytest.raises(NotFoundError, match="join-shortest-queue"):
        rig.core.slot.use("static-small+best")
    assert rig.core.slot.name == "static-small+round-robin"


@scenario
async def test_the_papers_policy_decides_from_its_own_snapshot() -> None:
    """Promoted with its snapshot it decides; with one of the other network it is refused."""
    rig = make_rig()
    assert not rig.core.slot.promote(promoted(snapshot_bytes(), "dqn-paper"))
    assert rig.core.slot.refused == {"SNAPSHOT_FORMAT_UNKNOWN": 1}
    assert rig.core.slot.promote(promoted(paper_bytes("small"), "dqn-paper", 2))
    job = rig.job()
    await rig.answer(job)
    assert (choice_of(job).policy, job.tier) == ("dqn-paper", "small")


@scenario
async def test_a_snapshot_file_serves_from_the_start() -> None:
    """Named in the settings with its file, a learned policy needs no trainer."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(paper_bytes("small"))
        file.flush()
        rig = make_rig(policy="dqn-paper", policy_snapshot=file.name)
    job = rig.job()
    await rig.answer(job)
    assert (choice_of(job).policy, job.tier) == ("dqn-paper", "small")


def test_a_bad_snapshot_file_stops_the_start(tmp_path: Path) -> None:
    """A damaged or missing file is a mistake in the settings, with its reason."""
    path = tmp_path / "policy.safetensors"
    path.write_bytes(b"short")
    with pytest.raises(SettingsError, match=rf"policy_snapshot: {path}: .*SNAPSHOT_MALFORMED"):
        make_rig(policy="dqn-paper", policy_snapshot=str(path))
    with pytest.raises(SettingsError, match=r"policy_snapshot.*No such file"):
        make_rig(policy="dqn-paper", policy_snapshot=str(tmp_path / "none"))


def paper_bytes(tier: str) -> bytes:
    """Returns a snapshot of the paper's network that prefers one tier of the rig's catalog."""
    catalog = Catalog.build(TIERS, TASKS, QUALITY)
    names = feature_names(catalog)
    bias_T = np.array([float(name == tier) for name in catalog.tiers], np.float32)
    hidden = np.zeros((len(names), 2), np.float32)
    out = np.zeros((2, len(bias_T)), np.float32)
    weights = PaperWeights(hidden, np.zeros(2, np.float32), out, bias_T)
    return save_paper_snapshot(PaperSnapshot(weights, names))


@scenario
async def test_a_snapshot_is_swapped_in_without_losing_a_request() -> None:
    """Requests under way end under the policy that decided them; the next ones have the new one."""
    rig = make_rig()
    rig.tier().default = Behaviour(step_s=0.05)
    before = [rig.job() for _ in range(20)]
    tasks = [asyncio.ensure_future(rig.answer(job)) for job in before]
    await asyncio.sleep(0.01)
    assert rig.core.slot.promote(promoted(snapshot_bytes(tier_bias=-1.0)))
    after = rig.job()
    await rig.answer(after)
    await asyncio.gather(*tasks)
    assert {choice_of(job).policy for job in before} == {"static-large"}
    assert (choice_of(after).policy, after.tier) == ("dqn", "small")
    assert {job.outcome for job in (*before, after)} == {Outcome.ON_TIME}
    rig.assert_settled()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: promoted(b""), "SNAPSHOT_MISSING"),
        (lambda: promoted(b"garbage" * 10), "SNAPSHOT_MALFORMED"),
        (lambda: promoted(snapshot_bytes()[:40]), "SNAPSHOT_MALFORMED"),
        (lambda: promoted(snapshot_bytes("another-schema")), "SNAPSHOT_SCHEMA_MISMATCH"),
        (
            lambda: Promoted("dqn", "", snapshot_bytes(), b"x" * 32, 1),
            "SNAPSHOT_CHECKSUM_MISMATCH",
        ),
        (lambda: promoted(b"", "nonsense"), "POLICY_UNKNOWN"),
    ],
)
def test_a_bad_snapshot_is_refused_and_counted(make: object, reason: str) -> None:
    """The old policy goes on; the reason is counted and shown."""

    @scenario
    async def run() -> None:
        rig = make_rig()
        assert not rig.core.slot.promote(make())  # type: ignore[operator]
        assert rig.core.slot.name == "static-large"
        assert rig.core.status.read().refused_snapshots == {reason: 1}
        job = rig.job()
        await rig.answer(job)
        assert choice_of(job).policy == "static-large"

    run()


@scenario
async def test_a_policy_that_breaks_costs_quality_not_answers() -> None:
    """One that cannot be asked is replaced, decision by decision, by the fallback."""
    rig = make_rig()

    class Broken:
        name, version = "broken", "broken@1"

    rig.core.slot.guard.replace(Broken())
    for _ in range(3):
        job = rig.job()
        await rig.answer(job)
        assert (choice_of(job).policy, job.outcome) == ("greedy", Outcome.ON_TIME)
        assert choice_of(job).fallback_reason == "policy_error"


@pytest.mark.parametrize(
    "own",
    [
        {"policy": "nonsense"},
        {"fallback_policy": "dqn"},
        {"policy": "greedy", "policy_parameters": {"greedy": {"nonsense": 1.0}}},
    ],
)
def test_wrong_policy_settings_stop_the_start(own: dict[str, object]) -> None:
    """A name or parameter nobody knows is a settings error, not a crash later."""
    with pytest.raises(SettingsError, match="policy"):
        make_rig(**{"policy": "price", **own})  # type: ignore[arg-type]


def written(**facts: Any) -> bytes:
    """Returns a snapshot with facts of another kind."""
    names = facts.pop("names", tuple(feature.name for feature in FEATURES))
    return save_snapshot(Snapshot(zero_weights(len(names), 4), SCHEMA, names, **facts))


REVERSED = tuple(feature.name for feature in FEATURES)[::-1]
REFUSED = [
    ("dqn", written(names=REVERSED), "SNAPSHOT_SCHEMA_MISMATCH"),
    ("dqn", written(policy="static-small"), "SNAPSHOT_POLICY_UNKNOWN"),
    ("static-small", written(policy="static-small"), "SNAPSHOT_POLICY_UNKNOWN"),
    ("greedy", written(), "SNAPSHOT_POLICY_UNKNOWN"),
    ("dqn", written(base={"nobody's": 1.0}), "SNAPSHOT_BASE_INVALID"),
    ("greedy+nonsense", b"", "POLICY_UNKNOWN"),
    ("x" * 5_000, b"", "POLICY_UNKNOWN"),
]


@scenario
async def test_what_is_refused_is_told_with_its_activation() -> None:
    """The registry hears which activation was refused and why; the old policy stays."""
    slot = make_rig().core.slot
    for activation, (name, blob, reason) in enumerate(REFUSED, start=1):
        assert not slot.promote(promoted(blob, name, activation))
        told = (slot.activation, slot.refusal, slot.name)
        assert told == (activation, reason, "static-large")
    assert slot.promote(promoted(b"", "greedy", 99))
    assert (slot.activation, slot.refusal) == (99, "")


@scenario
async def test_a_withdrawn_policy_gives_way_to_the_configured_one() -> None:
    """Nothing is promoted any more: the settings decide."""
    slot = make_rig().core.slot
    slot.promote(promoted(b"", "greedy", 1))
    slot.withdraw(2)
    assert (slot.activation, slot.name) == (2, "static-large")


@scenario
async def test_a_withdrawn_snapshot_is_no_snapshot_of_the_settings() -> None:
    """Without one of its own the configured policy waits again, and the fallback decides."""
    slot = make_rig(policy="dqn").core.slot
    slot.promote(promoted(snapshot_bytes(tier_bias=1.0), "dqn", 1))
    assert not slot.is_waiting
    slot.withdraw(2)
    assert (slot.wanted, slot.is_waiting, slot.name) == ("dqn", True, slot.guard.fallback.name)


@scenario
async def test_a_router_goes_back_to_what_it_used_before_it_was_told() -> None:
    """Of its settings, too; a second time it goes forth again."""
    slot = make_rig().core.slot
    with pytest.raises(FailedPreconditionError, match="no policy but the present one"):
        slot.use_previous()
    first = slot.name
    slot.use("static-small")
    slot.use_previous()
    assert slot.name == first
    slot.use_previous()
    assert slot.name == "static-small"


@scenario
async def test_a_policy_that_its_parameters_keep_from_being_made_is_named() -> None:
    """Settings may hold wrong ones of a policy that is not in use; who asks for it is told."""
    rig = make_rig()
    rig.core.slot.use("price")
    rig.core.slot.use("static-small")
    reload_with(rig, {"price": {"nonsense": 1.0}})
    asking: tuple[Callable[[], None], ...] = (
        lambda: rig.core.slot.use("price"),
        rig.core.slot.use_previous,
    )
    for ask in asking:
        with pytest.raises(FailedPreconditionError, match=r"policy_parameters: .*'nonsense'") as e:
            ask()
        assert e.value.reason == "POLICY_PARAMETERS_INVALID"
    reload_with(rig, {})
    rig.core.slot.use_previous()
    assert rig.core.slot.name == "price"


@scenario
async def test_where_the_replaced_policy_cannot_be_made_the_settings_decide() -> None:
    """A policy that broke a limit does not go on deciding for that."""
    rig = make_rig(policy="static-small")
    slot = rig.core.slot
    assert slot.promote(promoted(b"", "price", 1))
    assert slot.promote(promoted(snapshot_bytes(), "dqn", 2))
    reload_with(rig, {"price": {"nonsense": 1.0}}, policy="static-small")
    assert slot.name == "dqn"
    slot.go_back("WATCH_MISSES")
    assert (slot.name, slot.activation, slot.refusal) == ("static-small", 2, "WATCH_MISSES")


def reload_with(
    rig: Rig, parameters: dict[str, dict[str, float]], policy: str = "static-large"
) -> None:
    """Has a router take other parameters of policies."""
    rig.core.slot.configure(
        catalog=rig.core.view.fleet.catalog,
        parameters=parameters,
        policy=policy,
        fallback="greedy",
        snapshot=b"",
    )
