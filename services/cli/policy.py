"""``tiercel policy``: which rule decides, and changing it while the mesh runs.

``publish`` puts a snapshot into the registry, ``promote`` moves it a stage on, ``pause`` stops its
rollout for now, and ``use`` pins by hand.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from services.cli.files import read_bytes, shipped_file
from services.cli.options import ConfigOption, JsonOption, MeshOption, RouterOption, TrainerOption
from services.cli.output import console, note, print_json, table
from services.cli.policy_facts import snapshot_facts
from services.common.enum_names import name_of
from services.local.calls import call
from services.local.errors import CommandError, InputError
from services.local.target import Target, need_routers, resolve
from tiercel.router_inference.v1 import router_inference_service_pb2 as router_pb
from tiercel.trainer.v1 import trainer_service_pb2 as trainer_pb
from trainer.shipped import POLICIES, SNAPSHOT_SUFFIX, NotShippedError, find

PolicyArgument = Annotated[
    str, typer.Argument(help="Version or name in the registry, a snapshot file or a shipped name.")
]
GATE_TIMEOUT_S = 300.0
SWITCH_TIMEOUT_S = 15.0
"""The trainer waits 3 s for routers that do not answer, and for a step of a rollout before that."""


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    commands = typer.Typer(
        name="policy",
        help="List, compare, publish, promote, pause, use and roll back policies.",
        no_args_is_help=True,
    )
    commands.command("list")(list_policies)
    commands.command("show")(show)
    commands.command("diff")(diff)
    commands.command("publish")(publish)
    commands.command("promote")(promote)
    commands.command("pause")(pause)
    commands.command("use")(use)
    commands.command("rollback")(rollback)
    app.add_typer(commands)


def list_policies(
    mesh: MeshOption = "",
    config: ConfigOption = None,
    router: RouterOption = None,
    trainer: TrainerOption = "",
    as_json: JsonOption = False,
) -> None:
    """List every policy the mesh can use, the rollout under way, and what each router uses."""
    target = resolve(mesh, router, trainer=trainer, config=config)
    in_use = {each: _in_use(each) for each in target.routers}
    reply = _registry(target) if target.trainer else trainer_pb.ListPoliciesResponse()
    known = [_info(each) for each in reply.policies]
    rollout = _rollout(reply.rollout) if reply.HasField("rollout") else None
    watch = _watch(reply.watch) if reply.HasField("watch") else None
    if as_json:
        found = {"rollout": rollout, "watch": watch, "pin": reply.pin}
        print_json({"policies": known, **found, "routers": in_use})
        return
    if known:
        rows = [(p["policy"], p["policy_version"], p["stage"], _about(p)) for p in known]
        title = "policies"
        console().print(table(title, ("policy", "version", "stage", "about"), rows, numeric_from=9))
    if rollout is not None:
        console().print(_told(rollout))
    if watch is not None:
        console().print(_watch_told(watch))
    if reply.pin:
        console().print(f"no rollout begins by itself: {reply.pin}")
    for address, used in in_use.items():
        notes = ", fallback decides" if used["fallback_active"] else ""
        if used["watch_problem"]:
            notes += f", went back by itself: {used['watch_problem']}"
        console().print(f"router {address}: {used['policy']} {used['policy_version']}{notes}")
        if not known:
            console().print(f"  can use: {', '.join(used['known'])}")


def show(
    policy: PolicyArgument,
    mesh: MeshOption = "",
    config: ConfigOption = None,
    trainer: TrainerOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show what is known about a policy: origin, scores, what it was trained for, its rollouts."""
    facts = _facts(policy, lambda: resolve(mesh, trainer=trainer, config=config))
    if as_json:
        print_json(facts)
        return
    console().print(table(policy, ("fact", "value"), facts.items(), numeric_from=9))


def diff(
    policy_a: PolicyArgument,
    policy_b: PolicyArgument,
    mesh: MeshOption = "",
    config: ConfigOption = None,
    trainer: TrainerOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show in what two policies differ."""

    def target() -> Target:
        return resolve(mesh, trainer=trainer, config=config)

    facts_a, facts_b = _facts(policy_a, target), _facts(policy_b, target)
    rows = {
        name: (facts_a.get(name, "-"), facts_b.get(name, "-"))
        for name in (*facts_a, *(name for name in facts_b if name not in facts_a))
        if facts_a.get(name) != facts_b.get(name)
    }
    if as_json:
        print_json({name: {"a": a, "b": b} for name, (a, b) in rows.items()})
        return
    if not rows:
        note("they are the same")
        return
    lines = ((name, a, b) for name, (a, b) in rows.items())
    console().print(table("differences", ("fact", policy_a, policy_b), lines, numeric_from=9))


def publish(
    snapshot: Annotated[
        str, typer.Argument(help="Snapshot: a file of `tiercel train`, or a shipped name.")
    ],
    description: Annotated[str, typer.Option(help="Where it comes from.")] = "",
    mesh: MeshOption = "",
    config: ConfigOption = None,
    trainer: TrainerOption = "",
    as_json: JsonOption = False,
) -> None:
    """Put a snapshot into the mesh's registry; nothing uses it yet."""
    path = shipped_file(POLICIES, snapshot, "SNAPSHOT")
    address = resolve(mesh, trainer=trainer, config=config).need("trainer")
    found = publish_snapshot(address, read_bytes(path), description or f"from {path.name}")
    if as_json:
        print_json(found)


def publish_snapshot(address: str, blob: bytes, description: str) -> dict[str, Any]:
    """Puts a snapshot into the registry of the trainer at an address, and says what comes next."""
    request = trainer_pb.PublishPolicyRequest(snapshot=blob, description=description)
    found = _info(call("trainer", address, "PublishPolicy", request).policy)
    version = found["policy_version"]
    note(f"{found['policy']} {version} is {found['stage']}. Next: tiercel policy promote {version}")
    return found


def promote(
    policy: Annotated[str, typer.Argument(help="Version, or a name for its newest version.")],
    in_steps: Annotated[
        bool | None,
        typer.Option(
            "--in-steps/--at-once",
            help="After the gate: shadow, canary, switchback, active by verdicts on live traffic, "
            "or active at once [default: as the trainer's settings say, at once unless they are "
            "changed].",
        ),
    ] = None,
    mesh: MeshOption = "",
    config: ConfigOption = None,
    trainer: TrainerOption = "",
    as_json: JsonOption = False,
) -> None:
    """Move a published policy a stage on, if the simulator finds it no worse.

    The rollout of a policy that is paused goes on where it stood.
    """
    address = resolve(mesh, trainer=trainer, config=config).need("trainer")
    name, version = _named(address, policy)
    request = trainer_pb.PromotePolicyRequest(
        policy=name, policy_version=version, through_gate=True, in_steps=in_steps
    )
    reply = call("trainer", address, "PromotePolicy", request, GATE_TIMEOUT_S)
    active = _info(reply.active)
    about = {"gate_verdict": reply.gate_verdict, "in_memory_only": reply.in_memory_only}
    if reply.HasField("rollout"):
        rollout = _rollout(reply.rollout)
        if as_json:
            print_json({"rollout": rollout} | about)
            return
        _note_verdict(reply.gate_verdict)
        note(f"{_told(rollout)}. Follow it with: tiercel policy list")
        _note_memory(reply.in_memory_only)
        return
    if as_json:
        print_json(active | about | {"waiting_routers": list(reply.waiting_routers)})
        return
    _note_verdict(reply.gate_verdict)
    name = f"{active['policy']} {active['policy_version']}"
    asked = "passed the gate: the mesh now uses" if reply.gate_verdict else "the mesh uses"
    note(f"{asked} {name}")
    if reply.waiting_routers:
        note(_waiting(reply.waiting_routers))
    _note_memory(reply.in_memory_only)


def _note_verdict(verdict: str) -> None:
    """Says what the gate found, a line for each part."""
    for part in verdict.split("; ") if verdict else ():
        note(f"  {part}")


def _waiting(routers: Sequence[str]) -> str:
    """Returns which routers have not said that they use what is active."""
    return f"not yet heard from: {', '.join(routers)}"


def _note_memory(in_memory_only: bool) -> None:
    """Says so if the trainer could not store what was asked for."""
    if in_memory_only:
        note(
            "Redis is away: the trainer has this in memory alone. If the trainer ends before Redis "
            "is back, it is lost"
        )


def pause(
    reason: Annotated[str, typer.Option(help="Why, for the log.")] = "by hand",
    mesh: MeshOption = "",
    config: ConfigOption = None,
    trainer: TrainerOption = "",
    as_json: JsonOption = False,
) -> None:
    """Pause the rollout under way: nothing asks its policy until it is promoted again."""
    address = resolve(mesh, trainer=trainer, config=config).need("trainer")
    request = trainer_pb.PauseRolloutRequest(reason=reason)
    reply = call("trainer", address, "PauseRollout", request, SWITCH_TIMEOUT_S)
    rollout = _rollout(reply.rollout)
    if as_json:
        print_json(rollout | {"in_memory_only": reply.in_memory_only})
        return
    version = rollout["policy_version"]
    note(f"{_told(rollout)}. To go on: tiercel policy promote {version}; to end it: rollback")
    _note_memory(reply.in_memory_only)


def use(
    policy: Annotated[str, typer.Argument(help="Name, for instance greedy, price, dqn.")],
    version: Annotated[
        str, typer.Option(help="Version [default: the newest that was not rejected].")
    ] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Use it though gate or routers rejected it.")
    ] = False,
    reason: Annotated[str, typer.Option(help="With --force: why. It is recorded.")] = "",
    mesh: MeshOption = "",
    config: ConfigOption = None,
    router: RouterOption = None,
    trainer: TrainerOption = "",
    as_json: JsonOption = False,
) -> None:
    """Make the whole mesh use a policy, or with --router only these routers."""
    if force != bool(reason.strip()):
        raise InputError("--force, --reason: give both or none")
    target = resolve(mesh, router, trainer=trainer, config=config)
    used = switch_policy(target, policy, version, force_reason=reason)
    if as_json:
        print_json(used)
        return
    note(f"{used['scope']} now uses {used['policy']} {used['policy_version']}".rstrip())
    if used.get("waiting_routers"):
        note(_waiting(used["waiting_routers"]))
    _note_memory(used.get("in_memory_only", False))


def rollback(
    reason: Annotated[str, typer.Option(help="Why, for the log.")] = "by hand",
    mesh: MeshOption = "",
    config: ConfigOption = None,
    router: RouterOption = None,
    trainer: TrainerOption = "",
    as_json: JsonOption = False,
) -> None:
    """End the rollout under way; without one go back to what served before.

    That is another policy, or that of the routers' settings.
    With --router, or without a trainer, each router goes back to what it used before `policy use`.
    """
    target = resolve(mesh, router, trainer=trainer, config=config)
    if router or not target.trainer:
        used = _on_each_router(target, router_pb.UsePolicyRequest(previous=True))
        if as_json:
            print_json(used)
            return
        note(f"{used['scope']} now uses {used['policy']} {used['policy_version']}".rstrip())
        return
    request = trainer_pb.RollbackPolicyRequest(reason=reason)
    reply = call("trainer", target.trainer, "RollbackPolicy", request, SWITCH_TIMEOUT_S)
    active = _info(reply.active)
    ended = _rollout(reply.ended) if reply.HasField("ended") else None
    if as_json:
        found = {"active": active, "activation": reply.activation, "ended": ended}
        print_json(found | {"in_memory_only": reply.in_memory_only})
        return
    if ended is not None:
        note(f"ended the rollout of {ended['policy']} {ended['policy_version']}")
    name = active["policy"] or "the policy of each router's settings"
    note(f"the mesh now uses {name} {active['policy_version']}".rstrip())
    _note_memory(reply.in_memory_only)


def switch_policy(
    target: Target, policy: str, version: str = "", *, force_reason: str = ""
) -> dict[str, Any]:
    """Switches by the trainer where there is one (it outlives routers), else router by router.

    Args:
        target: The mesh.
        policy: Name.
        version: Version; empty means the newest that was not rejected.
        force_reason: Why one is used though it was rejected.

    Raises:
        InputError: No such policy.
        CommandError: Nobody could be asked.
    """
    if target.trainer:
        request = trainer_pb.PromotePolicyRequest(
            policy=policy, policy_version=version, without_gate=True, force_reason=force_reason
        )
        reply = call("trainer", target.trainer, "PromotePolicy", request, SWITCH_TIMEOUT_S)
        return {
            "scope": "the mesh",
            "policy": reply.active.policy,
            "policy_version": reply.active.policy_version,
            "waiting_routers": list(reply.waiting_routers),
            "in_memory_only": reply.in_memory_only,
        }
    if version or force_reason:
        option = "--version" if version else "--force"
        raise CommandError(f"{option}: needs a trainer; routers know policies by name only")
    return _on_each_router(target, router_pb.UsePolicyRequest(policy=policy))


def _on_each_router(target: Target, request: router_pb.UsePolicyRequest) -> dict[str, Any]:
    reply: Any = None
    for address in need_routers(target):
        reply = call("router", address, "UsePolicy", request)
    scope = "each router" if len(target.routers) > 1 else f"router {target.routers[0]}"
    return {"scope": scope, "policy": reply.policy, "policy_version": reply.policy_version}


def _facts(policy: str, target: Callable[[], Target]) -> dict[str, Any]:
    """Returns the facts of a snapshot file, a shipped name, or what the mesh's registry has."""
    try:
        path = find(POLICIES, policy)
    except NotShippedError as error:
        if policy.endswith(SNAPSHOT_SUFFIX):
            raise InputError(str(error)) from None
    else:
        return snapshot_facts(read_bytes(path), str(path))
    address = target().need("trainer")
    name, version = _named(address, policy)
    request = trainer_pb.GetPolicyRequest(policy=name, policy_version=version)
    reply = call("trainer", address, "GetPolicy", request)
    watch = call("trainer", address, "ListPolicies", trainer_pb.ListPoliciesRequest()).watch
    facts = {key: value for key, value in _info(reply.policy).items() if key != "scores"}
    facts |= {f"step {number}": text for number, text in enumerate(facts.pop("steps"), 1)}
    named = (reply.policy.policy, reply.policy.policy_version)
    if watch.activation and named == (watch.policy, watch.policy_version):
        facts["watch"] = _watch_told(_watch(watch))
    if reply.snapshot:
        facts |= snapshot_facts(reply.snapshot, policy)
    return facts


def _named(address: str, policy: str) -> tuple[str, str]:
    """Returns name and version of what is a version in the registry, or a policy's name."""
    reply = call("trainer", address, "ListPolicies", trainer_pb.ListPoliciesRequest())
    for each in reply.policies:
        if each.policy_version and each.policy_version == policy:
            return each.policy, each.policy_version
    return policy, ""


def _in_use(address: str) -> dict[str, Any]:
    status = call("router", address, "GetRouterStatus", router_pb.GetRouterStatusRequest())
    return {
        "policy": status.policy,
        "policy_version": status.policy_version,
        "fallback_active": status.fallback_active,
        "known": sorted(status.known_policies),
        "watched_activation": status.watched_activation,
        "watch_problem": status.watch_problem,
    }


def _registry(target: Target) -> trainer_pb.ListPoliciesResponse:
    request = trainer_pb.ListPoliciesRequest()
    reply: trainer_pb.ListPoliciesResponse = call(
        "trainer", target.trainer, "ListPolicies", request
    )
    return reply


def _info(info: trainer_pb.PolicyInfo) -> dict[str, Any]:
    return {
        "policy": info.policy,
        "policy_version": info.policy_version,
        "stage": _stage(info.stage),
        "description": info.description,
        "transition_count": info.transition_count,
        "scores": dict(info.scores),
        "rejection": info.rejection,
        "force_reason": info.force_reason,
        "steps": [_step(each) for each in info.steps],
    }


def _stage(stage: trainer_pb.PolicyStage.ValueType) -> str:
    return name_of(trainer_pb.PolicyStage, stage).replace("_", " ")


def _step(step: trainer_pb.RolloutStep) -> str:
    """Returns a step as a line: when, where to, by which verdict, why."""
    when = step.step_time.ToDatetime(datetime.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    verdict = name_of(trainer_pb.RolloutVerdict, step.verdict).replace("_", " ")
    found = f" ({verdict})" if step.verdict else ""
    return f"{when} {_stage(step.stage)}{found}: {step.reason}"


def _rollout(info: trainer_pb.RolloutInfo) -> dict[str, Any]:
    return {
        "rollout": info.rollout,
        "policy": info.policy,
        "policy_version": info.policy_version,
        "stage": _stage(info.stage),
        "paused": info.paused,
        "reason": info.reason,
        "seen": info.seen,
    }


def _watch(info: trainer_pb.WatchInfo) -> dict[str, Any]:
    stage = name_of(trainer_pb.WatchStage, info.stage)
    left_s = (info.end_time.ToDatetime(datetime.UTC) - _now()).total_seconds()
    return {
        "activation": info.activation,
        "policy": info.policy,
        "policy_version": info.policy_version,
        "replaced_policy": info.replaced_policy,
        "replaced_policy_version": info.replaced_policy_version,
        "stage": stage.replace("_", " "),
        "reason": info.reason,
        "seen": info.seen,
        "left_s": max(0.0, left_s) if stage == "under_way" else 0.0,
    }


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _watch_told(watch: dict[str, Any]) -> str:
    """Returns how a watch stands, as a line."""
    name = f"{watch['policy']} {watch['policy_version']}"
    if watch["stage"] == "under way":
        return f"{name} is watched for another {watch['left_s']:.0f} s: {watch['seen']}"
    return f"last watch, of {name}, ended as {watch['stage']}: {watch['reason']}"


def _told(rollout: dict[str, Any]) -> str:
    """Returns where a rollout stands, as a line."""
    name, stage = f"{rollout['policy']} {rollout['policy_version']}", rollout["stage"]
    if stage not in ("shadow", "canary", "switchback"):
        return f"last rollout, of {name}, ended as {stage}: {rollout['reason']}"
    return f"rollout of {name}: {stage}. {rollout['seen'] or rollout['reason']}"


def _about(info: dict[str, Any]) -> str:
    """Returns what a list says of a policy: where from, why rejected, why used all the same."""
    facts = {"rejected": info["rejection"], "forced": info["force_reason"]}
    said = [f"{name}: {text}" for name, text in facts.items() if text]
    return "; ".join(filter(None, [info["description"], *said]))
