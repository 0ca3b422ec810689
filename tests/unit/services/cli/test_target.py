"""``tiercel target``."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from services.cli.app import run
from tests.fakes.router import abort
from tests.unit.services.cli.said import complaint
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as pb
from tiercel.load_monitor.v1 import load_monitor_service_pb2_grpc as pb_grpc
from tiercel.load_monitor.v1 import system_state_pb2 as state_pb


class FakeMonitor(pb_grpc.LoadMonitorServiceServicer):
    """A monitor with two routers, which hold at once what is set."""

    def __init__(self) -> None:
        self.asked: list[pb.SetTargetRequest] = []
        self.override: state_pb.TargetOverride | None = None
        self.holding = [0.99, 0.99]
        self.is_half_deaf = False

    async def SetTarget(self, request: pb.SetTargetRequest, context: Any) -> pb.SetTargetResponse:
        """Knows one task."""
        if request.task != "copa":
            await abort(context, grpc.StatusCode.NOT_FOUND, "TASK_NOT_FOUND", "unknown task")
        self.asked.append(request)
        override = state_pb.TargetOverride(task="copa", set_by="ops", reason=request.reason)
        override.set_time.FromSeconds(1_700_000_000)
        if request.HasField("duration"):
            override.expire_time.FromSeconds(1_700_000_000 + request.duration.seconds)
        self.override = None
        if request.HasField("target"):
            override.target = request.target
            self.override = override
        held = request.target if request.HasField("target") else 0.99
        self.holding = [held, 0.99 if self.is_half_deaf else held]
        return pb.SetTargetResponse(override=override)

    async def GetSystemState(self, request: Any, context: Any) -> pb.GetSystemStateResponse:
        """Returns what the routers hold."""
        state = state_pb.SystemState(version=1, monitor_id="m")
        for number, target in enumerate(self.holding):
            state.routers.add(router_id=f"r{number}").task_attainments.add(
                task="copa",
                target=target,
                settings_target=0.99,
                on_time_count=90,
                missed_count=10 * number,
            )
        if self.override is not None:
            state.targets.overrides.append(self.override)
        return pb.GetSystemStateResponse(state=state)


@pytest.fixture
def monitor(serve_monitor: Callable[[Any], str]) -> tuple[FakeMonitor, str]:
    """A fake monitor and its address."""
    fake = FakeMonitor()  # type: ignore[abstract]
    return fake, serve_monitor(fake)


def test_a_target_is_set_for_a_time_and_given_back(
    monitor: tuple[FakeMonitor, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The command says how many routers hold it."""
    fake, address = monitor
    wanted = ["target", "set", "copa", "99.9%", "--for", "10m", "--reason", "launch [1]"]
    assert run([*wanted, "--monitor", address]) == 0
    assert "target of copa set to 0.999 until 2023-11-14 22:23:20 UTC; 2 of 2" in _said(capsys)
    request = fake.asked[-1]
    assert (request.target, request.duration.seconds, request.reason) == (0.999, 600, "launch [1]")
    assert run(["target", "show", "--monitor", address]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "0.999" in out
    assert "copa: 0.999 by ops at 2023-11-14 22:13:20 UTC until 2023-11-14 22:23:20" in out
    assert "launch [1]" in out
    assert run(["target", "unset", "copa", "--monitor", address]) == 0
    assert "settings again; 2 of 2 routers hold it" in _said(capsys)
    assert not fake.asked[-1].HasField("target")


def test_targets_stand_beside_what_was_attained(
    monitor: tuple[FakeMonitor, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Over all routers; where they hold different ones, both are told."""
    fake, address = monitor
    fake.holding = [0.99, 0.9]
    assert run(["target", "show", "--json", "--monitor", address]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["on_time_count"], found["missed_count"]) == (180, 10)
    assert found["attained"] == pytest.approx(18 / 19)
    assert [row["target"] for row in found["in_force"]] == [0.9, 0.99]
    assert run(["target", "show", "--monitor", address]) == 0
    assert "0.9 at 1, 0.99 at 1" in capsys.readouterr().out


def test_a_target_not_held_by_all_says_so(
    monitor: tuple[FakeMonitor, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a while: a router may be of the last release."""
    fake, address = monitor
    monkeypatch.setattr("services.cli.target.TAKEN_S", 0.0)
    fake.is_half_deaf = True
    assert run(["target", "set", "copa", "0", "--monitor", address]) == 0
    assert "set to none; 1 of 2 routers hold it" in _said(capsys)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["copa", "1"], "VALUE: must be 0 to 0.9999"),
        (["copa", "120%"], "VALUE: must be"),
        (["copa", "nan"], "VALUE: must be"),
        (["copa", "most"], "VALUE: expected a share"),
        (["copa", "0.9", "--for", "10"], "--for: expected a time such as"),
        (["copa", "0.9", "--for", "90d"], "--for: must be 1s to 30d"),
    ],
)
def test_bad_input_names_what_is_wrong(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is asked."""
    assert run(["target", "set", *arguments, "--monitor", "127.0.0.1:1"]) == 2
    assert text in complaint(capsys)


def test_a_task_the_mesh_does_not_have_is_bad_input(
    monitor: tuple[FakeMonitor, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The message is the monitor's."""
    assert run(["target", "set", "nosuch", "0.9", "--monitor", monitor[1]]) == 2
    assert "unknown task" in complaint(capsys)


def _said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err
