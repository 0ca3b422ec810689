"""The compiled kernels are the router's own: both decide alike on random states."""

from __future__ import annotations

import numpy as np
import pytest
from numba.core.caching import IndexDataCacheFile
from numpy.typing import NDArray

from router import features, kernels, picker, safety
from router.dqn import network
from router.dqn.snapshot import Weights
from router.ledger import LoadArrays
from router.policies import price, scores, table
from router.policies.dqn import PRICE_DEFAULTS_P
from tests.unit.router import fleets
from trainer.simulation import compiled

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles

FLEET = fleets.fleet(4)
COUNT = FLEET.candidate_count
PAPER_HIDDEN, TIERS, TASKS = 3, 3, 2
PAPER_SIZE = (TASKS + TIERS + 2) * PAPER_HIDDEN + (PAPER_HIDDEN + 1) * TIERS
PAPER_WEIGHTS = np.random.default_rng(3).normal(size=PAPER_SIZE).tolist()
KNOT = [-3.0, 8.0, 0.7, 0.4, 1.5, 5.0, 0.1, 0.25, 0.75]
BESIDES = {
    "static-<tier>": [1.0],
    "random": [0.0],
    "round-robin": [4.0],
    "scheduled-price": [2.0, 2.0, -0.5, 1.0, *KNOT, *KNOT],
    "dqn-paper": [PAPER_HIDDEN, TIERS, *PAPER_WEIGHTS],
}
"""What kernels of some policies find after their parameters."""
SCORED = tuple(entry.name for entry in table.TABLE if entry.kernel is not None)


def random_state(
    rng: np.random.Generator,
) -> tuple[LoadArrays, np.ndarray, scores.Query]:
    """Returns a load, a mask with at least one candidate open, and a query."""
    load = fleets.random_load(rng, COUNT, float(rng.choice([2.0, 20.0, 200.0])))
    allowed_C = rng.random(COUNT) < 0.8
    allowed_C[int(rng.integers(COUNT))] = True
    query = scores.Query(
        int(rng.integers(2)),
        float(rng.uniform(0.01, 1.0)),
        float(rng.integers(1, 400)),
        float(rng.integers(1, 20)),
        float(rng.integers(1, 20)),
        float(rng.choice([0.0, 0.2])),
        float(rng.choice([0.0, 110.0])),
        float(rng.uniform(0, 3000)),
        float(rng.uniform(0, 3000)),
        float(rng.uniform(0, 1)),
        float(rng.random()),
    )
    return load, allowed_C, query


@pytest.mark.parametrize("name", SCORED)
def test_scores_and_choices_agree(name: str) -> None:
    """Compiled and plain, each row gives the same scores and choice."""
    rng = np.random.default_rng(4)
    entry = table.BY_NAME[name]
    params_P = np.array(
        [*(parameter.default for parameter in entry.parameters), *BESIDES.get(name, [])]
    )
    plain_P = params_P.copy()
    for _ in range(60):
        load, allowed_C, query = random_state(rng)
        arrays = scores.scratch(COUNT)
        plain = scores.scratch(COUNT)
        compiled.twin(scores).predict(FLEET.arrays, load, query, arrays)
        compiled.twin(table).score(
            table.ROW[name], FLEET.arrays, load, allowed_C, query, params_P, arrays
        )
        scores.predict(FLEET.arrays, load, query, plain)
        entry.score(FLEET.arrays, load, allowed_C, query, plain_P, plain)
        for compiled_C, plain_C in zip(arrays, plain, strict=True):
            np.testing.assert_allclose(compiled_C, plain_C, rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(params_P, plain_P)
        assert compiled.kernels.best_allowed(arrays.score_C, allowed_C) == kernels.best_allowed(
            plain.score_C, allowed_C
        )


@pytest.mark.parametrize("name", picker.PICKERS)
def test_pickers_agree(name: str) -> None:
    """Compiled and plain, a picker takes the same endpoint and remembers the same."""
    rng = np.random.default_rng(8)
    last_T, plain_last_T = np.full(TIERS, -1), np.full(TIERS, -1)
    for _ in range(60):
        load, allowed_C, query = random_state(rng)
        tier, draw = int(rng.integers(TIERS)), float(rng.random())
        number = picker.PICKERS[name]
        row = compiled.picker.pick(
            number, FLEET.arrays, load, allowed_C, query, tier, last_T, draw, np.zeros(COUNT)
        )
        plain = picker.pick(
            number,
            FLEET.arrays,
            load,
            allowed_C,
            query,
            tier,
            plain_last_T,
            draw,
            np.zeros(COUNT),
        )
        assert row == plain
        assert last_T.tolist() == plain_last_T.tolist()


def test_features_agree() -> None:
    """The feature matrix is the same to the last place of float32."""
    rng = np.random.default_rng(5)
    for _ in range(60):
        load, allowed_C, q = random_state(rng)
        q = q._replace(own_share=float(rng.uniform(0.1, 1.0)), own_rate_rps=50.0, burstiness=4.0)
        own, open_C = fleets.random_load(rng, COUNT, 5.0), allowed_C.copy()
        results = []
        for module in (features, compiled.features):
            out_CF = np.zeros((COUNT, features.FEATURE_COUNT), np.float32)
            scratch = features.feature_scratch(COUNT)
            module.compute_features(
                FLEET.arrays, load, own, allowed_C, q, PRICE_DEFAULTS_P, scratch, False, out_CF
            )
            np.testing.assert_array_equal(allowed_C, open_C)
            results.append(out_CF)
        np.testing.assert_allclose(results[0], results[1], rtol=1e-5, atol=1e-6)


def test_safety_agrees() -> None:
    """Admission, rescue time and rescue choice are the same."""
    rng = np.random.default_rng(6)
    for _ in range(60):
        load, allowed_C, q = random_state(rng)
        action = int(np.flatnonzero(allowed_C)[-1])
        answers = []
        for module in (safety, compiled.safety):
            scratch_C, predicted_s_C = np.zeros(COUNT), np.zeros(COUNT)
            common = (FLEET.arrays, load, allowed_C)
            kernels.predict_latency_s(FLEET.arrays, load, q.prompt_tokens, 8.0, predicted_s_C)
            answers.append(
                (
                    module.admit(*common, q.slack_s, q.prompt_tokens, 8.0, 0.7, scratch_C),
                    module.least_rescue_s(*common, action, q.prompt_tokens, 8.0, scratch_C),
                    module.choose_rescue(
                        FLEET.arrays, allowed_C, action, q.task, q.slack_s, 1.25, predicted_s_C
                    ),
                )
            )
        assert answers[0][0] == answers[1][0]
        assert answers[0][1] == pytest.approx(answers[1][1])
        assert answers[0][2] == answers[1][2]


def test_network_agrees() -> None:
    """The Q-network scores and ranks alike."""
    rng = np.random.default_rng(7)
    hidden, count = 16, features.FEATURE_COUNT

    def tensor(*shape: int) -> NDArray[np.float32]:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    weights = Weights(
        tensor(count, hidden),
        tensor(hidden),
        tensor(2 * hidden, hidden),
        tensor(hidden),
        tensor(hidden + count),
        np.float32(0.1),
    )
    for _ in range(20):
        x_CF = rng.random((COUNT, count)).astype(np.float32)
        base_C = rng.normal(size=COUNT)
        _, allowed_C, _ = random_state(rng)
        results = []
        for module in (network, compiled.twin(network)):
            out_C = np.zeros(COUNT)
            module.q_values(x_CF, allowed_C, base_C, *weights, out_C)
            results.append(out_C)
        np.testing.assert_allclose(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_the_code_is_the_routers_own() -> None:
    """Compiled functions carry the very code objects of the router's modules."""
    assert compiled.twin(price).score.py_func.__code__ is price.score.__code__
    assert compiled.kernels.logistic.py_func.__code__ is kernels.logistic.__code__


def test_code_that_cannot_be_kept_runs_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk under the folder of compiled code costs the next start, not this one."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def add_one(value: int) -> int:
        return value + 1

    monkeypatch.setattr(IndexDataCacheFile, "save", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        assert compiled.jit(add_one)(1) == 2
