"""What a live answer says about its tier's costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from trainer.profiling.latency_fit import Equation, Fit, FitError, fit_tier

FEWEST_ANSWERS = 4
"""As many as a tier has costs."""


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

    def equations(self) -> list[Equation]:
        """Its equations for the fit.

        The time from the first token to the last has no overhead in it, which keeps overhead and
        iterations apart even for a tier whose whole answer takes a few milliseconds. The time to
        the first token is used of answers alone: others would make it wait for an iteration.
        """
        found: list[Equation] = []
        if self.batch == 1:
            row = (1.0, 1.0, 1.0, self.prompt_tokens)
            found.append(Equation("first", row, self.first_token_s))
        later = self.output_tokens - 1.0
        rest_s = self.total_s - self.first_token_s
        if later > 0 and rest_s > 0:
            row = (0.0, later, later * self.batch, self._others_prompts(later))
            found.append(Equation(f"decode at {self.batch:g}", row, rest_s))
        return found

    def whole(self) -> Equation:
        """The equation of its whole time.

        While an answer of n tokens is made, n iterations pass. Each costs the step and every
        sequence in it. Its own prompt is worked off once; the other batch - 1 places change
        hands once per mean answer, and each newcomer's prompt is worked off meanwhile.
        """
        prompts = self.prompt_tokens + self._others_prompts(self.output_tokens)
        row = (1.0, self.output_tokens, self.output_tokens * self.batch, prompts)
        return Equation("whole", row, self.total_s)

    def _others_prompts(self, iterations: float) -> float:
        turnover = (self.batch - 1.0) * iterations / self.mean_output_tokens
        return turnover * self.mean_prompt_tokens


def fit_answers(answers: Sequence[Measured], *, max_batch: int, max_prompt_tokens: int) -> Fit:
    """Fits one tier's costs to its answers; the errors are those of the whole times.

    Args:
        answers: At several batch sizes and prompt lengths.
        max_batch: Most sequences in one iteration, from the tier's configuration.
        max_prompt_tokens: Most prompt tokens admitted in one iteration.

    Raises:
        FitError: There are too few answers, or no finite cost explains them.
    """
    if len(answers) < FEWEST_ANSWERS:
        raise FitError(f"answers: at least {FEWEST_ANSWERS} are needed, got {len(answers)}")
    return fit_tier(
        [equation for each in answers for equation in each.equations()],
        [each.whole() for each in answers],
        max_batch=max_batch,
        max_prompt_tokens=max_prompt_tokens,
    )
