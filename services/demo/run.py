"""The demo itself, step by step, on one embedded mesh."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import pathlib
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from opentelemetry.sdk.trace import TracerProvider

from services.calibrate.calibration import Calibration, calibrate
from services.calibrate.quality import QualityMeasurement, measure_quality
from services.calibrate.tiers import LiveTier
from services.demo import report as reports
from services.demo.capacity import CapacityProbe, bounds, find_capacity, profile_rate_rps
from services.demo.control import MeshControl, seconds_left
from services.demo.display import Display
from services.demo.plan import LEARNED_POLICY, DemoPlan
from services.demo.replay import PolicyRun, Replays
from services.demo.versions import backend_versions
from services.local import reference
from services.local.embedded import EmbeddedMesh, MeshOptions
from services.local.errors import CommandError
from services.local.fleets import REFERENCE_TIERS, ReferenceFleet
from tiercel import AsyncClient, TiercelError
from trainer.evaluation.report.facts import package_versions
from trainer.reference_tiers import tasks as reference_tasks

MESH_NAME = "demo"
PROFILE_NAME = "reference"
LARGEST = REFERENCE_TIERS[-1]
TRAIN_EXTRA_S = 150.0
"""What training may take beyond its budget: start of the worker, compiling, publishing."""
MEASURED_SEED_OFFSET = 7


@dataclasses.dataclass
class Findings:
    """What the demo found out so far; filled step by step."""

    quality: QualityMeasurement | None = None
    calibration: Calibration | None = None
    deadline_s: float = 0.0
    probes: list[CapacityProbe] = dataclasses.field(default_factory=list)
    capacity_rps: float = 0.0
    learned_version: str = ""
    runs: list[PolicyRun] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    trace_id: str = ""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)


class Demo:
    """Measures, trains, replays and reports."""

    def __init__(self, plan: DemoPlan, out: pathlib.Path, display: Display) -> None:
        """Starts nothing yet."""
        self._plan = plan
        self._out = out
        self._display = display
        self._found = Findings()
        self._began_s = time.monotonic()
        self._planned_count = 0

    async def run(self) -> dict[str, Any]:
        """Runs all steps; no process is left afterwards, however it ends.

        Returns:
            The report.

        Raises:
            CommandError: A step failed; the text says which.
        """
        mesh = self._mesh()
        machine = reports.machine_facts(mesh.layout.service_cores, mesh.layout.device_cores)
        # This process, its progress bars and plots stay off the tiers' processor.
        os.sched_setaffinity(0, mesh.layout.service_cores)
        async with mesh:
            await self._start_and_measure(mesh)
            async with self._controlled(mesh) as control:
                replays = self._replays(mesh, control)
                await self._trace_one(mesh)
                await self._measure_capacity(control, replays)
                await self._train(control)
                await self._replay_all(control, replays)
            self._found.versions = {
                **package_versions(reports.PACKAGES),
                **await backend_versions(mesh.addresses),
            }
            self._display.begin("stopping the mesh")
        self._display.done("mesh stopped, no process left")
        self._display.begin("drawing the report")
        report = self._write(mesh, machine)
        self._display.done(f"report written to {self._out}")
        return report

    def _mesh(self) -> EmbeddedMesh:
        options = MeshOptions(
            name=MESH_NAME,
            fleet=ReferenceFleet(),
            profile=reference.shipped_profile(),
            quality=reference.shipped_quality(),
            tasks=reference.task_entries(),
            sections={
                "trainer": {"simulated_budget_s": self._plan.train_s},
                "router_inference": {"seed": self._plan.seed},
            },
            fresh=True,
        )
        return EmbeddedMesh(options, say=self._display.say)

    async def _start_and_measure(self, mesh: EmbeddedMesh) -> None:
        """Backends first, then measurements on them alone, then the services on the results."""
        show = self._display
        show.begin("starting Redis and Triton with three real models")
        await mesh.start_backends()
        show.done("Redis and Triton are up, three real models loaded")
        tiers = [
            LiveTier(tier, tier, mesh.addresses["triton_grpc"], "triton-0", "device")
            for tier in REFERENCE_TIERS
        ]
        await self._measure_quality(tiers)
        await self._calibrate(tiers)
        mesh.quality = mesh.folder / "quality.toml"
        mesh.profile = mesh.folder / "profile.toml"
        assert self._found.quality is not None
        assert self._found.calibration is not None
        mesh.quality.write_text(
            self._found.quality.to_toml(PROFILE_NAME, "Measured by `tiercel demo`.")
        )
        mesh.profile.write_text(self._found.calibration.to_toml())
        mesh.tasks = reference.task_entries(self._found.deadline_s)
        show.begin("starting load monitor, trainer and router")
        await mesh.start_services()
        show.done(f"load monitor, trainer and router are up ({mesh.router_addresses[0]})")

    async def _measure_quality(self, tiers: list[LiveTier]) -> None:
        show, plan = self._display, self._plan
        show.begin("measuring quality by exact match")
        total = plan.examples * len(reference_tasks.task_names()) * len(tiers)
        answered = 0

        def on_answer(tier: str) -> None:
            nonlocal answered
            answered += 1
            show.update(answered / total, tier)

        measured = await measure_quality(
            tiers, example_count=plan.examples, seed=plan.seed, on_answer=on_answer
        )
        self._found.quality = measured
        means = {
            tier: float(np.mean([measured.standardised(task, tier) for task in measured.scores]))
            for tier in measured.tiers
        }
        listed = ", ".join(f"{tier} {value:.2f}" for tier, value in means.items())
        show.done(f"quality, mean of the tasks: {listed}")

    async def _calibrate(self, tiers: list[LiveTier]) -> None:
        show, plan = self._display, self._plan
        show.begin("measuring latency")
        measured = await calibrate(
            tiers,
            name=PROFILE_NAME,
            run_s=plan.calibrate_run_s,
            seed=plan.seed,
            on_step=lambda text, share: show.update(share, text),
        )
        self._found.calibration = measured
        p95_s = measured.unloaded_p95_s[LARGEST]
        self._found.deadline_s = plan.deadline_s(measured.unloaded_p50_s[LARGEST], p95_s)
        error = max(fit.median_error for fit in measured.fits.values())
        show.done(
            f"latency profile: large alone p95 {p95_s * 1e3:.0f} ms, so the deadline is"
            f" {self._found.deadline_s * 1e3:.0f} ms (fit error up to {error:.2f})"
        )

    @contextlib.asynccontextmanager
    async def _controlled(self, mesh: EmbeddedMesh) -> AsyncIterator[MeshControl]:
        """Channels to the mesh, with the live view fed from the load monitor."""
        control = MeshControl(
            router=mesh.router_addresses[0],
            load_monitor=mesh.addresses["load_monitor"],
            trainer=mesh.addresses["trainer"],
        )
        watcher = asyncio.create_task(control.watch(self._display.show))
        try:
            yield control
        finally:
            watcher.cancel()
            await asyncio.wait([watcher])
            self._display.hide()
            await control.close()

    def _replays(self, mesh: EmbeddedMesh, control: MeshControl) -> Replays:
        return Replays(
            control=control,
            routers=mesh.router_addresses,
            plan=self._plan,
            deadline_s=self._found.deadline_s,
            folder=self._out / "records",
            cores=mesh.layout.service_cores,
            on_progress=self._on_load,
            triton_starts=lambda: mesh.start_count("triton"),
        )

    def _on_load(self, event: dict[str, Any]) -> None:
        ended = event["on_time"] + event["late"] + event["refused"] + event["failed"]
        share = event["on_time"] / ended if ended else 1.0
        planned = max(1, event["planned"])
        self._display.update(event["offered"] / planned, f"on time so far {share:.3f}")

    async def _measure_capacity(self, control: MeshControl, replays: Replays) -> None:
        """Static-large's capacity through the whole mesh, at the demo's deadline."""
        show, found = self._display, self._found
        assert found.calibration is not None
        await control.switch_policy(f"static-{LARGEST}")
        profile = found.calibration.profile.tiers[LARGEST]
        count = 0

        async def probe(rate_rps: float) -> float:
            nonlocal count
            count += 1
            show.begin(f"capacity of static-large: {rate_rps:.1f} requests/s?")
            availability = await replays.availability(rate_rps, count)
            show.done(f"static-large at {rate_rps:.1f} requests/s: availability {availability:.3f}")
            return availability

        prompt, output = _mean_shape()
        first = profile_rate_rps(profile, prompt, output)
        found.probes = await find_capacity(probe, first * 0.7, self._plan.probe_count)
        found.capacity_rps, _ = bounds(found.probes)
        if not found.capacity_rps:
            tried = ", ".join(f"{each.rate_rps:.1f}" for each in found.probes)
            raise CommandError(
                f"static-large held none of the rates tried ({tried} requests/s); is this machine"
                " busy with something else?"
            )

    async def _train(self, control: MeshControl) -> None:
        """Trains on this machine's own profile; without a learned policy the others still run."""
        if LEARNED_POLICY not in self._plan.policies:
            return
        show = self._display
        show.begin("training the learned policy in simulation, on the profile just measured")

        def on_progress(progress: Any) -> None:
            left_s = seconds_left(progress)
            share = 0.0 if left_s is None else 1.0 - left_s / self._plan.train_s
            reward = f", reward {progress.mean_reward:.3f}" if progress.mean_reward else ""
            show.update(share, f"{progress.transition_count} decisions{reward}")

        try:
            version, last = await control.train(
                seed=self._plan.seed,
                limit_s=self._plan.train_s * 2 + TRAIN_EXTRA_S,
                on_progress=on_progress,
            )
        except CommandError as error:
            self._found.notes.append(f"There is no learned policy in this report: {error}")
            show.done(f"no learned policy: {error}")
            return
        self._found.learned_version = version
        show.done(f"learned policy {version}: {last.transition_count} simulated decisions")

    async def _replay_all(self, control: MeshControl, replays: Replays) -> None:
        show, found = self._display, self._found
        policies = [
            policy
            for policy in self._plan.policies
            if policy != LEARNED_POLICY or found.learned_version
        ]
        for number, policy in enumerate(policies, start=1):
            show.begin(f"calm, burst, recovery: {reports.title(policy)} ({number}/{len(policies)})")
            version = found.learned_version if policy == LEARNED_POLICY else ""
            run = await replays.policy(policy, version, found.capacity_rps)
            found.runs.append(run)
            burst = run.summary["phases"]["burst"]
            show.done(
                f"{reports.title(policy):14} burst: availability {burst['availability']:.3f},"
                f" performance {burst['performance']:.3f}"
            )
            if run.triton_died:
                found.notes.append(
                    f"Triton died twice in the run of {policy}: do not use its figures."
                )
            elif not run.is_valid:
                found.notes.append(
                    f"The load generator lagged twice in the run of {policy} (p99"
                    f" {run.summary['generator_lag_p99_ms']:.0f} ms): do not use its figures."
                )

    async def _trace_one(self, mesh: EmbeddedMesh) -> None:
        """One request under a trace, whose id goes into the report."""
        example = reference_tasks.eval_set("sort", 1, seed=self._plan.seed)[0]
        provider = TracerProvider()
        client = AsyncClient(mesh.router_addresses, tracer_provider=provider)
        async with client:
            try:
                answer = await client.generate(example.prompt, task=example.task, deadline_s=5.0)
            except TiercelError as error:
                raise CommandError(f"the first request through the mesh failed: {error}") from None
        provider.shutdown()
        self._found.trace_id = answer.trace_id

    def _write(self, mesh: EmbeddedMesh, machine: dict[str, Any]) -> dict[str, Any]:
        found = self._found
        assert found.quality is not None
        assert found.calibration is not None
        phases = self._plan.phases(found.capacity_rps)
        facts = {
            "quality": found.quality.to_json(),
            "machine": machine,
            "versions": found.versions,
            "deadline_s": found.deadline_s,
            "static_large_capacity_rps": round(found.capacity_rps, 3),
            "burst_rps": phases[1]["rate_rps"],
            "seed": self._plan.seed,
            "trace_id": found.trace_id,
            "phases": phases,
            "capacity_probes": [dataclasses.asdict(each) for each in found.probes],
            "calibration": found.calibration.to_json(),
            "kind": mesh.options.fleet.kind,
            "notes": found.notes,
            "took_s": round(time.monotonic() - self._began_s, 1),
        }
        return reports.write_report(self._out, facts, found.runs, tiers=REFERENCE_TIERS)


def _mean_shape() -> tuple[float, float]:
    """Mean prompt and output tokens of the mix, the output's end token included."""
    examples = [
        each
        for name in reference_tasks.task_names()
        for each in reference_tasks.eval_set(name, 100)
    ]
    prompt = float(np.mean([len(each.prompt) for each in examples]))
    return prompt, float(np.mean([len(each.answer) + 1 for each in examples]))
