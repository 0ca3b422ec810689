"""``tiercel init``: a settings file for servers that are already there."""

from __future__ import annotations

import asyncio
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import pydantic
import tomli_w
import typer

from router.profile import format_profile
from services.cli.output import note
from services.common.access.plain_text import LEAVE
from services.common.addresses import parse_address
from services.common.checks import is_name
from services.common.mesh_settings import MeshSettings, TaskSettings, load_mesh_files
from services.common.settings import SettingsError, load_settings
from services.local.errors import CommandError, InputError
from services.local.foreign import GUESSED_QUALITY_STEP, Foreign, Spoken, look_at
from services.local.own_tls import VARIABLES, tls_of_environment
from services.local.settings_file import settings_text
from services.router_inference.settings import Settings

FILES = ("tiercel.toml", "profile.toml", "quality.toml")
PARTS = {"load_monitor": "127.0.0.1:7411", "trainer": "127.0.0.1:7412"}


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("init")(init)


def init(
    addresses: Annotated[
        list[str], typer.Argument(metavar="ADDRESS...", help="Addresses of the servers.")
    ],
    task: Annotated[
        list[str],
        typer.Option(
            help="NAME=SECONDS or NAME=SECONDS/TOKENS: a class of requests, its deadline and its "
            "longest answer; repeatable."
        ),
    ],
    tier: Annotated[
        list[str] | None,
        typer.Option(help="TIER=MODEL, lowest quality first; repeatable [default: every model]."),
    ] = None,
    openai: Annotated[
        bool, typer.Option("--openai", help="They speak OpenAI, as vLLM does [default: Triton].")
    ] = False,
    api_key_variable: Annotated[
        str, typer.Option(help="Variable with the key they want; with --openai.")
    ] = "",
    name: Annotated[str, typer.Option(help="Name of the mesh.")] = "mesh",
    monitor: Annotated[bool, typer.Option("--monitor", help="With a load monitor.")] = False,
    trainer: Annotated[bool, typer.Option("--trainer", help="With a trainer.")] = False,
    out: Annotated[pathlib.Path, typer.Option(help="Folder of the files.")] = pathlib.Path(),
    force: Annotated[bool, typer.Option("--force", help="Write over files there.")] = False,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure-open-to-network",
            help="Ask servers on other machines in plain text, and let the mesh do so.",
        ),
    ] = False,
) -> None:
    """Write a settings file by asking servers what they serve, and say what is guessed."""
    for address in addresses:
        try:
            parse_address(address)
        except ValueError as error:
            raise InputError(f"ADDRESS: {error}, got {address!r}") from None
    _check_name("--name", name)
    tasks = [_task(text) for text in task]
    _check_once("--task: task", [each.name for each in tasks])
    tiers = _tiers([_pair("--tier", text, "TIER=MODEL") for text in tier or ()])
    spoken = _spoken(openai, api_key_variable)
    there = [each for each in FILES if (out / each).exists()]
    if there and not force:
        raise InputError(f"--out: {out / there[0]} is there already; --force writes over it")
    tls = tls_of_environment(os.environ)
    if tls is None and not insecure:
        _check_local(addresses)
    note(f"asking {', '.join(addresses)}")
    found = asyncio.run(look_at(addresses, tiers, spoken, tls))
    guesses = [*found.guesses, *_guesses(tasks)]
    parts = {"load_monitor": monitor, "trainer": trainer}
    settings = settings_text(
        name=name,
        tiers=found.tiers,
        profile=pathlib.Path("profile.toml"),
        quality=pathlib.Path("quality.toml"),
        addresses={part: PARTS[part] for part, is_wanted in parts.items() if is_wanted},
        tasks=tasks,
        endpoints=found.endpoints,
        sections=_leave(addresses, monitor=monitor) if insecure else {},
        head=["Written by `tiercel init`. Guessed:", *(f"- {each}" for each in guesses)],
    )
    texts = (settings, format_profile(found.profile), _quality_text(found, tasks))
    _write(out, texts)
    for each in guesses:
        note(f"guessed: {each}")
    note(f"written: {', '.join(str(out / each) for each in FILES)}")
    note(f"Next: tiercel serve router --config {out / FILES[0]}")


def _spoken(openai: bool, variable: str) -> Spoken | None:
    if not openai:
        if variable:
            raise InputError("--api-key-variable goes with --openai")
        return None
    if variable and not os.environ.get(variable):
        raise InputError(f"--api-key-variable: {variable} is not set")
    return Spoken(variable, os.environ.get(variable, "") if variable else "")


def _tiers(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Returns the model of each tier; raises InputError for a name that is none, or that is twice.

    Of two that are alike one would be lost without a word.
    """
    for tier, _ in pairs:
        _check_name("--tier", tier)
    _check_once("--tier: tier", [tier for tier, _ in pairs])
    _check_once("--tier: model", [model for _, model in pairs])
    return dict(pairs)


def _check_name(option: str, text: str) -> None:
    if not is_name(text):
        raise InputError(f"{option}: must be 1 to 64 characters of [a-z0-9_-], got {text!r}")


def _check_once(what: str, given: Sequence[str]) -> None:
    for each in given:
        if given.count(each) > 1:
            raise InputError(f"{what} {each!r} is given twice")


def _check_local(addresses: Sequence[str]) -> None:
    """Raises InputError for a server on another machine, which would be asked in plain text."""
    for address in addresses:
        if not parse_address(address).is_loopback:
            raise InputError(
                f"ADDRESS: {address} is on another machine, which needs TLS:"
                f" {', '.join(VARIABLES)}; --insecure-open-to-network sends prompts and keys in"
                " plain text, and writes that into the settings"
            )


def _leave(addresses: Sequence[str], *, monitor: bool) -> Mapping[str, Mapping[str, Any]]:
    """Returns the sections of the services that call endpoints, with leave to do without TLS."""
    if all(parse_address(address).is_loopback for address in addresses):
        return {}
    return {name: {LEAVE: True} for name in ("router_inference", *(["load_monitor"] * monitor))}


def _write(out: pathlib.Path, texts: Sequence[str]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        for each, text in zip(FILES, texts, strict=True):
            (out / each).write_text(text, encoding="utf-8")
        load_mesh_files(load_settings(Settings, path=out / FILES[0], environ={}).mesh)
    except OSError as error:
        raise CommandError(f"{error.filename}: cannot be written: {error.strerror}") from None
    except SettingsError as error:
        raise InputError("; ".join(error.problems)) from None


def _task(text: str) -> TaskSettings:
    name, value = _pair("--task", text, "NAME=SECONDS")
    _check_name("--task", name)
    seconds, _, tokens = value.partition("/")
    try:
        fields = {"name": name, "default_deadline_s": float(seconds)}
        if tokens:
            limit = int(tokens)
            expected = max(1.0, limit / 2)
            more = {"default_max_output_tokens": limit, "expected_output_tokens": expected}
            return TaskSettings(**fields, **more)
        return TaskSettings(**fields)
    except ValueError as error:  # pydantic's are among them
        what = "expected NAME=SECONDS or NAME=SECONDS/TOKENS"
        if isinstance(error, pydantic.ValidationError):
            what = _mistake(error)
        raise InputError(f"--task: {text!r}: {what}") from None


def _mistake(error: pydantic.ValidationError) -> str:
    """Says which part of NAME=SECONDS/TOKENS is wrong, and what it may be."""
    first = error.errors()[0]
    # Half of the limit is expected, so what is wrong with that is the limit's fault.
    part = "SECONDS" if first["loc"] == ("default_deadline_s",) else "TOKENS"
    return f"{part}: {first['msg'][:1].lower()}{first['msg'][1:]}"


def _pair(option: str, text: str, form: str) -> tuple[str, str]:
    name, mark, value = text.partition("=")
    if not (name and mark and value):
        raise InputError(f"{option}: expected {form}, got {text!r}")
    return name, value


def _guesses(tasks: Sequence[TaskSettings]) -> list[str]:
    tokens = MeshSettings.model_fields["bytes_per_token"].default
    worse = f"each tier is {GUESSED_QUALITY_STEP:g} worse than the next on every task"
    return [
        f"{worse}: measure it with `tiercel quality`",
        f"a token of a prompt has {tokens:g} bytes (mesh.bytes_per_token)",
        *(
            f"answers of {each.name} have {each.expected_output_tokens:g} tokens in the mean, "
            f"{each.default_max_output_tokens} at most"
            for each in tasks
        ),
    ]


def _quality_text(found: Foreign, tasks: Sequence[TaskSettings]) -> str:
    count = len(found.tiers)
    row = {
        tier: round(max(0.0, 1.0 - GUESSED_QUALITY_STEP * (count - 1 - rank)), 3)
        for rank, tier in enumerate(found.tiers)
    }
    table = {"name": "guess", "source": "assumed", "quality": {task.name: row for task in tasks}}
    return (
        f"# A guess, by `tiercel init`: measure it with `tiercel quality`.\n{tomli_w.dumps(table)}"
    )
