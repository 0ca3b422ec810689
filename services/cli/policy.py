"""``tiercel policy``: which rule decides, and changing it while the mesh runs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from services.cli.options import JsonOption, MeshOption, RouterOption, TrainerOption
from services.cli.output import console, note, print_json, table
from services.local.calls import call
from services.local.errors import CommandError
from services.local.target import Target, need_routers, resolve
from tiercel.router_inference.v1 import router_inference_service_pb2 as router_pb
from tiercel.trainer.v1 import trainer_service_pb2 as trainer_pb


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    commands = typer.Typer(
        name="policy", help="List, use and roll back policies.", no_args_is_help=True
    )
    commands.command("list")(list_policies)
    commands.command("use")(use)
    commands.command("rollback")(rollback)
    app.add_typer(commands)


def list_policies(
    mesh: MeshOption = "",
    router: RouterOption = None,
    trainer: TrainerOption = "",
    as_json: JsonOption = False,
) -> None:
    """List every policy the mesh can use, and the one each router uses."""
    target = resolve(mesh, router, trainer=trainer)
    in_use = {each: _in_use(each) for each in target.routers}
    known = _registry(target) if target.trainer else []
    if as_json:
        print_json({"policies": known, "routers": in_use})
        return
    if known:
        rows = [(p["policy"], p["policy_version"], p["stage"], p["description"]) for p in known]
        title = "policies"
        console().print(table(title, ("policy", "version", "stage", "about"), rows, numeric_from=9))
    for address, found in in_use.items():
        fallback = ", fallback decides" if found["fallback_active"] else ""
        console().print(f"router {address}: {found['policy']} {found['policy_version']}{fallback}")
        if not known:
            console().print(f"  can use: {', '.join(found['known'])}")


def use(
    policy: Annotated[str, typer.Argument(help="Name, for instance greedy, price, dqn.")],
    version: Annotated[str, typer.Option(help="Version [default: the newest].")] = "",
    mesh: MeshOption = "",
    router: RouterOption = None,
    trainer: TrainerOption = "",
    as_json: JsonOption = False,
) -> None:
    """Make the whole mesh use a policy, or with --router only these routers."""
    target = resolve(mesh, router, trainer=trainer)
    used = switch_policy(target, policy, version)
    if as_json:
        print_json(used)
        return
    note(f"{used['scope']} now uses {used['policy']} {used['policy_version']}".rstrip())


def rollback(
    reason: Annotated[str, typer.Option(help="Why, for the log.")] = "by hand",
    mesh: MeshOption = "",
    trainer: TrainerOption = "",
    as_json: JsonOption = False,
) -> None:
    """Go back to the policy that was active before."""
    address = resolve(mesh, trainer=trainer).need("trainer")
    request = trainer_pb.RollbackPolicyRequest(reason=reason)
    reply = call("trainer", address, "RollbackPolicy", request)
    active = _info(reply.active)
    if as_json:
        print_json({"active": active, "activation": reply.activation})
        return
    note(f"the mesh now uses {active['policy']} {active['policy_version']}".rstrip())


def switch_policy(target: Target, policy: str, version: str = "") -> dict[str, str]:
    """Switches by the trainer where there is one (it outlives routers), else router by router.

    Raises:
        InputError: No such policy.
        CommandError: Nobody could be asked.
    """
    if target.trainer:
        request = trainer_pb.PromotePolicyRequest(policy=policy, policy_version=version)
        active = call("trainer", target.trainer, "PromotePolicy", request).active
        return {
            "scope": "the mesh",
            "policy": active.policy,
            "policy_version": active.policy_version,
        }
    if version:
        raise CommandError("--version: needs a trainer; routers know policies by name only")
    reply: Any = None
    for address in need_routers(target):
        reply = call("router", address, "UsePolicy", router_pb.UsePolicyRequest(policy=policy))
    scope = "each router" if len(target.routers) > 1 else f"router {target.routers[0]}"
    return {"scope": scope, "policy": reply.policy, "policy_version": reply.policy_version}


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
    }
