"""``tiercel load``: open-loop load on a mesh of this machine."""

from __future__ import annotations

import asyncio
import dataclasses
import pathlib
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn

from router.documents import parse_toml
from router.types import InvalidFileError
from services.cli.options import ConfigOption, JsonOption, MeshOption, RouterOption
from services.cli.output import console, milliseconds, note, print_json, share, table
from services.common.files import read_text
from services.loadgen.arrivals import ArrivalsError, square_wave
from services.loadgen.process import LoadProcessError, run_load
from services.loadgen.records import RunRecords, run_summary
from services.loadgen.spec import (
    DRAWN,
    MAX_TOKENS,
    LoadSpec,
    LoadSpecError,
    parse_spec,
    read_spec,
)
from services.local import reference
from services.local.cores import machine_layout
from services.local.errors import CommandError, InputError
from services.local.manifest import Manifest
from services.local.target import need_routers, resolve

DEFAULT_OUT = pathlib.Path("build") / "load" / "last.npz"
PROGRESS_COUNTS = ("on_time", "late", "refused", "cancelled", "failed")


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("load")(load)


def load(
    rate: Annotated[float, typer.Option(help="Mean arrivals per second.")] = 20.0,
    duration: Annotated[float, typer.Option(help="Length in seconds.")] = 10.0,
    phases: Annotated[
        str, typer.Option(help="NAME:SECONDS@RATE,... instead of --rate and --duration.")
    ] = "",
    square: Annotated[
        str, typer.Option(help="LOW,HIGH,HALF_PERIOD_S,CYCLES: a square wave instead.")
    ] = "",
    process: Annotated[str, typer.Option(help="Arrivals: poisson, gamma or uniform.")] = "poisson",
    cv: Annotated[float, typer.Option(help="Coefficient of variation of gamma arrivals.")] = 1.0,
    deadline: Annotated[float, typer.Option(help="Deadline in seconds.")] = 0.5,
    mix: Annotated[str, typer.Option(help="TASK=SHARE,... [default: all tasks of the mesh]")] = "",
    prompt_tokens: Annotated[
        str,
        typer.Option(
            help="Length of made-up prompts: a number, or drawn as the evaluation draws them "
            "[default: drawn; the tasks' own examples on reference tiers]."
        ),
    ] = "",
    output_tokens: Annotated[
        str,
        typer.Option(
            help="Limit of each answer: a number, or drawn as the evaluation draws answers "
            "[default: the task's limit; paced tiers draw lengths of their own]."
        ),
    ] = "",
    tier: Annotated[str, typer.Option(help="Pin every request to this tier.")] = "",
    stream: Annotated[bool, typer.Option(help="Stream answers.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of arrivals and prompts.")] = 0,
    spec: Annotated[
        pathlib.Path | None, typer.Option(help="TOML or JSON load spec instead of the above.")
    ] = None,
    out: Annotated[pathlib.Path, typer.Option(help="Records file to write.")] = DEFAULT_OUT,
    router: RouterOption = None,
    mesh: MeshOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send requests on schedule whatever happens, and account for every one of them."""
    try:
        if spec is not None:
            run = read_spec(spec)
        else:
            target = resolve(mesh, router, config=config)
            shape = _phases(rate, duration, phases, square)
            fields = {
                "router_addresses": list(need_routers(target)),
                "phases": shape,
                "process": process,
                "cv": cv,
                "deadline_s": deadline,
                "task_mix": parse_mix(mix) if mix else _even_mix(target.manifest),
                "tier": tier,
                "stream": stream,
                "seed": seed,
            }
            asked = parse_length(prompt_tokens, "--prompt-tokens")
            is_paced = target.manifest is not None and target.manifest.kind == "paced"
            if asked is None and not is_paced:
                fields["prompts"] = reference.example_pools(500, seed)
            fields["prompt_tokens"] = asked or DRAWN
            fields["max_output_tokens"] = parse_length(output_tokens, "--output-tokens")
            run = parse_spec(fields, "load")
    except LoadSpecError as error:
        raise InputError(str(error)) from None
    records = asyncio.run(_follow(run, out))
    summary = run_summary(records)
    if as_json:
        print_json(summary)
    else:
        show_summary(summary)
        note(f"records: {out}")
    if not summary["valid"]:
        note(
            f"the generator lagged (p99 {summary['generator_lag_p99_ms']:.0f} ms is above a tenth"
            " of the deadline): do not use this run"
        )


async def _follow(run: LoadSpec, out: pathlib.Path) -> RunRecords:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[facts]}"))
    with Progress(*columns, console=console(), transient=True) as bars:
        planned = len(run.arrivals().arrival_s)
        bar = bars.add_task("load", total=planned, facts="")

        def on_progress(event: dict[str, Any]) -> None:
            facts = "  ".join(f"{name} {event[name]}" for name in PROGRESS_COUNTS if event[name])
            bars.update(bar, completed=event["offered"], facts=facts)

        try:
            cores = machine_layout().service_cores
            return await run_load(run, out, on_progress=on_progress, cores=cores)
        except LoadProcessError as error:
            raise CommandError(str(error)) from None


def show_summary(summary: dict[str, Any]) -> None:
    """Prints a run's phases and total as a table."""
    rows = [*summary["phases"].items(), ("total", summary["total"])]
    scores = ("availability", "performance", "exact", "p50 ms", "p99 ms", "mix")
    columns = ("phase", "offered", *PROGRESS_COUNTS, *scores)
    cells = [
        (
            name,
            each["offered"],
            *(each[count] for count in PROGRESS_COUNTS),
            share(each["availability"]),
            share(each["performance"]),
            share(each["exact_performance"]),
            milliseconds(each["p50_ms"]),
            milliseconds(each["p99_ms"]),
            " ".join(f"{tier} {part:.2f}" for tier, part in each["mix"].items()),
        )
        for name, each in rows
    ]
    console().print(table("load", columns, cells))
    reasons = summary["total"]["reasons"]
    if reasons:
        console().print("reasons: " + ", ".join(f"{k} {v}" for k, v in reasons.items()))


def _phases(rate: float, duration: float, phases: str, square: str) -> list[dict[str, Any]]:
    """Rates over time, from the options.

    Raises:
        InputError: A text is not of its form.
    """
    if phases and square:
        raise InputError("--phases, --square: give one of them")
    if square:
        try:
            low, high, half_s, cycles = square.split(",")
            made = square_wave(float(low), float(high), float(half_s), int(cycles))
        except (ValueError, ArrivalsError):
            raise InputError(
                f"--square: expected LOW,HIGH,HALF_PERIOD_S,CYCLES, got {square!r}"
            ) from None
        return [dataclasses.asdict(phase) for phase in made]
    if not phases:
        return [{"name": "load", "duration_s": duration, "rate_rps": rate}]
    return [_phase(part) for part in phases.split(",")]


def _phase(text: str) -> dict[str, Any]:
    name, _, rest = text.partition(":")
    length, _, rate = rest.partition("@")
    try:
        return {"name": name, "duration_s": float(length), "rate_rps": float(rate)}
    except ValueError:
        raise InputError(f"--phases: expected NAME:SECONDS@RATE, got {text!r}") from None


def parse_length(text: str, option: str) -> int | str | None:
    """Parses a number of tokens or ``drawn``; None for an empty text.

    Raises:
        InputError: It is neither.
    """
    if text in ("", DRAWN):
        return text or None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= MAX_TOKENS:
        raise InputError(
            f"{option}: expected a number of tokens from 1 to {MAX_TOKENS}, or {DRAWN},"
            f" got {text[:40]!r}"
        )
    return int(text)


def _even_mix(mesh: Manifest | None) -> dict[str, float]:
    """All tasks of a mesh in equal shares; the reference tasks where only routers are known."""
    if mesh is None or mesh.kind == "reference":
        return reference.even_mix()
    try:
        document = parse_toml(read_text(pathlib.Path(mesh.config)), mesh.config)
        return dict.fromkeys((task["name"] for task in document["mesh"]["tasks"]), 1.0)
    except (OSError, UnicodeDecodeError, InvalidFileError, KeyError, TypeError) as error:
        raise CommandError(f"{mesh.config}: cannot be read: {error}") from None


def parse_mix(text: str) -> dict[str, float]:
    """Parses ``sort=2,reverse=1`` (a name without a number counts once).

    Raises:
        InputError: Not of that form, or a share that is no number from 0 up.
    """
    mix: dict[str, float] = {}
    for part in filter(None, (each.strip() for each in text.split(","))):
        name, separator, share = part.partition("=")
        try:
            value = float(share) if separator else 1.0
        except ValueError:
            raise InputError(f"--mix: {share!r} is no number") from None
        if not name or not 0 <= value < float("inf"):
            raise InputError(f"--mix: expected TASK=SHARE with a share from 0 up, got {part!r}")
        mix[name] = value
    if not mix:
        raise InputError("--mix: name at least one task, for instance sort=2,reverse=1")
    return mix
