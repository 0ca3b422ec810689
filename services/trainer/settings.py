"""Settings of the trainer: the `[trainer]` section beside `[mesh]` and `[log]`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from services.common.addresses import ListenAddress, OptionalListenAddress
from services.common.log import LogSettings
from services.common.mesh_settings import MeshSettings
from services.common.server import ServerSettings
from services.common.settings import OptionalRelativePath, RelativePath, SettingsModel

RolloutMode = Literal["unattended", "always", "never"]
"""Which promotions go on in steps after the gate."""


class TrainerSettings(ServerSettings):
    """The `[trainer]` section."""

    listen: ListenAddress = "127.0.0.1:7412"
    """gRPC address; port 0 takes any free one."""
    operate_listen: ListenAddress = "127.0.0.1:7422"
    """gRPC address of operating calls, used where callers are authenticated or `listen` is not
    loopback; elsewhere they are served at `listen`."""
    metrics_listen: OptionalListenAddress = "127.0.0.1:9412"
    """Prometheus address; empty means no metrics are served."""
    data_dir: RelativePath = Path("build/trainer")
    """Folder of the replay and of checkpoints; made if missing."""
    shipped_snapshot: OptionalRelativePath = ""
    """Snapshot published at start if the registry lacks it; empty means none."""
    consumer_group: str = Field(default="trainer", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    """Consumer group of the experience stream."""
    consumer: str = Field(default="trainer", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    """Name of this consumer in the group; unique per trainer."""
    read_count: int = Field(default=2_000, ge=1, le=50_000)
    """Most experience entries read at once."""
    claim_idle_s: float = Field(default=30.0, gt=0.0, le=3600.0)
    """Entries read this long ago and never acknowledged are read again, seconds."""
    autostart_online: bool = False
    """True starts an ONLINE run with the service."""
    autostart_promote: bool = False
    """True has that run promote what it publishes and the gate passes."""
    learn_cpu_share: float = Field(default=0.2, gt=0.0, le=1.0)
    """Share of one core online learning may use."""
    worker_nice: int = Field(default=10, ge=0, le=19)
    """Niceness of the worker processes."""
    save_interval_s: float = Field(default=10.0, gt=0.0, le=3600.0)
    """Time between two saves of the replay, seconds; experience is acknowledged after one."""
    publish_interval_s: float = Field(default=30.0, gt=0.0, le=86_400.0)
    """Least time between two published snapshots of an online run, seconds."""
    publish_min_steps: int = Field(default=200, ge=1, le=10_000_000)
    """Learner steps since the last snapshot before another is published."""
    min_transitions: int = Field(default=1_000, ge=1, le=10_000_000)
    """Transitions before the first learner step."""
    replay_capacity: int = Field(default=50_000, ge=1_000, le=5_000_000)
    """Transitions kept."""
    hidden_count: int = Field(default=32, ge=1, le=1_024)
    """Hidden units per layer where a run starts from no snapshot."""
    patience_s: float = Field(default=30.0, gt=0.0, le=3600.0)
    """Longest wait for the outcome of a decision, seconds."""
    gate_margin: float = Field(default=0.005, ge=0.0, le=1.0)
    """How much worse than the active policy a promoted one may be in simulation, as a fraction."""
    gate_seeds: int = Field(default=2, ge=1, le=100)
    """Seeds the gate simulates."""
    gate_priority_mix: dict[
        Literal["high", "normal", "low"], Annotated[float, Field(ge=0.0, le=1e9)]
    ] = Field(default_factory=dict)
    """Share of each priority class in the requests that the gate simulates; only ratios count.

    A policy then also must not be surely worse for any class by more than `gate_margin`. Empty: all
    requests are normal.
    """
    rollout: RolloutMode = "unattended"
    """Which promotions go on in steps (shadow, canary, switchback, active) after the gate.

    `unattended` are those of training runs: who promotes by hand looks at what becomes of it.
    """
    shadow_decisions: int = Field(default=300, ge=1, le=1_000_000)
    """Past decisions that a policy in shadow is asked about before there is a verdict."""
    shadow_s: float = Field(default=600.0, gt=0.0, le=604_800.0)
    """Longest time in shadow, seconds; then the rollout is paused."""
    shadow_decision_s: float = Field(default=0.002, gt=0.0, le=1.0)
    """A policy whose decisions take longer, and four times as long as usual, is rejected."""
    shadow_value_loss: float = Field(default=0.1, ge=0.0, le=2.0)
    """A policy whose choices are worth so much less by prediction is rejected."""
    canary_share: float = Field(default=0.1, gt=0.0, le=0.5)
    """Share of the requests that a canary decides; as many others are its control."""
    canary_alpha: float = Field(default=0.05, gt=0.0, lt=1.0)
    """Probability with which a canary no better or worse than its control is ever called either."""
    canary_effect: float = Field(default=0.02, gt=0.0, le=2.0)
    """Smallest difference in value per request that a canary is sure to show."""
    canary_s: float = Field(default=21_600.0, gt=0.0, le=2_592_000.0)
    """Longest time as a canary, and in the switchback, seconds; then the rollout is paused."""
    switchback_pairs: int = Field(default=12, ge=0, le=1_000)
    """Pairs of periods of the whole mesh, one with each policy, before the last step; 0: none."""
    switchback_period_s: float = Field(default=30.0, gt=0.0, le=86_400.0)
    """Length of such a period, seconds; requests of its first third do not count."""
    watch_s: float = Field(default=3_600.0, ge=0.0, le=604_800.0)
    """Time for which a learned policy that has become active is compared with the one it replaced,
    seconds; 0 never does."""
    watch_misses: float = Field(default=0.05, ge=0.0, le=1.0)
    """The mesh goes back once it surely misses more requests than that one left possible by this,
    at the same load."""
    watch_errors: float = Field(default=0.02, ge=0.0, le=1.0)
    """The mesh goes back once it surely fails in more requests by this, at the same load."""
    hindsight_max_requests: int = Field(default=20_000, ge=0, le=1_000_000)
    """Most requests of a minute of which it is reckoned what they could have earned; 0: never.

    It costs a worker process some seconds of one core a minute at most, at low priority.
    """
    simulated_budget_s: float = Field(default=90.0, gt=0.0, le=86_400.0)
    """Time a SIMULATED run trains for, seconds."""
    poll_interval_s: float = Field(default=1.0, gt=0.0, le=60.0)
    """Time between two looks at the registry for activations of others, seconds."""
    worker_timeout_s: float = Field(default=120.0, gt=0.0, le=3600.0)
    """Longest answer time of a worker process, seconds; a simulated run has its own."""

    @pydantic.field_validator("gate_priority_mix")
    @classmethod
    def _some_share(cls, mix: dict[str, float]) -> dict[str, float]:
        if mix and not math.fsum(mix.values()) > 0.0:
            raise ValueError("at least one share must be above 0")
        return mix


class Settings(SettingsModel):
    """What the process reads of the mesh's file."""

    mesh: MeshSettings
    trainer: TrainerSettings = Field(default_factory=TrainerSettings)
    log: LogSettings = Field(default_factory=LogSettings)
