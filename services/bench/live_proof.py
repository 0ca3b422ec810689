"""The learned policy beside price and always-small, live: `python -m services.bench.live_proof`.

Four routers in front of four paced devices (`opt-a100`), prompts and answers as long as the
evaluation's. Load 1x is 1,780 requests per second of the profile's own time. Time is stretched, so
that this machine carries it: arrivals, deadlines, latencies and the age of what routers know of
each other, all by one factor, at least ten. At each load the policies take turns on the same
requests; the mesh of a load is started once, and policies are switched in place. The report has
every run, the CPU time of every process, and the paired differences to price with their intervals.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import pathlib
import resource
import sys
import tempfile
import time
from typing import Any

import psutil

from router.folders import checkout
from services.bench.bench import process_cpu_s, save
from services.bench.live_report import BESIDE, compare, show
from services.bench.routers import LEARNED, PROFILE
from services.common.channels import open_channel
from services.loadgen.process import LoadProcessError, run_load
from services.loadgen.records import run_summary
from services.loadgen.spec import DRAWN, parse_spec
from services.local.embedded import EmbeddedMesh, MeshOptions
from services.local.errors import CommandError
from services.local.paced_mesh import DEADLINE_S, paced_options
from services.local.run import run_owning_children
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2
from tiercel.router_inference.v1 import router_inference_service_pb2_grpc as pb2_grpc
from trainer.evaluation import facts
from trainer.shipped import PROFILES, QUALITY, shipped

UNIT_RPS = 1_780.0
"""Load 1x, requests per second of the profile's own time."""
POLICIES = ("price", "dqn", "static-small")
ROUTERS = 4
DEVICES = 4
LEAST_SCALE = 10.0
REPORT_S, PUBLISH_S, STATE_AGE_S, SILENCE_S = 0.1, 0.08, 2.0, 3.0
"""The services' own defaults, in the profile's own time."""
MOST_PUBLISH_S = 1.0
DEADLINES_PER_RUN = 2.5
"""A run lasts at least so many deadlines, however far time is stretched."""
CALL_TIMEOUT_S = 10.0


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


def mesh_options(load: float, scale: float) -> MeshOptions:
    """Returns the mesh of a load: what routers know of each other ages by the same factor."""
    options = paced_options(
        f"live-proof-{load:g}x".replace(".", "_"),
        shipped(PROFILES, f"{PROFILE}.toml"),
        quality=shipped(QUALITY, "opt.toml"),
        device_count=DEVICES,
        time_scale=scale,
    )
    publish_s = min(MOST_PUBLISH_S, PUBLISH_S * scale)
    report_s = (REPORT_S + PUBLISH_S) * scale - publish_s
    return dataclasses.replace(
        options,
        router_count=ROUTERS,
        policy=str(LEARNED["policy"]),
        trainer=False,
        fresh=True,
        sections={
            "router_inference": {
                "policy_snapshot": LEARNED["policy_snapshot"],
                "report_interval_s": min(10.0, report_s),
                "state_max_age_s": STATE_AGE_S * scale,
            },
            "load_monitor": {
                "publish_interval_s": publish_s,
                "idle_publish_interval_s": 2.0 * publish_s,
                "router_silence_s": SILENCE_S * scale,
            },
        },
    )


async def prove(plan: Plan) -> dict[str, Any]:
    """Runs everything; returns the report, JSON-ready."""
    started, start_s, commit = facts.now(), time.monotonic(), facts.commit(checkout())
    runs = []
    for load in plan.loads:
        runs += await _at_load(plan, load)
    return {
        "started": started,
        "took_s": round(time.monotonic() - start_s, 1),
        "commit": commit,
        "machine": facts.machine(),
        "plan": dataclasses.asdict(plan),
        "runs": runs,
        "loads": [compare(runs, plan.policies, load) for load in plan.loads],
    }


async def _at_load(plan: Plan, load: float) -> list[dict[str, Any]]:
    scale, runs = plan.scale(load), []
    _say(f"load {load:g}x, time x{scale:g}: starting the mesh")
    async with EmbeddedMesh(mesh_options(load, scale), say=_say) as mesh:
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
                    f" p99 {total['p99_ms']:.0f} ms, machine {runs[-1]['machine_busy']:.0%} busy"
                )
    return runs


async def _one(
    mesh: EmbeddedMesh, plan: Plan, load: float, policy: str, *, seed: int, warm_up: bool = False
) -> dict[str, Any]:
    """Switches every router to a policy and sends one run's requests."""
    scale = plan.scale(load)
    await asyncio.gather(*(_use(address, policy) for address in mesh.router_addresses))
    length_s = 3.0 if warm_up else plan.run_s(load)
    spec = parse_spec(
        {
            "router_addresses": list(mesh.router_addresses),
            "phases": [
                {"name": "run", "duration_s": length_s, "rate_rps": load * UNIT_RPS / scale}
            ],
            "deadline_s": DEADLINE_S * scale,
            "task_mix": {task.name: 1.0 for task in mesh.options.tasks},
            "prompt_tokens": DRAWN,
            "seed": seed,
            "network_allowance_s": 0.002 * scale,
        },
        "live proof",
    )
    pids = {name: int(each["pid"]) for name, each in mesh.manifest().processes.items()}
    before_s, idle = {name: _tree_cpu_s(pid) for name, pid in pids.items()}, psutil.cpu_times()
    generator_s = _ended_children_cpu_s()
    start_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tiercel-live-") as folder:
        records = await run_load(spec, pathlib.Path(folder) / "run.npz")
    took_s = time.monotonic() - start_s
    cores = {name: (_tree_cpu_s(pid) - before_s[name]) / took_s for name, pid in pids.items()}
    cores["load generator"] = (_ended_children_cpu_s() - generator_s) / took_s
    summary = run_summary(records)
    return {
        "load": load,
        "rate_rps": load * UNIT_RPS,
        "time_scale": scale,
        "run_s": length_s,
        "policy": policy,
        "seed": seed,
        "took_s": took_s,
        "cores": {name: round(value, 3) for name, value in cores.items()},
        "machine_busy": _busy(idle, psutil.cpu_times()),
        "generator_lag_p99_ms": summary["generator_lag_p99_ms"],
        "valid": summary["valid"],
        "policy_versions": summary["policy_versions"],
        "total": summary["total"],
    }


async def _use(address: str, policy: str) -> None:
    """Switches one router, and waits until what it has under way is done."""
    async with open_channel(address) as channel:
        stub: Any = pb2_grpc.RouterInferenceServiceStub(channel)
        await stub.UsePolicy(pb2.UsePolicyRequest(policy=policy), timeout=CALL_TIMEOUT_S)
        for _ in range(300):
            request = pb2.GetRouterStatusRequest()
            status = await stub.GetRouterStatus(request, timeout=CALL_TIMEOUT_S)
            if status.policy != policy or status.fallback_active:
                raise CommandError(f"{address} uses {status.policy}, not {policy}")
            if not status.in_flight_count:
                return
            await asyncio.sleep(0.1)
    raise CommandError(f"{address}: requests are still under way after 30 s")


def _tree_cpu_s(pid: int) -> float:
    """CPU seconds of a process and those below it; one that has just ended counts as nothing."""
    total_s = 0.0
    for each in (pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))):
        try:
            total_s += process_cpu_s(each)
        except OSError:
            continue
    return total_s


def _ended_children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _busy(before: Any, after: Any) -> float:
    """Share of the machine's CPU time that was not idle between two readings."""
    idle_s = after.idle + after.iowait - before.idle - before.iowait
    return 1.0 - float(idle_s / (sum(after[:8]) - sum(before[:8])))


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


async def _run(plan: Plan, path: pathlib.Path | None) -> int:
    report = await prove(plan)
    if path is not None:
        await save(report, path)
    print(show(report))
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
    try:
        return run_owning_children(_run(plan, options.json), _say)
    except (CommandError, LoadProcessError) as error:
        _say(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
