"""The study of what it is worth to know of conversations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from router.seat import Stay
from trainer.research import conversations
from trainer.research.tuning import profile_of
from trainer.simulation.setting import shared_fleet_setting

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles


def test_the_setting_has_room_for_prefixes_in_every_tier() -> None:
    """Routers and devices alike."""
    profile, quality = profile_of(conversations.parser().parse_args([]))
    setting = shared_fleet_setting(profile.name, profile, quality, device_count=2)
    cached = conversations.cached(setting, 5_000)
    assert not setting.fleet.arrays.prefix_room_C.any()
    assert (cached.fleet.arrays.prefix_room_C == 5_000.0).all()
    assert {tier.prefix_cache_tokens for tier in cached.profiles[""].tiers.values()} == {5_000}


def test_a_run_compares_routers_on_the_same_requests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that are told of conversations keep them, and every row says how many."""
    out = tmp_path / "rows.json"
    arguments = ["--seeds", "1", "--duration-s", "8", "--policies", "price", "--devices", "1"]
    assert conversations.main([*arguments, "--loads", "1", "--json", str(out)]) == 0
    rows = json.loads(out.read_text("utf-8"))["rows"]
    assert [row["kind"] for row in rows] == [
        conversations.UNTOLD, conversations.PREFIXES, "margin 0.05",
    ]  # fmt: skip
    assert len({row["requests"] for row in rows}) == 1
    untold, prefixes, kept = rows
    assert sum(untold[stay.name.lower()] for stay in Stay) == untold["none"] > 100
    assert untold["expected"] == 0.0 < prefixes["expected"]
    assert kept["kept"] >= prefixes["kept"] > 0
    assert kept["same_tier"] >= untold["same_tier"]
    table = capsys.readouterr().out
    assert "| 1 | price | not told |" in table
    assert "+0.00" in table


@pytest.mark.parametrize("wrong", [["--seeds", "0"], ["--duration-s", "1"], ["--devices", "0"]])
def test_numbers_out_of_range_are_one_line(
    wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """And exit status 2."""
    assert conversations.main(wrong) == 2
    assert "--seeds" in capsys.readouterr().err
