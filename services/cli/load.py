"""``tiercel load``: open-loop load on a mesh."""

from __future__ import annotations

import asyncio
import dataclasses
import pathlib
import signal
import threading
from typing import Annotated, Any, get_args

import typer

from router.folders import state_folder
from router.types import LONGEST_TOKEN_INTERVAL_S
from services.cli.files import check_writable
from services.cli.load_traffic import check_tier, lengths, parse_mix, read_prompts, traffic
from services.cli.options import (
    CLASSES,
    ConfigOption,
    JsonOption,
    MeshOption,
    RouterOption,
    check_number,
)
from services.cli.output import console, milliseconds, note, print_json, share, table
from services.cli.progress import StageProgress
from services.loadgen.arrivals import (
    MAX_CV,
    MAX_DURATION_S,
    MAX_RATE_RPS,
    ArrivalsError,
    Process,
    square_wave,
)
from services.loadgen.process import LoadProcessError, run_load
from services.loadgen.records import RunRecords, run_summary
from services.loadgen.spec import (
    DRAWN,
    LONGEST_DEADLINE_S,
    MAX_OUTPUT_TOKENS,
    MAX_PROMPT_TOKENS,
    LoadSpec,
    LoadSpecError,
    parse_spec,
    read_spec,
)
from services.local import reference
from services.local.cores import machine_layout
from services.local.errors import CommandError, InputError
from services.local.target import need_routers, resolve

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
    deadline: Annotated[
        float | None, typer.Option(help="Deadline in seconds [default: each task's own].")
    ] = None,
    mix: Annotated[str, typer.Option(help="TASK=SHARE,... [default: all tasks of the mesh]")] = "",
    prompts: Annotated[
        pathlib.Path | None,
        typer.Option(help="JSON lines with a prompt each, and their tasks [default: made-up ones]"),
    ] = None,
    prompt_tokens: Annotated[
        str,
        typer.Option(
            help="Length of made-up prompts: a number, or drawn from what suits the mesh's profile "
            "[default: drawn; the reference tasks have examples]."
        ),
    ] = "",
    output_tokens: Annotated[
        str,
        typer.Option(
            help="Limit of each answer: a number, or drawn as prompts are "
            "[default: the task's limit; paced tiers draw lengths of their own]."
        ),
    ] = "",
    priority: Annotated[
        str,
        typer.Option(help="CLASS=SHARE,... of high, normal and low, or one [default: normal]."),
    ] = "",
    tier: Annotated[str, typer.Option(help="Pin every request to this tier.")] = "",
    stream: Annotated[bool, typer.Option(help="Stream answers.")] = False,
    token_interval: Annotated[
        float | None,
        typer.Option(
            help="Of streams: seconds between the due times of two tokens, the first at the "
            "deadline [default: the whole answer is due then]."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of arrivals and prompts.")] = 0,
    spec: Annotated[
        pathlib.Path | None, typer.Option(help="TOML or JSON load spec instead of the above.")
    ] = None,
    out: Annotated[
        pathlib.Path | None,
        typer.Option(help="Records file to write [default: load/last.npz in the state folder]."),
    ] = None,
    router: RouterOption = None,
    mesh: MeshOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send requests on schedule whatever happens, and account for every one of them."""
    out = out or state_folder("load", "last.npz")
    check_writable(out, "--out")
    try:
        if spec is not None:
            for option, given in (("--router", router), ("--mesh", mesh), ("--config", config)):
                if given:
                    raise InputError(f"{option}: not with --spec, which names its routers")
            run = read_spec(spec)
        else:
            asked = parse_length(prompt_tokens, "--prompt-tokens", MAX_PROMPT_TOKENS)
            limit = parse_length(output_tokens, "--output-tokens", MAX_OUTPUT_TOKENS)
            _check_process(process, cv)
            longest_s = LONGEST_DEADLINE_S
            check_number("--deadline", deadline, 0, longest_s, "seconds", is_open=True)
            longest_s = LONGEST_TOKEN_INTERVAL_S
            check_number("--token-interval", token_interval, 0, longest_s, "seconds", is_open=True)
            shape = _phases(rate, duration, phases, square)
            target = resolve(mesh, router, config=config)
            routers = need_routers(target)
            if prompts is not None and asked is not None:
                raise InputError("--prompts, --prompt-tokens: give one of them")
            own = read_prompts(prompts, target)
            wanted = parse_mix(mix) if mix else (own.mix() if own is not None else None)
            shares, deadline_s = traffic(target, wanted, deadline)
            if tier:
                check_tier(target, tier)
            pools: dict[str, Any] = {}
            if own is not None:
                pools = own.pools(shares)
            elif asked is None:
                examples = reference.example_pools(500, seed)
                pools = {task: examples[task] for task in shares if task in examples}
            fields = {
                "router_addresses": list(routers),
                "phases": shape,
                "process": process,
                "cv": cv,
                "deadline_s": deadline_s,
                "task_mix": shares,
                "priority_mix": parse_mix(priority, "--priority", CLASSES) if priority else {},
                "tier": tier,
                "stream": stream,
                "token_interval_s": token_interval,
                "seed": seed,
                "prompts": pools,
                "lengths": lengths(target),
                "prompt_tokens": asked or DRAWN,
                "max_output_tokens": limit,
            }
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
    total = summary["total"]
    if 0 < total["failed"] == total["offered"]:
        why = ", ".join(total["reasons"])
        raise CommandError(f"all {total['offered']} requests failed: {why}")
    if records.meta["interrupted"]:
        note(f"interrupted: {total['offered']} of {records.meta['planned']} were sent")
        raise KeyboardInterrupt
    if not total["offered"]:
        raise CommandError("no request was due in this time: give a higher rate or a longer time")
    if not summary["valid"]:
        note(
            f"the generator lagged (p99 {summary['generator_lag_p99_ms']:.0f} ms is above a tenth"
            " of the deadline): do not use this run"
        )


async def _follow(run: LoadSpec, out: pathlib.Path) -> RunRecords:
    """Runs it; Ctrl-C ends the sending, a second one the run."""
    stop, work = asyncio.Event(), asyncio.current_task()
    assert work is not None

    def on_interrupt() -> None:
        if stop.is_set():
            work.cancel()
        stop.set()

    if threading.current_thread() is threading.main_thread():
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, on_interrupt)
    with StageProgress() as display:

        def on_progress(event: dict[str, Any]) -> None:
            facts = "  ".join(f"{name} {event[name]}" for name in PROGRESS_COUNTS if event[name])
            display.show("load", event["offered"] / max(1, event["planned"]), facts)

        try:
            cores = machine_layout().service_cores
            return await run_load(run, out, on_progress=on_progress, cores=cores, stop=stop)
        except LoadProcessError as error:
            if stop.is_set():
                raise KeyboardInterrupt from None
            raise CommandError(str(error)) from None
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None


def show_summary(summary: dict[str, Any]) -> None:
    """Prints a run's phases and total as a table."""
    classes = [(f"{name} priority", each) for name, each in summary.get("priorities", {}).items()]
    rows = [*summary["phases"].items(), *classes, ("total", summary["total"])]
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
    if isinstance(deadlines := summary["deadline_s"], dict):
        console().print("deadlines: " + ", ".join(f"{k} {v:g} s" for k, v in deadlines.items()))


def _phases(rate: float, duration: float, phases: str, square: str) -> list[dict[str, Any]]:
    """Rates over time, from the options.

    Raises:
        InputError: A text is not of its form, or a number outside of its limits.
    """
    if phases and square:
        raise InputError("--phases, --square: give one of them")
    if square:
        try:
            low, high, half_s, cycles = square.split(",")
            made = square_wave(float(low), float(high), float(half_s), int(cycles))
        except ArrivalsError as error:
            raise InputError(f"--square: {error}") from None
        except ValueError:
            raise InputError(
                f"--square: expected LOW,HIGH,HALF_PERIOD_S,CYCLES, got {square!r}"
            ) from None
        shape = [dataclasses.asdict(phase) for phase in made]
    elif phases:
        shape = [_phase(part) for part in phases.split(",")]
    else:
        shape = [{"name": "load", "duration_s": duration, "rate_rps": rate}]
    for each in shape:
        given = "--square" if square else "--phases" if phases else ""
        length, mean = each["duration_s"], each["rate_rps"]
        check_number(given or "--duration", length, 0, MAX_DURATION_S, "seconds", is_open=True)
        check_number(given or "--rate", mean, 0, MAX_RATE_RPS, "requests a second")
    return shape


def _check_process(process: str, cv: float) -> None:
    known = get_args(Process)
    if process not in known:
        raise InputError(f"--process: must be one of {', '.join(known)}, got {process!r}")
    check_number("--cv", cv, 0, MAX_CV, is_open=True)


def _phase(text: str) -> dict[str, Any]:
    name, _, rest = text.partition(":")
    length, _, rate = rest.partition("@")
    try:
        return {"name": name, "duration_s": float(length), "rate_rps": float(rate)}
    except ValueError:
        raise InputError(f"--phases: expected NAME:SECONDS@RATE, got {text!r}") from None


def parse_length(text: str, option: str, most: int) -> int | str | None:
    """Parses a number of tokens, at most ``most``, or ``drawn``; None for an empty text.

    Raises:
        InputError: It is neither.
    """
    if text in ("", DRAWN):
        return text or None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= most:
        raise InputError(
            f"{option}: expected a number of tokens from 1 to {most}, or {DRAWN}, got {text[:40]!r}"
        )
    return int(text)
