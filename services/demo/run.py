"""The demo itself, step by step, on one embedded mesh."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import time
from collections.abc import AsyncIterator
from typing import Any

from opentelemetry.sdk.trace import TracerProvider

from router.catalog import parse_quality
from services.calibrate.tiers import LiveTier
from services.demo import measure
from services.demo import report as reports
from services.demo.capacity import bounds
from services.demo.control import MeshControl, seconds_left
from services.demo.devices import static_large_devices
from services.demo.display import Display
from services.demo.findings import Findings
from services.demo.plan import LEARNED_POLICY, DemoPlan
from services.demo.replay import Replays
from services.demo.verdict import best_policy, title
from services.demo.versions import backend_versions
from services.local import reference
from services.local.embedded import EmbeddedMesh, MeshOptions
from services.local.errors import CommandError
from services.local.fleets import REFERENCE_TIERS, ReferenceFleet
from tiercel import AsyncClient, TiercelError
from trainer.evaluation.facts import package_versions
from trainer.reference_tiers import tasks as reference_tasks

MESH_NAME = "demo"
TRAIN_EXTRA_S = 150.0
"""What training may take beyond its budget: start of the worker, compiling, publishing."""


class Demo:
    """Measures, trains, replays and reports."""

    def __init__(self, plan: DemoPlan, out: pathlib.Path, display: Display) -> None:
        """Starts nothing yet."""
        self._plan = plan
        self._out = out
        self._display = display
        self._found = Findings()
        self._began_s = time.monotonic()

    async def run(self) -> dict[str, Any]:
        """Runs all steps; no process is left afterwards, however it ends.

        Returns:
            The report.

        Raises:
            CommandError: A step failed; the text says which.
        """
        mesh = self._mesh()
        layout = mesh.layout
        self._found.machine = reports.machine_facts(layout.service_cores, layout.device_cores)
        # This process, its progress bars and plots stay off the tiers' processor.
        os.sched_setaffinity(0, layout.service_cores)
        async with mesh:
            await self._start_and_measure(mesh)
            async with self._controlled(mesh) as control:
                replays = self._replays(mesh, control)
                await self._trace_one(mesh)
                await control.switch_policy(f"static-{measure.LARGEST}")
                await self._measure_capacity(replays)
                await self._train(control)
                await self._replay_all(control, replays)
            self._found.versions = {
                **package_versions(reports.PACKAGES),
                **await backend_versions(mesh.addresses),
            }
            self._display.begin("stopping the mesh")
        self._display.done("mesh stopped, no process left")
        self._display.begin("drawing the report")
        self._reckon_devices()
        facts = self._found.facts(
            self._plan, kind=mesh.options.fleet.kind, took_s=time.monotonic() - self._began_s
        )
        report = reports.write_report(self._out, facts, self._found.runs, tiers=REFERENCE_TIERS)
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
                # Beside the measurements the machine has nothing else to do.
                "trainer": {"simulated_budget_s": self._plan.train_s, "hindsight_max_requests": 0},
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
        found = self._found
        found.quality = await measure.tier_quality(tiers, self._plan, show)
        found.calibration, found.deadline_s = await measure.tier_latency(tiers, self._plan, show)
        mesh.quality = mesh.folder / "quality.toml"
        mesh.profile = mesh.folder / "profile.toml"
        mesh.quality.write_text(
            found.quality.to_toml(measure.PROFILE_NAME, "Measured by `tiercel demo`."),
            encoding="utf-8",
        )
        mesh.profile.write_text(found.calibration.to_toml(), encoding="utf-8")
        mesh.tasks = reference.task_entries(found.deadline_s)
        show.begin("starting load monitor, trainer and router")
        await mesh.start_services()
        show.done(f"load monitor, trainer and router are up ({mesh.router_addresses[0]})")

    @contextlib.asynccontextmanager
    async def _controlled(self, mesh: EmbeddedMesh) -> AsyncIterator[MeshControl]:
        """Channels to the mesh, with the live view fed from the load monitor."""
        control = MeshControl.of(mesh)
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

    async def _measure_capacity(self, replays: Replays) -> None:
        found = self._found
        assert found.calibration is not None
        found.probes = await measure.static_capacity(
            found.calibration, replays, self._plan, self._display
        )
        found.capacity_rps, _ = bounds(found.probes)

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
            show.begin(f"calm, burst, recovery: {title(policy)} ({number}/{len(policies)})")
            version = found.learned_version if policy == LEARNED_POLICY else ""
            run = await replays.policy(policy, version, found.capacity_rps)
            found.runs.append(run)
            burst = run.summary["phases"]["burst"]
            show.done(
                f"{title(policy):14} burst: availability {burst['availability']:.3f},"
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

    def _reckon_devices(self) -> None:
        """How many devices static-large would need to earn what the best policy earned on one."""
        found = self._found
        assert found.calibration is not None
        assert found.quality is not None
        best = best_policy(
            {run.policy: reports.policy_entry(run, REFERENCE_TIERS) for run in found.runs}
        )
        if not best:
            return
        found.devices = static_large_devices(
            found.runs,
            best,
            profile=found.calibration.profile,
            quality=parse_quality(found.quality.to_toml(measure.PROFILE_NAME, ""), "measured"),
            tiers=REFERENCE_TIERS,
            deadline_s=found.deadline_s,
            burst_factor=self._plan.burst_factor,
            seed=self._plan.seed,
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
