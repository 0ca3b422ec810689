"""What a router that serves takes of settings that were read again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from router.catalog import parse_quality
from router.exploration import Exploration
from router.profile import parse_profile
from services.common.errors import InvalidArgumentError, ResourceExhaustedError
from services.common.settings import SettingsError
from services.router_inference.reload import LiveSettings
from services.router_inference.settings import Settings
from tests.unit.services.router_inference.parts import (
    TASKS,
    TIERS,
    Behaviour,
    Rig,
    choice_of,
    make_rig,
)
from tests.unit.services.router_inference.policy.test_slot import promoted
from tests.unit.services.router_inference.scenario import scenario
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2

TIER = "step_s = {step_s}\nper_sequence_s = 0.0\nper_prompt_token_s = 0.0\n"


def write_files(folder: Path, *, step_s: float = 0.01, small: float = 0.5, tasks: Any) -> None:
    """Writes a profile and a quality table."""
    profile = ['name = "test"', 'source = "assumed"']
    for tier in TIERS:
        profile += [f"[tiers.{tier}]", TIER.format(step_s=step_s)]
    (folder / "profile.toml").write_text("\n".join(profile))
    quality = ['name = "table"', 'source = "assumed"']
    for task in tasks:
        quality += [f"[quality.{task}]", f"small = {small}", "medium = 0.8", "large = 1.0"]
    (folder / "quality.toml").write_text("\n".join(quality))


class Live:
    """A router that serves, and its settings file."""

    def __init__(self, folder: Path, **own: Any) -> None:
        self.folder = folder
        self.tasks = [task.name for task in TASKS]
        write_files(folder, tasks=self.tasks)
        mesh = {"profile": str(folder / "profile.toml"), "quality": str(folder / "quality.toml")}
        profile = parse_profile((folder / "profile.toml").read_text(), "profile.toml")
        quality = parse_quality((folder / "quality.toml").read_text(), "quality.toml")
        self.rig: Rig = make_rig(mesh=mesh, profile=profile, quality=quality, **own)
        self.settings = self.rig.app.settings
        files = self.rig.app._files
        self._live = LiveSettings(self.settings, files, self.rig.core, self.rig.pool)

    def take(self, *, mesh: Any = None, **own: Any) -> set[str]:
        """Changes keys of the sections and has them taken; returns what was."""
        found = self.settings.model_dump()
        found["mesh"].update(mesh or {})
        found["router_inference"].update(own)
        changed = {f"mesh.{key}" for key in mesh or {}} | {f"router_inference.{key}" for key in own}
        wanted = self._live.read(settings := Settings.model_validate(found))
        self.settings = settings
        return set(self._live.apply(wanted, frozenset(changed)))


@scenario
async def test_policy_limits_and_safety_follow(tmp_path: Path) -> None:
    """The next request is decided and bounded by them."""
    live = Live(tmp_path)
    live.rig.tier(0).default = Behaviour(hang=True)
    under_way = asyncio.ensure_future(live.rig.answer(live.rig.job()))
    await asyncio.sleep(0)
    wanted = {"policy": "static-small", "safety_net": False, "reserve": "half"}
    taken = live.take(mesh={"max_prompt_bytes": 4}, **wanted, max_in_flight=1, lease_s=9.0)
    # Tickets know their lease; it takes a restart.
    assert taken == {
        "mesh.max_prompt_bytes",
        *(f"router_inference.{key}" for key in (*wanted, "max_in_flight")),
    }
    core = live.rig.core
    assert core.slot.name == "static-small"
    assert core.admission.limits is None
    assert core.view.traffic.reserve == 0.5
    with pytest.raises(InvalidArgumentError, match="4 bytes"):
        live.rig.job(prompt="hello")
    with pytest.raises(ResourceExhaustedError):
        await live.rig.answer(live.rig.job(prompt="hi"))
    under_way.cancel()
    await asyncio.gather(under_way, return_exceptions=True)


@scenario
async def test_prompts_grow_as_far_as_the_messages_of_the_start(tmp_path: Path) -> None:
    """Beyond that it takes a restart; until then the limit that callers are told stays true."""
    live = Live(tmp_path)
    most = 4 * 1024 * 1024 - 65_536
    live.take(mesh={"max_prompt_bytes": most})
    with pytest.raises(SettingsError, match=r"max_prompt_bytes: 4128769: .* 4194304 bytes"):
        live.take(mesh={"max_prompt_bytes": most + 1})
    with pytest.raises(InvalidArgumentError, match=f"1 to {most} bytes"):
        live.rig.job(prompt="x" * (most + 1))


@scenario
async def test_the_default_task_follows(tmp_path: Path) -> None:
    """One that does not exist changes nothing."""
    live = Live(tmp_path)
    with pytest.raises(InvalidArgumentError, match="no default task"):
        live.rig.job(task="")
    assert live.take(default_task="soft") == {"router_inference.default_task"}
    assert live.rig.job(task="").task.name == "soft"
    with pytest.raises(SettingsError, match="unknown task 'x'"):
        live.take(default_task="x")
    assert live.rig.job(task="").task.name == "soft"


@scenario
async def test_exploration_follows(tmp_path: Path) -> None:
    """It begins while a router serves, and ends as soon as somebody wants that."""
    live = Live(tmp_path)
    for share in (0.02, 0.0):
        wanted = {"exploration_share": share, "exploration_on_time": 0.9}
        assert live.take(**wanted) == {f"router_inference.{key}" for key in wanted}
        assert live.rig.core.explorer.exploration == Exploration(share, 0.9)


@scenario
async def test_targets_follow(tmp_path: Path) -> None:
    """A task that loses its target is held by none any more."""
    live = Live(tmp_path)
    hold, now_s = live.rig.core.hold, live.rig.clock.monotonic_s()
    assert hold.held(live.rig.job().request, now_s).has_target
    tasks = [{"name": n, "default_deadline_s": 0.4, "target": 0.0} for n in live.tasks]
    live.take(mesh={"tasks": tasks})
    assert not hold.held(live.rig.job().request, now_s).has_target


@scenario
async def test_tasks_follow_and_new_ones_join(tmp_path: Path) -> None:
    """Their deadlines hold for requests to come. Their order must not change."""
    live = Live(tmp_path)
    names = [*live.tasks, "new"]
    write_files(tmp_path, tasks=names)
    tasks = [{"name": name, "default_deadline_s": 0.7} for name in names]
    assert live.take(mesh={"tasks": tasks}) == {"mesh.tasks", "mesh.quality"}
    for name in names:
        assert live.rig.job(task=name).request.slack_s == pytest.approx(0.7)
    await live.rig.answer(live.rig.job(task="new"))
    request, call = pb2.GetRouterStatusRequest(), cast("Any", None)
    status = await live.rig.core.servicer.GetRouterStatus(request, call)
    assert [each.task for each in status.tasks] == names
    assert status.tasks[0].default_deadline.ToMilliseconds() == 700
    assert live.take(mesh={"tasks": tasks[::-1]}) == set()
    assert live.rig.job(task="new").request.slack_s == pytest.approx(0.7)


@scenario
async def test_endpoints_and_files_follow_under_load(tmp_path: Path) -> None:
    """Requests under way end where they are; the next ones go where the file says."""
    live = Live(tmp_path)
    live.rig.tier(0).default.step_s = 0.05
    under_way = asyncio.ensure_future(live.rig.answer(live.rig.job()))
    await asyncio.sleep(0.01)
    write_files(tmp_path, step_s=0.02, small=0.6, tasks=live.tasks)
    entry = {"name": "e7", "address": "127.0.0.1:9007", "tiers": TIERS}
    taken = live.take(mesh={"endpoints": [entry]})
    assert taken == {"mesh.endpoints", "mesh.profile", "mesh.quality"}
    job = live.rig.job()
    await live.rig.answer(job)
    assert job.endpoint == "e7"
    assert choice_of(job).predicted_s == pytest.approx(8 * 0.02, rel=0.2)
    assert (await under_way).text == "ab"
    assert live.rig.core.view.fleet.catalog.quality_KT[0, 0] == 0.6
    live.rig.assert_settled()


@scenario
async def test_what_was_promoted_stays_until_it_is_withdrawn(tmp_path: Path) -> None:
    """The file's policy is what serves where nothing is promoted, also when it was edited."""
    live = Live(tmp_path)
    slot = live.rig.core.slot
    slot.promote(promoted(b"", "greedy", 1))
    live.take(policy="static-medium")
    assert slot.name == "greedy"
    slot.withdraw(2)
    assert slot.name == "static-medium"
    slot.use("price")
    live.take(max_retries=1)
    assert slot.name == "price"  # by hand, and nobody edited the policy


@pytest.mark.parametrize(
    "own",
    [
        {"policy": "nonsense"},
        {"policy": "greedy+nonsense"},
        {"policy_parameters": {"price": {"nonsense": 1.0}}},
        {"fallback_policy": "dqn"},
        {"policy": "dqn", "policy_snapshot": "/no/such/file"},
    ],
)
@scenario
async def test_a_wrong_policy_changes_nothing(tmp_path: Path, own: dict[str, Any]) -> None:
    """It is a mistake of the settings, and the rest of the file waits with it."""
    live = Live(tmp_path, policy="price")
    with pytest.raises(SettingsError):
        live.take(mesh={"max_prompt_bytes": 4}, **own)
    assert live.rig.core.slot.name == "price"
    await live.rig.answer(live.rig.job())


@scenario
async def test_a_broken_profile_changes_nothing(tmp_path: Path) -> None:
    """Files are part of the settings."""
    live = Live(tmp_path)
    (tmp_path / "profile.toml").write_text("nonsense")
    with pytest.raises(SettingsError):
        live.take(policy="price")
    assert live.rig.core.slot.name == "static-large"


@scenario
async def test_limits_of_clients_follow_where_clients_are_known(tmp_path: Path) -> None:
    """What they have under way counts on; a router without such limits takes a restart."""
    live = Live(tmp_path, other_clients={"max_in_flight": 2})
    live.rig.tier(0).default = Behaviour(hang=True)
    tasks = [asyncio.ensure_future(live.rig.answer(live.rig.job(client="c"))) for _ in range(2)]
    await asyncio.sleep(0)
    live.take(other_clients={"max_in_flight": 3})
    third = asyncio.ensure_future(live.rig.answer(live.rig.job(client="c")))
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhaustedError, match="3 requests"):
        await live.rig.answer(live.rig.job(client="c"))
    for task in (*tasks, third):
        task.cancel()
    await asyncio.gather(*tasks, third, return_exceptions=True)
    none = Live(tmp_path)
    assert none.take(other_clients={"max_in_flight": 3}) == set()


@scenario
async def test_an_endpoint_on_another_machine_in_plain_text_changes_nothing(tmp_path: Path) -> None:
    """What is refused at the start is refused later; leave for it is given at the start alone."""
    live = Live(tmp_path)
    far = {"endpoints": [{"name": "e9", "address": "10.0.0.5:8001", "tiers": TIERS}]}
    with pytest.raises(SettingsError, match=r"mesh\.endpoints\.0\.address: 10\.0\.0\.5:8001 is on"):
        live.take(mesh=far, insecure_open_to_network=True)
    # Nor does a monitor's word for it count.
    live.take(mesh={"endpoint_addresses": ["*:*"]})
    assert not live.rig.pool._is_allowed("10.0.0.5:8001")
    with_leave = Live(tmp_path, insecure_open_to_network=True)
    assert with_leave.take(mesh=far) == {"mesh.endpoints"}
    assert with_leave.rig.pool._is_allowed("10.0.0.5:8001")
