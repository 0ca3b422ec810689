"""``tiercel evaluate``: every policy in the simulator, by the whole protocol, with a report."""

from __future__ import annotations

import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.folders import state_folder
from services.cli import evaluate_live
from services.cli.evaluate_live import (
    CpuLimitOption,
    LoadsOption,
    RoutersOption,
    SecondsOption,
    TimeScaleOption,
)
from services.cli.files import check_writable
from services.cli.options import JsonOption
from services.cli.output import console, note, print_json, table
from services.cli.own_mesh import (
    DeadlineOption,
    DevicesOption,
    MeshConfigOption,
    OutputTokensOption,
    PromptsOption,
    asked_mesh,
    config_in_force,
)
from services.cli.progress import StageProgress
from services.local.errors import CommandError, InputError

if TYPE_CHECKING:
    from router.dqn.snapshot import Snapshot
    from services.live.compare import Plan

MOST_WORKERS = 64


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("evaluate")(evaluate)


def evaluate(
    suite: Annotated[str, typer.Option(help="quick (minutes) or full (for the record).")] = "quick",
    config: MeshConfigOption = None,
    prompts: PromptsOption = None,
    profile: Annotated[
        str,
        typer.Option(
            help="Latency profile: a file, or the name of a shipped one [default: opt-a100]."
        ),
    ] = "",
    quality: Annotated[
        str, typer.Option(help="Quality table: a file or a shipped name; none = the profile's own.")
    ] = "",
    trace: Annotated[
        list[pathlib.Path] | None,
        typer.Option(
            help="Arrival trace to resample as an unpredictable workload: a file, or the synthetic "
            "azure-llm-code-like; repeatable."
        ),
    ] = None,
    workload: Annotated[
        list[str] | None,
        typer.Option(
            help="Unpredictable arrival process by name; repeatable; none = the protocol's."
        ),
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="Policy by name, or a snapshot file; repeatable; none = all there are."),
    ] = None,
    crosscheck: Annotated[
        pathlib.Path | None,
        typer.Option(
            help="Rows that `python -m trainer.research.crosscheck --json FILE` wrote, to show."
        ),
    ] = None,
    retrained: Annotated[
        pathlib.Path | None,
        typer.Option(
            help="What `python -m trainer.research.retrained --json FILE` wrote, to judge by."
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=0, max=1000, help="Evaluation seeds; 0 = the suite's own number.")
    ] = 0,
    deadline_s: DeadlineOption = None,
    devices: DevicesOption = None,
    output_tokens: OutputTokensOption = None,
    workers: Annotated[
        int, typer.Option(min=0, max=MOST_WORKERS, help="Processes; 0 = one per core.")
    ] = 0,
    out: Annotated[
        pathlib.Path | None,
        typer.Option(help="Folder of the report [default: evaluate of the state]."),
    ] = None,
    live: Annotated[
        bool,
        typer.Option(
            "--live",
            help="Start a mesh of paced tiers here, and compare what it makes of the same requests "
            "with what the simulator says.",
        ),
    ] = False,
    load: LoadsOption = None,
    time_scale: TimeScaleOption = None,
    routers: RoutersOption = None,
    seconds: SecondsOption = None,
    cpu_limit: CpuLimitOption = None,
    as_json: JsonOption = False,
    record: Annotated[
        pathlib.Path | None,
        typer.Option(help="Also write the record that documents quote (evaluation.md) here."),
    ] = None,
) -> None:
    """Say which policy to use, up to which load, and how many GPUs it saves; then every number.

    Every policy meets the same requests in the simulator, beside a bound that none can exceed. With
    --config the mesh simulated is yours, without it that of a profile and a quality table. With
    --live it says how near the simulator is to a live mesh.
    """
    of_live = {
        "load": load,
        "time_scale": time_scale,
        "routers": routers,
        "seconds": seconds,
        "cpu_limit": cpu_limit,
    }
    of_simulator = {
        "config": config,
        "prompts": prompts,
        "trace": trace,
        "workload": workload,
        "crosscheck": crosscheck,
        "retrained": retrained,
        "deadline_s": deadline_s,
        "output_tokens": output_tokens,
        "workers": workers,
        "record": record,
    }
    _refuse(of_simulator if live else of_live, "is not for --live" if live else "needs --live")
    kept = None if as_json else state_folder("evaluate")
    for option, folder in (("--out", out or kept), ("--record", record)):
        if folder is not None:
            check_writable(folder / "report.html", option)
    if live:
        plan, snapshot = evaluate_live.plan_of(
            profile=profile,
            quality=quality,
            policies=policy or (),
            loads=load or (),
            devices=devices,
            routers=routers,
            seeds=seeds,
            seconds=seconds,
            time_scale=time_scale,
            cpu_limit=cpu_limit,
        )
        raise typer.Exit(_live(plan, snapshot, out, as_json))
    # The simulator is needed here only; other commands start faster without it.
    from trainer.evaluation.facts import usable_cores
    from trainer.evaluation.inputs import Asked, EvaluationInputError, read_inputs
    from trainer.evaluation.plan import PLANS
    from trainer.evaluation.rates import EvaluationError
    from trainer.evaluation.run import run_evaluation
    from trainer.simulation.workload import WorkloadError

    if suite not in PLANS:
        raise InputError(f"--suite: unknown suite {suite!r}; known: {', '.join(PLANS)}")
    described = {
        "profile": profile,
        "quality": quality,
        "deadline_s": deadline_s,
        "devices": devices,
        "output_tokens": output_tokens,
    }
    mesh = asked_mesh(config_in_force(config, **described), prompts, **described)
    asked = Asked(
        policies=tuple(dict.fromkeys(policy or ())),
        workloads=tuple(workload or ()),
        traces=tuple(trace or ()),
        crosscheck=crosscheck,
        retrained=retrained,
        **mesh,
    )
    try:
        inputs = read_inputs(asked)
        with StageProgress() as display:
            report = run_evaluation(
                inputs,
                PLANS[suite],
                seed_count=seeds,
                workers=workers or min(usable_cores(), MOST_WORKERS),
                command=_command(sys.argv[1:]),
                progress=display.show_requests,
            )
    except (EvaluationInputError, EvaluationError, WorkloadError) as error:
        raise InputError(str(error)) from None
    if as_json:
        print_json(report)
    else:
        _print(report)
        out = out or state_folder("evaluate")
    _write(report, out, record)
    if report["violations"] and not report["iterations_vary"]:
        raise CommandError(_above(report["violations"]))


def _refuse(options: dict[str, Any], why: str) -> None:
    """Raises InputError for the first option that was given."""
    for name, value in options.items():
        if value:
            raise InputError(f"--{name.replace('_', '-')}: {why}")


def _live(plan: Plan, snapshot: Snapshot | None, out: pathlib.Path | None, as_json: bool) -> int:
    code, report = evaluate_live.run_live_evaluation(plan, snapshot, _command(sys.argv[1:]))
    if not report:
        return code
    if as_json:
        print_json(report)
    else:
        evaluate_live.show(report)
        out = out or state_folder("evaluate-live")
    if out is not None:
        evaluate_live.write(report, out)
    if not any(point["counts"] for point in report["points"]):
        raise CommandError("no run counts, so nothing was found out")
    return code


def _command(arguments: Sequence[str]) -> str:
    """The command line; a file outside the project goes by its name, whatever its place here."""
    shown = [pathlib.Path(each).name if each.startswith("/") else each for each in arguments]
    return shlex.join(["tiercel", *shown])


def _print(report: dict[str, Any]) -> None:
    from trainer.evaluation.report import page, tables

    terminal = console()
    terminal.print(report["answer"]["sentence"], markup=False, soft_wrap=True, style="bold")
    sections = page.report_tables(report)
    shown = [
        *(t for t in sections["sweep"] if "net on" in t.title),
        *sections["loads"],
        *(t for t in sections["windows"] if "net off" not in t.title),
        *sections["gpus"],
        *sections["shifts"],
        *page.regret_tables(report, nets=(True,))[:2],
        tables.headline_table(report["headlines"]),
    ]
    for each in shown:
        terminal.print(table(each.title, each.columns, each.rows, numeric_from=each.numeric_from))
    unit = report["load_unit"]
    terminal.print(
        f"Load 1x = {unit['rate_rps']:.1f} requests/s, what {unit['policy']} holds; "
        f"{len(report['seeds'])} seeds; {report['run']['took_s']:.0f} s",
        markup=False,
    )
    for each in report["notes"]:
        terminal.print(each, markup=False, soft_wrap=True)


def _write(
    report: dict[str, Any],
    out: pathlib.Path | None,
    record: pathlib.Path | None,
) -> None:
    from trainer.evaluation.report import page
    from trainer.evaluation.report.record import write_record

    if out is None and record is None:
        return
    try:
        drawn = page.report_figures(report)
        if out is not None:
            page.write_json(out / "report.json", report)
            page.write_page(out / "report.html", report, drawn)
        if record is not None:
            write_record(record, report, drawn)
    except OSError as error:
        name = error.filename or record or out
        raise CommandError(f"{name}: cannot be written: {error.strerror or error}") from None
    if out is not None:
        note(f"\nOpen next:  {(out / 'report.html').absolute().as_uri()}")
        note(f"Numbers:    {out / 'report.json'}")


def _above(violations: list[dict[str, Any]]) -> str:
    """One line for the first run above the bound."""
    first = violations[0]
    return (
        f"{len(violations)} runs earned more than the bound allows: bound or simulator is wrong; "
        f"first: {first['policy']} in {first['suite']} {first['label']} at load "
        f"{first['load']:.3g}, seed {first['seed']}: {first['performance']:.6f} above "
        f"{first['bound']:.6f}"
    )
