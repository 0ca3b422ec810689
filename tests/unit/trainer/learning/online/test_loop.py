"""The online loop: records in, transitions kept, nothing lost or learned twice over a restart."""

from __future__ import annotations

import itertools
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router.dqn.network import q_values
from router.dqn.snapshot import SnapshotError, load_snapshot, save_snapshot
from trainer.learning.checkpoint import CheckpointError, OvertakenError, save_checkpoint
from trainer.learning.online.baseline import Promise
from trainer.learning.online.config import LearnerConfig, OnlineConfig
from trainer.learning.online.joining import DecisionRecord, Ending, OutcomeRecord
from trainer.learning.online.loop import OnlineLoop
from trainer.learning.online.processes import ProcessRecord

NAMES = ("a", "b", "availability")


def _config(seed: int = 0) -> OnlineConfig:
    return OnlineConfig(
        learner=LearnerConfig(hidden_count=4, batch_size=16, replay_capacity=1000),
        deadline_s=0.2,
        patience_s=5.0,
        feature_schema="s",
        feature_names=NAMES,
        availability_column=2,
        min_transitions=16,
        seed=seed,
    )


def _records(
    first: int, count: int, router: str = "r", schema: str = "s"
) -> tuple[list[DecisionRecord], list[OutcomeRecord]]:
    """`count` decisions 50 ms apart on three candidates, the third unavailable."""
    decisions, outcomes = [], []
    for sequence in range(first, first + count):
        rng = np.random.default_rng(sequence)
        x = rng.random((3, 3)).astype(np.float32)
        x[:, 2] = (1.0, 1.0, 0.0)
        key = (router, 1, sequence)
        decisions.append(
            DecisionRecord(key, 0.05 * sequence, x, sequence % 2, schema, "v", 1.0, 0.2, "t")
        )
        outcomes.append(OutcomeRecord(key, float(rng.random()), Ending.ANSWERED))
    return decisions, outcomes


def _ticks(step_s: float = 0.01) -> object:
    counter = itertools.count()
    return lambda: next(counter) * step_s


def test_records_become_transitions_after_their_horizon() -> None:
    """A transition is taken in once a deadline of later decisions is known."""
    loop = OnlineLoop(_config())
    loop.ingest(*_records(1, 20))
    # 0.2 s are four decisions: the last four wait for theirs.
    assert loop.status.transition_count == 16
    assert loop.status.waiting_count == 4
    loop.ingest(*_records(21, 1))
    assert loop.status.transition_count == 17


def test_learns_and_publishes() -> None:
    """Learner steps follow the data, and the snapshot says what it was trained on."""
    loop = OnlineLoop(_config())
    before = load_snapshot(loop.snapshot(), "s")
    loop.ingest(*_records(1, 200))
    done = loop.learn(10.0, _ticks())  # type: ignore[arg-type]
    assert done == loop.status.step_count == int(8 * 196 / 16)
    assert loop.learn(10.0, _ticks()) == 0  # type: ignore[arg-type]
    after = load_snapshot(loop.snapshot(), "s")
    assert after.version != before.version
    assert after.transition_count == 196
    assert loop.status.loss is not None
    assert 0.3 < (loop.status.mean_reward or 0.0) < 0.7


def test_learning_keeps_to_its_budget() -> None:
    """No step begins after the time is up."""
    loop = OnlineLoop(_config())
    loop.ingest(*_records(1, 200))
    assert loop.learn(0.05, _ticks(0.01)) <= 5  # type: ignore[arg-type]


def test_only_saved_records_are_settled(tmp_path: Path) -> None:
    """Keys are settled by a save, and only those whose transitions it holds."""
    loop = OnlineLoop(_config(), path=tmp_path / "state")
    assert loop.ingest(*_records(1, 20)) == []
    settled = loop.save()
    assert [key[2] for key in settled] == list(range(1, 17))
    assert loop.save() == []


def test_restart_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    """After a crash redelivered records complete what was open; settled ones are recognised."""
    loop = OnlineLoop(_config(), path=tmp_path / "state")
    loop.ingest(*_records(1, 20))
    loop.save()
    loop.ingest(*_records(21, 5))  # not saved before the crash
    again = OnlineLoop(_config(), path=tmp_path / "state")
    assert again.status.transition_count == 16
    known = again.ingest(*_records(1, 25))
    assert {key[2] for key in known} == set(range(1, 17))
    assert again.status.transition_count == 21
    straight = OnlineLoop(_config())
    straight.ingest(*_records(1, 25))
    assert straight.status.transition_count == 21


def test_restart_goes_on_learning_from_the_same_weights(tmp_path: Path) -> None:
    """Weights and step count survive."""
    loop = OnlineLoop(_config(), path=tmp_path / "state")
    loop.ingest(*_records(1, 100))
    loop.learn(10.0, _ticks())  # type: ignore[arg-type]
    loop.save()
    again = OnlineLoop(_config(seed=9), path=tmp_path / "state")
    assert again.status.step_count == loop.status.step_count > 0
    np.testing.assert_array_equal(
        load_snapshot(again.snapshot()).weights.w2_GH, load_snapshot(loop.snapshot()).weights.w2_GH
    )


def test_failed_save_settles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk nothing is settled; the next save settles all of it."""
    loop = OnlineLoop(_config(), path=tmp_path / "state")
    loop.ingest(*_records(1, 20))

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError):
            loop.save()
    assert len(loop.save()) == 16


def test_foreign_records_serve_as_rewards_only() -> None:
    """Decisions of a policy without our features are counted in returns but not trained on."""
    loop = OnlineLoop(_config())
    loop.ingest(*_records(1, 10))
    loop.ingest(*_records(11, 10, schema="other"))
    loop.ingest(*_records(21, 10))
    # 26 are final; 10 are foreign, and 4 more bootstrap from a foreign one.
    assert loop.status.transition_count == 26 - 10 - 4


def test_starts_from_a_snapshot_and_refuses_a_bad_one() -> None:
    """The parent's weights are the start, and its version is recorded."""
    parent = OnlineLoop(_config(seed=3)).snapshot()
    child = OnlineLoop(_config(seed=4), initial=parent)
    loaded = load_snapshot(child.snapshot())
    np.testing.assert_array_equal(load_snapshot(parent).weights.w1_FH, loaded.weights.w1_FH)
    assert loaded.training["parent"] == load_snapshot(parent).version
    with pytest.raises(SnapshotError):
        OnlineLoop(_config(), initial=parent[:-3])


def _with_price(blob: bytes, level: float) -> bytes:
    """Returns a snapshot that corrects another price."""
    return save_snapshot(replace(load_snapshot(blob), base={"level": level}))


@pytest.mark.parametrize(("level", "kept"), [(-3.0, 16), (-2.0, 0)])
def test_experience_outlives_its_parent_if_the_price_does(
    level: float, kept: int, tmp_path: Path
) -> None:
    """Features say what a price says: those by another one would teach what never is seen again."""
    first, second = (OnlineLoop(_config(seed=seed)).snapshot() for seed in (3, 4))
    loop = OnlineLoop(_config(), path=tmp_path / "state", initial=_with_price(first, -3.0))
    loop.ingest(*_records(1, 20))
    loop.save()
    newer = _with_price(second, level)
    again = OnlineLoop(_config(), path=tmp_path / "state", initial=newer)
    assert again.status.transition_count == kept
    # What was taken in is taken in for good, either way.
    assert len(again.ingest(*_records(1, 20))) == 2 * 16


def _anchored(anchor: float, promise: Promise | None = None) -> OnlineConfig:
    config = _config()
    return replace(config, learner=replace(config.learner, anchor=anchor), promise=promise)


def test_anchored_run_stays_near_its_start() -> None:
    """On noise alone no candidate's value moves by more than a few hundredths."""
    start = OnlineLoop(_config(seed=3)).snapshot()
    loop = OnlineLoop(_anchored(1e5), initial=start)
    loop.ingest(*_records(1, 1000))
    assert loop.learn(1e9, _ticks()) > 400  # type: ignore[arg-type]
    x = np.random.default_rng(0).random((50, 3, 3)).astype(np.float32)
    allowed = np.array([True, True, False])
    for x_CF in x:
        values = []
        for blob in (start, loop.snapshot()):
            q_C = np.zeros(3)
            q_values(x_CF, allowed, np.zeros(3), *load_snapshot(blob).weights, q_C)
            values.append(q_C[:2])
        np.testing.assert_allclose(values[0], values[1], atol=0.03)


def test_only_what_falls_short_of_the_promise_counts() -> None:
    """A miss falls short by quality times P(on time) and its cost; a kept promise by nothing."""
    loop = OnlineLoop(_anchored(1.0, Promise(quality_column=0, on_time_column=1, miss_cost=0.5)))
    decisions, outcomes = _records(1, 20)
    x = np.tile(np.array([0.8, 0.75, 1.0], np.float32), (3, 1))
    decisions = [replace(d, features_CF=x) for d in decisions]
    outcomes = [replace(o, reward=0.8 if o.key[2] % 2 else 0.0) for o in outcomes]
    loop.ingest(decisions, outcomes)
    shortfall_B = loop._replay.sample(200, np.random.default_rng(0)).shortfall_B
    promised = 0.8 * 0.75 - 0.5 * 0.25
    np.testing.assert_allclose(np.unique(shortfall_B), [-0.5 - promised, 0.0], rtol=1e-5)


def test_anchor_survives_a_restart(tmp_path: Path) -> None:
    """A restored run is held by the network it started from, not by the one it had become."""
    config = _anchored(10.0)
    loop = OnlineLoop(config, path=tmp_path / "state")
    loop.ingest(*_records(1, 200))
    loop.learn(10.0, _ticks())  # type: ignore[arg-type]
    loop.save()
    again = OnlineLoop(config, path=tmp_path / "state")
    state, restored = loop._learner.get_state(), again._learner.get_state()
    np.testing.assert_array_equal(state["start.w1_FH"], restored["start.w1_FH"])
    assert not np.array_equal(restored["start.w1_FH"], restored["online.w1_FH"])


def test_state_of_another_learner_gives_way_to_the_parent(tmp_path: Path) -> None:
    """After an update to an anchored learner a run keeps its experience and starts afresh."""
    loop = OnlineLoop(_config(), path=tmp_path / "state")
    loop.ingest(*_records(1, 100))
    loop.learn(10.0, _ticks())  # type: ignore[arg-type]
    loop.save()
    again = OnlineLoop(_anchored(10.0), path=tmp_path / "state")
    assert again.status.step_count == 0
    assert again.status.transition_count == loop.status.transition_count


def test_snapshots_keep_what_the_network_corrects() -> None:
    """Parameters of the price and the table of the scheduled price are the parent's."""
    parent = replace(
        load_snapshot(OnlineLoop(_config()).snapshot()),
        base={"caution": 2.0},
        schedule={"first": 0.0},
    )
    child = load_snapshot(OnlineLoop(_config(), initial=save_snapshot(parent)).snapshot())
    assert (child.base, child.schedule) == (parent.base, parent.schedule)


@pytest.mark.parametrize("keep", [0, 10, 0.5, -1])
def test_a_state_cut_short_gives_way_to_the_one_before(tmp_path: Path, keep: float) -> None:
    """The last good generation serves; the bad one is kept aside, and said once."""
    path = tmp_path / "state"
    loop = OnlineLoop(_config(), path=path)
    loop.ingest(*_records(1, 20))
    loop.save()
    loop.ingest(*_records(21, 5))
    loop.save()
    blob = path.read_bytes()
    cut = blob[: round(len(blob) * keep)] if isinstance(keep, float) else blob[:keep]
    path.write_bytes(cut)
    again = OnlineLoop(_config(), path=path)
    status = again.status
    assert status.transition_count == 16
    assert "state.damaged" in status.problems[0]
    assert (tmp_path / "state.damaged").read_bytes() == cut
    assert again.status.problems == ()
    again.save()
    assert OnlineLoop(_config(), path=path).status.problems == ()


@pytest.mark.parametrize("meta", [{}, {"settled": 5}, {"settled": [["r", 1]]}, {"baseline": 3}])
def test_a_state_that_is_whole_and_nonsense_is_set_aside(tmp_path: Path, meta: Any) -> None:
    """With nothing before it the run starts afresh."""
    sound: dict[str, Any] = {
        "feature_schema": "s", "settled": [], "baseline": {}, "mean_reward": None
    }  # fmt: skip
    whole = {**sound, **meta} if meta else {"feature_schema": "s"}
    save_checkpoint(tmp_path / "state", whole, {})
    loop = OnlineLoop(_config(), path=tmp_path / "state")
    assert loop.status.problems
    assert (tmp_path / "state.damaged").exists()


def test_a_closed_ticket_closed_again_counts_once(tmp_path: Path) -> None:
    """A second outcome, or a whole second pair, teaches nothing: before a save and after it."""
    loop = OnlineLoop(_config(), path=tmp_path / "state")
    decisions, outcomes = _records(1, 20)
    loop.ingest(decisions, [*outcomes, *(replace(each, reward=0.0) for each in outcomes)])
    mean = loop._mean_reward
    for _ in range(2):
        loop.ingest(decisions, [replace(each, reward=0.0) for each in outcomes])
        loop.save()
    assert loop.status.transition_count == 16
    assert loop._mean_reward == mean
    assert loop.status.dropped_counts["again"] >= 20


def test_far_numbers_of_a_router_do_not_silence_it() -> None:
    """The largest epoch and number in its name leave its own records to be learned from."""
    loop = OnlineLoop(_config())
    decisions, outcomes = _records(1, 3)
    for key in (("r", 2**63 - 1, 1), ("r", 1, 2**53)):
        loop.ingest([replace(decisions[0], key=key)], [replace(outcomes[0], key=key)])
    loop.ingest(*_records(4, 40))
    loop.save()
    loop.ingest(*_records(44, 40))
    assert loop.status.transition_count >= 70


def test_poison_features_are_never_kept_and_weights_stay_finite(tmp_path: Path) -> None:
    """What is finite only in single precision, infinite or no number does not enter the replay."""
    loop = OnlineLoop(_config(), path=tmp_path / "state")
    decisions, outcomes = _records(1, 100)
    for index, value in ((5, 7e4), (20, np.inf), (35, np.nan), (50, -3e38)):
        x = np.array(decisions[index].features_CF)
        x[0, 0] = value
        decisions[index] = replace(decisions[index], features_CF=x)
    loop.ingest(decisions, outcomes)
    loop.learn(10.0, _ticks())  # type: ignore[arg-type]
    loop.save()
    again = OnlineLoop(_config(), path=tmp_path / "state")
    assert again.status.transition_count > 60
    for part in (*loop._learner.get_state().values(), *again._learner.get_state().values()):
        assert np.isfinite(part).all()


def test_a_network_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    """The run goes back to what was saved last, says so once, and learns on."""
    loop = OnlineLoop(_config(), path=tmp_path / "state")
    loop.ingest(*_records(1, 100))
    loop.learn(10.0, _ticks())  # type: ignore[arg-type]
    loop.save()
    good = loop._learner.get_state()
    loop._learner.set_state({k: v * np.float32(np.nan) if v.ndim else v for k, v in good.items()})
    loop.learn(10.0, _ticks())  # type: ignore[arg-type]
    loop.save()
    assert len(loop.status.problems) == 1
    again = OnlineLoop(_config(), path=tmp_path / "state")
    assert all(np.isfinite(part).all() for part in again._learner.get_state().values())


def test_a_span_is_dropped_and_the_network_starts_afresh_on_the_rest(tmp_path: Path) -> None:
    """What was learned from it cannot be told from the rest, so the start serves again."""
    loop = OnlineLoop(_config(), path=tmp_path / "state")
    start = loop._learner.get_state()
    loop.ingest(*_records(1, 100))
    loop.learn(10.0, _ticks())  # type: ignore[arg-type]
    held, steps = len(loop._replay), loop.status.step_count
    assert loop.drop(0.05 * 30 - 0.01, 0.05 * 50 - 0.01) == (20, held - 20)
    assert loop.status.step_count == steps > 0
    np.testing.assert_array_equal(loop._learner.get_state()["online.w1_FH"], start["online.w1_FH"])
    loop.save()
    assert len(OnlineLoop(_config(), path=tmp_path / "state")._replay) == held - 20
    loop.ingest(*_records(101, 200))
    assert loop.learn(10.0, _ticks()) > 0  # type: ignore[arg-type]


@pytest.mark.parametrize("is_restarted", [False, True])
def test_what_is_dropped_does_not_come_in_afterwards(tmp_path: Path, is_restarted: bool) -> None:
    """Nor what waited for its outcome or its horizon then, nor what had not been read."""
    loop = OnlineLoop(_config(), path=tmp_path / "state")
    decisions, outcomes = _records(1, 300)
    loop.ingest(decisions[:100], outcomes[:90])
    loop.drop(0.0, 0.05 * 150 - 0.01, now_s=100.0)
    assert len(loop._replay) == 0
    loop.save()
    if is_restarted:
        loop = OnlineLoop(_config(), path=tmp_path / "state")
        loop.ingest(decisions[:100], outcomes[:90])
    loop.ingest(decisions[100:], outcomes[90:])
    times = loop._replay._held().time_B
    assert times.min() == pytest.approx(0.05 * 150)
    # The last four wait for their horizon.
    assert len(times) == 300 - 149 - 4


def test_a_drop_without_an_end_is_of_what_there_is_by_then() -> None:
    """Also where clocks of routers are ahead; what comes later is learned from."""
    loop = OnlineLoop(_config())
    loop.ingest(*_records(1, 100))
    loop.drop(0.0, 253_402_300_799.0, now_s=2.0)
    assert len(loop._replay) == 0
    loop.ingest(*_records(101, 100))
    assert len(loop._replay) == 96


def test_a_save_that_was_killed_leaves_nothing_for_good(tmp_path: Path) -> None:
    """The next learner clears up what a writer left that is gone."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = tmp_path / f".state.{gone.pid}.tmp"
    left.touch()
    OnlineLoop(_config(), path=tmp_path / "state")
    assert not left.exists()


def test_what_never_came_is_counted_by_its_numbers_over_restarts(tmp_path: Path) -> None:
    """So is what came too late; neither is counted again by whoever restores the state."""
    loop = OnlineLoop(_config(), path=tmp_path / "state")
    loop.ingest(*_records(1, 5))
    loop.ingest(*_records(8, 40))
    late, outcomes = _records(1, 1, router="late")
    loop.ingest(late, outcomes)
    assert ("late", 1, 1) in loop.save()
    for each in (loop, OnlineLoop(_config(), path=tmp_path / "state")):
        assert each.status.missing_count == 2
        assert each.status.dropped_counts["late"] == 1
        assert each.ingest(late, outcomes) == [("late", 1, 1)] * 2
        assert each.status.dropped_counts["late"] == 1


def test_what_processes_told_is_saved_before_it_is_settled(tmp_path: Path) -> None:
    """Their drops and ends are known after a restart, and the entry that told them may go."""
    loop = OnlineLoop(_config(), path=tmp_path / "state")
    loop.ingest(*_records(1, 20))
    told = ProcessRecord(("r", 1), 3, 4, is_end=True)
    assert loop.ingest([], [], [told]) == []
    assert told.key in loop.save()
    status = OnlineLoop(_config(), path=tmp_path / "state").status
    assert (status.told_decisions, status.told_outcomes, status.cut_count) == (3, 4, 0)
    assert status.open_processes == ()


def test_a_trainer_that_slept_does_not_save_over_another_ones_state(tmp_path: Path) -> None:
    """What the other has settled since is not in the state of the one that wakes up."""
    first = OnlineLoop(_config(), path=tmp_path / "state")
    first.ingest(*_records(1, 20))
    assert first.save()
    second = OnlineLoop(_config(), path=tmp_path / "state")
    second.ingest(*_records(21, 20))
    first.ingest(*_records(21, 20))
    assert second.save()
    with pytest.raises(OvertakenError, match="another process"):
        first.save()
    restored = OnlineLoop(_config(), path=tmp_path / "state")
    assert restored.status.transition_count == second.status.transition_count == 32
