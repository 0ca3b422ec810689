"""``tiercel policy``: which rule decides, and changing it while the mesh runs.

``publish`` puts a snapshot into the registry, ``promote`` moves it a stage on, and ``use`` pins by
hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from services.cli.files import read_bytes, shipped_file
from services.cli.options import ConfigOption, JsonOption, MeshOption, RouterOption, TrainerOption
from services.cli.output import console, note, print_json, table
from services.cli.policy_facts import SNAPSHOT_SUFFIX, snapshot_facts
from services.local.calls import call
from services.local.errors import CommandError, InputError
from services.local.target import Target, need_routers, resolve
from tiercel.router_inference.v1 import router_inference_service_pb2 as router_pb
from tiercel.trainer.v1 import trainer_service_pb2 as trainer_pb
from trainer.shipped import POLICIES, NotShippedError, find

PolicyArgument = Annotated[
    str, typer.Argument(help="Version or name in the registry, a snapshot file or a shipped name.")
]
GATE_TIMEOUT_S = 300.0


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    commands = typer.Typer(
        name="policy",
        help="List, compare, publish, promote, use and roll back policies.",
        no_args_is_help=True,
    )
    commands.command("list")(list_policies)
    commands.command("show")(show)
    commands.command("diff")(diff)
    commands.command("publish")(publish)
    commands.command("promote")(promote)
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
    """List every policy the mesh can use, and the one each router uses."""
    target = resolve(mesh, router, trainer=trainer, config=config)
    in_use = {each: _in_use(each) for each in target.routers}
    known = _registry(target) if target.trainer else []
    if as_json:
        print_json({"policies": known, "routers": in_use})
        return
    if known:
        rows = [(p["policy"], p["policy_version"], p["stage"], _about(p)) for p in known]
        title = "policies"
        console().print(table(title, ("policy", "version", "stage", "about"), rows, numeric_from=9))
    for address, found in in_use.items():
        fallback = ", fallback decides" if found["fallback_active"] else ""
        console().print(f"router {address}: {found['policy']} {found['policy_version']}{fallback}")
        if not known:
            console().print(f"  can use: {', '.join(found['known'])}")


def show(
    policy: PolicyArgument,
    mesh: MeshOption = "",
    config: ConfigOption = None,
    trainer: TrainerOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show what is known about a policy: origin, scores, what it was trained for."""
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
    mesh: MeshOption = "",
    config: ConfigOption = None,
    trainer: TrainerOption = "",
    as_json: JsonOption = False,
) -> None:
    """Move a published policy a stage on: the mesh uses it if the simulator finds it no worse."""
    address = resolve(mesh, trainer=trainer, config=config).need("trainer")
    name, version = _named(address, policy)
    request = trainer_pb.PromotePolicyRequest(
        policy=name, policy_version=version, through_gate=True
    )
    reply = call("trainer", address, "PromotePolicy", request, GATE_TIMEOUT_S)
    active = _info(reply.active)
    if as_json:
        print_json(active)
        return
    note(f"passed the gate: the mesh now uses {active['policy']} {active['policy_version']}")
    if reply.waiting_routers:
        note(f"not yet heard from: {', '.join(reply.waiting_routers)}")


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


def rollback(
    reason: Annotated[str, typer.Option(help="Why, for the log.")] = "by hand",
    mesh: MeshOption = "",
    config: ConfigOption = None,
    router: RouterOption = None,
    trainer: TrainerOption = "",
    as_json: JsonOption = False,
) -> None:
    """Go back to what served before: another policy, or that of the routers' settings.

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
    reply = call("trainer", target.trainer, "RollbackPolicy", request)
    active = _info(reply.active)
    if as_json:
        print_json({"active": active, "activation": reply.activation})
        return
    name = active["policy"] or "the policy of each router's settings"
    note(f"the mesh now uses {name} {active['policy_version']}".rstrip())


def switch_policy(
    target: Target, policy: str, version: str = "", *, force_reason: str = ""
) -> dict[str, str]:
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
        active = call("trainer", target.trainer, "PromotePolicy", request).active
        return {
            "scope": "the mesh",
            "policy": active.policy,
            "policy_version": active.policy_version,
        }
    if version or force_reason:
        option = "--version" if version else "--force"
        raise CommandError(f"{option}: needs a trainer; routers know policies by name only")
    return _on_each_router(target, router_pb.UsePolicyRequest(policy=policy))


def _on_each_router(target: Target, request: router_pb.UsePolicyRequest) -> dict[str, str]:
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
    facts = {key: value for key, value in _info(reply.policy).items() if key != "scores"}
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
    }


def _registry(target: Target) -> list[dict[str, Any]]:
    reply = call("trainer", target.trainer, "ListPolicies", trainer_pb.ListPoliciesRequest())
    return [_info(each) for each in reply.policies]


def _info(info: trainer_pb.PolicyInfo) -> dict[str, Any]:
    stage = trainer_pb.PolicyStage.Name(info.stage).removeprefix("POLICY_STAGE_").lower()
    return {
        "policy": info.policy,
        "policy_version": info.policy_version,
        "stage": stage.replace("_", " "),
        "description": info.description,
        "transition_count": info.transition_count,
        "scores": dict(info.scores),
        "rejection": info.rejection,
        "force_reason": info.force_reason,
    }


def _about(info: dict[str, Any]) -> str:
    """Returns what a list says of a policy: where from, why rejected, why used all the same."""
    facts = {"rejected": info["rejection"], "forced": info["force_reason"]}
    said = [f"{name}: {text}" for name, text in facts.items() if text]
    return "; ".join(filter(None, [info["description"], *said]))
