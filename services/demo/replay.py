"""Replays the same arrivals against one policy after the other on the running mesh."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from services.demo.control import MeshControl
from services.demo.plan import DemoPlan
from services.loadgen.process import LoadProcessError, run_load
from services.loadgen.records import RunRecords, run_summary, summarize
from services.loadgen.spec import LoadSpec, parse_spec
from services.local import reference
from services.local.errors import CommandError

OnProgress = Callable[[dict[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class PolicyRun:
    """One policy's replay.

    Attributes:
        policy: Its name.
        policy_version: Its version, as the router named it.
        records: Every offered request.
        summary: ``records.run_summary``.
        repeated: Whether a first run was thrown away: its load generator lagged or Triton died.
        triton_died: Whether Triton was restarted during this run.
    """

    policy: str
    policy_version: str
    records: RunRecords
    summary: dict[str, Any]
    repeated: bool
    triton_died: bool = False

    @property
    def is_valid(self) -> bool:
        """Whether the load generator kept up and Triton lived."""
        return bool(self.summary["valid"]) and not self.triton_died


class Replays:
    """Load runs of the demo, all with the same tasks, prompts and deadline."""

    def __init__(
        self,
        *,
        control: MeshControl,
        routers: Sequence[str],
        plan: DemoPlan,
        deadline_s: float,
        folder: pathlib.Path,
        cores: Sequence[int],
        on_progress: OnProgress,
        triton_starts: Callable[[], int],
    ) -> None:
        """Runs nothing yet.

        Args:
            control: The mesh.
            routers: Router addresses.
            plan: Lengths, factors and seed.
            deadline_s: Deadline of every request.
            folder: Where records go.
            cores: Processors of the load generator.
            on_progress: Gets the generator's counts while a run lasts.
            triton_starts: How often Triton was started so far.
        """
        self._control = control
        self._plan = plan
        self._folder = folder
        self._cores = cores
        self._on_progress = on_progress
        self._triton_starts = triton_starts
        self._base = {
            "router_addresses": list(routers),
            "deadline_s": deadline_s,
            "task_mix": reference.even_mix(),
            "prompts": reference.example_pools(500, plan.seed + 1),
        }

    async def availability(self, rate_rps: float, index: int) -> float:
        """Availability of the policy in use at a constant rate; for the capacity search.

        Raises:
            CommandError: The run failed, or the generator lagged twice.
        """
        phases = [{"name": "probe", "duration_s": self._plan.probe_s, "rate_rps": rate_rps}]
        for attempt in range(2):
            spec = self._spec(phases, seed=1000 + 10 * index + attempt)
            records = await self._run(spec, f"probe-{index}")
            await self._control.wait_for_quiet(0.3)
            if records.is_valid:
                return float(summarize(records)["availability"] or 0.0)
        raise CommandError(
            "the load generator lagged twice in a row: this machine is too busy to measure on"
        )

    async def policy(self, policy: str, version: str, capacity_rps: float) -> PolicyRun:
        """Switches to a policy and replays calm, burst and recovery; an invalid run once more.

        Raises:
            CommandError: The policy could not be used, or a run failed.
        """
        phases = self._plan.phases(capacity_rps)
        in_use = await self._control.switch_policy(policy, version)
        for attempt in range(2):
            await self._control.wait_for_quiet(self._plan.settle_s)
            starts = self._triton_starts()
            records = await self._run(self._spec(phases, seed=self._plan.seed), policy)
            died = self._triton_starts() > starts
            run = PolicyRun(policy, in_use, records, run_summary(records), attempt > 0, died)
            if run.is_valid:
                break
        return run

    def _spec(self, phases: list[dict[str, Any]], seed: int) -> LoadSpec:
        return parse_spec({**self._base, "phases": phases, "seed": seed}, "demo")

    async def _run(self, spec: LoadSpec, name: str) -> RunRecords:
        out = self._folder / f"{name}.npz"
        try:
            return await run_load(spec, out, on_progress=self._on_progress, cores=self._cores)
        except LoadProcessError as error:
            raise CommandError(f"load generator: {error}") from None
