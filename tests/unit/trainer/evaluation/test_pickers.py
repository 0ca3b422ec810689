"""The comparison of endpoint pickers: its fleets and its rows."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from router.picker import PICKERS
from tests.unit.router import fleets
from trainer.evaluation import pickers
from trainer.evaluation.pickers import LENGTHS, picker_rows, picker_settings

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles

PROFILE, QUALITY = fleets.profile(), fleets.quality()


def test_outputs_have_a_long_tail_and_the_stated_mean() -> None:
    """The mean is that of the setting; the longest hundredth is several times as long."""
    prompt_N, output_N = LENGTHS.sample(200_000, np.random.default_rng(0))
    assert output_N.mean() == pytest.approx(LENGTHS.output_mean, rel=0.05)
    assert np.quantile(output_N, 0.99) > 5 * LENGTHS.output_mean
    assert prompt_N.max() <= LENGTHS.prompt_max


def test_fleets_place_tiers_alone_and_together() -> None:
    """`own` has replicas of the largest tier, the shared fleets every tier on every device."""
    settings = picker_settings(PROFILE, QUALITY)
    rows = {name: setting.fleet.candidate_count for name, (setting, _) in settings.items()}
    assert rows == {"own": 4, "shared": 12, "price": 12}
    assert {policy for _, policy in settings.values()} == {"static-large", "random", "price"}


def test_rows_compare_every_picker_with_round_robin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each picker has a row per fleet; round robin saves nothing against itself."""
    monkeypatch.setattr(pickers, "_held_rps", lambda *_: 40.0)
    names = ("join-shortest-queue", "random")
    rows = picker_rows(PROFILE, QUALITY, seeds=(1, 2), duration_s=6.0, pickers=names)
    own = {row.picker: row for row in rows if row.fleet == "own"}
    assert set(own) == {"round-robin", *names}
    assert {row.picker for row in rows if row.fleet == "price"} == {*own, "joint"}
    assert own["round-robin"].gain.mean == 0.0
    assert own["join-shortest-queue"].gain.mean > 0.0 > own["random"].gain.mean
    again = picker_rows(PROFILE, QUALITY, seeds=(1, 2), duration_s=6.0, pickers=names)
    assert rows == again


def test_known_pickers_are_all_compared() -> None:
    """The default is every picker there is."""
    assert inspect.signature(picker_rows).parameters["pickers"].default == tuple(PICKERS)
