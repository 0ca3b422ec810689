"""``tiercel evaluate --live``: a live mesh beside the simulator, on the same requests."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.catalog import parse_quality
from router.dqn.snapshot import Snapshot, SnapshotError, load_snapshot
from router.features import SCHEMA
from router.picker import PICKERS
from router.policies.table import DQN, LEARNED, PICKER_MARK, base_name, known_policies
from services.cli.files import read_bytes, shipped_file, write_text
from services.cli.output import console, note, table
from services.common.files import read_text
from services.loadgen.process import LoadProcessError
from services.local.errors import CommandError, InputError
from services.local.paced_mesh import paced_options
from services.local.run import run_owning_children
from trainer.shipped import POLICIES, PROFILES, QUALITY, SNAPSHOT_SUFFIX, named

if TYPE_CHECKING:
    from services.live.compare import Plan

DEFAULT_LOADS = (1.0, 4.0)
DEFAULT_BASELINES = ("price", "static-small")
FULL_CPU = 0.7
"""Share of the machine above which a run does not count unless told otherwise."""

LoadsOption = Annotated[
    list[float] | None,
    typer.Option(
        "--load",
        help="Load as a multiple of about what the largest tier holds, 0.01 to 50; repeatable; "
        "none = 1 and 4; with --live.",
    ),
]
TimeScaleOption = Annotated[
    float | None,
    typer.Option(
        min=1.0,
        max=200.0,
        help="Factor on every time [default: what each load needs]; with --live.",
    ),
]
RoutersOption = Annotated[
    int | None,
    typer.Option(min=1, max=16, help="Router processes [default: 1]; with --live."),
]
SecondsOption = Annotated[
    float | None,
    typer.Option(
        min=1.0, max=600.0, help="What counts of each run, seconds [default: 12]; with --live."
    ),
]
CpuLimitOption = Annotated[
    float | None,
    typer.Option(
        min=0.05,
        max=1.0,
        help="Share of the machine's CPU above which a run does not count [default: 0.7]; "
        "with --live.",
    ),
]


def plan_of(
    *,
    profile: str,
    quality: str,
    policies: Sequence[str],
    loads: Sequence[float],
    devices: int | None,
    routers: int | None,
    seeds: int,
    seconds: float | None,
    time_scale: float | None,
    cpu_limit: float | None,
) -> tuple[Plan, Snapshot | None]:
    """Returns what to compare, from what was typed, and the learned policy's snapshot.

    Raises:
        InputError: It names the option and what it takes.
    """
    from services.live.compare import Plan

    profile_path = shipped_file(PROFILES, profile or "opt-a100", "--profile")
    quality_path = shipped_file(QUALITY, quality or "opt", "--quality")
    tiers = paced_options("live", profile_path, quality=quality_path).fleet.tiers
    _check_tiers(tiers, quality_path)
    names, snapshot_path = _policies(policies, profile_path, tiers)
    wrong = [load for load in loads if not 0.01 <= load <= 50.0]
    if wrong:
        raise InputError(f"--load: must be 0.01 to 50, got {wrong[0]:g}")
    plan = Plan(
        profile=profile_path,
        quality=quality_path,
        snapshot=snapshot_path,
        policies=names,
        loads=tuple(dict.fromkeys(loads)) or DEFAULT_LOADS,
        devices=devices or 4,
        routers=routers or 1,
        seeds=seeds or 1,
        seconds=seconds or 12.0,
        time_scale=time_scale or 0.0,
        cpu_limit=cpu_limit or FULL_CPU,
    )
    _check_rates(plan)
    return plan, _snapshot(snapshot_path)


def _check_tiers(tiers: Sequence[str], quality: pathlib.Path) -> None:
    table_of = parse_quality(read_text(quality), str(quality)).quality
    for task, scores in table_of.items():
        missing = [tier for tier in tiers if tier not in scores]
        if missing:
            raise InputError(f"--quality: {quality}: {task} has no score for {', '.join(missing)}")


def _policies(
    asked: Sequence[str], profile: pathlib.Path, tiers: Sequence[str]
) -> tuple[tuple[str, ...], pathlib.Path | None]:
    """Returns policies by name, and the file of the snapshot that `dqn` means."""
    files = [pathlib.Path(name) for name in asked if name.endswith(SNAPSHOT_SUFFIX)]
    if len(files) > 1:
        raise InputError("--policy: one snapshot file at most with --live")
    own = named(POLICIES, profile.stem)
    snapshot = files[0] if files else own if own.is_file() else None
    names = [DQN if name.endswith(SNAPSHOT_SUFFIX) else name for name in asked]
    if not names:
        names = [*([DQN] if snapshot else []), *DEFAULT_BASELINES]
    known = [name for name in known_policies(tiers) if name == DQN or name not in LEARNED]
    for name in names:
        if base_name(name) not in known:
            raise InputError(
                f"--policy: {name!r} is not run live; there are {', '.join(known)}, or a "
                f"*{SNAPSHOT_SUFFIX} file"
            )
        picker = name.partition(PICKER_MARK)[2]
        if PICKER_MARK in name and picker not in PICKERS:
            raise InputError(f"--policy: unknown picker {picker!r}; known: {', '.join(PICKERS)}")
    if snapshot is None and DQN in map(base_name, names):
        raise InputError(f"--policy: no snapshot is shipped for {profile.stem}; give its file")
    return tuple(dict.fromkeys(names)), snapshot


def _snapshot(path: pathlib.Path | None) -> Snapshot | None:
    if path is None:
        return None
    try:
        return load_snapshot(read_bytes(path), SCHEMA, str(path))
    except SnapshotError as error:
        raise InputError(f"--policy: {error}") from None


def _check_rates(plan: Plan) -> None:
    """Refuses what the load generator would refuse, and what says nothing, before it starts."""
    from services.live.compare import problem_of, rates_rps

    for load, rate_rps in rates_rps(plan).items():
        problem = problem_of(plan, rate_rps)
        if problem:
            raise InputError(f"--load {load:g}: {problem}")


def run_live_evaluation(
    plan: Plan, snapshot: Snapshot | None, command: str
) -> tuple[int, dict[str, Any]]:
    """Runs everything; returns the exit code and the report, empty if it was stopped.

    Raises:
        CommandError: The mesh or the load generator failed.
    """
    from services.live import compare

    found: dict[str, Any] = {}

    async def work() -> int:
        found.update(await compare.evaluate_live(plan, snapshot, note))
        return 0

    try:
        code = run_owning_children(work(), note)
    except LoadProcessError as error:
        raise CommandError(f"load generator: {error}") from None
    return code, {"command": command, **found} if found else {}


def show(report: dict[str, Any]) -> None:
    """Prints the table, the verdict and the machine."""
    from services.live.report import live_table, verdict

    terminal, shown = console(), live_table(report["points"])
    terminal.print(verdict(report["points"]), markup=False, soft_wrap=True, style="bold")
    terminal.print(table(shown.title, shown.columns, shown.rows, numeric_from=shown.numeric_from))
    terminal.print(
        f"Load 1x = {report['unit_rps']:.0f} requests/s of the profile's own time; latencies "
        f"are in that time. Mix: {' '.join(report['tiers'])}, of answers, %. A run counts if "
        f"the machine is at most {report['plan']['cpu_limit']:.0%} busy.",
        markup=False,
        soft_wrap=True,
    )


def write(report: dict[str, Any], out: pathlib.Path) -> None:
    """Writes numbers and plot into a folder; raises CommandError if that cannot be done."""
    from services.live.report import live_figure
    from trainer.evaluation.report.style import save

    write_text(out / "live.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
    try:
        save(live_figure(report["points"], report["tiers"][0], report["tiers"][-1]), out / "live")
    except OSError as error:
        raise CommandError(f"{out}: cannot be written: {error.strerror or error}") from None
    note(f"\nPlot:     {out / 'live.png'}")
    note(f"Numbers:  {out / 'live.json'}")
