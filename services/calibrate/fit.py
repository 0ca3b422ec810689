"""Least squares from measured answers to a latency profile."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np

from router.profile import TierProfile
from trainer.profiling.latency_fit import SMALLEST_STEP_S, Fit, robust_least_squares

Row = tuple[float, float, float, float]
PARAMETERS = ("overhead_s", "step_s", "per_sequence_s", "per_prompt_token_s")


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """One answer under known conditions.

    Attributes:
        total_s: From sending to the end.
        first_token_s: From sending to the first token.
        output_tokens: Tokens of the answer, the one that ends it included: its iterations.
        prompt_tokens: Tokens of its prompt.
        batch: Sequences that ran beside and with it, itself included.
        mean_output_tokens: Mean answer length of the run: how often the others were replaced.
        mean_prompt_tokens: Mean prompt length of the run.
    """

    total_s: float
    first_token_s: float
    output_tokens: float
    prompt_tokens: float
    batch: float
    mean_output_tokens: float
    mean_prompt_tokens: float

    def row(self) -> Row:
        """What each parameter is multiplied with in the total; order of ``PARAMETERS``.

        While an answer of n tokens is made, n iterations pass. Each costs the step and every
        sequence in it. Its own prompt is worked off once; the other batch - 1 places change
        hands once per mean answer, and each newcomer's prompt is worked off meanwhile.
        """
        prompts = self.prompt_tokens + self._others_prompts(self.output_tokens)
        return 1.0, self.output_tokens, self.output_tokens * self.batch, prompts

    def equations(self) -> list[tuple[str, Row, float]]:
        """Its equations for the fit: a kind, the row and the measured time in seconds.

        The time from the first token to the last has no overhead in it, which keeps overhead and
        iterations apart even for a tier whose whole answer takes a few milliseconds. The time to
        the first token is used of answers alone: others would make it wait for an iteration.
        """
        found: list[tuple[str, Row, float]] = []
        if self.batch == 1:
            found.append(("first", (1.0, 1.0, 1.0, self.prompt_tokens), self.first_token_s))
        later = self.output_tokens - 1.0
        rest_s = self.total_s - self.first_token_s
        if later > 0 and rest_s > 0:
            row = (0.0, later, later * self.batch, self._others_prompts(later))
            found.append((f"decode at {self.batch:g}", row, rest_s))
        return found

    def _others_prompts(self, iterations: float) -> float:
        turnover = (self.batch - 1.0) * iterations / self.mean_output_tokens
        return turnover * self.mean_prompt_tokens


def fit_tier(samples: Sequence[Measured], *, max_batch: int, max_prompt_tokens: int) -> Fit:
    """Fits one tier's parameters, none below zero, to relative errors.

    Kinds of equations count alike, however many there are of each. Answers that something else on
    the machine delayed lose weight by Huber's rule.

    Args:
        samples: Answers at several batch sizes and prompt lengths.
        max_batch: Most sequences in one iteration, from the tier's configuration.
        max_prompt_tokens: Most prompt tokens admitted in one iteration.

    Raises:
        ValueError: Fewer samples than parameters.
    """
    if len(samples) < len(PARAMETERS):
        raise ValueError(f"samples: at least {len(PARAMETERS)} are needed, got {len(samples)}")
    equations = [each for sample in samples for each in sample.equations()]
    kinds = Counter(kind for kind, _, _ in equations)
    targets_N = np.array([target for _, _, target in equations])
    rows_NP = np.array([row for _, row, _ in equations])
    shares_N = np.array([1.0 / kinds[kind] for kind, _, _ in equations])
    solution_P = robust_least_squares(rows_NP, targets_N, shares_N)
    overhead, step, per_sequence, per_prompt = (float(value) for value in solution_P)
    profile = TierProfile(
        step_s=max(SMALLEST_STEP_S, step),
        per_sequence_s=per_sequence,
        per_prompt_token_s=per_prompt,
        max_batch=max_batch,
        max_prompt_tokens_per_step=max_prompt_tokens,
        overhead_s=overhead,
    )
    totals_N = np.array([each.total_s for each in samples])
    predicted_N = np.array([each.row() for each in samples]) @ solution_P
    return Fit(
        profile,
        len(samples),
        float(np.median(np.abs(predicted_N - totals_N) / totals_N)),
        float(abs(predicted_N.sum() - totals_N.sum()) / totals_N.sum()),
    )
