"""A router without sockets: real parts, scripted tiers, virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from router.catalog import Catalog, QualityTable
from router.fleet import EndpointProtocol
from router.profile import LatencyProfile, TierProfile
from router.types import RewardKind, SloKind, Task
from services.common.log import get_logger
from services.common.mesh_settings import MeshFiles
from services.common.state.connect import connect_stores
from services.common.state.experience_stream import ExperienceStream
from services.common.telemetry import Telemetry
from services.common.tiers.answer import TierChunk
from services.common.tiers.errors import TierError, TierOverloadedError
from services.router_inference.app import RouterInference
from services.router_inference.client_pool import ClientPool
from services.router_inference.core import Core
from services.router_inference.job import Ask, Choice, Job
from services.router_inference.machine_code import MachineCode
from services.router_inference.settings import Settings
from services.router_inference.workers.place import Place
from services.router_inference.workers.siblings import NoSiblings
from tests.fakes.asking import AsksByGenerating
from tests.fakes.virtual_time import LoopClock
from tiercel.common.v1 import experience_pb2

TIERS = ("small", "medium", "large")
TASKS = (
    Task("hard", 0.4),
    Task("soft", 0.4, reward_kind=RewardKind.SOFT, soft_decay_s=0.2),
    Task("first", 0.4, slo_kind=SloKind.FIRST_TOKEN),
)
QUALITY = QualityTable(
    "table",
    "assumed",
    {task.name: {"small": 0.5, "medium": 0.8, "large": 1.0} for task in TASKS},
    {},
)
PROFILE = LatencyProfile(
    "test",
    "assumed",
    {
        "small": TierProfile(0.002, 0.0, 0.0, max_batch=64),
        "medium": TierProfile(0.005, 0.0, 0.0, max_batch=64),
        "large": TierProfile(0.010, 0.0, 0.0, max_batch=64),
    },
)


@dataclass
class Behaviour:
    """How a tier of an endpoint answers.

    Attributes:
        pieces: Pieces of the answer.
        step_s: Time before each piece, seconds.
        error: Raised after `error_after` pieces; None for none.
        error_after: Pieces before the error.
        hang: True sends nothing until the request's timeout.
        tokens_per_piece: Tokens in each piece.
        at_s: When each piece comes, seconds from the call; in place of `step_s` if there are any.
        end_after_s: Time between the last piece and the end, seconds.
        ends_with_last: True says with the last piece that it is, not in a message of its own.
    """

    pieces: tuple[str, ...] = ("a", "b")
    step_s: float = 0.01
    error: TierError | None = None
    error_after: int = 0
    hang: bool = False
    ends_with_last: bool = False
    tokens_per_piece: int = 1
    at_s: tuple[float, ...] = ()
    end_after_s: float = 0.0

    def pause_s(self, index: int) -> float:
        """Returns the time before a piece, seconds."""
        if not self.at_s:
            return self.step_s
        return self.at_s[index] - (self.at_s[index - 1] if index else 0.0)


@dataclass
class FakeTier(AsksByGenerating):
    """Calls one address got: (model, time, end), end "done", "error" or "cancelled"."""

    address: str
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    default: Behaviour = field(default_factory=Behaviour)
    calls: list[dict[str, Any]] = field(default_factory=list)

    async def close(self) -> None:
        """Does nothing."""

    async def generate(
        self, model: str, prompt: str, max_output_tokens: int, **options: Any
    ) -> AsyncGenerator[TierChunk, None]:
        """Answers as told."""
        call = {"model": model, "prompt": prompt, "end": "cancelled", **options}
        call["at_s"] = asyncio.get_running_loop().time()
        self.calls.append(call)
        behaviour = self.behaviours.get(model, self.default)
        if behaviour.hang:
            await asyncio.sleep(options["timeout_s"])
            call["end"] = "timeout"
            raise TierOverloadedError("QUEUE_TIMEOUT", "Request timeout expired")
        pieces = behaviour.pieces[:max_output_tokens]
        for index, piece in enumerate((*pieces, "")):
            if behaviour.error is not None and index >= behaviour.error_after:
                call["end"] = "error"
                raise behaviour.error
            if index < len(pieces):
                await asyncio.sleep(behaviour.pause_s(index))
            elif behaviour.end_after_s:
                await asyncio.sleep(behaviour.end_after_s)
            is_last = index == len(pieces) - behaviour.ends_with_last
            if is_last:
                call["end"] = "done"
            count = 0 if index == len(pieces) else behaviour.tokens_per_piece
            yield TierChunk(piece, count, is_last, "stop" if is_last else "")
            if is_last:
                return


class FakePool(ClientPool):
    """Hands out fake tiers by address."""

    def __init__(self) -> None:
        super().__init__()
        self.tiers: dict[str, Any] = {}

    def get(self, address: str, protocol: EndpointProtocol = EndpointProtocol.TRITON) -> Any:
        """Returns the fake tier of an address."""
        return self.tiers.setdefault(address, FakeTier(address))


class Sink:
    """Keeps the text of an answer."""

    def __init__(self) -> None:
        self.text = ""
        self.restarts = 0

    def push(self, chunk: TierChunk) -> None:
        """Takes a piece."""
        self.text += chunk.text

    def restart(self) -> None:
        """Starts again."""
        self.text = ""
        self.restarts += 1


@dataclass
class Rig:
    """A router's parts and the tiers they talk to."""

    app: RouterInference
    core: Core
    pool: FakePool
    clock: LoopClock

    def tier(self, index: int = 0) -> FakeTier:
        """Returns the fake behind endpoint `e<index>`."""
        tier: FakeTier = self.pool.get(f"127.0.0.1:{9000 + index}")
        return tier

    def job(self, **fields: Any) -> Job:
        """Returns a checked request; by default a hard one with 0.4 s."""
        ask = Ask(**{"task": "hard", "prompt": "hello", **fields})
        return self.core.validator.job(ask, self.clock.monotonic_s(), self.clock.wall_ns())

    def fill(self) -> None:
        """Puts more requests on every candidate than a short deadline leaves time for."""
        for candidate in self.core.view.fleet.candidates:
            for number in range(400):
                self.core.view.load.ledger.dispatch((candidate, number), candidate, 1.0, 40.0)

    async def answer(self, job: Job) -> Sink:
        """Runs a request."""
        sink = Sink()
        await self.core.dispatcher.answer(job, sink)
        return sink

    async def records(self) -> list[experience_pb2.ExperienceEntry]:
        """Flushes and returns the decisions and outcomes that were written to the store."""
        await self.core.experience.flush(1.0)
        stores = self.app._stores
        assert stores is not None
        entries = await stores.experience.read("test", "test", 10_000, 0.0)
        found = [experience_pb2.ExperienceEntry.FromString(entry.payload) for entry in entries]
        return [entry for entry in found if not entry.HasField("process")]

    def assert_settled(self) -> None:
        """Nothing is under way and every offered request is in exactly one count."""
        counts = self.core.accounts.counts
        assert counts.offered == counts.ended
        assert self.core.accounts.in_flight == 0
        assert len(self.core.view.load.ledger) == 0


def choice_of(job: Job) -> Choice:
    """Returns a job's decision."""
    assert job.choice is not None
    return job.choice


def make_rig(
    *,
    endpoint_count: int = 1,
    policy: str = "static-large",
    tiers: Sequence[str] = TIERS,
    experience: ExperienceStream | None = None,
    telemetry: Telemetry | None = None,
    profile: LatencyProfile = PROFILE,
    tasks: Sequence[Task] = TASKS,
    quality: QualityTable = QUALITY,
    pool: FakePool | None = None,
    machine_code: MachineCode | None = None,
    mesh: Mapping[str, Any] | None = None,
    place: Place | None = None,
    **own: Any,
) -> Rig:
    """Builds a router; call it inside a running loop."""
    clock = LoopClock()
    settings = Settings.model_validate(
        {
            "mesh": {
                "tiers": TIERS,
                "profile": "unused.toml",
                "quality": "unused.toml",
                "tasks": [{"name": task.name, "default_deadline_s": 0.4} for task in tasks],
                "endpoints": [
                    {"name": f"e{i}", "address": f"127.0.0.1:{9000 + i}", "tiers": tuple(tiers)}
                    for i in range(endpoint_count)
                ],
                **(mesh or {}),
            },
            "router_inference": {"policy": policy, "fallback_policy": "greedy", "seed": 7, **own},
        }
    )
    files = MeshFiles(
        catalog=Catalog.build(TIERS, tuple(tasks), quality),
        quality=quality,
        profile=profile,
        endpoint_profiles={f"e{i}": profile for i in range(endpoint_count)},
    )
    stores = connect_stores("", clock=clock)
    if experience is not None:
        stores = replace(stores, experience=experience)
    app = RouterInference(
        settings=settings,
        files=files,
        clock=clock,
        log=get_logger("test"),
        stores=stores,
        machine_code=machine_code,
    )
    pool = pool or FakePool()
    place = place or Place(router_id="r1", epoch=app.clock.wall_ns(), siblings=NoSiblings())
    core = app.build_core(place, telemetry or Telemetry(None, _RANDOM), stores, pool)
    return Rig(app, core, pool, clock)


_RANDOM = __import__("random").Random(3)
