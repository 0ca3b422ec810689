"""The trainer on a real Redis, a real gRPC server and a real learner process."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc

from router.dqn.snapshot import Snapshot, load_snapshot, save_snapshot, zero_weights
from router.features import FEATURE_COUNT, FEATURES, SCHEMA
from services.cli.app import run
from services.common.settings import load_settings
from services.common.state import keys
from services.common.state.experience_stream import RedisExperienceStream
from services.common.state.policy_store import RedisPolicyStore
from services.common.state.redis_connection import RedisConnection
from services.trainer.app import REDIS_HEALTH, TrainerApplication, build_app
from services.trainer.settings import Settings
from tests.conftest import RedisServer
from tests.details import details_of
from tests.waiting import LIMIT_S, until
from tiercel.common.v1 import common_pb2, experience_pb2
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as monitor_pb
from tiercel.load_monitor.v1 import load_monitor_service_pb2_grpc as monitor_grpc
from tiercel.load_monitor.v1.system_state_pb2 import RouterLoad, SystemState
from tiercel.trainer.v1 import trainer_service_pb2 as pb
from tiercel.trainer.v1 import trainer_service_pb2_grpc as pb_grpc

# Starting a learner process on a busy machine can take many seconds; nothing waits for that long.
pytestmark = pytest.mark.timeout(240)
TRAINING_LIMIT_S = 90.0

PROFILE = """
name = "tiny"
source = "assumed"
[tiers.small]
step_s = 0.001
per_sequence_s = 0.00001
per_prompt_token_s = 0.000001
[tiers.large]
step_s = 0.01
per_sequence_s = 0.0001
per_prompt_token_s = 0.00001
"""
QUALITY = """
name = "tiny"
source = "assumed"
[quality.echo]
small = 0.5
large = 1.0
"""
MESH = """
[mesh]
tiers = ["small", "large"]
profile = "profile.toml"
quality = "quality.toml"
redis_url = "{redis_url}"
[[mesh.tasks]]
name = "echo"
default_deadline_s = 0.2
[[mesh.endpoints]]
name = "e0"
address = "127.0.0.1:1"
tiers = ["small", "large"]
[trainer]
listen = "127.0.0.1:0"
metrics_listen = ""
data_dir = "data"
shipped_snapshot = "{shipped}"
min_transitions = 100
publish_interval_s = 0.2
publish_min_steps = 5
save_interval_s = 0.3
claim_idle_s = 0.5
learn_cpu_share = 0.5
poll_interval_s = 0.1
worker_nice = 0
simulated_budget_s = 16.0
gate_seeds = 1
"""


def settings(folder: Path, redis_url: str, shipped: str = "") -> Settings:
    """Writes a mesh file with its profile and quality and reads it."""
    (folder / "profile.toml").write_text(PROFILE)
    (folder / "quality.toml").write_text(QUALITY)
    path = folder / "tiercel.toml"
    path.write_text(MESH.format(redis_url=redis_url, shipped=shipped))
    return load_settings(Settings, path=path, environ={})


def snapshot(seed: int = 0) -> bytes:
    """Returns a snapshot of random weights that follows this build's schema."""
    from trainer.learning.network import initial_weights

    names = tuple(feature.name for feature in FEATURES)
    weights = initial_weights(FEATURE_COUNT, 8, np.random.default_rng(seed))
    return save_snapshot(Snapshot(weights, SCHEMA, names))


@asynccontextmanager
async def served(made: Settings) -> AsyncIterator[tuple[Any, Any]]:
    """Runs a trainer in this process; yields its stub and channel."""
    application: TrainerApplication = build_app(made)
    async with AsyncExitStack() as stack:
        running = await application.start(stack)
        await running.server.start()
        tasks = [asyncio.create_task(task()) for task in running.tasks.values()]
        await running.ready()
        await running.server.set_serving(True)
        channel = grpc.aio.insecure_channel(str(running.server.address))
        try:
            yield pb_grpc.TrainerServiceStub(channel), channel
        finally:
            async with asyncio.timeout(LIMIT_S):  # whatever hangs is named by the traceback
                await channel.close()
                await running.server.stop(0.0)
                await running.flush()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


LOW_F = np.array([feature.low for feature in FEATURES])
HIGH_F = np.array([feature.high for feature in FEATURES])


def experience(first: int, count: int) -> list[bytes]:
    """Returns `count` decisions 10 ms apart and their outcomes as stream entries."""
    rng = np.random.default_rng(first)
    payloads = []
    for sequence in range(first, first + count):
        x = (LOW_F + rng.random((2, FEATURE_COUNT)) * (HIGH_F - LOW_F)).astype("<f4")
        key: dict[str, Any] = {"router_id": "r0", "epoch": 7, "sequence": sequence}
        decision = experience_pb2.DecisionRecord(
            **key,
            task="echo",
            feature_schema=SCHEMA,
            candidates=[common_pb2.Candidate(tier=t, endpoint="e0") for t in ("small", "large")],
            features=x.tobytes(),
            feature_count=FEATURE_COUNT,
            action=sequence % 2,
            behavior_probability=1.0,
            policy="dqn",
            policy_version="v",
        )
        decision.decide_time.FromNanoseconds(1_700_000_000_000_000_000 + sequence * 10_000_000)
        outcome = experience_pb2.OutcomeRecord(
            **key,
            status=common_pb2.OUTCOME_STATUS_ON_TIME,
            reward=0.5 + 0.5 * (sequence % 2),
        )
        payloads.append(experience_pb2.ExperienceEntry(decision=decision).SerializeToString())
        payloads.append(experience_pb2.ExperienceEntry(outcome=outcome).SerializeToString())
    return payloads


async def progress(stub: Any) -> Any:
    """Returns the newest run's progress."""
    return (await stub.GetTraining(pb.GetTrainingRequest())).progress


async def pending_count(connection: RedisConnection) -> int:
    """Returns how many entries were read and never acknowledged."""
    facts: Any = await connection.redis.xpending("tiercel:v1:experience:stream", "trainer")
    return int(facts["pending"])


async def test_experience_becomes_a_policy_that_watchers_get(
    redis_server: RedisServer, redis_connection: RedisConnection, tmp_path: Path
) -> None:
    """Experience in, learner steps, a snapshot published, promoted, and sent to a watcher."""
    stream = RedisExperienceStream(redis_connection)
    await stream.append(experience(1, 400))
    shipped = tmp_path / "shipped.safetensors"
    shipped.write_bytes(snapshot())
    async with served(settings(tmp_path, redis_server.url, "shipped.safetensors")) as (stub, _):
        watch = stub.WatchPolicies(pb.WatchPoliciesRequest(), timeout=110.0)
        await stub.StartTraining(pb.StartTrainingRequest(step_count=10, seed=1))
        seen = [
            item.progress
            async for item in stub.WatchTraining(pb.WatchTrainingRequest(), timeout=90.0)
        ]
        last = seen[-1]
        assert last.state == pb.TRAINING_STATE_SUCCEEDED, last.error
        assert last.step_count >= 10
        assert last.transition_count >= 300
        assert last.HasField("loss")
        # All but those that wait for their horizon are acknowledged.
        assert await pending_count(redis_connection) < 100
        listed = (await stub.ListPolicies(pb.ListPoliciesRequest())).policies
        versions = [p.policy_version for p in listed if p.policy == "dqn"]
        assert versions[0] == last.policy_version != load_snapshot(shipped.read_bytes()).version
        assert versions[-1] == load_snapshot(shipped.read_bytes()).version
        assert {"price", "greedy", "static-small"} <= {p.policy for p in listed}
        promoted = await stub.PromotePolicy(
            pb.PromotePolicyRequest(policy="dqn", expected_activation=0, without_gate=True)
        )
        sent = await asyncio.wait_for(watch.read(), LIMIT_S)
        assert sent.activation == promoted.activation == 1
        assert sent.active.policy_version == last.policy_version
        assert sent.active.stage == pb.POLICY_STAGE_ACTIVE
        assert hashlib.sha256(sent.snapshot).digest() == sent.snapshot_sha256
        learned = load_snapshot(sent.snapshot, SCHEMA)
        assert learned.training["parent"] == load_snapshot(shipped.read_bytes()).version
        watch.cancel()


async def test_restart_of_the_consumer_loses_nothing(
    redis_server: RedisServer, redis_connection: RedisConnection, tmp_path: Path
) -> None:
    """What a killed trainer had read and not saved is read again; what it had saved is not."""
    stream = RedisExperienceStream(redis_connection)
    await stream.append(experience(1, 150))
    # A trainer that read and died: entries are pending under its name, nothing is saved.
    assert len(await stream.read("trainer", "trainer", 200, 0.0)) == 200
    made = settings(tmp_path, redis_server.url)
    async with served(made) as (stub, _):
        await stub.StartTraining(pb.StartTrainingRequest())

        async def has_all() -> bool:
            return bool((await progress(stub)).transition_count >= 130)

        await until(has_all, "everything was read", TRAINING_LIMIT_S)

        async def is_saved() -> bool:
            return await pending_count(redis_connection) <= 2 * 20

        await until(is_saved, "it is saved", TRAINING_LIMIT_S)
    await stream.append(experience(151, 100))
    async with served(made) as (stub, _):
        await stub.StartTraining(pb.StartTrainingRequest())

        async def has_more() -> bool:
            return bool((await progress(stub)).transition_count >= 230)

        await until(has_more, "more was learned", TRAINING_LIMIT_S)
        # Every decision gave at most one transition: none was learned from twice.
        assert (await progress(stub)).transition_count <= 250


async def test_works_without_redis_and_recovers(
    redis_server: RedisServer, redis_connection: RedisConnection, tmp_path: Path
) -> None:
    """Without Redis it serves from memory and says so; afterwards Redis has what happened."""
    redis_server.stop()
    try:
        async with served(settings(tmp_path, redis_server.url)) as (stub, channel):
            active = await stub.PromotePolicy(pb.PromotePolicyRequest(policy="price"))
            assert active.activation == 1
            health = health_pb2_grpc.HealthStub(channel)

            async def redis_health(wanted: int) -> bool:
                request = health_pb2.HealthCheckRequest(service=REDIS_HEALTH)
                return bool((await health.Check(request)).status == wanted)

            await until(
                lambda: redis_health(health_pb2.HealthCheckResponse.NOT_SERVING), "Redis is missed"
            )
            redis_server.start()
            await until(
                lambda: redis_health(health_pb2.HealthCheckResponse.SERVING), "Redis is back"
            )
            policies = RedisPolicyStore(redis_connection)

            async def is_stored() -> bool:
                found = await policies.active()
                return found is not None and found.name == "price"

            await until(is_stored, "it is stored", TRAINING_LIMIT_S)
    finally:
        if redis_server.process is None:
            redis_server.start()


async def test_worker_death_is_survived(
    redis_server: RedisServer, redis_connection: RedisConnection, tmp_path: Path
) -> None:
    """A killed learner process is replaced and goes on from what was saved."""
    import psutil

    stream = RedisExperienceStream(redis_connection)
    await stream.append(experience(1, 150))
    async with served(settings(tmp_path, redis_server.url)) as (stub, _):
        await stub.StartTraining(pb.StartTrainingRequest())

        async def saved() -> bool:
            return bool((await progress(stub)).transition_count >= 130)

        await until(saved, "the state is saved", TRAINING_LIMIT_S)
        for child in psutil.Process().children():
            if "spawn_main" in " ".join(child.cmdline()):
                child.send_signal(signal.SIGKILL)
        await stream.append(experience(151, 100))

        async def has_more() -> bool:
            return bool((await progress(stub)).transition_count >= 230)

        await until(has_more, "more was learned", TRAINING_LIMIT_S)
        assert (await progress(stub)).state == pb.TRAINING_STATE_RUNNING


def contrary() -> bytes:
    """Returns a snapshot that takes what price likes least."""
    names = tuple(feature.name for feature in FEATURES)
    weights = zero_weights(FEATURE_COUNT, 8)
    weights.w3_P[8 + names.index("price_gap")] = -5.0
    return save_snapshot(Snapshot(weights, SCHEMA, names))


def snapshot_like_price() -> bytes:
    """Returns a snapshot that corrects nothing, so that it decides as price does."""
    names = tuple(feature.name for feature in FEATURES)
    return save_snapshot(Snapshot(zero_weights(FEATURE_COUNT, 8), SCHEMA, names))


async def trained(stub: Any, **request: Any) -> Any:
    """Runs a training that promotes; returns what it reported."""
    started = await stub.StartTraining(pb.StartTrainingRequest(promote=True, **request))
    watch = pb.WatchTrainingRequest(training_id=started.training_id)
    return [item.progress async for item in stub.WatchTraining(watch, timeout=150.0)]


async def stages(stub: Any) -> dict[str, int]:
    """Returns the stage of each policy by version, by name where it has none."""
    listed = (await stub.ListPolicies(pb.ListPoliciesRequest())).policies
    return {p.policy_version or p.policy: p.stage for p in listed}


async def test_bad_policy_is_stopped_at_the_gate(
    redis_server: RedisServer, redis_connection: RedisConnection, tmp_path: Path
) -> None:
    """A few steps from a contrary policy are no better: rejected, the active one stays."""
    stream = RedisExperienceStream(redis_connection)
    await stream.append(experience(1, 400))
    (tmp_path / "contrary.safetensors").write_bytes(contrary())
    made = settings(tmp_path, redis_server.url, "contrary.safetensors")
    async with served(made) as (stub, _):
        await stub.PromotePolicy(pb.PromotePolicyRequest(policy="price"))
        last = (await trained(stub, step_count=10, seed=1))[-1]
        assert last.state == pb.TRAINING_STATE_SUCCEEDED, last.error
        found = await stages(stub)
        assert found[last.policy_version] == pb.POLICY_STAGE_REJECTED
        assert found["price"] == pb.POLICY_STAGE_ACTIVE


async def test_simulated_training_passes_the_gate(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """A policy trained in simulation is activated in place of a weaker one.

    How good it gets in so short a time depends on the machine, hence the wide margin.
    """
    made = settings(tmp_path, redis_server.url)
    made = made.model_copy(update={"trainer": made.trainer.model_copy(update={"gate_margin": 0.1})})
    async with served(made) as (stub, _):
        await stub.PromotePolicy(pb.PromotePolicyRequest(policy="greedy"))
        seen = await trained(stub, mode=pb.TRAINING_MODE_SIMULATED, seed=1, profile="tiny")
        assert seen[-1].state == pb.TRAINING_STATE_SUCCEEDED, seen[-1].error
        assert seen[-1].step_count > 0
        assert any(progress.HasField("time_left") for progress in seen)
        listed = (await stub.ListPolicies(pb.ListPoliciesRequest())).policies
        (found,) = (each for each in listed if each.policy_version == seen[-1].policy_version)
        # One that is refused would be waited for in vain below.
        assert found.stage == pb.POLICY_STAGE_ACTIVE, found
        active = await stub.WatchPolicies(
            pb.WatchPoliciesRequest(after_activation=1), timeout=30.0
        ).read()
        assert active.active.policy_version == seen[-1].policy_version
        assert active.active.scores["performance"] > 0.5
        assert (await stages(stub))["greedy"] == pb.POLICY_STAGE_BUILT_IN


async def test_published_snapshot_goes_through_the_gate(
    redis_server: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A snapshot from outside is proposed; promoted, it is judged like one trained here.

    That one does not pass is an ordinary event.
    """
    fine, bad = snapshot_like_price(), contrary()
    async with served(settings(tmp_path, redis_server.url)) as (stub, _):
        await stub.PromotePolicy(pb.PromotePolicyRequest(policy="price"))
        for blob in (bad, fine, fine):
            request = pb.PublishPolicyRequest(snapshot=blob, description="by hand")
            published = (await stub.PublishPolicy(request)).policy
            assert published.stage == pb.POLICY_STAGE_PROPOSED
            assert published.description == "by hand"
        versions = {blob: load_snapshot(blob).version for blob in (fine, bad)}

        def promotion(blob: bytes) -> pb.PromotePolicyRequest:
            return pb.PromotePolicyRequest(
                policy="dqn", policy_version=versions[blob], through_gate=True
            )

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.PromotePolicy(promotion(bad), timeout=120.0)
        assert details_of(caught.value)["ErrorInfo"].reason == "GATE_REFUSED"
        assert (await stages(stub))[versions[bad]] == pb.POLICY_STAGE_REJECTED
        active = (await stub.PromotePolicy(promotion(fine), timeout=120.0)).active
        assert active.policy_version == versions[fine]
        found = await stub.GetPolicy(
            pb.GetPolicyRequest(policy="dqn", policy_version=versions[fine])
        )
        assert found.snapshot == fine
        assert found.policy.stage == pb.POLICY_STAGE_ACTIVE
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]


async def test_the_gate_judges_each_priority_class(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """Where its requests are of several: the verdict has figures of each, whatever it is."""
    fine, bad = snapshot_like_price(), contrary()
    made = settings(tmp_path, redis_server.url)
    # A wide margin: of what it lets pass the test says nothing, but that all classes are judged.
    mix = {"gate_priority_mix": {"high": 1.0, "normal": 2.0, "low": 1.0}, "gate_margin": 0.03}
    mixed = made.model_copy(update={"trainer": made.trainer.model_copy(update=mix)})
    async with served(mixed) as (stub, _):

        async def promoted(blob: bytes) -> str:
            await stub.PublishPolicy(pb.PublishPolicyRequest(snapshot=blob))
            request = pb.PromotePolicyRequest(
                policy="dqn", policy_version=load_snapshot(blob).version, through_gate=True
            )
            return str((await stub.PromotePolicy(request, timeout=120.0)).gate_verdict)

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await promoted(bad)
        assert "refused it: worse for high priority" in str(caught.value.details())
        verdict = await promoted(fine)
        assert not verdict.startswith("worse")
        for name in ("high", "normal", "low"):
            assert f"{name} beside price: performance 0." in verdict


async def test_commands_take_a_snapshot_from_file_to_active(
    redis_server: RedisServer,
    tmp_path: Path,
    free_port: Callable[[], int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`publish`, `show`, `diff` and `promote` work on a registry, by version and by file."""
    fine, other = tmp_path / "fine.safetensors", tmp_path / "other.safetensors"
    fine.write_bytes(snapshot_like_price())
    other.write_bytes(contrary())
    version = load_snapshot(fine.read_bytes()).version
    made, address = settings(tmp_path, redis_server.url), f"127.0.0.1:{free_port()}"
    listening = made.trainer.model_copy(update={"listen": address})
    async with served(made.model_copy(update={"trainer": listening})):

        async def command(*words: str) -> Any:
            line = ("policy", *words, "--trainer", address, "--json")
            assert await asyncio.to_thread(run, line) == 0, capsys.readouterr().err
            return json.loads(capsys.readouterr().out)

        assert (await command("publish", str(fine)))["stage"] == "proposed"
        shown = await command("show", version)
        assert (shown["stage"], shown["policy_version"]) == ("proposed", version)
        assert await command("diff", version, version) == {}
        differing = await command("diff", version, str(other))
        assert differing["policy_version"]["a"] == version
        assert "network.norm" in differing
        promoted = await command("promote", version)
        assert promoted["stage"] == "active"
        assert "margin 0.005" in promoted["gate_verdict"]
        rejected = (await command("publish", str(other)))["policy_version"]
        promote = ("policy", "promote", rejected, "--trainer", address)
        assert await asyncio.to_thread(run, promote) == 1
        shown = await command("show", rejected)
        assert shown["stage"] == "rejected"
        assert "margin" in shown["rejection"]
        assert (await command("use", "dqn"))["policy_version"] == version
        use = ("use", "dqn", "--version", rejected)
        assert await asyncio.to_thread(run, ("policy", *use, "--trainer", address)) == 1
        assert "was rejected" in capsys.readouterr().err
        forced = await command(*use, "--force", "--reason", "a test")
        assert forced["policy_version"] == rejected
        assert (await command("show", rejected))["force_reason"] == "a test"
        assert (await command("rollback"))["active"]["policy_version"] == version


async def test_bad_shipped_snapshot_does_not_stop_the_start(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """A damaged file is refused and logged; the service runs."""
    names = tuple(feature.name for feature in FEATURES)
    scrambled = Snapshot(zero_weights(FEATURE_COUNT, 8), SCHEMA, names[::-1])
    for bad in (snapshot()[:-10], save_snapshot(scrambled)):
        (tmp_path / "bad.safetensors").write_bytes(bad)
        async with served(settings(tmp_path, redis_server.url, "bad.safetensors")) as (stub, _):
            listed = (await stub.ListPolicies(pb.ListPoliciesRequest())).policies
            assert not [p for p in listed if p.policy == "dqn"]


BAD_CALLS: list[tuple[str, Any, grpc.StatusCode, str]] = [
    ("StartTraining", pb.StartTrainingRequest(step_count=-1), grpc.StatusCode.INVALID_ARGUMENT, ""),
    ("StartTraining", pb.StartTrainingRequest(seed=-1), grpc.StatusCode.INVALID_ARGUMENT, ""),
    (
        "StartTraining",
        pb.StartTrainingRequest(profile="nope"),
        grpc.StatusCode.NOT_FOUND,
        "PROFILE_NOT_FOUND",
    ),
    *(
        (method, request, grpc.StatusCode.INVALID_ARGUMENT, "")
        for name in ("x" * 5_000, "\N{GRINNING FACE}" * 65)
        for method, request in (
            ("StartTraining", pb.StartTrainingRequest(profile=name)),
            ("GetTraining", pb.GetTrainingRequest(training_id=name)),
            ("GetPolicy", pb.GetPolicyRequest(policy=name)),
            ("PromotePolicy", pb.PromotePolicyRequest(policy="dqn", policy_version=name)),
        )
    ),
    (
        "RollbackPolicy",
        pb.RollbackPolicyRequest(reason="x" * 5_000),
        grpc.StatusCode.INVALID_ARGUMENT,
        "",
    ),
    (
        "DropReplay",
        pb.DropReplayRequest(since_time=Timestamp(seconds=5), until_time=Timestamp(seconds=5)),
        grpc.StatusCode.INVALID_ARGUMENT,
        "",
    ),
    (
        "DropReplay",
        pb.DropReplayRequest(since_time=Timestamp(seconds=2**62)),
        grpc.StatusCode.INVALID_ARGUMENT,
        "",
    ),
    ("GetTraining", pb.GetTrainingRequest(), grpc.StatusCode.NOT_FOUND, "TRAINING_RUN_NOT_FOUND"),
    ("PublishPolicy", pb.PublishPolicyRequest(), grpc.StatusCode.INVALID_ARGUMENT, ""),
    (
        "PublishPolicy",
        pb.PublishPolicyRequest(snapshot=b"x", description="x" * 1025),
        grpc.StatusCode.INVALID_ARGUMENT,
        "",
    ),
    (
        "PublishPolicy",
        pb.PublishPolicyRequest(snapshot=b"nonsense"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "SNAPSHOT_MALFORMED",
    ),
    ("GetPolicy", pb.GetPolicyRequest(), grpc.StatusCode.INVALID_ARGUMENT, ""),
    (
        "GetPolicy",
        pb.GetPolicyRequest(policy="dqn", policy_version="nope"),
        grpc.StatusCode.NOT_FOUND,
        "POLICY_NOT_FOUND",
    ),
    (
        "PromotePolicy",
        pb.PromotePolicyRequest(policy="price", through_gate=True),
        grpc.StatusCode.INVALID_ARGUMENT,
        "",
    ),
    ("PromotePolicy", pb.PromotePolicyRequest(), grpc.StatusCode.INVALID_ARGUMENT, ""),
    (
        "PromotePolicy",
        pb.PromotePolicyRequest(policy="nope"),
        grpc.StatusCode.NOT_FOUND,
        "POLICY_NOT_FOUND",
    ),
    (
        "PromotePolicy",
        pb.PromotePolicyRequest(policy="price", expected_activation=5),
        grpc.StatusCode.ABORTED,
        "ACTIVATION_RACED",
    ),
    (
        "RollbackPolicy",
        pb.RollbackPolicyRequest(),
        grpc.StatusCode.FAILED_PRECONDITION,
        "NO_PREVIOUS_POLICY",
    ),
]


async def test_every_error_has_its_status(redis_server: RedisServer, tmp_path: Path) -> None:
    """Bad calls get the status and reason of the table, never INTERNAL."""
    async with served(settings(tmp_path, redis_server.url)) as (stub, _):
        for method, request, code, reason in BAD_CALLS:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await getattr(stub, method)(request, timeout=LIMIT_S)
            assert caught.value.code() is code, method
            info = details_of(caught.value)["ErrorInfo"]
            assert not reason or info.reason == reason
        for stream in (
            stub.WatchPolicies(pb.WatchPoliciesRequest(after_activation=-1), timeout=LIMIT_S),
            stub.WatchTraining(pb.WatchTrainingRequest(training_id="x"), timeout=LIMIT_S),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stream.read()
            wanted = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
            assert caught.value.code() in wanted
        await stub.StartTraining(pb.StartTrainingRequest(), timeout=LIMIT_S)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.StartTraining(pb.StartTrainingRequest(), timeout=LIMIT_S)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_garbage_in_the_registry_stops_nothing(
    redis_server: RedisServer, redis_connection: RedisConnection, tmp_path: Path
) -> None:
    """A stage 99, broken history entries and a counter at its end: listing and promoting work."""
    redis: Any = redis_connection.redis
    store = RedisPolicyStore(redis_connection)
    await store.put(b"\x18\x63", b"x", "dqn", "bad")  # stage 99
    await redis.rpush(keys.ACTIVATION_HISTORY, b"\xff", b"9007199254740991 greedy@", b"x y")
    await redis.set(keys.POLICY_SNAPSHOT_PREFIX + "dqn@bad", b"x")
    async with served(settings(tmp_path, redis_server.url)) as (stub, _):
        listed = await stub.ListPolicies(pb.ListPoliciesRequest())
        assert "bad" not in {each.policy_version for each in listed.policies}
        assert (await stub.PromotePolicy(pb.PromotePolicyRequest(policy="price"))).activation == 1
        assert await redis.xlen(keys.dead_letter("policy")) == 1
        assert await redis.xlen(keys.dead_letter("activation")) == 3


async def test_a_watcher_knows_at_once_that_it_is_connected(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """Where nothing was ever promoted, and after a restart, nothing is said for hours."""
    async with served(settings(tmp_path, redis_server.url)) as (stub, _):
        watch = stub.WatchPolicies(pb.WatchPoliciesRequest())
        await asyncio.wait_for(watch.wait_for_connection(), LIMIT_S)
        watch.cancel()


async def test_poison_in_the_stream_does_no_harm_and_can_be_dropped(
    redis_server: RedisServer, redis_connection: RedisConnection, tmp_path: Path
) -> None:
    """Records that cannot be are set aside, the others are learned from; a span is dropped."""
    stream = RedisExperienceStream(redis_connection)
    poison: list[bytes] = []
    many = [common_pb2.Candidate(tier="small", endpoint=str(n)) for n in range(20_000)]
    changes: list[dict[str, Any]] = [
        {"decide_time": Timestamp(seconds=2**34)},
        {"epoch": 2**63 - 1},
        {"features": np.full((2, FEATURE_COUNT), 7e4, "<f4").tobytes()},
        {"candidates": many},
    ]
    for payload, change in zip(experience(1, 4)[::2], changes, strict=True):
        entry = experience_pb2.ExperienceEntry.FromString(payload)
        for field in change:
            entry.decision.ClearField(field)  # type: ignore[arg-type]
        entry.decision.MergeFrom(experience_pb2.DecisionRecord(**change))
        poison.append(entry.SerializeToString())
    await stream.append([*poison, *experience(1, 150)])
    async with served(settings(tmp_path, redis_server.url)) as (stub, _):
        await stub.StartTraining(pb.StartTrainingRequest())

        async def has_all() -> bool:
            return bool((await progress(stub)).transition_count >= 130)

        await until(has_all, "everything was read", TRAINING_LIMIT_S)
        assert await redis_connection.redis.xlen(keys.dead_letter("experience")) == len(poison)
        start = Timestamp()
        start.FromNanoseconds(1_700_000_000_000_000_000 + 101 * 10_000_000)
        dropped = await stub.DropReplay(pb.DropReplayRequest(since_time=start))
        assert 20 <= dropped.dropped_count <= 50
        assert dropped.kept_count == 100
    async with served(settings(tmp_path, redis_server.url)) as (stub, _):
        assert (await stub.DropReplay(pb.DropReplayRequest())).dropped_count == 100


class Mesh:
    """A load monitor, and a router it knows of that takes in every policy but greedy."""

    def __getattr__(self, name: str) -> Any:
        """Stands for the methods a trainer never calls."""
        if name.startswith("_"):
            raise AttributeError(name)
        return None

    def __init__(self) -> None:
        self._router = RouterLoad(router_id="r0", epoch=7, sequence=1)

    async def GetSystemState(self, request: Any, context: Any) -> Any:
        """Returns a state with the router."""
        return monitor_pb.GetSystemStateResponse(state=SystemState(routers=[self._router]))

    async def follow(self, stub: Any) -> None:
        """Takes in what the trainer promotes."""
        async for response in stub.WatchPolicies(pb.WatchPoliciesRequest()):
            self._router.activation = response.activation
            refuses = response.active.policy == "greedy"
            self._router.policy_refusal = "POLICY_UNKNOWN" if refuses else ""


async def test_promoted_means_that_routers_use_it(
    redis_server: RedisServer, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    """The call says who uses it; who refuses it undoes it, and is named with the reason."""
    mesh, address = Mesh(), f"127.0.0.1:{free_port()}"
    monitor = grpc.aio.server()
    monitor_grpc.add_LoadMonitorServiceServicer_to_server(mesh, monitor)  # type: ignore[arg-type]
    monitor.add_insecure_port(address)
    await monitor.start()
    made = settings(tmp_path, redis_server.url)
    watched = made.mesh.model_copy(update={"load_monitor_address": address})
    async with served(made.model_copy(update={"mesh": watched})) as (stub, _):
        following = asyncio.create_task(mesh.follow(stub))
        promoted = await stub.PromotePolicy(pb.PromotePolicyRequest(policy="price"))
        assert (promoted.using_router_count, list(promoted.waiting_routers)) == (1, [])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.PromotePolicy(pb.PromotePolicyRequest(policy="greedy"))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        info = details_of(caught.value)["ErrorInfo"]
        assert (info.reason, info.metadata["routers"]) == ("ROUTERS_REFUSED", "r0 (POLICY_UNKNOWN)")
        assert (await stages(stub))["price"] == pb.POLICY_STAGE_ACTIVE
        following.cancel()
    await monitor.stop(None)


def test_contract_has_a_handler_for_every_method() -> None:
    """Every RPC of the contract is implemented."""
    from services.trainer.servicer import TrainerServicer

    for method in pb.DESCRIPTOR.services_by_name["TrainerService"].methods:
        assert method.name in vars(TrainerServicer)
