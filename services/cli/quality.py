"""``tiercel quality``: a quality table from answers of live tiers, or from somebody's scores."""

from __future__ import annotations

import asyncio
import json
import pathlib
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, TypeVar

import typer

from router.folders import state_folder
from services.calibrate.quality import (
    QualityMeasurement,
    Scores,
    ask_tiers,
    measure_quality,
    read_scores,
)
from services.calibrate.questions import Question, read_questions, reference_questions
from services.calibrate.tiers import LiveTier, are_reference, measured_name, with_facts
from services.cli.files import check_writable, write_text
from services.cli.measured_mesh import limits_of, live_tiers, mesh_of, read_mesh
from services.cli.options import ConfigOption, JsonOption, MeshOption, MonitorOption
from services.cli.output import console, note, print_json, table
from services.cli.own_mesh import config_in_force
from services.cli.progress import StageProgress
from services.common.mesh_settings import MeshSettings
from services.local.errors import InputError
from services.local.target import resolve

Found = TypeVar("Found")


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("quality")(quality)


def quality(
    prompts: Annotated[
        pathlib.Path | None,
        typer.Option(help="JSON lines with task, prompt, answer, and how to match it (match)."),
    ] = None,
    scores: Annotated[
        pathlib.Path | None,
        typer.Option(help="JSON lines with task, tier, score (0 to 1) of answers already judged."),
    ] = None,
    answers: Annotated[
        pathlib.Path | None,
        typer.Option(
            help="File for every tier's answers to --prompts, to be judged; scores nothing."
        ),
    ] = None,
    tiers: Annotated[
        str,
        typer.Option(
            help="Tiers, lowest quality first, comma between [default: the mesh's; else by score]."
        ),
    ] = "",
    examples: Annotated[
        int, typer.Option(min=1, max=10_000, help="Reference tiers: held-out examples per task.")
    ] = 300,
    seed: Annotated[int, typer.Option(min=0, help="Which held-out examples.")] = 0,
    name: Annotated[str, typer.Option(help="Name of the table [default: what is scored].")] = "",
    out: Annotated[
        pathlib.Path | None,
        typer.Option(help="Quality file to write [default: quality/measured.toml in the state]."),
    ] = None,
    monitor: MonitorOption = "",
    mesh: MeshOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score tiers on your own examples and write the quality table of the tasks that say something.

    The reference tiers of this project are scored on their own tasks; others need --prompts, or
    --scores of answers that were judged elsewhere. With --answers, tiers answer for such a judge.
    """
    if answers is not None and (prompts is None or scores is not None):
        raise InputError("--answers: goes with --prompts, and not with --scores")
    if answers is not None:
        check_writable(answers, "--answers")
    else:
        check_writable(out or state_folder("quality", "measured.toml"), "--out")
    stated = [each.strip() for each in tiers.split(",") if each.strip()]
    if scores is not None:
        if prompts is not None:
            raise InputError("--prompts, --scores: give one of them")
        named = config_in_force(config, tiers=tiers)
        settings = read_mesh(named) if named is not None else None
        found, about, default_name = read_scores(scores), f"Scores of {scores.name}.", scores.stem
        _check_order(stated, list(dict.fromkeys(tier for row in found.values() for tier in row)))
    else:
        target = resolve(mesh, load_monitor=monitor, config=config)
        settings = mesh_of(target)
        # Mistakes in a file are told before any server is asked.
        own = None
        if prompts is not None:
            own = read_questions(prompts, limits_of(settings), scored=answers is None)
        known = asyncio.run(with_facts(live_tiers(target, settings)))
        _check_order(stated, [each.tier for each in known])
        if answers is not None and prompts is not None and own is not None:
            _write_answers(known, own, answers, prompts)
            return
        asked = own if own is not None else _reference_questions(known, examples, seed)
        found = asyncio.run(with_bars(measure_quality, known, asked))
        about = f"Asked of {', '.join(each.model for each in known)} by `tiercel quality`."
        default_name = measured_name(known)
    stated = stated or (list(settings.tiers) if settings is not None else [])
    measured = QualityMeasurement.of(found, stated)
    path = out or state_folder("quality", "measured.toml")
    write_text(path, measured.to_toml(name or default_name, about))
    if as_json:
        print_json({"tasks": measured.to_json(), "left_out": dict(measured.left_out)})
        return
    console().print(quality_table(measured))
    if not set(stated) >= set(measured.tiers):
        note(f"order of the tiers by their scores: {', '.join(measured.tiers)}")
    for task, why in measured.left_out.items():
        note(f"not in the table: {task}: {why}")
    if settings is not None:
        _compare(measured, settings, found)
    note(f"written: {path}")


def _check_order(stated: Sequence[str], tiers: Sequence[str]) -> None:
    """Raises InputError where an order that was typed lacks a tier, or has one twice."""
    problem = f"the tiers are {', '.join(tiers)}, got {', '.join(stated)}"
    if len(set(stated)) < len(stated):
        raise InputError(f"--tiers: name each tier once; {problem}")
    if stated and not set(stated) >= set(tiers):
        raise InputError(f"--tiers: name every tier; {problem}")


def _compare(measured: QualityMeasurement, settings: MeshSettings, found: Scores) -> None:
    """Says where the table and the mesh name other tasks and tiers; either may be the newer."""
    tasks = [each.name for each in settings.tasks]
    for what, here, there in (("task", found, tasks), ("tier", measured.tiers, settings.tiers)):
        if strange := [each for each in here if each not in there]:
            note(f"the mesh has no {what} {', '.join(strange)}; it has {', '.join(there)}")
    if missing := [task for task in tasks if task not in found]:
        note(f"not in the table, as nobody measured it: {', '.join(missing)}")


def _reference_questions(known: Sequence[LiveTier], examples: int, seed: int) -> list[Question]:
    if not are_reference(known):
        raise InputError(
            f"{', '.join(each.model for each in known)}: these are not the reference tiers, whose "
            "tasks would say nothing about them; give --prompts FILE with your own examples, or "
            "--scores FILE"
        )
    return reference_questions(examples, seed)


def _write_answers(
    known: Sequence[LiveTier],
    asked: Sequence[Question],
    path: pathlib.Path,
    prompts: pathlib.Path,
) -> None:
    """Has every tier answer, and writes what a judge needs: only the scores are missing then."""
    if nameless := sum(not each.task for each in asked):
        raise InputError(f"{prompts}: task: is missing in {nameless} of {len(asked)} lines")
    place = {id(each): index for index, each in enumerate(asked)}
    found = asyncio.run(with_bars(ask_tiers, known, asked))
    # The answers to one prompt stand together.
    found.sort(key=lambda each: place[id(each[1].question)])
    lines = [
        {
            "task": sample.question.task,
            "tier": tier,
            "prompt": sample.question.prompt,
            "answer": sample.text,
        }
        for tier, sample in found
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_text(path, text)
    note(f"written: {path} ({len(lines)} answers)")
    note(f'Next: give each line a "score" from 0 to 1, then tiercel quality --scores {path}')


async def with_bars(
    ask: Callable[..., Awaitable[Found]],
    tiers: Sequence[LiveTier],
    asked: Sequence[Question],
) -> Found:
    """Asks by `measure_quality` or `ask_tiers`, and shows how far each tier is."""
    counts: Counter[str] = Counter()
    with StageProgress() as display:

        def on_answer(tier: str) -> None:
            counts[tier] += 1
            display.show(f"answers of {tier}", counts[tier] / len(asked))

        return await ask(tiers, asked, on_answer=on_answer)


def quality_table(measured: QualityMeasurement) -> Any:
    """Table of standardised quality with raw scores and their intervals."""
    rows = []
    for task, row in measured.scores.items():
        cells = []
        for tier in measured.tiers:
            if tier not in row:
                cells.append("not measured")
                continue
            low, high = row[tier].interval
            standard = measured.standardised(task, tier)
            cells.append(f"{standard:.3f}  (raw {row[tier].share:.3f}, {low:.2f}-{high:.2f})")
        rows.append((task, *cells))
    title = "quality: score / score of the largest tier (raw score, 95 % interval)"
    return table(title, ("task", *measured.tiers), rows)
