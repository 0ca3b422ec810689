"""The shift story: the task mix changes, then a device slows down, under load.

Three policies meet the same requests, each on a mesh started anew: the learned policy as it was
trained, `price`, and the learned policy while the trainer goes on learning from what it sees. The
tiers are paced, so that a device can be slowed at a moment; routers and trainer are told nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import pathlib
import time
from collections.abc import AsyncIterator
from typing import Any

import psutil

from router.dqn.snapshot import load_snapshot
from services.demo import report as reports
from services.demo.control import MeshControl
from services.demo.display import Display
from services.demo.plan import LEARNED_POLICY
from services.demo.shift_report import ShiftRun, write_shift_report
from services.live.cpu import busy_share
from services.live.mesh import ALLOWANCE_S, StretchedMesh
from services.live.simulated import stretched_setting
from services.loadgen.process import LoadProcessError, run_load
from services.loadgen.records import RunRecords
from services.loadgen.spec import DRAWN, LoadSpec, parse_spec
from services.local.embedded import TRITON_FOLDER, EmbeddedMesh, MeshOptions
from services.local.errors import CommandError
from services.local.triton.repository.paced import PacedRepository
from tiercel.trainer.v1 import trainer_service_pb2 as trainer_pb
from trainer.evaluation.facts import package_versions
from trainer.shipped import POLICIES, PROFILES, QUALITY, named
from trainer.simulation.setting import unit_rate_rps

MESH_NAME = "demo-shift"
FROZEN, PRICE, ONLINE = "frozen", "price", "online"
BEFORE, MIX, SLOW = "as trained for", "other tasks", "a slow device too"
LIMIT_S = 900.0
"""After so long the story is given up; it takes about seven minutes."""
MOST_BUSY = 0.85
"""Share of the machine's CPU time above which a run has a note."""
_START_S = 60.0
"""For which the start of the learner is waited."""


@dataclasses.dataclass(frozen=True)
class ShiftPlan:
    """Choices of the story.

    Attributes:
        seed: Seed of arrivals, prompts and learning.
        shape: Profile of the tiers, quality table, and trained snapshot, as shipped.
        devices: How many, each with every tier.
        load: Rate over about what the largest tier holds by itself.
        time_scale: Factor on every time, so that a small machine carries the load.
        before_s: Length of the first phase, in which all is as in training, seconds.
        mix_s: Length of the second one, in which the tasks are others.
        slow_s: Length of the third one, in which a device is slow besides.
        slow_down: Factor on that device's times.
        publish_s: Time between two snapshots of the learner.
    """

    seed: int = 1
    shape: tuple[str, str, str] = ("opt-a100", "opt", "opt-a100")
    devices: int = 4
    load: float = 5.0
    time_scale: float = 10.0
    before_s: float = 25.0
    mix_s: float = 40.0
    slow_s: float = 55.0
    slow_down: float = 2.0
    publish_s: float = 10.0

    @property
    def snapshot(self) -> pathlib.Path:
        """File of the trained snapshot."""
        return named(POLICIES, self.shape[2])

    @property
    def slow_from_s(self) -> float:
        """When the device slows down, seconds from the start of a run."""
        return self.before_s + self.mix_s

    def mesh(self) -> StretchedMesh:
        """Returns the mesh in stretched time."""
        profile, quality = named(PROFILES, self.shape[0]), named(QUALITY, self.shape[1])
        return StretchedMesh(MESH_NAME, profile, quality, None, self.devices, 1, self.time_scale)

    def options(self) -> MeshOptions:
        """Returns what starts it, with a trainer that learns only if it is told to."""
        options = self.mesh().options()
        trainer = {
            "publish_interval_s": self.publish_s,
            "publish_min_steps": 20,
            "min_transitions": 300,
            "save_interval_s": 5.0,
            "hindsight_max_requests": 0,
        }
        return dataclasses.replace(
            options, trainer=True, sections={**options.sections, "trainer": trainer}
        )

    def spec(self, addresses: tuple[str, ...], rate_rps: float) -> LoadSpec:
        """Returns a run's requests, the same for every policy.

        Args:
            addresses: Routers.
            rate_rps: Arrivals per second of this machine.
        """
        tasks = [task.name for task in self.mesh().options().tasks]
        # The first task is the one at which small tiers are worst.
        other = {task: 7.0 if task == tasks[0] else 1.0 for task in tasks}
        lengths: tuple[tuple[str, float, dict[str, float]], ...] = (
            (BEFORE, self.before_s, {}),
            (MIX, self.mix_s, other),
            (SLOW, self.slow_s, other),
        )
        return parse_spec(
            {
                "router_addresses": list(addresses),
                "phases": [
                    {"name": name, "duration_s": s, "rate_rps": rate_rps, "task_mix": mix}
                    for name, s, mix in lengths
                ],
                "deadline_s": self.mesh().deadline_s,
                "task_mix": dict.fromkeys(tasks, 1.0),
                "prompt_tokens": DRAWN,
                "seed": self.seed,
                "network_allowance_s": min(1.0, ALLOWANCE_S * self.time_scale),
            },
            "shift",
        )


class ShiftStory:
    """Runs the three policies one after the other and reports."""

    def __init__(self, plan: ShiftPlan, out: pathlib.Path, display: Display) -> None:
        """Starts nothing yet."""
        self._plan = plan
        self._out = out
        self._display = display
        self._blob = plan.snapshot.read_bytes()
        self._rate_rps = plan.load * unit_rate_rps(stretched_setting(plan.mesh()))
        self._machine: dict[str, Any] = {}
        self._elapsed_s = 0.0

    async def run(self) -> dict[str, Any]:
        """Runs everything; no process is left afterwards, however it ends.

        Returns:
            The report.

        Raises:
            CommandError: A step failed or all of it took too long; the text says which.
        """
        began_s, plan = time.monotonic(), self._plan
        try:
            async with asyncio.timeout(LIMIT_S):
                runs = [await self._policy(name) for name in (FROZEN, ONLINE, PRICE)]
        except TimeoutError:
            raise CommandError(f"the story did not end within {LIMIT_S:.0f} s") from None
        self._display.begin("drawing the report")
        facts = {
            "machine": self._machine,
            "versions": package_versions(reports.PACKAGES),
            "snapshot": load_snapshot(self._blob).version,
            "rate_rps": round(self._rate_rps, 3),
            "plan": dataclasses.asdict(plan),
            "deadline_s": plan.mesh().deadline_s,
            "took_s": round(time.monotonic() - began_s, 1),
        }
        report = write_shift_report(self._out, facts, runs)
        self._display.done(f"report written to {self._out}")
        return report

    async def _policy(self, name: str) -> ShiftRun:
        """Runs one policy on a mesh of its own."""
        show, plan = self._display, self._plan
        show.begin(f"{name}: starting Redis, Triton with paced tiers, and the services")
        async with EmbeddedMesh(plan.options(), say=show.say) as mesh:
            self._machine = reports.machine_facts(
                mesh.layout.service_cores, mesh.layout.device_cores
            )
            await mesh.start_backends()
            await mesh.start_services()
            async with self._controlled(mesh) as control:
                if name == PRICE:
                    await control.switch_policy(PRICE)
                else:
                    version = await control.publish(self._blob)
                    await control.switch_policy(LEARNED_POLICY, version)
                await control.wait_for_quiet(1.0)
                show.done(f"{name}: the mesh is up")
                show.begin(f"{name}: {BEFORE}; {MIX}; {SLOW}")
                run = await self._story(name, mesh, control)
        phases = run.summary["phases"]
        told = ", ".join(f"{each['performance'] or 0.0:.3f}" for each in phases.values())
        show.done(f"{name}: performance by phase {told}")
        return run

    async def _story(self, name: str, mesh: EmbeddedMesh, control: MeshControl) -> ShiftRun:
        """Sends the requests while the device slows down and, online, snapshots are swapped in."""
        swaps: list[float] = []
        notes: list[str] = []
        learning = None
        if name == ONLINE:
            learns = asyncio.Event()
            learning = asyncio.create_task(self._learn(control, learns, swaps))
            waiting = asyncio.create_task(learns.wait())
            await asyncio.wait(
                [learning, waiting], timeout=_START_S, return_when=asyncio.FIRST_COMPLETED
            )
            waiting.cancel()
        found: Any = None
        before = psutil.cpu_times()
        try:
            records = await self._load(name, mesh)
        finally:
            if learning is not None:
                learning.cancel()
                [found] = await asyncio.gather(learning, return_exceptions=True)
        if isinstance(found, CommandError):
            notes.append(f"{ONLINE}: learning ended before its time: {found}")
        elif isinstance(found, Exception):
            raise found
        busy = busy_share(before, psutil.cpu_times())
        if busy > MOST_BUSY:
            notes.append(f"{name}: the machine was {busy:.0%} busy, and may have set the pace.")
        if mesh.start_count("triton") > 1:
            notes.append(f"{name}: Triton died and was started again: do not use these figures.")
        if not records.is_valid:
            notes.append(f"{name}: the load generator lagged: do not use these figures.")
        return ShiftRun(name, records, tuple(swaps), tuple(notes), busy)

    async def _load(self, name: str, mesh: EmbeddedMesh) -> RunRecords:
        plan, devices = self._plan, PacedRepository.at(mesh.folder / TRITON_FOLDER)
        is_slow = False

        def on_progress(event: dict[str, Any]) -> None:
            nonlocal is_slow
            self._elapsed_s = event["elapsed_s"]
            if not is_slow and self._elapsed_s >= plan.slow_from_s:
                is_slow = True
                devices.set_device("gpu0", slow_down=plan.slow_down)
            self._display.update(event["offered"] / max(1, event["planned"]))

        self._elapsed_s = 0.0
        spec = plan.spec(mesh.router_addresses, self._rate_rps)
        try:
            return await run_load(
                spec,
                self._out / "records" / f"shift-{name}.npz",
                on_progress=on_progress,
                cores=mesh.layout.service_cores,
            )
        except LoadProcessError as error:
            raise CommandError(f"load generator: {error}") from None

    async def _learn(self, control: MeshControl, learns: asyncio.Event, swaps: list[float]) -> None:
        """Has the trainer learn, and promotes every snapshot it publishes at once; for ever.

        Args:
            control: The mesh.
            learns: Set once the learner, whose start takes the machine seconds, is at work.
            swaps: When snapshots came into use, seconds from the start of the run.
        """
        mode, present = trainer_pb.TRAINING_MODE_ONLINE, ""
        training = control.training(mode, seed=self._plan.seed, limit_s=LIMIT_S)
        progress = await anext(training)  # as it begins; each further one is of a round
        async for progress in training:
            learns.set()
            newest = str(progress.policy_version)
            if newest not in ("", present):
                present = await control.switch_policy(LEARNED_POLICY, newest)
                swaps.append(self._elapsed_s)
        raise CommandError(progress.error or "the run ended")

    @contextlib.asynccontextmanager
    async def _controlled(self, mesh: EmbeddedMesh) -> AsyncIterator[MeshControl]:
        control = MeshControl.of(mesh)
        try:
            yield control
        finally:
            await control.close()
