"""The study of large fleets and many routers."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.picker import POWER_OF_TWO
from router.policies.table import ROW
from trainer.evaluation.report.style import save
from trainer.research import scale
from trainer.research.tuning import profile_of
from trainer.simulation.setting import shared_fleet_setting


def row(seed: int, performance: float, **more: object) -> scale.Row:
    """Returns a row of a study."""
    return {"load": 2.0, "seed": seed, "performance": performance, "availability": 1.0, **more}


def test_differences_are_paired_by_seed() -> None:
    """Seeds that differ among themselves leave no width where the difference is the same."""
    rows = [row(s, 0.5 + 0.1 * s, policy=scale.ALL) for s in (1, 2, 3)]
    rows += [row(s, 0.49 + 0.1 * s, policy=scale.LISTED) for s in (3, 1, 2)]
    found = scale.paired(rows, "performance", {"policy": scale.LISTED}, {"policy": scale.ALL})
    assert found.mean == pytest.approx(-1.0)
    assert found.half == pytest.approx(0.0, abs=1e-9)
    assert "| 2 | 0.7000 | -1.00 ± 0.00 | +0.00 ± 0.00 |" in scale.shortlist_table(rows)


def test_most_routers_stand_beside_the_fewest(tmp_path: Path) -> None:
    """The last column is what the most routers lose, and the plot has a line per policy."""
    rows = [row(1, 0.9, policy="dqn", routers=1), row(1, 0.8, policy="dqn", routers=64)]
    assert "| 2 | dqn | 1.000 / 0.900 | 1.000 / 0.800 | -10.00 ± 0.00 |" in scale.router_table(rows)
    figure = scale.router_figure(rows)
    assert [len(axes.lines) for axes in figure.axes] == [1, 1]
    save(figure, tmp_path / "routers")
    assert (tmp_path / "routers.png").stat().st_size > 0


def test_policies_are_named_as_everywhere() -> None:
    """A snapshot shipped for the profile and a picker are found by name."""
    options = scale.parser().parse_args(["routers"])
    profile, quality = profile_of(options)
    setting = shared_fleet_setting(profile.name, profile, quality, device_count=2)
    spec = scale.spec_of("dqn+power-of-two", setting)
    assert (spec.row, spec.picker) == (ROW["dqn"], POWER_OF_TWO)
    assert scale.spec_of("price", setting).row == ROW["price"]


def test_study_runs_several_routers_on_the_same_requests() -> None:
    """Each number of routers gets the requests of the seed."""
    options = scale.parser().parse_args(
        ["routers", "--routers", "1,4", "--policies", "price", "--seeds", "1", "--duration-s", "1"]
    )
    profile, quality = profile_of(options)
    setting = shared_fleet_setting(profile.name, profile, quality, device_count=2)
    rows = scale.router_rows(setting, options, lambda _: None)
    assert [row["routers"] for row in rows] == [1, 4]
    assert rows[0]["requests"] == rows[1]["requests"] > 0


def test_bad_numbers_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A study without seeds is refused."""
    assert scale.main(["shortlist", "--seeds", "0"]) == 2
    assert "--seeds" in capsys.readouterr().err
