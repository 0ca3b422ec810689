"""``tiercel demo``: calm, burst, recovery on this machine, policy against policy."""

from __future__ import annotations

import pathlib
from typing import Annotated, Any

import typer

from router.folders import state_folder
from router.policies.table import LEARNED, known_policies
from services.cli.files import check_writable
from services.cli.output import console, milliseconds, note, share, table
from services.cli.policy_names import check_policy
from services.demo.plan import LEARNED_POLICY, PHASES, POLICIES, DemoPlan
from services.demo.verdict import best_policy, devices_sentence
from services.local.errors import InputError
from services.local.fleets import REFERENCE_TIERS
from services.local.run import run_owning_children


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("demo")(demo)


def demo(
    seed: Annotated[int, typer.Option(min=0, help="Seed of arrivals, prompts, training.")] = 1,
    out: Annotated[
        pathlib.Path | None, typer.Option(help="Folder of the report [default: demo of the state].")
    ] = None,
    train_s: Annotated[
        float, typer.Option(min=5, max=3600, help="Seconds the learned policy trains for.")
    ] = DemoPlan.train_s,
    policies: Annotated[str, typer.Option(help="Policies to replay, comma separated.")] = ",".join(
        POLICIES
    ),
    burst_factor: Annotated[
        float, typer.Option(min=1, max=20, help="Burst over static-large's capacity.")
    ] = DemoPlan.burst_factor,
    story: Annotated[
        str,
        typer.Option(
            help="Another demo instead: shift (tasks change, then a paced device slows down)."
        ),
    ] = "",
) -> None:
    """Measure the tiers, train a policy, replay a burst against each policy, write a report."""
    out = out or state_folder("demo")
    if story:
        _check_story(story, train_s=train_s, policies=policies, burst_factor=burst_factor)
        check_writable(out / "shift.html", "--out")
        raise typer.Exit(run_owning_children(_run_shift(seed, out), note))
    names = tuple(name.strip() for name in policies.split(",") if name.strip())
    if not names or len(set(names)) != len(names):
        raise InputError("--policies: name at least one policy, each once")
    known = [each for each in known_policies(REFERENCE_TIERS) if each not in LEARNED]
    for each in names:  # what routers refuse, they would refuse after minutes
        check_policy("--policies", each, [*known, LEARNED_POLICY])
    check_writable(out / "report.html", "--out")
    plan = DemoPlan(seed=seed, train_s=train_s, policies=names, burst_factor=burst_factor)
    raise typer.Exit(run_owning_children(_run(plan, out), note))


def _check_story(story: str, **others: object) -> None:
    """Refuses a story that there is not, and options that say nothing to it."""
    if story != "shift":
        raise InputError(f"--story: must be shift, got {story[:64]!r}")
    plain = {
        "train_s": DemoPlan.train_s,
        "policies": ",".join(POLICIES),
        "burst_factor": DemoPlan.burst_factor,
    }
    for name, value in others.items():
        if value != plain[name]:
            raise InputError(f"--{name.replace('_', '-')}: the story has none; leave it out")


async def _run_shift(seed: int, out: pathlib.Path) -> int:
    from services.demo.display import Display
    from services.demo.shift import ShiftPlan, ShiftStory

    terminal = console()
    with Display(terminal) as display:
        report = await ShiftStory(ShiftPlan(seed=seed), out, display).run()
    terminal.print(report["verdict"], markup=False, soft_wrap=True, style="bold")
    for each in report["notes"]:
        terminal.print(each, markup=False)
    page = (out / "shift.html").absolute()
    terminal.print(f"\nOpen next:  {page.as_uri()}", soft_wrap=True)
    terminal.print(f"Numbers:    {out / 'shift.json'}")
    return 0 if all(each["valid"] for each in report["policies"].values()) else 1


async def _run(plan: DemoPlan, out: pathlib.Path) -> int:
    # Plots and measurements are needed here only; other commands start faster without them.
    from services.demo.display import Display
    from services.demo.run import Demo

    terminal = console()
    with Display(terminal) as display:
        report = await Demo(plan, out, display).run()
    terminal.print(report["verdict"], markup=False, soft_wrap=True, style="bold")
    if devices := devices_sentence(report["static_large_devices"]):
        terminal.print(f"{devices} (simulated)", markup=False, soft_wrap=True)
    terminal.print(result_table(report))
    for each in report["notes"]:
        terminal.print(each, markup=False)
    page = (out / "report.html").absolute()
    terminal.print(f"\nOpen next:  {page.as_uri()}", soft_wrap=True)
    terminal.print(f"Numbers:    {out / 'report.json'}")
    terminal.print("Type next:  tiercel up    (then: tiercel top, tiercel generate 'rev:tiercel=')")
    missing = LEARNED_POLICY in plan.policies and LEARNED_POLICY not in report["policies"]
    return 0 if best_policy(report["policies"]) and not missing else 1


def result_table(report: dict[str, Any]) -> Any:
    """The demo's final table, one row per policy and phase."""
    rows = []
    for name, policy in report["policies"].items():
        for phase_name in PHASES:
            phase = policy["phases"][phase_name]
            label = "" if phase_name != PHASES[0] else name + ("" if policy["valid"] else " (!)")
            unserved = phase["refused"] + phase["failed"] + phase["cancelled"]
            rows.append(
                (
                    label,
                    phase_name,
                    phase["offered"],
                    phase["on_time"],
                    phase["late"],
                    unserved,
                    share(phase["availability"]),
                    share(phase["performance"]),
                    milliseconds(phase["p50_ms"]),
                    milliseconds(phase["p99_ms"]),
                    "/".join(f"{part:.2f}" for part in phase["mix"].values()),
                )
            )
    columns = ("policy", "phase", "offered", "on time", "late", "refused/failed")
    tiers = "/".join(next(iter(report["policies"].values()))["phases"][PHASES[0]]["mix"])
    scores = ("avail.", "perform.", "p50 ms", "p99 ms", f"mix {tiers}")
    title = (
        f"static-large holds {report['static_large_capacity_rps']:.0f} requests/s;"
        f" burst {report['burst_rps']:.0f}; deadline {report['deadline_s'] * 1e3:.0f} ms"
    )
    return table(title, (*columns, *scores), rows, numeric_from=2)
