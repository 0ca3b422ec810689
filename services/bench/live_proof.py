"""The learned policy beside price and always-small, live: `python -m services.bench.live_proof`.

Four routers in front of four paced devices (`opt-a100`), prompts and answers as long as the
evaluation's. Load 1x is 1,780 requests per second of the profile's own time. Time is stretched, so
that this machine carries it: arrivals, deadlines, latencies and the age of what routers know of
each other, all by one factor, at least ten. At each load the policies take turns on the same
requests; the mesh of a load is started once, and its routers anew for each run. The report has
every run, the CPU time of every process, and the paired differences to price with their intervals.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from router.folders import checkout
from services.bench.bench import save
from services.bench.live_report import BESIDE, compare, seconds_text, show
from services.bench.routers import LEARNED, PROFILE
from services.live.compare import LEAST_REQUESTS
from services.live.mesh import ALLOWANCE_S, StretchedMesh
from services.live.run import run_policy
from services.loadgen.process import LoadProcessError
from services.loadgen.records import run_summary
from services.loadgen.spec import DRAWN, LoadSpec, LoadSpecError, parse_spec
from services.local.embedded import EmbeddedMesh
from services.local.errors import CommandError
from services.local.paced_mesh import DEADLINE_S
from services.local.run import run_owning_children
from trainer.evaluation import facts
from trainer.shipped import PROFILES, QUALITY, shipped

UNIT_RPS = 1_780.0
"""Load 1x, requests per second of the profile's own time."""
POLICIES = ("price", "dqn", "static-small")
ROUTERS = 4
DEVICES = 4
LEAST_SCALE = 10.0
DEADLINES_PER_RUN = 2.5
"""A run lasts at least so many deadlines, however far time is stretched."""
Keep = Callable[[dict[str, Any]], Awaitable[None]]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        loads: Multiples of `UNIT_RPS`.
        policies: In the order of the first turn; each later turn starts one further on.
        turns: Runs of each policy at each load.
        seconds: Length of a run, seconds on this machine.
        most_rps: Most arrivals per second on this machine; time is stretched to keep it.
    """

    loads: tuple[float, ...]
    policies: tuple[str, ...]
    turns: int
    seconds: float
    most_rps: float

    def scale(self, load: float) -> float:
        """Factor on every time at a load."""
        return max(LEAST_SCALE, load * UNIT_RPS / self.most_rps)

    def run_s(self, load: float) -> float:
        """Length of a run at a load, seconds on this machine."""
        return max(self.seconds, DEADLINES_PER_RUN * DEADLINE_S * self.scale(load))

    def order(self, turn: int) -> tuple[str, ...]:
        """Policies in the order of a turn: none always comes first."""
        first = turn % len(self.policies)
        return self.policies[first:] + self.policies[:first]


def stretched_mesh(load: float, scale: float) -> StretchedMesh:
    """Returns the mesh of a load: what routers know of each other ages by the same factor."""
    return StretchedMesh(
        f"live-proof-{load:g}x".replace(".", "_"),
        shipped(PROFILES, f"{PROFILE}.toml"),
        shipped(QUALITY, "opt.toml"),
        pathlib.Path(LEARNED["policy_snapshot"]),
        DEVICES,
        ROUTERS,
        scale,
    )


async def prove(plan: Plan, keep: Keep) -> dict[str, Any]:
    """Runs everything; returns the report, JSON-ready.

    Args:
        plan: What to run.
        keep: Gets the report after each load: it outlives a failure of the next one.
    """
    started, start_s, commit = facts.now(), time.monotonic(), facts.commit(checkout())
    runs: list[dict[str, Any]] = []
    report: dict[str, Any] = {}
    for number, load in enumerate(plan.loads, start=1):
        runs += await _at_load(plan, load)
        report = {
            "started": started,
            "took_s": round(time.monotonic() - start_s, 1),
            "commit": commit,
            "machine": facts.machine(),
            "plan": dataclasses.asdict(plan),
            "runs": runs,
            "loads": [compare(runs, plan.policies, each) for each in plan.loads[:number]],
        }
        await keep(report)
    return report


def problem_of(plan: Plan) -> str:
    """Returns why a plan cannot be run, empty if it can."""
    for load in plan.loads:
        try:
            for turn in range(plan.turns):
                spec = _spec(plan, load, ("127.0.0.1:1",), ("any",), turn, plan.run_s(load))
                count = len(spec.arrivals().arrival_s)
                if count < LEAST_REQUESTS:
                    return f"{load:g}: a run has {count} requests, and needs {LEAST_REQUESTS}"
        except LoadSpecError as error:
            return f"{load:g}: {error}"
    return ""


async def _at_load(plan: Plan, load: float) -> list[dict[str, Any]]:
    scale, runs = plan.scale(load), []
    _say(f"load {load:g}x, time x{scale:g}: starting the mesh")
    async with EmbeddedMesh(stretched_mesh(load, scale).options(), say=_say) as mesh:
        await mesh.start_backends()
        await mesh.start_services()
        await _one(mesh, plan, load, BESIDE, seed=999, warm_up=True)
        for turn in range(plan.turns):
            for policy in plan.order(turn):
                runs.append(await _one(mesh, plan, load, policy, seed=turn))
                total = runs[-1]["total"]
                _say(
                    f"load {load:g}x turn {turn + 1} {policy}: availability"
                    f" {total['availability']:.3f}, performance {total['performance']:.3f},"
                    f" p99 {seconds_text(total['p99_ms'])} s,"
                    f" machine {runs[-1]['machine_busy']:.0%} busy"
                )
    return runs


async def _one(
    mesh: EmbeddedMesh, plan: Plan, load: float, policy: str, *, seed: int, warm_up: bool = False
) -> dict[str, Any]:
    """Sends one run's requests, with every router at a policy."""
    length_s = 3.0 if warm_up else plan.run_s(load)
    tasks = [task.name for task in mesh.options.tasks]
    spec = _spec(plan, load, mesh.router_addresses, tasks, seed, length_s)
    measured = await run_policy(mesh, policy, spec)
    summary = run_summary(measured.records)
    return {
        "load": load,
        "rate_rps": load * UNIT_RPS,
        "time_scale": plan.scale(load),
        "run_s": length_s,
        "policy": policy,
        "seed": seed,
        "took_s": measured.took_s,
        "cores": {name: round(value, 3) for name, value in measured.cores.items()},
        "machine_busy": measured.machine_busy,
        "loop_lag_ms": 1e3 * measured.loop_lag_s,
        "generator_lag_p99_ms": summary["generator_lag_p99_ms"],
        "valid": summary["valid"],
        "policy_versions": summary["policy_versions"],
        "total": summary["total"],
    }


def _spec(
    plan: Plan,
    load: float,
    addresses: Sequence[str],
    tasks: Sequence[str],
    seed: int,
    length_s: float,
) -> LoadSpec:
    """Returns the requests of a run.

    Raises:
        LoadSpecError: There are too many, or time is stretched too far for them.
    """
    scale = plan.scale(load)
    return parse_spec(
        {
            "router_addresses": list(addresses),
            "phases": [
                {"name": "run", "duration_s": length_s, "rate_rps": load * UNIT_RPS / scale}
            ],
            "deadline_s": DEADLINE_S * scale,
            "task_mix": dict.fromkeys(tasks, 1.0),
            "prompt_tokens": DRAWN,
            "seed": seed,
            "network_allowance_s": min(1.0, ALLOWANCE_S * scale),
        },
        "live proof",
    )


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


async def _run(plan: Plan, path: pathlib.Path | None) -> int:
    async def keep(report: dict[str, Any]) -> None:
        if path is not None:
            await save(report, path)

    print(show(await prove(plan, keep)))
    return 0


def main() -> int:
    """Reads the command line and runs; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m services.bench.live_proof",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--loads", default="0.5,1,2,4", help="multiples of 1,780 requests/s")
    parser.add_argument("--policies", default=",".join(POLICIES), help=f"{BESIDE} among them")
    parser.add_argument("--turns", type=int, default=3, help="runs of each policy at each load")
    parser.add_argument("--seconds", type=float, default=25.0, help="length of a run")
    parser.add_argument("--most-rps", type=float, default=280.0, help="arrivals/s on this machine")
    parser.add_argument("--json", type=pathlib.Path, help="file for the report")
    options = parser.parse_args()
    try:
        loads = tuple(float(each) for each in options.loads.split(","))
    except ValueError:
        parser.error(f"--loads: expected numbers, got {options.loads!r}")
    policies = tuple(options.policies.split(","))
    if BESIDE not in policies or len(set(policies)) < len(policies):
        parser.error(f"--policies: {BESIDE} must be among them, and none twice")
    limits = {
        "--turns": options.turns,
        "--seconds": options.seconds,
        "--most-rps": options.most_rps,
        "--loads": max(loads),
        "--loads, least": min(loads),
    }
    for name, value in limits.items():
        if not 0 < value < 10_000:
            parser.error(f"{name}: must be above 0 and below 10,000, got {value:g}")
    if options.json is not None and not options.json.parent.is_dir():
        parser.error(f"--json: no folder {options.json.parent}")
    plan = Plan(loads, policies, options.turns, options.seconds, options.most_rps)
    if problem := problem_of(plan):
        parser.error(f"--loads: {problem}")
    try:
        return run_owning_children(_run(plan, options.json), _say)
    except (CommandError, LoadProcessError) as error:
        _say(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
