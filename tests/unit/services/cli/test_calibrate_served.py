"""``tiercel calibrate --from-production``."""

from __future__ import annotations

import asyncio
import pathlib

import pytest

from router.profile import format_profile, parse_profile
from services.cli.app import run
from services.common.clock import SystemClock
from services.common.state.connect import connect_stores
from tests.fakes.clock import FakeClock
from tests.unit.services.calibrate.served_records import written
from tests.unit.services.calibrate.test_production import BELIEVED
from tests.unit.services.cli.said import complaint
from tests.unit.trainer.profiling.served_device import COSTS, served


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--from-production", "--prompt-lengths", "10"), "--prompt-lengths: not with"),
        (("--from-production", "--seed", "0"), "--seed: not with"),
        (("--since", "10m"), "--since: only with"),
        (("--keep-others",), "--keep-others: only with"),
        (("--from-production",), "mesh.redis_url is empty"),
    ],
)
def test_options_of_the_two_ways_do_not_mix(
    foreign_mesh: pathlib.Path,
    options: tuple[str, ...],
    problem: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One asks the tiers, the other asks nobody; without Redis nobody has kept anything."""
    assert run(["calibrate", "--config", str(foreign_mesh), *options]) == 2
    assert problem in complaint(capsys)


def test_a_refit_is_written_and_says_how_to_use_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Costs before and now, a file that loads, and where it goes; a shorter time has too little."""
    (tmp_path / "p.toml").write_text(format_profile(BELIEVED))
    (tmp_path / "q.toml").write_text(
        'name = "q"\nsource = "measured"\n[quality.t]\nsmall = 0.5\nlarge = 1.0\n'
    )
    config = tmp_path / "mesh.toml"
    config.write_text(
        '[mesh]\ntiers = ["small", "large"]\nprofile = "p.toml"\nquality = "q.toml"\n'
        'redis_url = "redis://127.0.0.1:1/0"\n[[mesh.tasks]]\nname = "t"\n'
        'default_deadline_s = 1.0\n[[mesh.endpoints]]\nname = "on-d"\ndevice = "d"\n'
        'address = "127.0.0.1:1"\ntiers = ["small", "large"]\n'
    )
    # As if written a minute ago: the store in memory stamps entries a millisecond apart.
    stores = connect_stores("", clock=FakeClock(SystemClock().wall_ns() - 60 * 10**9))
    payloads = [each.SerializeToString() for each in written(served(COSTS, 8.0, 1_500))]
    asyncio.run(stores.experience.append(payloads))
    monkeypatch.setattr("services.cli.calibrate_served.connect_stores", lambda *_, **__: stores)
    out = tmp_path / "new.toml"
    options = ["calibrate", "--config", str(config), "--from-production", "--out", str(out)]
    assert run(options) == 0
    said = capsys.readouterr()
    assert "latency profile gpu, before > now, from 1500 answers" in said.out
    assert f"copy it to {tmp_path / 'p.toml'} and send SIGHUP" in said.err
    found = parse_profile(out.read_text(), "new", ("small", "large"))
    assert found.tiers["large"].token_s == pytest.approx(COSTS["large"].token_s, rel=0.1)
    out.unlink()
    assert run([*options, "--most-error", "0.01"]) == 1
    assert "no profile is written" in capsys.readouterr().err
    assert not out.exists()
    assert run([*options, "--since", "0s"]) == 2
