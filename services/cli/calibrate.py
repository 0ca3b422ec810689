"""``tiercel calibrate``: measures a latency profile of the live tiers."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from router.folders import state_folder
from router.profile_error import MOST_ERROR
from services.calibrate.answers import worst
from services.calibrate.calibration import calibrate as measure
from services.calibrate.questions import (
    Question,
    made_questions,
    read_questions,
    reference_questions,
)
from services.calibrate.result import Calibration
from services.calibrate.tiers import LiveTier, are_reference, measured_name, with_facts
from services.cli.files import check_writable, write_text
from services.cli.measured_mesh import limits_of, live_tiers, mesh_of
from services.cli.options import ConfigOption, JsonOption, MeshOption, MonitorOption
from services.cli.output import console, note, print_json, table
from services.cli.progress import StageProgress
from services.common.mesh_settings import MeshSettings
from services.local.errors import CommandError, InputError
from services.local.target import resolve

DEFAULT_LENGTHS = "16,128,512"
DEFAULT_BYTES_PER_TOKEN = 4.0
DEFAULT_RUN_S = 1.2
MOST_WORDS = 100_000
REFERENCE_EXAMPLES = 50
CLOSE = 0.05
"""Bytes per token nearer than this to the settings' are the same."""


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("calibrate")(calibrate)


def calibrate(
    prompts: Annotated[
        pathlib.Path | None,
        typer.Option(help="JSON lines, each with a prompt of your own traffic."),
    ] = None,
    prompt_lengths: Annotated[
        str,
        typer.Option(help="Or made-up prompts of so many words [default: 16,128,512]."),
    ] = "",
    bytes_per_token: Annotated[
        float,
        typer.Option(
            min=0,
            max=64,
            show_default=False,
            help="Of prompts that no tier counts [default: the settings', or 4].",
        ),
    ] = 0.0,
    most_error: Annotated[
        float, typer.Option(min=0.01, max=10, help="Error above which there is no profile.")
    ] = MOST_ERROR,
    name: Annotated[str, typer.Option(help="Name of the profile [default: the models'].")] = "",
    run_s: Annotated[
        float,
        typer.Option(
            min=0, max=60, show_default=False, help="Seconds per closed-loop run [default: 1.2]."
        ),
    ] = 0.0,
    seed: Annotated[
        int, typer.Option(min=-1, show_default=False, help="Which prompts are asked [default: 0].")
    ] = -1,
    from_production: Annotated[
        bool,
        typer.Option(
            "--from-production", help="Ask nothing: refit from requests that were served."
        ),
    ] = False,
    since: Annotated[
        str, typer.Option(help="With --from-production: served in the last 10m, 2h [default: 1h].")
    ] = "",
    keep_others: Annotated[
        bool,
        typer.Option(help="With --from-production: keep costs of tiers that served too little."),
    ] = False,
    out: Annotated[
        pathlib.Path | None,
        typer.Option(help="Profile file to write [default: profiles/measured.toml in the state]."),
    ] = None,
    monitor: MonitorOption = "",
    mesh: MeshOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how long an iteration of each tier takes; nothing else should load the mesh.

    With --from-production the mesh goes on serving, and is asked nothing.

    A profile that is farther off than --most-error, anywhere in what was measured, is refused.
    """
    asking = {
        "--prompts": prompts is not None, "--prompt-lengths": bool(prompt_lengths),
        "--bytes-per-token": bool(bytes_per_token), "--run-s": bool(run_s), "--seed": seed >= 0,
    }  # fmt: skip
    refitting = {"--since": bool(since), "--keep-others": keep_others}
    for option, is_given in (asking if from_production else refitting).items():
        if is_given:
            only = "not with" if from_production else "only with"
            raise InputError(f"{option}: {only} --from-production")
    check_writable(out or state_folder("profiles", "measured.toml"), "--out")
    target = resolve(mesh, load_monitor=monitor, config=config)
    settings = mesh_of(target)
    if from_production:
        # Reading requests takes what asking does not.
        from services.cli.calibrate_served import refit_from_production

        refit_from_production(
            target, settings, since=since, keeps_others=keep_others, most_error=most_error,
            name=name, out=out, as_json=as_json,
        )  # fmt: skip
        return
    seed = max(0, seed)
    # Mistakes in a file or an option are told before any server is asked.
    own = _own_questions(prompts, prompt_lengths, settings, seed)
    tiers = asyncio.run(with_facts(live_tiers(target, settings)))
    asked = own if own is not None else _usual_questions(tiers, seed)
    believed = settings.bytes_per_token if settings is not None else DEFAULT_BYTES_PER_TOKEN
    measured = asyncio.run(
        with_bar(
            tiers,
            asked,
            name=name or measured_name(tiers),
            bytes_per_token=bytes_per_token or believed,
            stated=settings.tiers if settings is not None else (),
            run_s=run_s or DEFAULT_RUN_S,
            seed=seed,
            most_error=most_error,
        )
    )
    if as_json:
        print_json(measured.to_json())
    else:
        for each in calibration_tables(measured):
            console().print(each)
    for remark in (*measured.remarks, *_remarks(measured, settings)):
        note(remark)
    if refusals := measured.refusals(most_error):
        said = "\n".join(refusals)
        raise CommandError(f"{said}\nno profile is written; accept it with --most-error")
    path = out or state_folder("profiles", "measured.toml")
    write_text(path, measured.to_toml())
    if not as_json:
        note(f"written: {path} (took {measured.took_s:.0f} s)")


def _own_questions(
    prompts: pathlib.Path | None, lengths: str, settings: MeshSettings | None, seed: int
) -> list[Question] | None:
    """Returns what the options ask for; None if they ask for nothing.

    Raises:
        InputError: The file, or the lengths, cannot be.
    """
    if prompts is not None and lengths:
        raise InputError("--prompts, --prompt-lengths: give one of them")
    if prompts is not None:
        return read_questions(prompts, limits_of(settings), scored=False)
    if not lengths:
        return None
    parts = lengths.split(",")
    if not all(
        part.isdecimal() and len(part) < 10 and 0 < int(part) <= MOST_WORDS for part in parts
    ):
        raise InputError(
            f"--prompt-lengths: must be numbers of words, 1 to {MOST_WORDS}, with a comma between, "
            f"got {lengths!r}"
        )
    return made_questions([int(part) for part in parts], seed)


def _usual_questions(tiers: Sequence[LiveTier], seed: int) -> list[Question]:
    if are_reference(tiers):
        return reference_questions(REFERENCE_EXAMPLES, seed)
    note(f"made-up prompts of {DEFAULT_LENGTHS} words; your own traffic: --prompts FILE")
    return made_questions([int(part) for part in DEFAULT_LENGTHS.split(",")], seed)


def _remarks(measured: Calibration, settings: MeshSettings | None) -> list[str]:
    """What the settings say otherwise."""
    if settings is None:
        return []
    found = []
    order = list(measured.profile.tiers)
    if order != [tier for tier in settings.tiers if tier in order]:
        found.append(
            f"mesh.tiers lists {', '.join(settings.tiers)}; by time per token it is "
            f"{', '.join(order)}: list them lowest quality first"
        )
    believed = settings.bytes_per_token
    counted = list(measured.bytes_per_token.values())
    mean = sum(counted) / len(counted)
    if abs(mean / believed - 1.0) > CLOSE:
        found.append(
            f"these prompts have {mean:.2f} bytes per token: set mesh.bytes_per_token, "
            f"which is {believed:g}"
        )
    return found


async def with_bar(
    tiers: Sequence[LiveTier], asked: Sequence[Question], **options: Any
) -> Calibration:
    """Measures and shows how far it is; options as those of `services.calibrate.calibration`."""
    with StageProgress() as display:
        return await measure(
            tiers,
            asked,
            on_step=lambda text, share: display.show("calibrate", share, text),
            **options,
        )


def calibration_tables(measured: Calibration) -> list[Any]:
    """The profile and the check of tiers side by side, as tables."""
    alone = [measured.unloaded_p50_s, measured.unloaded_p95_s]
    rows = []
    for tier, fit in measured.fits.items():
        kind, off = worst(measured.misfits[tier])
        rows.append(
            (
                tier,
                f"{fit.profile.step_s * 1e3:.3f}",
                f"{fit.profile.per_sequence_s * 1e3:.3f}",
                f"{fit.profile.per_prompt_token_s * 1e6:.1f}",
                f"{fit.profile.overhead_s * 1e3:.2f}",
                f"{fit.profile.iteration_cv:.2f}",
                fit.profile.max_batch,
                " / ".join(f"{each[tier] * 1e3:.1f}" for each in alone),
                f"{off:+.2f} {kind}",
                fit.sample_count,
            )
        )
    columns = ("tier", "step ms", "per sequence ms", "per prompt token us", "overhead ms")
    more = ("spread", "batch", "alone p50 / p95 ms", "farthest off", "answers")
    made = [table(f"latency profile {measured.profile.name}", (*columns, *more), rows)]
    if measured.pairs:
        pair_rows = [
            (
                " beside ".join(pair.tiers),
                " / ".join(f"{value * 1e3:.0f}" for value in pair.measured_s),
                " / ".join(f"{value * 1e3:.0f}" for value in pair.predicted_s),
                f"{pair.error:.2f}",
            )
            for pair in measured.pairs
        ]
        heads = ("tiers", "measured ms", "predicted ms", "largest error")
        made.append(table("two tiers at once (not used for the fit)", heads, pair_rows))
    return made
