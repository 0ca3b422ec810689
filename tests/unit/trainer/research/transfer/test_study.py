"""One snapshot beside one trained for a world: what is trained, run and said."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.trainer.research.transfer.test_worlds import worlds
from trainer.evaluation.jobs import Context
from trainer.evaluation.policies import baseline
from trainer.learning.offline.config import Budget, OfflineConfig
from trainer.research.transfer import study
from trainer.research.tuning import TuningError

# The first test of a run compiles the simulator.
pytestmark = pytest.mark.timeout(900)

TINY = OfflineConfig(
    hidden_count=4,
    episode_requests=60,
    episodes_per_round=1,
    samples_per_episode=2,
    steps_per_round=1,
    search=None,
)


def row(policy: str, seed: int, performance: float, load: float = 0.1) -> study.Row:
    """Returns what one policy made of one case."""
    return {
        "world": "two tiers",
        "process": "poisson",
        "load": load,
        "policy": policy,
        "seed": seed,
        "availability": 1.0,
        "performance": performance,
    }


@pytest.mark.parametrize(
    ("trained", "verdict"),
    [((0.8, 0.9), "yes"), ((0.85, 0.956), "no"), ((0.75, 0.95), "cannot tell")],
)
def test_the_verdict_is_beyond_the_interval(trained: tuple[float, ...], verdict: str) -> None:
    """Two seeds with .8 and .9, in pairs; what differs by seed alone widens nothing."""
    rows = [row(study.SHIPPED, seed, performance) for seed, performance in enumerate((0.8, 0.9))]
    rows += [row(study.TRAINED, seed, performance) for seed, performance in enumerate(trained)]
    assert study.found_of(rows).verdict == verdict


def test_tables_have_a_dash_for_what_there_is_none_of() -> None:
    """A world without a trained snapshot; the lowest case is that of the means over seeds."""
    rows = [row(study.SHIPPED, 1, 0.8), row("price", 1, 0.7)]
    found = [study.found_of(rows)]
    policies = (study.SHIPPED, study.TRAINED, "price")
    text = study.summary(found, policies)
    assert "| two tiers | 1.0000 / 0.800 | - | 1.0000 / 0.700 | - | - | - | +10.00 ± 0.00 |" in text
    assert "| two tiers | poisson | 0.100 | 1.0000 / 0.800 | - |" in study.details(found, policies)
    rows += [row(study.TRAINED, 1, 0.8), row(study.TRAINED, 1, 0.9, 0.2)]
    rows += [row(study.SHIPPED, 1, 0.72, 0.2), row("price", 1, 0.7, 0.2)]
    assert study.found_of(rows).lowest == pytest.approx(0.8)


def test_all_policies_of_a_case_answer_the_same_requests() -> None:
    """Steady and clumped traffic, for every policy and seed alike."""
    world = worlds()["1 device"]
    setting = world.setting()
    names = ("price", "static-small")
    specs = {study.key_of(n, world.name): baseline(n, setting.catalog).spec for n in names}
    context = Context({world.name: setting}, specs)
    found = study.trials(world, names, (900_001,), 200)
    assert len(found) == len(names) * (study.RATES + len(study.CLUMPED))
    lightest = [each.run(context) for each in found if each.rate_rps == found[0].rate_rps]
    assert [each["policy"] for each in lightest] == list(names)
    assert all(each["availability"] > 0.99 for each in lightest)
    assert lightest[0]["performance"] > lightest[1]["performance"]
    assert lightest[0]["load"] == lightest[1]["load"] < 0.1


def test_a_snapshot_is_trained_once(tmp_path: Path) -> None:
    """It lies in the folder then; another world's is refused."""
    known = worlds()
    said: list[str] = []
    budget = Budget(seconds=0.0, rounds=2)
    blob = study.trained_for(known["reference tiers"], tmp_path, budget, said.append, TINY)
    assert said[-1] == "reference tiers: done 100 %"
    path = tmp_path / "reference-tiers.safetensors"
    assert path.read_bytes() == blob
    said.clear()
    again = study.trained_for(known["reference tiers"], tmp_path, budget, said.append, TINY)
    assert (again, said) == (blob, [])
    path.rename(tmp_path / "two-tiers.safetensors")
    with pytest.raises(TuningError, match="another world"):
        study.trained_for(known["two tiers"], tmp_path, budget, said.append, TINY)
