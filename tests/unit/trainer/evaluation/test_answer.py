"""The answer before the numbers: which policy, up to which load, how many GPUs."""

from __future__ import annotations

from typing import Any

from trainer.evaluation.answer import answer, best_policy, sentence
from trainer.evaluation.rows import Row

SMALL, LARGE = "static-mini", "static-big"


def sweep_row(policy: str, load: float, performance: float, availability: float = 1.0) -> Row:
    """A row of the sweep, safety net on, at a hundred requests/s for load 1."""
    return {
        "policy": policy,
        "safety_net": True,
        "load": load,
        "rate_rps": 100.0 * load,
        "performance": performance,
        "availability": availability,
    }


SWEEP = [
    *(sweep_row(SMALL, load, 0.5, held) for load, held in ((1, 1.0), (4, 1.0), (16, 0.2))),
    *(sweep_row(LARGE, load, each) for load, each in ((1, 1.0), (4, 0.2), (16, 0.0))),
    *(sweep_row("price", load, each) for load, each in ((1, 0.99), (4, 0.8), (16, 0.6))),
    *(sweep_row("dqn", load, each) for load, each in ((1, 0.99), (4, 0.9), (16, 0.1))),
    *(sweep_row("dqn, zeroed", load, each) for load, each in ((1, 1.0), (4, 1.0), (16, 1.0))),
]


def report(**changes: Any) -> dict[str, Any]:
    """What a suite found."""
    held = {"dqn": 800.0, LARGE: 100.0}
    gpus = [
        {"policy": "dqn", "safety_net": True, "rate_rps": rate, "devices": 2,
         "static_large_devices": needed, "most_devices_tried": 12}
        for rate, needed in ((100.0, 2.0), (400.0, 7.0), (1600.0, None))
    ]  # fmt: skip
    rows = [{"policy": name, "safety_net": True, "held_rps": rate} for name, rate in held.items()]
    return {"sweep": SWEEP, "load_ratio": rows, "per_gpu": gpus, **changes}


def test_the_best_policy_earns_most_where_it_can_be_earned() -> None:
    """Loads that not even always-small carries do not count, nor what only shows something."""
    assert best_policy(SWEEP, ["dqn, zeroed"], SMALL, "dqn") == "dqn"
    assert best_policy(SWEEP, ["dqn, zeroed", "dqn"], SMALL) == "price"


def test_the_answer_counts_gpus_at_the_highest_load_held() -> None:
    """Seven static GPUs for two at 400 requests/s; 1,600 are not held."""
    found = answer(report(), "dqn", LARGE)
    assert (found["held_rps"], found["static_large_held_rps"]) == (800.0, 100.0)
    assert (found["performance"], found["performance_rps"]) == (0.9, 400.0)
    assert found["sentence"] == (
        "Use dqn: it answers 99% in time up to 800 requests/s, 8.0 times as many as static-big, "
        "and earns 0.900 of the peak at 400. At 400 requests/s static-big needs 7 GPUs to earn as "
        "much as its 2: 5 saved."
    )


def test_rates_are_numbers_that_people_read() -> None:
    """A rate of thousands has no exponent, and is not said twice in a row."""
    found = {**answer(report(), "dqn", LARGE), "held_rps": 5067.4}
    said = sentence({**found, "performance_rps": 5067.4, "gpus_rps": 5067.4})
    assert "up to 5,067 requests/s" in said
    assert "earns 0.900 of the peak there. At 5,067 requests/s static-big needs 7" in said


def test_more_gpus_than_were_tried_are_not_made_up() -> None:
    """A number that was not found is not in the sentence."""
    gpus = [{**row, "static_large_devices": None} for row in report()["per_gpu"]]
    said = answer(report(per_gpu=gpus), "dqn", LARGE)["sentence"]
    assert said.endswith("its 2 GPUs earn what static-big does not with 12.")
    assert "saved" not in said


def test_what_holds_no_rate_is_not_praised() -> None:
    """The sentence says what would help."""
    found = {**answer(report(), "dqn", LARGE), "held_rps": 0.0}
    assert sentence(found).startswith("No rate is held at 99% in time")
