"""Where the time of an answered request went, by its stamps and the profile of who answered."""

from __future__ import annotations

from typing import NamedTuple

from services.router_inference.job import Choice, Job


class Spent(NamedTuple):
    """Parts of an answer's time, in seconds; together they are all of it.

    The stamps tell three stretches: until the last dispatch, until the first token, until the end.
    Of the second one, `prefill_s` and `hop_s` are what the profile of the answering candidate takes
    for them; what is left was waited for.

    Attributes:
        queue_s: before anything was done for the answer: the wait at the router, its decision,
            candidates that were given up, and what others on the device cost until the first token.
        prefill_s: the prompt and the first token.
        decode_s: from the first token to the end.
        hop_s: outside of router and device: the way to the tier, and its work around the model.
    """

    queue_s: float
    prefill_s: float
    decode_s: float
    hop_s: float


def time_spent(job: Job) -> Spent:
    """Returns where the time of a request went whose answer is complete."""
    assert job.choice is not None  # who was answered was decided for
    prefill_s, token_s, hop_s = _profiled(job, job.choice)
    dispatch_s, end_s = job.dispatch_s, job.end_s
    first_s = job.first_token_s or end_s
    waited_s, decode_s = max(0.0, first_s - dispatch_s), end_s - first_s
    # An answer in one piece shows its first token at its end.
    is_whole = job.output_tokens > 1 and decode_s < token_s / 2.0
    unseen_s = (job.output_tokens - 1) * token_s if is_whole else 0.0
    expected_s = prefill_s + unseen_s + hop_s
    # What is faster than its profile spent all of it so.
    share = min(1.0, waited_s / expected_s) if expected_s else 0.0
    return Spent(
        dispatch_s - job.arrival_s + waited_s - share * expected_s,
        share * prefill_s,
        share * unseen_s + decode_s,
        share * hop_s,
    )


def _profiled(job: Job, choice: Choice) -> tuple[float, float, float]:
    """Returns what the prompt with the first token, each further token, and the hop take, alone."""
    row = choice.action
    target = job.target
    if target is not None and target.candidate != choice.target.candidate:
        if target.candidate not in choice.candidates:  # it joined the mesh since
            return 0.0, 0.0, 0.0
        row = choice.candidates.index(target.candidate)
    arrays = choice.inputs.fleet.arrays
    # Plain numbers: those of numpy take twice as long, here and in all that follows.
    slowness = choice.inputs.slowness_D.item(arrays.device_C[row])
    token_s = slowness * (arrays.step_s_C.item(row) + arrays.per_sequence_s_C.item(row))
    new_tokens = job.new_tokens_at(choice.candidates[row])
    prompt_s = slowness * new_tokens * arrays.per_prompt_token_s_C.item(row)
    return prompt_s + token_s, token_s, slowness * arrays.overhead_s_C.item(row)
