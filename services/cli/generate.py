"""``tiercel generate``: one prompt through the mesh."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import pathlib
import sys
from collections.abc import Coroutine
from typing import Annotated, Any

import typer
from opentelemetry.sdk.trace import TracerProvider

from services.cli.options import (
    CLASSES,
    ConfigOption,
    JsonOption,
    MeshOption,
    RouterOption,
    check_number,
)
from services.cli.output import note, print_json
from services.common.access.caller import Caller, CallerError
from services.common.settings import SettingsError, load_settings
from services.local import reference
from services.local.calls import nobody_answers
from services.local.errors import CommandError, InputError
from services.local.target import need_routers, resolve
from services.router_inference.settings import Settings, default_task
from tiercel import Answer, AsyncClient, Chunk, InvalidRequestError, TiercelError, UnknownNameError


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("generate")(generate)


def generate(
    prompt: Annotated[str, typer.Argument(help="Prompt, for instance 'rev:tiercel='.")],
    task: Annotated[
        str,
        typer.Option(help="Task [default: of a reference prompt, or the routers' default]."),
    ] = "",
    deadline: Annotated[
        float | None, typer.Option(help="Deadline in seconds [default: the task's].")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, max=65_536, help="Limit of output tokens.")
    ] = None,
    tier: Annotated[str, typer.Option(help="Use only this tier.")] = "",
    quality_floor: Annotated[float, typer.Option(help="Lowest quality accepted, 0 to 1.")] = 0.0,
    conversation: Annotated[
        str,
        typer.Option(help="Id of the conversation that this continues: it keeps its tier."),
    ] = "",
    priority: Annotated[
        str, typer.Option(help="Priority class: high, normal or low [default: normal].")
    ] = "",
    stream: Annotated[bool, typer.Option(help="Print tokens as they come.")] = False,
    router: RouterOption = None,
    mesh: MeshOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a prompt inside its deadline and say which tier did it."""
    if deadline is not None and not 0 < deadline < float("inf"):
        raise InputError(f"--deadline: must be above 0 seconds, got {deadline:g}")
    check_number("--quality-floor", quality_floor, 0, 1)
    if priority not in ("", *CLASSES):
        raise InputError(f"--priority: must be {', '.join(CLASSES)}, got {priority!r}")
    target = resolve(mesh, router, config=config)
    routers = need_routers(target)
    task = task or reference.task_of_prompt(prompt)
    if target.manifest is not None and target.manifest.kind == "reference":
        problem = reference.prompt_problem(prompt, task)
        if problem:
            raise InputError(problem)
    options: dict[str, Any] = {
        "task": task or _default_task(target.config),
        "deadline_s": deadline,
        "max_output_tokens": max_tokens,
        "tier": tier,
        "quality_floor": quality_floor,
        "conversation_id": conversation,
        "priority": priority,
    }
    show = stream and not as_json
    answer = _run(_ask(routers, prompt, options, show), routers)
    if as_json:
        print_json(dataclasses.asdict(answer))
        return
    if not show:
        print(answer.text)
    _describe(answer)


def _default_task(config: str) -> str:
    """Returns the task of requests that name none; empty where only the router knows it.

    Raises:
        InputError: There is none, or the settings are wrong.
    """
    if not config:
        return ""
    try:
        settings = load_settings(Settings, path=pathlib.Path(config), environ=os.environ)
    except SettingsError as error:
        raise InputError("; ".join(error.problems)) from None
    found = default_task(settings.router_inference, settings.mesh)
    if not found:
        names = ", ".join(each.name for each in settings.mesh.tasks)
        raise InputError(f"--task: this prompt names no task; give one of {names}")
    return found


async def _ask(
    routers: tuple[str, ...], prompt: str, options: dict[str, Any], show: bool
) -> Answer:
    # Makes the ids of a trace that routers then keep whole; the client's own span goes nowhere.
    tracing = TracerProvider()
    async with AsyncClient(routers, tracer_provider=tracing, **_identity(routers)) as client:
        if not show:
            return await client.generate(prompt, **options)
        answer: Answer | None = None
        async for event in client.generate_stream(prompt, **options):
            if isinstance(event, Chunk):
                sys.stdout.write(event.text)
                sys.stdout.flush()
            else:
                answer = event
        print()
        if answer is None:
            raise CommandError("the router ended the stream without a completion")
        return answer


def _identity(routers: tuple[str, ...]) -> dict[str, Any]:
    """Returns the client's certificates and key, as the environment names them.

    Raises:
        InputError: They cannot be used, or the key not with one of the routers.
    """
    caller = Caller.of_environment(os.environ)
    try:
        for address in routers:
            caller.credentials(address)
    except CallerError as error:
        raise InputError(str(error)) from None
    return {
        "root_certificates": caller.roots or None,
        "certificate": caller.certificate or None,
        "key": caller.key or None,
        "api_key": caller.api_key or None,
    }


def _run(work: Coroutine[Any, Any, Answer], routers: tuple[str, ...]) -> Answer:
    try:
        return asyncio.run(work)
    except (InvalidRequestError, UnknownNameError) as error:
        fields = ", ".join(f"{name}: {what}" for name, what in error.details.field_violations)
        raise InputError(fields or str(error)) from None
    except TiercelError as error:
        if error.reason == "TRANSPORT":
            raise nobody_answers("router", ", ".join(routers)) from None
        raise CommandError(str(error)) from None
    except ValueError as error:
        raise InputError(str(error)) from None


def _describe(answer: Answer) -> None:
    facts = [f"tier {answer.tier} on {answer.endpoint}", f"policy {answer.policy}"]
    facts.append(f"{answer.total_s * 1e3:.0f} ms{_against_deadline(answer)}")
    facts.append(f"quality {answer.quality:.3f}")
    facts += [f"request {answer.request_id}", f"trace {answer.trace_id}"]
    if answer.step_down:
        facts.append(f"stepped down: {answer.step_down}")
    if answer.conversation_stay:
        facts.append(f"conversation: {answer.conversation_stay}")
    note(" | ".join(facts))
    spent = {name: getattr(answer, f"{name}_s") for name in ("queue", "prefill", "decode", "hop")}
    if None not in spent.values():
        note(", ".join(f"{name} {taken_s * 1e3:.0f} ms" for name, taken_s in spent.items()))


def _against_deadline(answer: Answer) -> str:
    """Says by how much an answer made its deadline, or missed it."""
    if answer.early_s is None:
        return "" if answer.on_time else ", late"
    return f", {abs(answer.early_s) * 1e3:.0f} ms {'early' if answer.on_time else 'late'}"
