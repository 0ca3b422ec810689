"""Compiled, plain and simulated, a decision is the same: candidate, scores, scalars.

Shape letters: K tasks, C candidates, D devices.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from router import entry
from router.bound import Bind, BoundDecision, Rule, bind_plain
from router.dqn.paper_snapshot import flat, load_paper_snapshot
from router.dqn.snapshot import load_snapshot
from router.features import SCHEMA
from router.fleet import FleetArrays, _peers
from router.picker import PICKERS
from router.policies.dqn import DqnPolicy
from router.policies.scores import Query
from router.policies.table import ROW, TABLE
from router.seat import KEPT, NO_SEAT, Seat
from tests.unit.router import fleets
from tests.unit.router.machine import compiled_bind
from trainer.shipped import POLICIES, shipped
from trainer.simulation import compiled

TIERS, TASKS = 3, 4
LEARNED = ("opt-a100", "reference")
"""Shipped snapshots of the network."""
NAMES = (*(entry.name for entry in TABLE if entry.kernel), *LEARNED)


@cache
def rule_of(name: str) -> Rule:
    """Returns the rule of a policy, of a learned one from the snapshot that is shipped."""
    folder = shipped(POLICIES)
    if name in LEARNED:
        snapshot = load_snapshot((folder / f"{name}.safetensors").read_bytes(), SCHEMA)
        return Rule.of(DqnPolicy(snapshot))
    entry = TABLE[ROW[name]]
    memory = list(entry.memory)
    if name == "static-<tier>":
        memory = [1.0]
    if name == "scheduled-price":
        memory = rule_of("opt-a100").params_P[len(entry.parameters) :].tolist()
    if name == "dqn-paper":
        blob = (folder / "opt-a100.dqn-paper.safetensors").read_bytes()
        memory = flat(load_paper_snapshot(blob).weights).tolist()
    values = [parameter.default for parameter in entry.parameters]
    return Rule(ROW[name], np.array([*values, *memory, 0.0]))


def random_fleet(rng: np.random.Generator) -> FleetArrays:
    """Returns devices with some of the tiers each, some ramping up or gone."""
    tier, on = [], []
    # Every tenth is large enough for a shortlist.
    device_count = int(rng.integers(1, 9)) if rng.random() < 0.9 else 40
    for device in range(device_count):
        tiers = np.flatnonzero(rng.random(TIERS) < 0.8) if rng.random() < 0.5 else range(TIERS)
        tier += [int(t) for t in tiers] or [0]
        on += [device] * max(1, len(tiers))
    count, tier_C, device_C = len(tier), np.array(tier), np.array(on)
    size_C = np.array([1.0, 4.0, 12.0])[tier_C] * rng.uniform(0.5, 2.0, count)
    availability_C = rng.choice([0.0, 0.3, 1.0], count, p=[0.1, 0.2, 0.7])
    return FleetArrays(
        tier_C,
        device_C,
        _peers(device_C),
        0.001 * size_C,
        1e-5 * size_C,
        5e-6 * size_C,
        rng.uniform(0.0, 0.01, count),
        rng.integers(1, 64, count).astype(np.float64),
        np.ascontiguousarray(np.sort(rng.uniform(0.3, 1.0, (TASKS, TIERS)))[:, tier_C]),
        availability_C,
        rng.random(count) < rng.choice([0.3, 1.0]),
        np.full(count, 4_000.0),
        np.zeros(count),
    )


def random_query(rng: np.random.Generator) -> Query:
    """Returns a request in any traffic."""
    return Query(
        int(rng.integers(TASKS)),
        float(rng.choice([-0.1, 0.0, 0.02, 0.4, 5.0])),
        float(rng.integers(1, 2000)),
        float(rng.integers(1, 200)),
        float(rng.choice([1.0, 8.0])),
        float(rng.choice([0.0, 0.2])),
        float(rng.choice([0.0, 110.0])),
        float(rng.choice([0.0, 1.0, 50.0, 3000.0])),
        float(rng.choice([0.0, 40.0, 2500.0])),
        float(rng.choice([0.0, 0.1, 3.0])),
        float(rng.random()),
        float(rng.choice([0.01, 0.5, 1.0])),
        float(rng.choice([0.0, 20.0])),
        float(rng.choice([0.1, 1.0, 30.0])),
        float(rng.choice([1.0, 1.4])),
        float(rng.choice([0.0, 0.0, 0.7, 3.0])),
        float(rng.choice([0.0, 0.0, 0.0, 1.0])),
        float(rng.choice([0.0, 0.0, -0.7, 0.7])),
    )


def random_seat(rng: np.random.Generator, count: int, prompt_tokens: float) -> Seat:
    """Returns where a conversation was served last; of every third request nowhere."""
    if rng.random() < 1 / 3:
        return NO_SEAT
    cached = float(rng.choice([0.0, 0.8])) * prompt_tokens
    return Seat(int(rng.integers(count)), cached, float(rng.choice([-1.0, 0.0, 0.05, 1.0])))


class Case:
    """A random fleet under random load, and the arguments of some decisions on it."""

    def __init__(self, name: str, seed: int) -> None:
        """Draws it."""
        rng = np.random.default_rng(seed)
        self.rule = rule_of(name)
        if rng.random() < 0.2:
            self.rule = self.rule._replace(picker=int(rng.choice(list(PICKERS.values()))))
        self.fleet = random_fleet(rng)
        count, scale = len(self.fleet.tier_C), float(rng.choice([1.0, 6.0, 100.0]))
        self.own_LC = np.array(fleets.random_load(rng, count, scale))
        self.others_LC = np.array(fleets.random_load(rng, count, scale)) * rng.integers(2)
        self.asked: list[tuple[Any, ...]] = []
        for _ in range(3):
            query, draws = random_query(rng), rng.random(2).tolist()
            pin = int(rng.choice([-1, -1, -1, 0, 2]))
            floor, factor = float(rng.choice([0.0, 0.6])), float(rng.choice([0.0, 0.7, 1.7]))
            seat = random_seat(rng, count, query.prompt_tokens)
            self.asked.append((query, floor, pin, *draws, query.slack_s, factor, seat))

    def bound(self, bind: Bind) -> BoundDecision:
        """Returns its decision, with a memory of its own."""
        rule = self.rule._replace(params_P=self.rule.params_P.copy())
        seen_LC = np.zeros_like(self.own_LC)
        return BoundDecision(rule, self.fleet, self.own_LC, self.others_LC, seen_LC, bind)


def simulated(bound: BoundDecision, asked: tuple[Any, ...]) -> int:
    """Decides as the simulator does, on a board whose load is that of a decision."""
    b, (query, floor, pin, ramp_draw, *_, seat) = bound.board, asked
    fleet = b.fleet
    fleet.cached_C[seat.row] = seat.cached_tokens if seat.row >= 0 else 0.0
    compiled.kernels.allowed_mask(fleet, query.task, floor, pin, ramp_draw, b.allowed_C)
    is_seat_open = seat.row >= 0 and b.allowed_C[seat.row]
    if compiled.home.stays(
        fleet, b.seen, b.allowed_C, query.slack_s, query.prompt_tokens, query.event_tokens,
        b.decided.predicted_s_C,
    ):  # fmt: skip
        fleet, query = compiled.home.at_home(fleet, b.usable_C), compiled.home.own_traffic(query)
    if is_seat_open:
        b.allowed_C[seat.row] = True
    action = int(
        compiled.decision.decide(
            bound.rule.row,
            fleet,
            b.seen,
            b.own,
            b.allowed_C,
            query,
            b.params_P,
            b.weights,
            b.scratch,
            b.features_CF,
            b.decided,
            False,
        )
    )
    if seat.row >= 0 and seat.margin >= 0.0 and action >= 0:
        stay = compiled.decision.stay_seated(
            bound.rule.row, fleet, b.allowed_C, query, b.scratch, b.decided, action, *seat[::2]
        )
        action = seat.row if stay == KEPT else action
    fleet.cached_C[seat.row] = 0.0
    return action


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=30)
def test_compiled_plain_and_simulated_decide_alike(name: str, seed: int) -> None:
    """The same candidate, scores within 1e-9, the same scalars, memory included."""
    case = Case(name, seed)
    plain, machine = case.bound(bind_plain), case.bound(compiled_bind())
    for asked in case.asked:
        before_P = plain.board.params_P.copy()
        action = plain.decide(*asked)
        assert machine.decide(*asked) == action
        ours, theirs = plain.board, machine.board
        np.testing.assert_allclose(theirs.result_R, ours.result_R, rtol=1e-12)
        np.testing.assert_array_equal(theirs.allowed_C, ours.allowed_C)
        np.testing.assert_array_equal(theirs.params_P, ours.params_P)
        if action < 0:
            continue
        score_C = ours.decided.score_C.copy()
        np.testing.assert_allclose(theirs.decided.score_C, score_C, rtol=1e-9, atol=1e-9)
        ours.params_P[:] = before_P  # what a memory says before is what the simulator starts from
        again = simulated(plain, asked)
        assert again == action or case.rule.picker
        np.testing.assert_allclose(ours.decided.score_C, score_C, rtol=1e-9, atol=1e-9)


def test_numbers_of_any_kind_compile_nothing_anew() -> None:
    """Whole numbers and numpy's own are taken as the numbers they are."""
    case = Case("price", 1)
    bound = case.bound(compiled_bind())
    query, *others = case.asked[0]
    expected = bound.decide(query, *others)
    whole = query._replace(task=np.int32(query.task), prompt_tokens=int(query.prompt_tokens))
    assert bound.decide(whole, *others) == expected


def test_damaged_code_is_refused() -> None:
    """A byte that changed is noticed before anything is run."""
    with pytest.raises(entry.CodeError, match="damaged"):
        entry.load(bytes(64))


def test_code_is_compiled_for_every_processor() -> None:
    """A process that would compile for its own processor alone refuses to."""
    with pytest.raises(entry.CodeError, match="ENVIRONMENT"):
        entry.compiled_code()


@pytest.mark.parametrize(
    "wrong", [np.zeros(12)[::2], np.zeros(6, np.float32), np.zeros(7)], ids=["gap", "type", "size"]
)
def test_arrays_that_compiled_code_would_misread_are_refused(wrong: NDArray[Any]) -> None:
    """It steps through memory without looking, so gaps, types and sizes are looked at before."""
    board = BoundDecision(rule_of("price"), fleets.fleet(2).arrays, *np.zeros((3, 3, 6))).board
    entry.table_of(board._replace(rescue_C=np.zeros(6)))
    with pytest.raises(ValueError, match="rescue_C"):
        entry.table_of(board._replace(rescue_C=wrong))
