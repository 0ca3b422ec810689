"""``tiercel status``."""

from __future__ import annotations

import json

import pytest

from services.cli.app import run
from tests.fakes.router import FakeRouter
from tests.unit.services.cli.said import complaint
from tiercel.common.v1 import common_pb2
from tiercel.router_inference.v1 import router_inference_service_pb2 as router_pb


def test_status_says_what_each_unreachable_part_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Status prints what it knows before it fails."""
    assert run(["status", "--router", "127.0.0.1:1", "--json"]) == 1
    assert "error" in json.loads(capsys.readouterr().out)["routers"][0]


def test_priorities_are_shown_where_there_are_several(
    router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """What became of each class, and what device time costs it."""
    assert run(["status", "--router", router[1], "--require", "router"]) == 0
    [row] = [line for line in capsys.readouterr().out.splitlines() if "low" in line]
    assert [cell.strip() for cell in row.strip("│ ").split("│")] == ["low", "7", "0", "3", "1.50"]


def test_a_part_that_is_gone_is_an_exit_code(
    router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """What the mesh has must answer, unless --require names less or more."""
    known = ["--router", router[1], "--monitor", "127.0.0.1:1"]
    assert run(["status", *known, "--json"]) == 1
    assert "no answer: monitor" in complaint(capsys)
    assert run(["status", *known, "--require", "router", "--json"]) == 0
    capsys.readouterr()
    assert run(["status", *known, "--require", "router,trainer", "--json"]) == 1
    assert "no answer: trainer" in complaint(capsys)
    assert run(["status", *known, "--require", "redis"]) == 2
    assert "--require" in complaint(capsys)


def test_what_became_of_conversations_is_told(
    router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line where there were any, and in none where not."""
    question = ["status", "--router", router[1], "--require", "router"]
    assert run(question) == 0
    assert "conversations" not in capsys.readouterr().out
    router[0].conversations = {"new": 3, "kept": 12}
    assert run(question) == 0
    assert "for conversations: 12 kept, 3 new" in capsys.readouterr().out
    assert run([*question, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["routers"]
    assert found["conversations"] == {"kept": 12, "new": 3}


def test_deadlines_for_tokens_are_told(
    router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A row per task and kind with the share in time, plain and smooth; nothing where none were."""
    question = ["status", "--router", router[1], "--require", "router"]
    assert run(question) == 0
    assert "token" not in capsys.readouterr().out
    told = router_pb.TaskTokenOutcomes(task="chat")
    told.outcomes.add(
        slo_kind=common_pb2.SLO_KIND_PER_TOKEN,
        on_time_count=30,
        missed_count=10,
        smooth_answer_sum=37.0,
    )
    told.outcomes.add(slo_kind=common_pb2.SLO_KIND_FIRST_TOKEN)
    router[0].token_outcomes = [told]
    assert run(question) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "chat" in line]
    assert [[cell.strip() for cell in row.strip("│ ").split("│")] for row in rows] == [
        ["chat", "each token", "30", "10", "0.750", "0.925"],
        ["chat", "first token", "0", "0", "-", "-"],
    ]
    assert run([*question, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["routers"]
    assert found["tokens"][0]["slo_kind"] == "per_token"
    assert (found["tokens"][0]["smooth_share"], found["tokens"][0]["goodput_rps"]) == (0.925, None)


def test_what_was_learned_of_tiers_is_told(
    router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A row per task and tier that clients reported on; nothing where they did not."""
    question = ["status", "--router", router[1], "--require", "router"]
    assert run(question) == 0
    assert "reports" not in capsys.readouterr().out
    learned = router_pb.TierQuality(
        task="chat", tier="small", quality=0.625, settings_quality=0.7, error=0.03, report_count=90
    )
    router[0].qualities = [learned]
    assert run(question) == 0
    [row] = [line for line in capsys.readouterr().out.splitlines() if "chat" in line]
    cells = [cell.strip() for cell in row.strip("│ ").split("│")]
    assert cells == ["chat", "small", "0.625", "0.700", "0.030", "90"]
    assert run([*question, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["routers"]
    assert found["qualities"][0]["settings_quality"] == 0.7


def test_profiles_are_told_with_age_and_error(
    router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A row per tier, and where it is farthest off; one that nothing is known of has its own."""
    measured = common_pb2.ProfileState(profile="gpu", source="measured", method="by hand")
    measured.measured_time.FromSeconds(1_000_000_000)
    measured.errors.add(tier="large", error=-0.05, compared_count=400)
    measured.errors.add(tier="large", range="idle device", error=-0.31, compared_count=30)
    router[0].profiles = [measured, common_pb2.ProfileState(profile="paper", source="published")]
    assert run(["status", "--router", router[1], "--require", "router"]) == 0
    text = capsys.readouterr().out
    for part in ("by hand", "-0.05 of 400", "-0.31 idle device", "published, age unknown"):
        assert part in text
    assert run(["status", "--router", router[1], "--require", "router", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["routers"]
    assert found["profiles"][0]["errors"][1] == {
        "tier": "large", "range": "idle device", "error": -0.31, "count": 30,
    }  # fmt: skip


def test_exploration_and_lost_experience_are_told(
    router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """How much was explored, why some decisions were closed to it, and what was dropped."""
    exploration, experience = router[0].exploration, router[0].experience
    exploration.share = 0.02
    exploration.decision_counts.update({"explored": 3, "not_drawn": 190, "pressure": 7})
    experience.waiting_count = 5
    experience.oldest_age.FromMilliseconds(1_500)
    experience.dropped_counts.update({"age": 40, "full": 2})
    assert run(["status", "--router", router[1], "--require", "router"]) == 0
    text = capsys.readouterr().out
    for part in (
        "explores 2.0% of what is open to it: 3 of 200 decisions (not_drawn 190, pressure 7)",
        "experience records dropped: 42 (age 40, full 2)",
    ):
        assert part in text
    assert run(["status", "--router", router[1], "--require", "router", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["routers"]
    assert found["exploration"]["decisions"]["explored"] == 3
    assert found["experience"] == {
        "waiting": 5, "oldest_s": 1.5, "dropped": {"age": 40, "full": 2},
    }  # fmt: skip
