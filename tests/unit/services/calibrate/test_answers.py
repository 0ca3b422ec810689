"""What the stamps of live answers say about their tier's costs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.iteration_spread import stretch
from router.profile import TierProfile
from services.calibrate.answers import (
    Answer,
    alone_equations,
    batch_equations,
    iteration_cv,
    misfits,
    most_at_once,
    whole_equations,
    worst,
)
from services.calibrate.probe import Sample
from services.calibrate.questions import Question
from trainer.profiling.latency_fit import Equation, Fit, fit_tier

QUESTION = Question("", "words", 16)


@dataclasses.dataclass
class Running:
    """A request in the device below."""

    began_s: float
    prompt: int
    output: int
    stamps: list[tuple[float, int]] = dataclasses.field(default_factory=list)


def answered(
    truth: TierProfile, concurrency: int, count: int, *, seed: int = 0, jitter_s: float = 0.0
) -> list[Answer]:
    """A closed loop on a device of these costs, iteration by iteration."""
    rng = np.random.default_rng(seed)
    now_s, begun = 0.0, 0
    running: list[Running] = []
    waiting: list[Running] = []
    done: list[Running] = []

    def next_request() -> None:
        nonlocal begun
        if begun < count:
            begun += 1
            prompt, output = int(rng.integers(20, 900)), int(rng.integers(4, 12))
            waiting.append(Running(now_s, prompt, output))

    for _ in range(concurrency):
        next_request()
    while waiting or running:
        room = truth.max_batch - len(running)
        joined, waiting = waiting[:room], waiting[room:]
        running = [*running, *joined]
        iteration_s = truth.step_s + truth.per_sequence_s * len(running)
        iteration_s += truth.per_prompt_token_s * sum(each.prompt for each in joined)
        now_s += iteration_s * stretch(truth.iteration_cv, *rng.random(2))
        for each in running:
            late_s = truth.overhead_s + float(rng.uniform(0.0, jitter_s))
            each.stamps.append((now_s + late_s, 1))
        for each in [each for each in running if len(each.stamps) == each.output]:
            running.remove(each)
            done.append(each)
            next_request()
    return [answer(each) for each in done]


def answer(done: Running) -> Answer:
    """What a client saw of a request."""
    first_s, total_s = (done.stamps[i][0] - done.began_s for i in (0, -1))
    sample = Sample(QUESTION, "", first_s, total_s, done.output, done.began_s, tuple(done.stamps))
    return Answer(sample, done.prompt)


def fitted(truth: TierProfile, jitter_s: float = 0.0) -> tuple[Fit, list[Equation]]:
    """What a calibration would find."""
    alone = answered(truth, 1, 30, jitter_s=jitter_s)
    equations = alone_equations(alone)
    for batch in (4, 16):
        equations += batch_equations(answered(truth, batch, 60, jitter_s=jitter_s), batch)
    fit = fit_tier(equations, whole_equations(alone), max_batch=16, max_prompt_tokens=4096)
    return fit, equations


@settings(max_examples=20, deadline=None)
@given(st.floats(1e-3, 5e-2), st.floats(1e-4, 5e-3), st.floats(1e-5, 3e-4), st.floats(1e-4, 5e-3))
def test_the_fit_finds_the_costs_that_made_the_answers(
    step_s: float, per_sequence_s: float, per_prompt_token_s: float, overhead_s: float
) -> None:
    """Whatever ran beside an answer, every cost comes back, that of prompts too."""
    truth = TierProfile(
        step_s, per_sequence_s, per_prompt_token_s, max_batch=16, overhead_s=overhead_s
    )
    fit, equations = fitted(truth)
    assert fit.profile.step_s == pytest.approx(step_s, rel=1e-2)
    assert fit.profile.per_sequence_s == pytest.approx(per_sequence_s, rel=1e-2)
    assert fit.profile.per_prompt_token_s == pytest.approx(per_prompt_token_s, rel=1e-2)
    assert abs(worst(misfits(fit.profile, equations))[1]) < 1e-2


def test_stamps_may_come_a_little_late() -> None:
    """A process that wakes up to a third of an iteration late still tells who ran beside whom."""
    truth = TierProfile(0.02, 0.002, 8e-5, max_batch=16, overhead_s=0.002)
    found = fitted(truth, jitter_s=0.007)[0].profile
    assert found.step_s == pytest.approx(truth.step_s, rel=0.1)
    assert found.per_sequence_s == pytest.approx(truth.per_sequence_s, rel=0.1)
    assert found.per_prompt_token_s == pytest.approx(truth.per_prompt_token_s, rel=0.1)


@pytest.mark.parametrize("limit", [1, 5, 16])
def test_the_batch_limit_shows_in_who_gets_tokens(limit: int) -> None:
    """Whatever waits has no token before something that runs has ended."""
    truth = TierProfile(0.02, 0.002, 0.0, max_batch=limit)
    found = answered(truth, 24, 24, jitter_s=0.005)
    assert most_at_once([each.sample for each in found]) == limit


def test_answers_in_one_piece_are_fitted_by_their_whole_times() -> None:
    """A tier that does not stream has costs too; how many run at once cannot be seen."""
    truth = TierProfile(0.02, 0.002, 8e-5, max_batch=16)

    def in_one_piece(each: Answer) -> Answer:
        end_s, count = each.sample.stamps[-1][0], each.sample.output_token_count
        return dataclasses.replace(
            each, sample=dataclasses.replace(each.sample, stamps=((end_s, count),))
        )

    alone = [in_one_piece(each) for each in answered(truth, 1, 30)]
    batch = [in_one_piece(each) for each in answered(truth, 4, 60)]
    equations = alone_equations(alone) + batch_equations(batch, 4)
    fit = fit_tier(equations, whole_equations(alone), max_batch=16, max_prompt_tokens=4096)
    assert fit.profile.token_s == pytest.approx(truth.token_s, rel=0.1)
    assert fit.profile.per_prompt_token_s == pytest.approx(truth.per_prompt_token_s, rel=0.1)
    assert most_at_once([each.sample for each in batch]) == 0


def test_what_is_off_is_named_by_its_range() -> None:
    """Costs that are right but for long prompts are off there and nowhere else."""
    truth = TierProfile(0.02, 0.002, 8e-5)
    equations = alone_equations(answered(truth, 1, 60))
    off = misfits(dataclasses.replace(truth, per_prompt_token_s=0.0), equations)
    kind, amount = worst(off)
    assert kind.startswith("prompts of")
    assert int(kind.split()[4]) > 800
    assert amount < -0.4
    assert off["answers alone"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("jitter_s", [0.0, 0.004])
@pytest.mark.parametrize("cv", [0.05, 0.2, 0.5])
def test_the_spread_of_iterations_is_told_from_late_stamps(cv: float, jitter_s: float) -> None:
    """A stamp that is late makes one gap longer and the next one shorter; an iteration does not."""
    truth = TierProfile(0.02, 0.0, 0.0, overhead_s=0.002, iteration_cv=cv)
    found = iteration_cv(answered(truth, 1, 2_000, jitter_s=jitter_s))
    assert found == pytest.approx(cv, rel=0.15)


def test_late_stamps_alone_are_no_spread() -> None:
    """Iterations that all take the same are found to, but for the noise of the stamps."""
    truth = TierProfile(0.02, 0.0, 0.0, overhead_s=0.002)
    found = iteration_cv(answered(truth, 1, 2_000, jitter_s=0.004))
    assert found is not None
    assert found < 0.03
    assert iteration_cv(answered(truth, 1, 100)) == pytest.approx(0.0, abs=1e-6)


def test_an_answer_that_was_held_up_as_a_whole_is_left_out() -> None:
    """A machine that stood still for a second says nothing of iterations."""
    truth = TierProfile(0.02, 0.0, 0.0, iteration_cv=0.1)
    answers = answered(truth, 1, 200)
    held = answers[5].sample
    later = tuple((at_s + 1.0 * (n > 2), tokens) for n, (at_s, tokens) in enumerate(held.stamps))
    answers[5] = dataclasses.replace(answers[5], sample=dataclasses.replace(held, stamps=later))
    assert iteration_cv(answers) == pytest.approx(0.1, rel=0.25)


def test_too_few_single_tokens_tell_no_spread() -> None:
    """Answers in pieces of several tokens, short ones, and few of them."""
    truth = TierProfile(0.02, 0.0, 0.0, iteration_cv=0.1)
    answers = answered(truth, 1, 200)
    in_pieces = [
        dataclasses.replace(
            each,
            sample=dataclasses.replace(
                each.sample, stamps=tuple((at_s, 2) for at_s, _ in each.sample.stamps)
            ),
        )
        for each in answers
    ]
    assert iteration_cv(in_pieces) is None
    assert iteration_cv(answers[:3]) is None
