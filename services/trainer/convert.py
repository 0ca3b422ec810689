"""Messages of the contract to dataclasses and back."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection
from dataclasses import astuple, fields
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from router.dqn.snapshot import MAX_SCORE_COUNT, MAX_SCORE_NAME_CHARACTERS
from router.features import FEATURE_COUNT, FEATURES, SCHEMA
from router.policies.table import LEARNED
from router.watch import CLASSES, Figures, WatchLimits, WatchReport
from services.common.checks import MAX_COUNT, MAX_NAME_CHARACTERS, Checks, checks_of_stored
from services.common.state.policy_store import StoredPolicy
from services.common.times import duration_of, set_duration
from services.trainer.model import (
    IN_ROLLOUT,
    MOST_STEPS,
    Mode,
    PolicyRecord,
    RolloutState,
    RolloutStep,
    RunProgress,
    Stage,
    WatchStage,
    WatchState,
)
from services.trainer.rollout_verdicts import (
    CanarySeen,
    ShadowSeen,
    SwitchSeen,
    TrialSeen,
    Verdict,
    decides_all,
)
from tiercel.common.v1 import common_pb2, experience_pb2
from tiercel.load_monitor.v1 import system_state_pb2
from tiercel.trainer.v1 import trainer_service_pb2 as pb
from trainer.learning.online.joining import DecisionRecord, Ending, OutcomeRecord
from trainer.learning.online.processes import ProcessRecord

MAX_AHEAD_S = 5.0
"""How far a router's clock may be ahead of ours, seconds; records from further on are refused."""
_NS_PER_S = 1_000_000_000
_MOST_RECORD_BYTES = 1024 * 1024
_MOST_CANDIDATES = 4_096
_MOST_SLACK_S = 86_400.0
_LEAST_PROBABILITY = 1e-9
_LONGEST_ROUTER_ID = 128
_MOST_DROPPED = 2**53
# Features are rounded to float32 on their way.
_LOW_F = np.array([feature.low - 1e-3 for feature in FEATURES], np.float32)
_HIGH_F = np.array([feature.high + 1e-3 for feature in FEATURES], np.float32)

_ENDINGS = {
    common_pb2.OUTCOME_STATUS_ON_TIME: Ending.ANSWERED,
    common_pb2.OUTCOME_STATUS_LATE: Ending.ANSWERED,
    common_pb2.OUTCOME_STATUS_REFUSED: Ending.REFUSED,
    common_pb2.OUTCOME_STATUS_FAILED: Ending.REFUSED,
    common_pb2.OUTCOME_STATUS_CANCELLED: Ending.CANCELLED,
    common_pb2.OUTCOME_STATUS_LEASE_EXPIRED: Ending.CANCELLED,
    common_pb2.OUTCOME_STATUS_INVALID: Ending.CANCELLED,
}


_VERDICTS = tuple(verdict.value for verdict in Verdict)
MAX_TEXT_CHARACTERS = 1_024
"""Longest description or reason."""
_STORED_STAGES = (Stage.PROPOSED.value, Stage.REJECTED.value)
"""The other stages follow from the activations and the rollout."""
_MOST_PAIRS = 1_000
_SIGNED_SUMS = ("value_sum", "control_value_sum", "effect_total")
_WATCH_STAGES = tuple(stage.value for stage in WatchStage)
_ROLLOUT_STAGES = tuple(
    stage.value for stage in (Stage.PROPOSED, *IN_ROLLOUT, Stage.ACTIVE, Stage.REJECTED)
)


class BadRecordError(ValueError):
    """Something stored is not what it should be; it is counted and set aside."""


class Experience(NamedTuple):
    """A record, and what it says of the mesh.

    Attributes:
        record: the record.
        stamp_s: when it was written, seconds since 1970.
        candidates: (tier, endpoint) pairs the decision chose from; empty for anything else.
    """

    record: DecisionRecord | OutcomeRecord | ProcessRecord
    stamp_s: float
    candidates: tuple[tuple[str, str], ...] = ()


def experience_from(
    payload: bytes,
    *,
    now_s: float,
    tasks: Collection[str],
    is_known: Callable[[str, int], bool] = lambda _router, _epoch: False,
) -> Experience:
    """Returns the record of a stream entry.

    Args:
        payload: the entry.
        now_s: the time, seconds since 1970; routers' clocks may be `MAX_AHEAD_S` ahead.
        tasks: the mesh's tasks.
        is_known: tells of a router's id and epoch whether the mesh has such a process. That one
            may have started before its clock was set right, with an epoch that is yet to come.

    Raises:
        BadRecordError: It cannot be decoded, or a field is missing or out of range.
    """
    if len(payload) > _MOST_RECORD_BYTES:
        raise BadRecordError(f"{len(payload)} bytes (limit: {_MOST_RECORD_BYTES})")
    try:
        entry = experience_pb2.ExperienceEntry.FromString(payload)
    except DecodeError as error:
        raise BadRecordError("not an ExperienceEntry") from error
    with checks_of_stored(BadRecordError) as checks:
        made = _experience_from(entry, checks, now_s, tasks, is_known)
    return made  # noqa: RET504  # a block that may swallow errors does not count as returning


def _experience_from(
    entry: experience_pb2.ExperienceEntry,
    checks: Checks,
    now_s: float,
    tasks: Collection[str],
    is_known: Callable[[str, int], bool],
) -> Experience:
    """Returns the record of an entry; only sensible if nothing is wrong."""
    record: Any
    if entry.HasField("decision"):
        record, made = entry.decision, _decision_from(entry.decision, checks, tasks)
    elif entry.HasField("outcome"):
        record, made = entry.outcome, _outcome_from(entry.outcome, checks)
    elif entry.HasField("process"):
        record, made = entry.process, _process_from(entry.process, checks)
    else:
        raise BadRecordError("entry without a record")
    checks.text("router_id", record.router_id, _LONGEST_ROUTER_ID, 1)
    latest = round((now_s + MAX_AHEAD_S) * 1e9)
    if record.epoch > latest and is_known(record.router_id, record.epoch):
        latest = record.epoch
    checks.count("epoch", record.epoch, latest, 1)
    if not entry.HasField("process"):
        checks.count("sequence", record.sequence, low=1)
    ahead_s = made.stamp_s - now_s
    limit = f"at most {MAX_AHEAD_S:g} s"
    checks.require(ahead_s <= MAX_AHEAD_S, "time", f"lies {ahead_s:g} s ahead", limit)
    return made


def _decision_from(
    record: experience_pb2.DecisionRecord, checks: Checks, tasks: Collection[str]
) -> Experience:
    rows = len(record.candidates)
    stamp_s = checks.moment("decide_time", record.decide_time)
    checks.items("candidates", record.candidates, _MOST_CANDIDATES, 1)
    checks.count("action", record.action, max(rows, 1) - 1)
    checks.require(record.task in tasks, "task", f"is {record.task[:64]!r}", "a task of the mesh")
    checks.text("policy_version", record.policy_version, MAX_NAME_CHARACTERS)
    probability = record.behavior_probability
    checks.number("behavior_probability", probability, _LEAST_PROBABILITY, 1.0)
    slack_s = checks.duration("slack", record.slack, -_MOST_SLACK_S, _MOST_SLACK_S)
    known = record.feature_schema == SCHEMA
    checks.require(known, "feature_schema", f"is {record.feature_schema[:64]!r}", SCHEMA)
    features_CF = _features_of(record, rows, checks) if record.features else None
    candidates = tuple((each.tier, each.endpoint) for each in record.candidates[:_MOST_CANDIDATES])
    checks.require(len(set(candidates)) == len(candidates), "candidates", "are there twice")
    decision = DecisionRecord(
        key=(record.router_id, record.epoch, record.sequence),
        time_s=stamp_s,
        features_CF=features_CF,
        action=record.action,
        feature_schema=record.feature_schema,
        policy_version=record.policy_version,
        behavior_probability=probability,
        slack_s=slack_s,
        task=record.task,
    )
    return Experience(decision, stamp_s, candidates)


def _features_of(
    record: experience_pb2.DecisionRecord, rows: int, checks: Checks
) -> NDArray[np.float32] | None:
    size, expected = len(record.features), 4 * rows * FEATURE_COUNT
    fits = record.feature_count == FEATURE_COUNT and size == expected
    if not checks.require(fits, "features", f"has {size} bytes", f"{rows} x {FEATURE_COUNT} x 4"):
        return None
    flat = np.frombuffer(record.features, dtype="<f4").astype(np.float32)
    features_CF = flat.reshape(rows, FEATURE_COUNT)
    # Written so that what is no number is outside.
    inside_CF = (features_CF >= _LOW_F) & (features_CF <= _HIGH_F)
    if not inside_CF.all():
        row, column = np.argwhere(~inside_CF)[0].tolist()
        feature = FEATURES[column]
        field, value = f"features[{row}].{feature.name}", float(features_CF[row, column])
        checks.number(field, value, feature.low, feature.high)
    return features_CF


def _outcome_from(record: experience_pb2.OutcomeRecord, checks: Checks) -> Experience:
    ending = _ENDINGS.get(record.status)
    checks.require(ending is not None, "status", f"is {record.status}")
    checks.number("reward", record.reward, 0.0, 1.0)
    stamp_s = checks.moment("end_time", record.end_time)
    key = (record.router_id, record.epoch, record.sequence)
    return Experience(OutcomeRecord(key, record.reward, ending or Ending.CANCELLED), stamp_s)


def _process_from(record: experience_pb2.ProcessRecord, checks: Checks) -> Experience:
    for field in ("dropped_decision_count", "dropped_outcome_count"):
        checks.count(field, getattr(record, field), _MOST_DROPPED)
    told = ProcessRecord(
        (record.router_id, record.epoch),
        record.dropped_decision_count,
        record.dropped_outcome_count,
        is_end=record.ended,
    )
    return Experience(told, checks.moment("tell_time", record.tell_time))


def policy_info(record: PolicyRecord) -> pb.PolicyInfo:
    """Returns the message of a policy."""
    info = pb.PolicyInfo(
        policy=record.policy,
        policy_version=record.version,
        stage=pb.PolicyStage.ValueType(record.stage.value),
        feature_schema=record.feature_schema,
        transition_count=record.transition_count,
        description=record.description,
        scores=dict(record.scores),
        rejection=record.rejection,
        force_reason=record.force_reason,
    )
    if record.publish_ns:
        info.publish_time.FromNanoseconds(record.publish_ns)
    for step in record.steps:
        info.steps.append(_step_message(step))
    return info


def _step_message(step: RolloutStep) -> pb.RolloutStep:
    message = pb.RolloutStep(
        stage=pb.PolicyStage.ValueType(step.stage.value),
        verdict=pb.RolloutVerdict.ValueType(step.verdict.value),
        reason=step.reason,
    )
    message.step_time.FromNanoseconds(step.step_ns)
    return message


def rollout_message(state: RolloutState, seen: str = "") -> pb.RolloutInfo:
    """Returns the message of a rollout; `seen` is what its stage has seen so far."""
    message = pb.RolloutInfo(
        rollout=state.number,
        policy=state.policy,
        policy_version=state.version,
        stage=pb.PolicyStage.ValueType(state.stage.value),
        paused=state.is_paused,
        reason=state.reason,
        seen=seen[:MAX_TEXT_CHARACTERS],
    )
    message.begin_time.FromNanoseconds(state.begin_ns)
    return message


def watch_message(state: WatchState, seen: str = "") -> pb.WatchInfo:
    """Returns the message of a watch; `seen` is what was seen so far."""
    message = pb.WatchInfo(
        activation=state.activation,
        policy=state.policy,
        policy_version=state.version,
        replaced_policy=state.replaced,
        replaced_policy_version=state.replaced_version,
        stage=pb.WatchStage.ValueType(state.stage.value),
        reason=state.reason,
        seen=seen[:MAX_TEXT_CHARACTERS],
    )
    message.begin_time.FromNanoseconds(state.begin_ns)
    message.end_time.FromNanoseconds(state.end_ns)
    return message


def watch_order(state: WatchState, limits: WatchLimits, left_s: float) -> pb.WatchOrder | None:
    """Returns what routers are to watch, for `left_s` seconds; None for nothing."""
    if not state.is_under_way:
        return None
    return pb.WatchOrder(
        activation=state.activation,
        time_left=duration_of(left_s),
        miss_limit=limits.misses,
        error_limit=limits.errors,
    )


def trial_message(
    state: RolloutState,
    snapshot: bytes,
    share: float,
    settle_s: float = 0.0,
    watch: pb.WatchOrder | None = None,
) -> pb.WatchTrialResponse:
    """Returns what routers are to try, nothing unless the rollout runs, and to watch."""
    if not state.is_running:
        return pb.WatchTrialResponse(watch=watch)
    message = pb.WatchTrialResponse(
        watch=watch,
        rollout=state.number,
        stage=pb.PolicyStage.ValueType(state.stage.value),
        policy=state.policy,
        policy_version=state.version,
        share=share if state.stage is Stage.CANARY else 0.0,
        snapshot=snapshot,
        snapshot_sha256=hashlib.sha256(snapshot).digest(),
    )
    if state.stage is Stage.SWITCHBACK:
        message.period = state.period
        message.decides_all = decides_all(state.number, state.version, state.period)
        set_duration(message.settle, settle_s)
    return message


def encode_rollout(state: RolloutState) -> bytes:
    """Returns the form a rollout has in the store."""
    message = pb.RolloutState(
        rollout=rollout_message(state),
        activation=state.activation,
        anchor=state.anchor,
        anchor_version=state.anchor_version,
    )
    if state.stage_ns:
        message.stage_time.FromNanoseconds(state.stage_ns)
    if state.pinned_activation >= 0:
        message.pinned_activation = state.pinned_activation
    if state.watch.activation:
        message.watch.CopyFrom(watch_message(state.watch))
    if state.carried != CanarySeen():
        message.carried.extend(astuple(state.carried))
    if state.period:
        message.period, message.judged_period_count = state.period, state.judged
        message.period_time.FromNanoseconds(state.period_ns)
        message.pair_differences.extend(state.differences)
    return message.SerializeToString()


def decode_rollout(payload: bytes) -> RolloutState:
    """Returns a rollout in the store.

    Raises:
        BadRecordError: It cannot be decoded, or is none this service would store.
    """
    try:
        stored = pb.RolloutState.FromString(payload)
    except DecodeError as error:
        raise BadRecordError("not a RolloutState") from error
    with checks_of_stored(BadRecordError) as checks:
        _check_rollout(checks, stored)
        if stored.HasField("watch"):
            _check_stored_watch(checks, stored.watch)
    info, watch = stored.rollout, stored.watch
    return RolloutState(
        number=info.rollout,
        policy=info.policy,
        version=info.policy_version,
        stage=Stage(info.stage),
        is_paused=info.paused,
        reason=info.reason,
        begin_ns=info.begin_time.ToNanoseconds(),
        stage_ns=stored.stage_time.ToNanoseconds(),
        activation=stored.activation,
        pinned_activation=stored.pinned_activation if stored.HasField("pinned_activation") else -1,
        watch=WatchState(
            activation=watch.activation,
            policy=watch.policy,
            version=watch.policy_version,
            replaced=watch.replaced_policy,
            replaced_version=watch.replaced_policy_version,
            stage=WatchStage(watch.stage),
            reason=watch.reason,
            begin_ns=watch.begin_time.ToNanoseconds(),
            end_ns=watch.end_time.ToNanoseconds(),
        ),
        carried=CanarySeen(*stored.carried),
        period=stored.period,
        period_ns=stored.period_time.ToNanoseconds(),
        judged=stored.judged_period_count,
        differences=tuple(stored.pair_differences),
        anchor=stored.anchor,
        anchor_version=stored.anchor_version,
    )


def _check_rollout(checks: Checks, stored: pb.RolloutState) -> None:
    info = stored.rollout
    checks.count("rollout", info.rollout)
    for name in ("policy", "policy_version"):
        checks.text(name, getattr(info, name), MAX_NAME_CHARACTERS)
    checks.require(info.stage in _ROLLOUT_STAGES, "stage", f"is {info.stage}")
    checks.text("reason", info.reason, MAX_TEXT_CHARACTERS)
    checks.moment("begin_time", info.begin_time)
    checks.count("activation", stored.activation)
    checks.count("pinned_activation", stored.pinned_activation)
    for name in ("anchor", "anchor_version"):
        checks.text(name, getattr(stored, name), MAX_NAME_CHARACTERS)
    names = [each.name for each in fields(CanarySeen)]
    carried = dict(zip(names, stored.carried, strict=False))
    is_whole = len(stored.carried) in (0, len(names))
    checks.require(is_whole, "carried", f"has {len(stored.carried)} numbers", str(len(names)))
    for name, value in carried.items():
        low = -MAX_COUNT if name in _SIGNED_SUMS else 0
        checks.number(f"carried.{name}", value, low, MAX_COUNT)
    for name in ("period", "judged_period_count"):
        checks.count(name, getattr(stored, name))
    if stored.HasField("period_time"):
        checks.moment("period_time", stored.period_time)
    if stored.HasField("stage_time"):
        checks.moment("stage_time", stored.stage_time)
    if checks.items("pair_differences", stored.pair_differences, _MOST_PAIRS):
        for value in stored.pair_differences:
            checks.number("pair_differences", value, -1.0, 1.0)


def _check_stored_watch(checks: Checks, watch: pb.WatchInfo) -> None:
    checks.count("watch.activation", watch.activation)
    for name in ("policy", "policy_version", "replaced_policy", "replaced_policy_version"):
        checks.text(f"watch.{name}", getattr(watch, name), MAX_NAME_CHARACTERS)
    checks.require(watch.stage in _WATCH_STAGES, "watch.stage", f"is {watch.stage}")
    checks.text("watch.reason", watch.reason, MAX_TEXT_CHARACTERS)
    for name in ("begin_time", "end_time"):
        checks.moment(f"watch.{name}", getattr(watch, name))


def watch_seen(report: system_state_pb2.WatchReport) -> WatchReport:
    """Returns what a router has seen of the policy that is watched."""
    return WatchReport(
        activation=report.activation,
        problem=report.problem[:64],
        detail=report.problem_detail[:200],
        before=_figures(report.before),
        after=_figures(report.after),
    )


def _figures(message: system_state_pb2.PolicyFigures) -> Figures:
    figures = Figures(
        decisions=float(message.decision_count),
        decision_s=message.decision_s,
        faults=float(message.fault_count),
    )
    for each in message.classes:
        if 0 <= each.load_class < CLASSES:
            counts = each.request_count, each.missed_count, each.failed_count, each.slow_count
            figures.ends_LE[each.load_class] += counts
    return figures


def trial_seen(report: system_state_pb2.TrialReport) -> TrialSeen:
    """Returns what a router has seen of the policy on trial."""
    shadow, canary, switch = (
        {each.name: float(value) for each, value in part.ListFields()}
        for part in (report.shadow, report.canary, report.switchback)
    )
    return TrialSeen(
        rollout=report.rollout,
        is_canary=report.is_canary,
        problem=report.problem[:64],
        detail=report.problem_detail[:200],
        shadow=ShadowSeen(**shadow),
        canary=CanarySeen(**canary),
        switch=SwitchSeen(**switch) if report.HasField("switchback") else None,
    )


def encode_policy(record: PolicyRecord) -> bytes:
    """Returns the form a policy has in the store."""
    return policy_info(record).SerializeToString()


def decode_policy(stored: StoredPolicy) -> PolicyRecord:
    """Returns the record of a policy in the store.

    Raises:
        BadRecordError: It cannot be decoded, is none this service would store, or is stored under
            another name.
    """
    try:
        info = pb.PolicyInfo.FromString(stored.info)
    except DecodeError as error:
        raise BadRecordError("not a PolicyInfo") from error
    with checks_of_stored(BadRecordError) as checks:
        named = (info.policy, info.policy_version) == (stored.name, stored.version)
        checks.require(named, "policy", "is stored under another name")
        checks.require(stored.name in LEARNED, "policy", "is none that has snapshots")
        stage = Stage(info.stage) if info.stage in _STORED_STAGES else Stage.BUILT_IN
        checks.require(stage is not Stage.BUILT_IN, "stage", f"is {info.stage}")
        checks.text("feature_schema", info.feature_schema, MAX_NAME_CHARACTERS)
        for name in ("description", "rejection", "force_reason"):
            checks.text(name, getattr(info, name), MAX_TEXT_CHARACTERS)
        checks.count("transition_count", info.transition_count)
        checks.moment("publish_time", info.publish_time)
        if checks.items("scores", info.scores, MAX_SCORE_COUNT):
            for name, score in info.scores.items():
                checks.text("scores", name, MAX_SCORE_NAME_CHARACTERS)
                checks.require(math.isfinite(score), "scores", f"has {score}")
        steps = _steps_from(info, checks)
    return PolicyRecord(
        policy=info.policy,
        version=info.policy_version,
        stage=stage,
        feature_schema=info.feature_schema,
        publish_ns=info.publish_time.ToNanoseconds(),
        transition_count=info.transition_count,
        description=info.description,
        scores=dict(info.scores),
        rejection=info.rejection,
        force_reason=info.force_reason,
        steps=steps,
    )


def _steps_from(info: pb.PolicyInfo, checks: Checks) -> tuple[RolloutStep, ...]:
    """Returns the steps; only sensible if nothing is wrong."""
    steps: list[RolloutStep] = []
    if not checks.items("steps", info.steps, MOST_STEPS):
        return ()
    for each in info.steps:
        checks.moment("steps", each.step_time)
        checks.text("steps", each.reason, MAX_TEXT_CHARACTERS)
        is_known = each.stage in _ROLLOUT_STAGES and each.verdict in _VERDICTS
        if checks.require(is_known, "steps", f"has {each.stage} and {each.verdict}"):
            # The library's own conversion raises where the check above has noted a mistake.
            step_ns = each.step_time.seconds * _NS_PER_S + each.step_time.nanos
            step = RolloutStep(step_ns, Stage(each.stage), Verdict(each.verdict), each.reason)
            steps.append(step)
    return tuple(steps)


def mode_from(mode: pb.TrainingMode.ValueType) -> Mode | None:
    """Returns the mode asked for, None if it is not known."""
    if mode in (pb.TRAINING_MODE_UNSPECIFIED, pb.TRAINING_MODE_ONLINE):
        return Mode.ONLINE
    return Mode.SIMULATED if mode == pb.TRAINING_MODE_SIMULATED else None


def progress_message(progress: RunProgress) -> pb.TrainingProgress:
    """Returns the message of a run's progress."""
    message = pb.TrainingProgress(
        training_id=progress.training_id,
        mode=pb.TrainingMode.ValueType(progress.mode.value),
        state=pb.TrainingState.ValueType(progress.state.value),
        step_count=progress.step_count,
        planned_step_count=progress.planned_step_count,
        transition_count=progress.transition_count,
        epsilon=progress.epsilon,
        policy_version=progress.policy_version,
        error=progress.error,
        steps_per_second=progress.steps_per_second,
    )
    if progress.loss is not None:
        message.loss = progress.loss
    if progress.mean_reward is not None:
        message.mean_reward = progress.mean_reward
    if progress.time_left_s is not None:
        set_duration(message.time_left, progress.time_left_s)
    return message
