"""`tiercel policy` on snapshot files without a mesh, and on a router."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from router.dqn.snapshot import load_snapshot, save_snapshot
from services.cli import policy
from services.cli.app import run
from tests.fakes.router import FakeRouter
from tests.unit.services.cli.said import complaint
from tiercel.trainer.v1 import trainer_service_pb2 as pb
from trainer.shipped import POLICIES, shipped

REFERENCE = shipped(POLICIES, "reference.safetensors")


def test_show_tells_what_a_shipped_snapshot_says_of_itself(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By its shipped name: version, what it was trained for, its scores."""
    assert run(["policy", "show", "reference", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    snapshot = load_snapshot(REFERENCE.read_bytes())
    assert facts["policy_version"] == snapshot.version
    assert facts["fleet.profile"] == "reference"
    assert facts["evaluation.performance"] == pytest.approx(
        snapshot.evaluation["performance"], rel=1e-5
    )


def test_diff_names_only_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One changed base parameter shows, with both values; the weights are the same."""
    snapshot = load_snapshot(REFERENCE.read_bytes())
    base = {**snapshot.base, "backlog": 1.5}
    other = tmp_path / "other.safetensors"
    other.write_bytes(save_snapshot(dataclasses.replace(snapshot, base=base)))
    assert run(["policy", "diff", "reference", str(other), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {"policy_version", "base.backlog"}
    assert found["base.backlog"] == {"a": snapshot.base["backlog"], "b": 1.5}


@pytest.mark.parametrize("command", [["show"], ["diff", "reference"], ["publish"]])
def test_a_file_that_is_no_snapshot_is_one_line(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Missing and damaged files are bad input, with the shipped names beside."""
    missing = str(tmp_path / "missing.safetensors")
    assert run(["policy", *command, missing]) == 2
    assert "known: " in complaint(capsys)


def test_a_damaged_snapshot_is_refused_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reason is that of the reader every service uses."""
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(REFERENCE.read_bytes()[:-1] + b"\x7f")
    assert run(["policy", "show", str(damaged)]) == 2
    assert "SNAPSHOT_CHECKSUM_MISMATCH" in complaint(capsys)


def test_policies_are_listed_and_switched_on_the_routers_named(
    router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a trainer each router is asked itself; an unknown name is bad input."""
    fake, address = router
    assert run(["policy", "use", "price", "--router", address]) == 0
    assert fake.policy == "price"
    capsys.readouterr()
    assert run(["policy", "list", "--router", address, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["routers"][address]["policy"] == "price"
    assert run(["policy", "use", "nonsense", "--router", address]) == 2
    assert "greedy" in complaint(capsys)


@pytest.mark.parametrize("given", [("--force",), ("--reason", "why"), ("--force", "--reason", " ")])
def test_force_takes_a_reason(given: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """One without the other is a mistake, found before anybody is asked."""
    assert run(["policy", "use", "dqn", *given, "--trainer", "127.0.0.1:1"]) == 2
    assert "--force" in complaint(capsys)


def test_routers_go_back_by_themselves_where_no_trainer_keeps_what_was(
    router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """With --router the trainer is not asked."""
    assert run(["policy", "rollback", "--router", router[1]]) == 0
    assert f"router {router[1]} now uses price 0" in capsys.readouterr().err


def test_a_trainer_is_given_the_time_it_waits_for_routers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else a router that says nothing makes a switch that was made look failed. It is named."""
    active = pb.PolicyInfo(policy="price")
    replies = {
        "PromotePolicy": pb.PromotePolicyResponse(
            active=active, activation=1, waiting_routers=["r7"], in_memory_only=True
        ),
        "RollbackPolicy": pb.RollbackPolicyResponse(active=active, activation=2),
        "PauseRollout": pb.PauseRolloutResponse(
            rollout=pb.RolloutInfo(stage=pb.POLICY_STAGE_CANARY, paused=True)
        ),
    }
    waits_s: dict[str, float] = {}

    def call(part: str, address: str, method: str, request: Any, timeout_s: float = 3.0) -> Any:
        waits_s[method] = timeout_s
        return replies[method]

    monkeypatch.setattr(policy, "call", call)
    trainer = ("--trainer", "127.0.0.1:1")
    assert run(["policy", "use", "price", *trainer]) == 0
    said = capsys.readouterr().err
    assert "the mesh now uses price" in said
    assert "not yet heard from: r7" in said
    assert "Redis is away" in said
    assert run(["policy", "rollback", *trainer]) == 0
    assert run(["policy", "pause", *trainer]) == 0
    assert "Redis is away" not in capsys.readouterr().err
    assert waits_s == dict.fromkeys(replies, policy.SWITCH_TIMEOUT_S)
    assert policy.SWITCH_TIMEOUT_S > 10.0


@pytest.mark.parametrize(
    "command", [("promote", "price"), ("use", "price"), ("rollback",), ("pause",)]
)
def test_a_machine_hears_of_what_is_in_memory_alone(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As people do: a script that promotes has to know what a restart of the trainer would undo."""
    rollout = pb.RolloutInfo(stage=pb.POLICY_STAGE_CANARY, paused=True)
    replies = {
        "PromotePolicy": pb.PromotePolicyResponse(in_memory_only=True, waiting_routers=["r7"]),
        "RollbackPolicy": pb.RollbackPolicyResponse(in_memory_only=True),
        "PauseRollout": pb.PauseRolloutResponse(rollout=rollout, in_memory_only=True),
    }
    monkeypatch.setattr(policy, "call", lambda part, address, method, *_: replies[method])
    monkeypatch.setattr(policy, "_named", lambda address, name: (name, ""))
    assert run(["policy", *command, "--json", "--trainer", "127.0.0.1:1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["in_memory_only"] is True
    if "price" in command:
        assert found["waiting_routers"] == ["r7"]
