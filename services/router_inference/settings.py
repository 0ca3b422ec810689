"""Settings of router-inference: the `[router_inference]` section beside `[mesh]` and `[log]`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from router.exploration import LEAST_ON_TIME, MOST_SHARE
from router.seat import MARGIN
from services.common.addresses import ListenAddress, OptionalListenAddress
from services.common.log import LogSettings
from services.common.mesh_settings import MeshSettings, Name, duplicates
from services.common.prompt_sizes import message_bytes
from services.common.server import ServerSettings
from services.common.settings import (
    OptionalRelativePath,
    Problem,
    SettingsError,
    SettingsModel,
)

_SHORTEST_KEY_CHARACTERS = 16


class ClientLimitSettings(SettingsModel):
    """The `[router_inference.other_clients]` section: what each client may take. 0 is no limit."""

    max_in_flight: int = Field(default=0, ge=0, le=1_000_000)
    """Most requests under way."""
    rate_rps: float = Field(default=0.0, ge=0.0, le=1e6)
    """Most requests per second, with bursts of a second."""
    tokens_per_s: float = Field(default=0.0, ge=0.0, le=1e9)
    """Most prompt and output tokens per second, with bursts of a second."""
    weight: float = Field(default=1.0, gt=0.0, le=1_000.0)
    """Share under overload, beside the weights of the other clients."""
    highest_priority: Literal["high", "normal", "low"] = "high"
    """Priority class its requests have at most; one that asks for a higher class gets this one."""


class ClientSettings(ClientLimitSettings):
    """One `[[router_inference.clients]]` entry."""

    name: Name
    """Name of the client, as its key or token has it; a label in metrics."""


class RouterInferenceSettings(ServerSettings):
    """The `[router_inference]` section."""

    listen: ListenAddress = "127.0.0.1:7410"
    """gRPC address; port 0 takes any free one."""
    operate_listen: ListenAddress = "127.0.0.1:7420"
    """gRPC address of operating calls, used where callers are authenticated or `listen` is not
    loopback; elsewhere they are served at `listen`."""
    envoy_listen: OptionalListenAddress = ""
    """gRPC address at which gateways such as Envoy ask where requests go; empty means none.

    With TLS every gateway shows a certificate there, whatever `client_certificates` says.
    """
    envoy_reads_bodies: bool = False
    """True reads model, limit of tokens and wishes in the JSON bodies that gateways send here.

    Those of OpenAI-shaped requests, sent whole or to be sent back; any other is passed on unseen.
    """
    metrics_listen: OptionalListenAddress = "127.0.0.1:9410"
    """Prometheus address; empty means no metrics are served."""
    client_certificates: bool = False
    """True has every caller show a certificate signed by `mesh.tls.root_certificates`.

    False lets clients without one call by TLS; they are known by their keys.
    """
    workers: int = Field(default=1, ge=1, le=64)
    """Processes that share the port, the ledger and the router's name; each uses one core."""
    router_id: str = Field(default="", pattern=r"^[A-Za-z0-9_.-]{0,64}$")
    """Name of the router; empty means one of its own, made of host name, process id and chance."""
    policy: str = Field(default="price", min_length=1, max_length=64)
    """Policy until the trainer or `UsePolicy` names another one."""
    fallback_policy: str = Field(default="price", min_length=1, max_length=64)
    """Policy that decides when the other one cannot; must need no snapshot."""
    policy_parameters: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Parameters per policy name, e.g. `price = { level = 0.5 }`; the rest keep their defaults."""
    policy_snapshot: OptionalRelativePath = ""
    """Snapshot file of a learned `policy`; empty means the fallback decides until one comes."""
    follow_trainer: bool = True
    """True uses what the trainer or the policy registry promotes; False keeps `policy`."""
    safety_net: bool = True
    """Rescue, admission and retries; the same for every policy."""
    reserve: Literal["none", "half", "peak"] = "none"
    """Room kept for bursts that return: none, or for half or all of the last minute's highest rate.

    It costs quality in calm between bursts, and nothing where traffic is steady.
    """
    exploration_share: float = Field(default=0.0, ge=0.0, le=MOST_SHARE)
    """Share of decisions that take another candidate than the policy's, to learn what it earns.

    Only one that is expected in time, and none while a target is being missed, while the router is
    degraded, for a fallback's decision or for either side of a canary.
    """
    exploration_on_time: float = Field(default=0.95, ge=LEAST_ON_TIME, le=1.0)
    """Least predicted probability of being in time of a candidate that is explored."""
    compiled: bool = True
    """Decides by compiled code, made before the first start serves; False means plain Python."""
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    """Seed of the policy's draws; 0 takes one from the system."""
    safety_optimism: float = Field(default=0.7, gt=0.0, le=1.0)
    """Factor on a prediction before a request is declared hopeless (refused, or rescued)."""
    safety_margin: float = Field(default=1.25, ge=1.0, le=10.0)
    """Factor on a prediction before a rescue is declared safe."""
    safety_guard_s: float = Field(default=0.005, ge=0.0, le=60.0)
    """Time kept in hand for cancelling and dispatching again at a rescue, seconds."""
    safety_pessimism: float = Field(default=1.75, gt=0.0, le=10.0)
    """Highest factor on a prediction that admission learns while deadlines are missed.

    It rests at `safety_optimism`; a value no higher than that keeps it from learning.
    """
    learn_slowness: bool = True
    """True learns how slow each device is beside its profile and stretches predictions by it."""
    learn_quality: bool = False
    """True learns from feedback how good each tier is on each task, and decides by that.

    What clients report moves a quality by at most 0.02 each and 0.2 in all from `mesh.quality`. It
    counts in every router of the mesh, and outlives them.
    """
    default_task: str = Field(default="", pattern=r"^[a-z0-9_-]{0,64}$")
    """Task of requests that name none; empty means the mesh's task if it has only one.

    Where neither gives a task, such requests are refused.
    """
    max_output_tokens: int = Field(default=2_048, ge=1, le=65_536)
    """Highest limit of output tokens a request may ask for."""
    max_in_flight: int = Field(default=4_096, ge=1, le=1_000_000)
    """Most requests under way in one worker, routed ones aside; more are refused."""
    max_deadline_s: float = Field(default=3_600.0, gt=0.0, le=86_400.0)
    """Longest deadline a request may ask for, seconds; no answer may take longer."""
    soft_late_s: float = Field(default=30.0, gt=0.0, le=3_600.0)
    """How long after its deadline a soft request is still worked on, seconds."""
    state_max_age_s: float = Field(default=2.0, gt=0.0, le=300.0)
    """System state older than this is not used: own ledger and own health checks decide alone."""
    homes: bool = True
    """Of several routers, whether each has devices of its own while these can answer in time."""
    conversation_count: int = Field(default=65_536, ge=0, le=16_777_216)
    """Conversations a router remembers, with all its workers; 0 keeps none on its tier."""
    conversation_memory_s: float = Field(default=600.0, gt=0.0, le=86_400.0)
    """How long it remembers where one was served, after the last answer, seconds."""
    conversation_margin: float = Field(default=MARGIN, ge=0.0, le=1.0)
    """Worth that keeping a conversation on its tier and endpoint may cost, in units of quality."""
    retry_share: float = Field(default=0.1, ge=0.0, le=1.0)
    """Retries allowed, as a share of recent requests."""
    retry_burst: int = Field(default=16, ge=0, le=10_000)
    """Retries allowed at once beyond that share."""
    max_retries: int = Field(default=2, ge=0, le=16)
    """Most retries of one request."""
    eject_after_failures: int = Field(default=3, ge=1, le=1_000)
    """Failures in a row after which a candidate is left alone."""
    eject_s: float = Field(default=0.5, gt=0.0, le=300.0)
    """First time a failing candidate is left alone, seconds; doubles up to `eject_max_s`."""
    eject_max_s: float = Field(default=8.0, gt=0.0, le=3_600.0)
    """Longest such time, seconds."""
    silent_eject_s: float = Field(default=3.0, gt=0.0, le=300.0)
    """Silence after which a candidate that lets requests run out of time, or has no room for any,
    counts as failing, seconds."""
    ramp_s: float = Field(default=2.0, gt=0.0, le=300.0)
    """Time over which a candidate that came back is brought to its full share, seconds."""
    lease_s: float = Field(default=30.0, gt=0.0, le=3_600.0)
    """Lease of a ticket of `Route`, seconds, or its task's default deadline if that is longer.

    No routed request may have a later deadline.
    """
    ticket_key: str = Field(default="", max_length=1_024)
    """Key that signs tickets, at least 16 characters; with no file either, each start makes one."""
    ticket_key_file: OptionalRelativePath = ""
    """File that holds the key; empty means none."""
    stream_coalesce_s: float = Field(default=0.003, ge=0.0, le=1.0)
    """Least time between two messages of a streamed answer, seconds; the first goes at once."""
    stream_tiers: bool = True
    """True has tiers stream even for `Generate`, so that the ledger knows their progress."""
    tier_cancel_grace_s: float = Field(default=0.25, ge=0.0, le=10.0)
    """Time after a deadline in which the tier may end the request before it is cancelled, seconds.

    Tiers in Triton know the deadline as its request timeout; Triton may hang when many streams are
    cancelled while their tiers answer. 0 cancels at the deadline, as is always done elsewhere.
    """
    tier_idle_streams: int = Field(default=64, ge=0, le=10_000)
    """Most calls, or connections, to one endpoint that wait for a next request; 0 keeps none."""
    report_interval_s: float = Field(default=0.1, gt=0.0, le=10.0)
    """Time between two traffic reports, seconds."""
    reconnect_s: float = Field(default=1.0, gt=0.0, le=60.0)
    """Longest time between two attempts to reach the monitor, the trainer or Redis, seconds."""
    experience: bool = True
    """True writes decisions and outcomes to Redis."""
    features_always: bool = False
    """True records features also where the policy used none, so that any traffic teaches."""
    experience_buffer_count: int = Field(default=20_000, ge=1, le=1_000_000)
    """Records kept while Redis is away; older ones are dropped and counted."""
    experience_buffer_s: float = Field(default=60.0, ge=1.0, le=3_600.0)
    """Longest time a record waits while Redis is away, seconds; older ones are dropped and counted.

    A router that is killed loses no more than the records of so long.
    """
    experience_batch_count: int = Field(default=500, ge=1, le=10_000)
    """Most records written at once."""
    experience_interval_s: float = Field(default=0.1, gt=0.0, le=10.0)
    """Longest time a record waits for its batch, seconds."""
    max_leases: int = Field(default=65_536, ge=1, le=1_000_000)
    """Most open tickets of `Route`; more are refused."""
    max_leases_per_client: int = Field(default=1_024, ge=1, le=1_000_000)
    """Most open tickets of one client (address), so that one cannot take all; more are refused."""
    max_streams_per_client: int = Field(default=1_024, ge=1, le=50_000)
    """Most open calls of ModelStreamInfer of one client (address), idle ones too."""
    clients: tuple[ClientSettings, ...] = Field(default=(), max_length=1_000)
    """Clients with limits of their own; see `[[router_inference.clients]]`."""
    other_clients: ClientLimitSettings = Field(default_factory=ClientLimitSettings)
    """What each other client may take; see `[router_inference.other_clients]`."""
    feedback_memory_count: int = Field(default=10_000, ge=0, le=1_000_000)
    """Ended requests remembered for late quality feedback."""
    explanation_memory_bytes: int = Field(default=16 * 1024 * 1024, ge=0, le=4 * 1024**3)
    """Memory for the last decisions, which `tiercel explain` looks up, bytes; 0 keeps none.

    A decision takes some 2 kB and 24 bytes per candidate; the others' load, 24 bytes per candidate
    too, is shared by the decisions between two system states.
    """
    trial_cpu_share: float = Field(default=0.02, gt=0.0, le=1.0)
    """Share of one core that a policy on trial may use in the background of each process."""
    canary_misses: float = Field(default=0.02, ge=0.0, le=1.0)
    """A canary is stopped once it surely misses more of its requests than its control by this."""
    canary_decision_s: float = Field(default=0.002, gt=0.0, le=1.0)
    """A canary is stopped if its decisions take longer, seconds, and four times its control's.

    Of a policy that has become active, decisions that take longer count as slow.
    """
    bad_traces_per_s: float = Field(default=20.0, ge=0.0, le=10_000.0)
    """Most bad requests traced per second beyond the sampled ones."""
    trace_folder: OptionalRelativePath = ""
    """Folder that gets spans as JSON lines, for `tiercel trace`; empty means none."""
    sample_ratio: float = Field(default=0.1, ge=0.0, le=1.0)
    """Share of requests traced where the caller brings no trace; `OTEL_TRACES_SAMPLER` wins."""

    @classmethod
    def cross_problems(cls, raw: Mapping[str, Any], base_dir: Path) -> Iterator[Problem]:
        """Yields a ticket key that is too short, a key given twice, a client given twice."""
        yield from super().cross_problems(raw, base_dir)
        clients = raw.get("clients")
        entries = clients if isinstance(clients, list) else []
        names = [entry.get("name") if isinstance(entry, dict) else None for entry in entries]
        yield from duplicates(("clients",), names, "name")
        key = raw.get("ticket_key", "")
        if isinstance(key, str) and 0 < len(key) < _SHORTEST_KEY_CHARACTERS:
            yield Problem(
                ("ticket_key",), f"needs at least {_SHORTEST_KEY_CHARACTERS} characters", key
            )
        if key and raw.get("ticket_key_file"):
            yield Problem(("ticket_key",), "ticket_key_file is given too; give one of them", key)


class Settings(SettingsModel):
    """What the process reads of the mesh's file."""

    mesh: MeshSettings
    router_inference: RouterInferenceSettings = Field(default_factory=RouterInferenceSettings)
    log: LogSettings = Field(default_factory=LogSettings)

    def with_room(self) -> RouterInferenceSettings:
        """Returns the router's section, its messages large enough for the longest prompt."""
        own, least = self.router_inference, message_bytes(self.mesh.max_prompt_bytes)
        if own.max_message_bytes >= least:
            return own
        return own.model_copy(update={"max_message_bytes": least})


def default_task(own: RouterInferenceSettings, mesh: MeshSettings) -> str:
    """Returns the task of requests that name none; empty if there is none.

    Raises:
        SettingsError: The mesh has no such task.
    """
    names = [task.name for task in mesh.tasks]
    if own.default_task and own.default_task not in names:
        known = ", ".join(names)
        problem = f"unknown task {own.default_task!r}; mesh.tasks has {known}"
        raise SettingsError([f"router_inference.default_task: {problem}"])
    return own.default_task or (names[0] if len(names) == 1 else "")
