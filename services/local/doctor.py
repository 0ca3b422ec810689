"""Looks at a mesh from outside and says what is wrong with it, and what to do."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import re
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import metadata, util
from pathlib import Path
from typing import Any

from router.profile import LatencyProfile
from router.profile_error import MOST_ERROR, off_beyond
from services.common.access.plain_text import Outgoing
from services.common.access.tls import Tls
from services.common.log import get_logger
from services.common.mesh_settings import MeshSettings, load_mesh_files
from services.common.openai.keys import read_api_keys
from services.common.profile_facts import off_text, profile_facts, source_and_age
from services.common.settings import SettingsError, load_settings, misspelled_variables
from services.common.state.errors import StateUnavailableError
from services.common.state.redis_connection import RedisConnection
from services.common.times import seconds_of
from services.load_monitor.settings import Settings as MonitorSettings
from services.local.calls import call
from services.local.endpoint_checks import examine_endpoint
from services.local.errors import CommandError, NotReachedError
from services.local.findings import BAD, GOOD, ODD, Finding
from services.local.target import Target
from services.openai_door.settings import Settings as DoorSettings
from services.router_inference.settings import Settings as RouterSettings
from services.trainer.settings import Settings as TrainerSettings
from tiercel.common.v1 import common_pb2
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as monitor_pb
from tiercel.router_inference.v1 import router_inference_service_pb2 as router_pb
from tiercel.trainer.v1 import trainer_service_pb2 as trainer_pb

LEAST_REDIS = (6, 2)
MOST_SKEW_S = 1.0
MOST_STATE_AGE_S = 5.0
"""The monitor publishes at least every second."""
SOON_DAYS = 7
OLD_DAYS = 90
"""Age of a profile from which on it is odd: drivers and servers are updated about as often."""
AGAIN = "measure it again: tiercel calibrate --from-production, or without it while all is quiet"
MOST_OFF = 3
"""Ranges of a profile that are named one by one."""
_TIMEOUT_S = 3.0
_BY_TLS = "name certificates in [mesh.tls]; see docs/security.md"
_ANSWERS = "it runs: look at the address, at your certificate or key (docs/security.md), at its log"


async def examine(config: Path | None, target: Target) -> list[Finding]:
    """Looks at everything a settings file names, and at the services that are known.

    Args:
        config: Settings file; None where only addresses are known.
        target: Where the services are.
    """
    found = list(_versions())
    settings: MeshSettings | None = None
    if config is not None:
        outgoing, problems = _settings(config)
        found += problems
        if outgoing is not None:
            settings = outgoing.mesh
            found += await _mesh(outgoing)
    found += await asyncio.to_thread(_services, target, settings)
    return found


def _versions() -> Iterator[Finding]:
    ours, client = metadata.version("tiercel"), metadata.version("tiercel-client")
    if ours == client:
        yield Finding("versions", GOOD, f"tiercel {ours}")
    else:
        yield Finding(
            "versions", BAD, f"tiercel {ours} beside tiercel-client {client}",
            f"pip install tiercel-client=={ours}",
        )  # fmt: skip
    if util.find_spec("numba") is None:
        yield Finding(
            "compiler", ODD, "numba is missing: decisions are made in plain Python",
            "pip install 'tiercel[compiled]'",
        )  # fmt: skip


def _settings(config: Path) -> tuple[Outgoing | None, list[Finding]]:
    """Reads the file as every service does, and the files that it names.

    Returns:
        Where a router may send prompts, None if the settings cannot be read; and what was found.
    """
    mesh: MeshSettings | None = None
    outgoing: dict[str, Outgoing] = {}
    problems: dict[str, None] = {}
    wrong: dict[str, str] = {}
    models: dict[str, type[Any]] = {
        "router_inference": RouterSettings,
        "load_monitor": MonitorSettings,
        "trainer": TrainerSettings,
        "openai_door": DoorSettings,
    }
    for section, model in models.items():
        wrong |= misspelled_variables(model, os.environ)
        try:
            settings = load_settings(model, path=config, environ=os.environ)
        except SettingsError as error:
            problems |= dict.fromkeys(error.problems)
        else:
            mesh, own = settings.mesh, getattr(settings, section)
            outgoing[section] = Outgoing(section, mesh, own.insecure_open_to_network)
    found = [
        Finding("environment", ODD, f"{name} is not followed", f"name it {right}")
        for name, right in wrong.items()
    ]
    found += [Finding("settings", BAD, problem, f"edit {config}") for problem in problems]
    if problems or mesh is None:
        return None, found
    found.append(Finding("settings", GOOD, str(config)))
    found += _readable(mesh, outgoing)
    router = outgoing["router_inference"]
    try:
        files = load_mesh_files(mesh)
    except SettingsError as error:
        found += [Finding("files", BAD, problem, "edit the file") for problem in error.problems]
        return router, found
    profiles = {each.name: each for each in (files.profile, *files.endpoint_profiles.values())}
    found += [
        _profile(profile, "profile" if profile is files.profile else f"profile {profile.name}")
        for profile in profiles.values()
    ]
    if files.quality.source == "assumed":
        advice = "measure it: tiercel quality"
        found.append(Finding("quality", ODD, "is assumed, not measured", advice))
    else:
        found.append(Finding("quality", GOOD, f"is {files.quality.source}"))
    return router, found


def _readable(mesh: MeshSettings, outgoing: Mapping[str, Outgoing]) -> list[Finding]:
    """Says what would cross a network in plain text, by the services that this mesh has."""
    found = outgoing["router_inference"].problems(("load_monitor_address", "trainer_address"))
    if mesh.load_monitor_address:
        found += outgoing["load_monitor"].problems()
    if mesh.trainer_address:
        found += outgoing["trainer"].link_problems(["load_monitor_address"])
    return [Finding("plain text", BAD, problem, _BY_TLS) for problem in found]


def _profile(profile: LatencyProfile, subject: str) -> Finding:
    """Says where a profile comes from and how old it is."""
    if profile.source == "assumed":
        return Finding(subject, ODD, "is assumed, not measured", "measure it: tiercel calibrate")
    now_s = time.time()
    text = f"is {source_and_age(profile.source, profile.measured_s, now_s)}"
    if profile.method:
        text += f" by {profile.method}"
    age_s = profile.age_s(now_s)
    if age_s is not None and age_s > OLD_DAYS * 86_400.0:
        return Finding(subject, ODD, text, AGAIN)
    return Finding(subject, GOOD, text)


async def _mesh(outgoing: Outgoing) -> list[Finding]:
    mesh = outgoing.mesh
    found, tls = _tls(mesh)
    keys: dict[str, str] = {}
    try:
        keys = read_api_keys(mesh, os.environ)
    except SettingsError as error:
        advice = "set the variable, or mend the file: every service needs it"
        found += [Finding("API keys", BAD, problem, advice) for problem in error.problems]
    for entry in mesh.endpoints:
        if not outgoing.is_readable(entry.address):  # else no router asks it either
            found += await examine_endpoint(entry, tls, keys.get(entry.address, ""))
    if mesh.redis_url:
        found.append(await _redis(mesh.redis_url))
    return found


def _tls(mesh: MeshSettings) -> tuple[list[Finding], Tls | None]:
    if not mesh.tls.certificate:
        return [], None
    advice = "renew it: tiercel certificates, or your own issuer"
    try:
        log = get_logger("tiercel.doctor")
        tls = Tls(mesh.tls, monotonic_s=time.monotonic, wall_s=time.time, log=log)
        days = _days_left(tls.current().certificate)
    except SettingsError as error:
        return [Finding("TLS", BAD, text, "see docs/security.md") for text in error.problems], None
    if days < 0:
        return [Finding("TLS", BAD, f"the certificate ended {-days:.0f} days ago", advice)], tls
    text = f"the certificate ends in {days:.0f} days"
    if days < SOON_DAYS:
        return [Finding("TLS", ODD, text, advice)], tls
    return [Finding("TLS", GOOD, text)], tls


def _days_left(certificate: bytes) -> float:
    """Returns the days until a PEM certificate ends."""
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:
        file.write(certificate)
        file.flush()
        # The standard library reads certificates from files only.
        facts: Any = ssl._ssl._test_decode_cert(file.name)  # type: ignore[attr-defined]
    end = datetime.datetime.fromtimestamp(ssl.cert_time_to_seconds(facts["notAfter"]), datetime.UTC)
    return (end - datetime.datetime.now(datetime.UTC)).total_seconds() / 86_400.0


async def _redis(url: str) -> Finding:
    connection = RedisConnection(url, timeout_s=_TIMEOUT_S)
    try:
        version, now_s = await connection.version(), await connection.clock_s()
    except StateUnavailableError as error:
        advice = "start it, or mend mesh.redis_url; the mesh serves without, and forgets"
        return Finding("Redis", BAD, str(error), advice)
    finally:
        await connection.close()
    said = f"is {version or 'of an unknown version'}"
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < LEAST_REDIS:
        least = ".".join(map(str, LEAST_REDIS))
        return Finding("Redis", BAD, said, f"install {least} or newer")
    return _clock("Redis", now_s - time.time(), said)


def _clock(subject: str, ahead_s: float, text: str, most_s: float = MOST_SKEW_S) -> Finding:
    if abs(ahead_s) <= most_s:
        return Finding(subject, GOOD, text)
    where = "ahead of" if ahead_s > 0 else "behind"
    advice = "let both machines follow a time server (chrony, systemd-timesyncd)"
    return Finding(subject, BAD, f"its clock is {abs(ahead_s):.1f} s {where} this one", advice)


def _services(target: Target, mesh: MeshSettings | None) -> list[Finding]:
    """Asks every service that is known; blocks."""
    questions: list[tuple[str, str, Callable[[str], Finding]]] = [
        *(("router", each, partial(_router, mesh=mesh)) for each in target.routers),
        ("monitor", target.load_monitor, _monitor),
        ("trainer", target.trainer, _trainer),
    ]
    found = [_service(*question) for question in questions if question[1]]
    return found + _profiles_off(target)


def _profiles_off(target: Target) -> list[Finding]:
    """Says how far profiles are off, by what routers have seen that answer."""
    told: list[common_pb2.ProfileState] = []
    for address in target.routers:
        with contextlib.suppress(CommandError):
            request = router_pb.GetRouterStatusRequest()
            told.extend(call("router", address, "GetRouterStatus", request).profiles)
    found = []
    for facts in profile_facts(told):
        subject = f"profile {facts.profile}"
        off = off_beyond(facts.errors, MOST_ERROR)
        if off:
            found.append(Finding(subject, ODD, "; ".join(map(off_text, off[:MOST_OFF])), AGAIN))
        elif facts.errors:
            text = f"no tier is off by more than {MOST_ERROR:g} in recent answers"
            found.append(Finding(subject, GOOD, text))
    return found


def _service(part: str, address: str, question: Callable[[str], Finding]) -> Finding:
    try:
        return question(address)
    except NotReachedError as error:
        advice = f"start it: tiercel serve {part} --config FILE"
        return Finding(f"{part} {address}", BAD, str(error), advice)
    except CommandError as error:
        return Finding(f"{part} {address}", BAD, str(error), _ANSWERS)


def _router(address: str, mesh: MeshSettings | None) -> Finding:
    reply = call("router", address, "GetRouterStatus", router_pb.GetRouterStatusRequest())
    usable = sum(each.usable for each in reply.candidates)
    text = f"{reply.policy}, {usable} of {len(reply.candidates)} candidates usable"
    subject = f"router {address}"
    tasks = {each.task for each in reply.tasks}
    # One of an earlier version names none.
    if mesh is not None and tasks and tasks != {each.name for each in mesh.tasks}:
        text = f"serves other tasks than the settings: {', '.join(sorted(tasks))}"
        advice = (
            "restart it if its settings are older; "
            "if another mesh has this port, name another in router_inference.listen"
        )
        return Finding(subject, BAD, text, advice)
    if reply.degraded_reasons:
        reasons = ", ".join(reply.degraded_reasons)
        return Finding(subject, ODD, f"{text}; degraded: {reasons}", "see docs/operations.md")
    if not usable:
        return Finding(subject, BAD, text, "see the endpoints above")
    return Finding(subject, GOOD, text)


def _monitor(address: str) -> Finding:
    request = monitor_pb.GetSystemStateRequest()
    state = call("load monitor", address, "GetSystemState", request).state
    ahead_s = seconds_of(state.publish_time) - time.time()
    text = f"sees {len(state.routers)} routers, {len(state.endpoints)} endpoints"
    return _clock(f"monitor {address}", ahead_s, text, MOST_STATE_AGE_S)


def _trainer(address: str) -> Finding:
    reply = call("trainer", address, "ListPolicies", trainer_pb.ListPoliciesRequest())
    return Finding(f"trainer {address}", GOOD, f"keeps {len(reply.policies)} policies")
